"""Where the JAX twin computes."""

from __future__ import annotations

import jax


def choose_device(name: str | None) -> jax.Device:
    """The first device of a kind; None: the first that JAX has.

    Args:
        name: as JAX has it: `cpu`, `gpu`, `tpu`, or `cuda`, as the other twin calls a GPU.

    Raises:
        ValueError: there is no such device.
    """
    try:
        return jax.devices(name)[0]
    except RuntimeError as error:
        there = dict.fromkeys(["cpu", jax.default_backend()])
        raise ValueError(
            f"--device {name}: JAX finds no such device here, only {', '.join(there)}"
        ) from error
