"""What each side writes down of a training step, and what both were asked to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class MicroStep:
    """One forward and backward pass.

    Attributes:
        ids: token ids (B, S), padded on the right.
        lengths: valid tokens of each row (B,).
        logits: (B, S, V).
        loss: a scalar.
        gradients: of that loss, by tensor.
    """

    ids: Array
    lengths: Array
    logits: Array
    loss: float
    gradients: Tensors


@dataclasses.dataclass(frozen=True)
class Step:
    """One update of the parameters.

    Attributes:
        micro: its forward and backward passes.
        gradients: what they were accumulated to.
        clipped: what the optimizer was given.
        before: the parameters.
        after: the parameters that it left.
    """

    micro: Sequence[MicroStep]
    gradients: Tensors
    clipped: Tensors
    before: Tensors
    after: Tensors


@dataclasses.dataclass(frozen=True)
class AdamW:
    """What both sides were asked to do.

    Attributes:
        learning_rates: of each step.
        beta1: and beta2, eps, weight_decay: as `torch.optim.AdamW` has them.
        decayed: names of the tensors that decay.
        max_norm: to which gradients are clipped.
    """

    learning_rates: Sequence[float]
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decayed: frozenset[str]
    max_norm: float
