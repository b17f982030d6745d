"""Prove that the two twins are the same function, and carry checkpoints between them.

The only package that sees both frameworks. Importing it sets, before JAX starts: no preallocation
of the GPU, which both frameworks share; bfloat16 rounded where the program says so; and
deterministic operations. It loads neither framework before one is needed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
for _flag in ("--xla_allow_excess_precision=false", "--xla_gpu_deterministic_ops=true"):
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

if TYPE_CHECKING:
    from parity.convert import to_flax, to_torch
    from parity.tracing import Rule, infer_rules, trace

__all__ = ["Rule", "infer_rules", "to_flax", "to_torch", "trace"]


def __getattr__(name: str) -> Any:
    """What the package offers, imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from parity import convert, tracing

    return getattr(convert if hasattr(convert, name) else tracing, name)
