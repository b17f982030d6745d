"""First weights, drawn once for both twins: numpy, keyed by (seed, tensor name).

Each tensor has a stream of its own, so that its values depend neither on the other tensors nor on
the order of drawing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.mapping import Tensor, tensors


def first_weights(config: DIYConfig, seed: int) -> Iterator[tuple[Tensor, NDArray[np.float32]]]:
    """Every tensor of the model with its first values, float32, in the torch layout.

    | kind                  | distribution                       |
    |-----------------------|------------------------------------|
    | embedding, projection | normal(0, `initializer_range`)     |
    | norm                  | ones                               |
    | bias                  | zeros                              |

    Raises:
        ValueError: `seed` is not a non-negative integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    for tensor in tensors(config):
        yield tensor, _draw(tensor, config.initializer_range, int(seed))


def _draw(tensor: Tensor, std: float, seed: int) -> NDArray[np.float32]:
    if tensor.kind == "norm":
        return np.ones(tensor.shape, np.float32)
    if tensor.kind == "bias":
        return np.zeros(tensor.shape, np.float32)
    key = hashlib.sha256(f"{seed}/{tensor.hf}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
    return generator.standard_normal(tensor.shape, np.float32) * np.float32(std)
