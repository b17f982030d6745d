"""AdamW with clipping as its formula, in float64 numpy: the oracle of the optimizer's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_core.training.config import OptimizerConfig

Tensors = Mapping[str, NDArray[Any]]


def updated(
    first: Tensors, config: DIYConfig, recipe: OptimizerConfig, gradients: Sequence[Tensors]
) -> dict[str, NDArray[Any]]:
    """Parameters and both moments (`exp_avg of NAME`) after these gradients (AdamW, 1711.05101)."""
    decayed = {t.hf: t.kind in ("embedding", "projection") for t in tensors(config)}
    p = {name: array.astype(np.float64) for name, array in first.items()}
    m = {name: np.zeros(array.shape) for name, array in first.items()}
    v = {name: np.zeros(array.shape) for name, array in first.items()}
    for step, drawn in enumerate(gradients, start=1):
        norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in drawn.values()))
        factor = min(1.0, recipe.clip_norm / (norm + 1e-6))
        for name in p:
            g = drawn[name] * factor
            m[name] = recipe.beta1 * m[name] + (1 - recipe.beta1) * g
            v[name] = recipe.beta2 * v[name] + (1 - recipe.beta2) * g * g
            mean = m[name] / (1 - recipe.beta1**step)
            root = np.sqrt(v[name] / (1 - recipe.beta2**step))
            decay = recipe.weight_decay * p[name] if decayed[name] else 0.0
            p[name] = p[name] - recipe.learning_rate * (mean / (root + recipe.eps) + decay)
    moments = {f"exp_avg of {name}": array for name, array in m.items()}
    return p | moments | {f"exp_avg_sq of {name}": array for name, array in v.items()}
