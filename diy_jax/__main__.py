"""The command line: `diy-jax generate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from diy_core.command_line import Generate, build_parser, run
from diy_jax.generate import generate
from diy_jax.model import DIYForCausalLM


def _load(path: str, dtype: str, device: str | None) -> Generate:
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    try:
        jax.config.update("jax_default_device", jax.devices(device)[0])
    except RuntimeError as error:
        raise ValueError(f"--device {device}: {error}") from error
    model, params = DIYForCausalLM.from_pretrained(path, jnp.dtype(dtype))
    return partial(generate, model, params)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run(build_parser("diy-jax", "JAX/Flax", "cpu, gpu, tpu"), argv, _load)


if __name__ == "__main__":
    sys.exit(main())
