"""Where two trainings part: loss, gradients, accumulation, clipping, or the optimizer.

A training step is a chain of stages. Each side writes down what every stage gave; the first stage
whose inputs agree while its result does not is the culprit. What is wrong inside the model is for
`parity.trace` to find: here the model is one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.tracing.compare.errors import relative_error
from parity.tracing.result import Divergence
from parity.training_steps.steps import AdamW, Step, Tensors
from parity.training_steps.suspects import (
    accumulation_suspects,
    clipping_suspects,
    loss_suspects,
    optimizer_suspects,
)

BOUND = 1e-10


def trace_steps(
    torch_steps: Sequence[Step], flax_steps: Sequence[Step], recipe: AdamW, bound: float = BOUND
) -> Divergence | None:
    """The first stage of the first step at which two trainings part, or None.

    Args:
        torch_steps: what the PyTorch side wrote down, tensors under the same names and in the same
            layout as the Flax side's.
        flax_steps: what the Flax side wrote down.
        recipe: what both were asked to do.
        bound: relative error that is none; the default is for float64.

    Raises:
        ValueError: other numbers of steps, or of passes in a step.
    """
    if len(torch_steps) != len(flax_steps):
        raise ValueError(f"{len(torch_steps)} steps cannot be compared with {len(flax_steps)}")
    for number, (one, other) in enumerate(zip(torch_steps, flax_steps, strict=True)):
        if len(one.micro) != len(other.micro):
            raise ValueError(
                f"step {number}: {len(one.micro)} passes cannot be compared with {len(other.micro)}"
            )
        entering = 0.0
        for a, b in zip(one.micro, other.micro, strict=True):
            if (error := relative_error(a.logits, b.logits)) > bound:
                return _found("model", "logits", number, error, entering, bound)
            entering = max(entering, error)
            loss_error = abs(a.loss - b.loss) / max(abs(a.loss), abs(b.loss), 1e-300)
            if loss_error > bound:
                suspects = loss_suspects(a, b, loss_error, bound)
                return _found("loss", "loss", number, loss_error, entering, bound, suspects)
            if (error := _worst(a.gradients, b.gradients)) > bound:
                return _found("gradients", "gradients", number, error, entering, bound)
            entering = max(entering, loss_error, error)
        found = _stages(
            torch_steps[: number + 1], flax_steps[: number + 1], recipe, entering, bound
        )
        if found is not None:
            return found
    return None


def _stages(
    ones: Sequence[Step], others: Sequence[Step], recipe: AdamW, entering: float, bound: float
) -> Divergence | None:
    """What becomes of the gradients in the last of these steps."""
    one, other, number = ones[-1], others[-1], len(ones) - 1
    if (error := _worst(one.gradients, other.gradients)) > bound:
        suspects = accumulation_suspects(one, other, error, bound)
        return _found("accumulation", "gradients", number, error, entering, bound, suspects)
    entering = max(entering, error)
    if (error := _worst(one.clipped, other.clipped)) > bound:
        suspects = clipping_suspects(one, other, recipe, error, bound)
        return _found("clipping", "gradients", number, error, entering, bound, suspects)
    entering = max(entering, error)
    if (error := _worst(one.after, other.after)) > bound:
        suspects = optimizer_suspects(ones, others, recipe, error, bound)
        return _found("optimizer", "parameters", number, error, entering, bound, suspects)
    return None


def _worst(one: Tensors, other: Tensors) -> float:
    """The error of all tensors together, and of each beside the largest of them."""
    sizes = {name: float(np.linalg.norm(array)) for name, array in one.items()}
    largest = max(sizes.values(), default=0.0)
    return max(
        (
            relative_error(array, other[name]) * (sizes[name] / largest if largest else 1.0)
            for name, array in one.items()
        ),
        default=0.0,
    )


def _found(
    stage: str,
    what: str,
    number: int,
    error: float,
    entering: float,
    bound: float,
    suspects: Any = (),
) -> Divergence:
    return Divergence(
        torch=stage,
        flax=stage,
        direction="training",
        where=f"{what} of step {number}",
        error=error,
        input_error=entering,
        alone_error=error,
        dtype="float64",
        bound=bound,
        suspects=tuple(suspects)[:3],
    )
