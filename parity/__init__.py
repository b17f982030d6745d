"""Prove that the two twins are the same function, and carry checkpoints between them.

The only package that sees both frameworks. Importing it sets, before JAX starts: no preallocation
of the GPU, which both frameworks share; bfloat16 rounded where the program says so; and
deterministic operations.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
for _flag in ("--xla_allow_excess_precision=false", "--xla_gpu_deterministic_ops=true"):
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

try:  # after the environment
    from parity.convert import to_flax, to_torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"parity needs both frameworks, and {error.name} is not installed: "
        "pip install 'diy-lm[all]'"
    ) from error

__all__ = ["to_flax", "to_torch"]
