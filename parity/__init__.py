"""Prove that the two twins are the same function, and carry checkpoints between them.

The only package that sees both frameworks. Importing it sets, before JAX starts: no preallocation
of the GPU, which both frameworks share; bfloat16 rounded where the program says so; and
deterministic operations. It loads neither framework before one is needed, and needs neither for
Hugging Face directories and GGUF files.
"""

from __future__ import annotations

import diy_core.commands.beginning  # noqa: F401  before all else, which takes time

# isort: split
import importlib
import os
from typing import TYPE_CHECKING, Any

from diy_core.system.requirements import require

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
for _flag in ("--xla_allow_excess_precision=false", "--xla_gpu_deterministic_ops=true"):
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

if TYPE_CHECKING:
    from parity.convert.formats import convert as convert_checkpoint
    from parity.convert.memory import to_flax, to_torch
    from parity.convert.optimizer_state import (
        decay_mask,
        optimizer_state_to_optax,
        optimizer_state_to_torch,
    )
    from parity.tracer import infer_rules, trace
    from parity.tracing.match.rules import Rule

__all__ = [
    "Rule",
    "convert_checkpoint",
    "decay_mask",
    "infer_rules",
    "optimizer_state_to_optax",
    "optimizer_state_to_torch",
    "to_flax",
    "to_torch",
    "trace",
]
_HOMES = {
    "Rule": "parity.tracing.match.rules",
    **dict.fromkeys(("infer_rules", "trace"), "parity.tracer"),
    "convert_checkpoint": "parity.convert.formats",
    **dict.fromkeys(("to_flax", "to_torch"), "parity.convert.memory"),
    **dict.fromkeys(
        ("decay_mask", "optimizer_state_to_optax", "optimizer_state_to_torch"),
        "parity.convert.optimizer_state",
    ),
}
_NAMES = {"convert_checkpoint": "convert"}  # in its module, where it has another


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of them

    def __getattr__(name: str) -> Any:
        """What the package offers, imported when it is asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name != "convert_checkpoint":
            require(f"parity.{name}", "torch", "jax", extra="all")
        return getattr(importlib.import_module(_HOMES[name]), _NAMES.get(name, name))


def __dir__() -> list[str]:
    """The public names, imported already or not."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
