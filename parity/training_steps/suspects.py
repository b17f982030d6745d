"""Hypotheses about the stages of a training step, each computed here in every usual way."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.compare.errors import relative_error
from parity.tracing.result import Suspect
from parity.training_steps.steps import AdamW, MicroStep, Step

Array = NDArray[Any]
_MEANS = {
    "tokens": "over its tokens",
    "positions": "over all positions, padding too",
    "rows": "first over each row, then over the rows",
    "rows of tokens": "over the number of rows",
    "sum": "not at all: it is a sum",
}


# The loss.


def loss_suspects(
    one: MicroStep, other: MicroStep, before: float, bound: float
) -> Iterator[Suspect]:
    """Another shift of the labels, or another mean."""
    ways = {
        (shift, mean): _loss(one, shift, mean)
        for shift, mean in itertools.product((1, 0, 2), _MEANS)
    }
    sides = []
    for loss in (one.loss, other.loss):
        errors = {way: abs(value - loss) / abs(loss) for way, value in ways.items()}
        way = min(errors, key=lambda w: errors[w])
        sides.append((way, errors[way]))
    (mine, error), (theirs, after) = sides
    if max(error, after) > bound or mine == theirs:
        return
    if mine[0] != theirs[0]:
        words = f"labels are {theirs[0]} tokens ahead in Flax, {mine[0]} in PyTorch"
        yield Suspect("labels-shift", words, before, after)
    if mine[1] != theirs[1]:
        words = f"the loss is averaged {_MEANS[theirs[1]]} in Flax, {_MEANS[mine[1]]} in PyTorch"
        yield Suspect("loss-mean", words, before, after)


def _loss(micro: MicroStep, shift: int, mean: str) -> float:
    """Cross-entropy of the token that stands `shift` after each position."""
    logits = micro.logits.astype(np.float64)
    batch, length = micro.ids.shape
    largest = logits.max(-1, keepdims=True)
    logs = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    labels = np.zeros_like(micro.ids)
    labels[:, : length - shift] = micro.ids[:, shift:]
    valid = np.arange(length)[None, :] + shift < micro.lengths[:, None]
    losses = -np.take_along_axis(logs, labels[..., None].astype(np.int64), -1)[..., 0] * valid
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(
            {
                "tokens": losses.sum() / valid.sum(),
                "positions": losses.sum() / (batch * (length - shift)),
                "rows": (losses.sum(1) / valid.sum(1)).mean(),
                "rows of tokens": losses.sum() / batch,
                "sum": losses.sum(),
            }[mean]
        )


# Accumulation.


def accumulation_suspects(one: Step, other: Step, before: float, bound: float) -> Iterator[Suspect]:
    """Another weighted sum of the gradients of the passes."""
    found = []
    for step in (one, other):
        columns = [_flat(micro.gradients) for micro in step.micro]
        target = _flat(step.gradients)
        weights, *_ = np.linalg.lstsq(np.stack(columns, 1), target, rcond=None)
        found.append((weights, relative_error(np.stack(columns, 1) @ weights, target)))
    (mine, error), (theirs, after) = found
    if max(error, after) <= bound:
        words = [", ".join(f"{weight:.6g}" for weight in side) for side in (theirs, mine)]
        sentence = f"the passes weigh {words[0]} in Flax, {words[1]} in PyTorch"
        yield Suspect("accumulation-weights", sentence, before, after)


# Clipping.


def clipping_suspects(
    one: Step, other: Step, recipe: AdamW, before: float, bound: float
) -> Iterator[Suspect]:
    """Another formula for the factor, or a factor for each tensor, or limits for each number."""
    said = []
    for step in (one, other):
        ways = {
            name: relative_error(_flat(clipped), _flat(step.clipped))
            for name, clipped in _clipped(step, recipe.max_norm).items()
        }
        way = min(ways, key=lambda w: ways[w])
        said.append((way, ways[way]))
    (mine, error), (theirs, after) = said
    if mine != theirs and max(error, after) <= bound:
        sentence = f"gradients are clipped by {theirs} in Flax, by {mine} in PyTorch"
        yield Suspect("clip-formula", sentence, before, after)


def _clipped(step: Step, limit: float) -> dict[str, dict[str, Array]]:
    gradients = step.gradients
    norms = {name: float(np.linalg.norm(array)) for name, array in gradients.items()}
    norm = math.sqrt(sum(size**2 for size in norms.values()))

    def scaled(factor: float) -> dict[str, Array]:
        return {name: array * factor for name, array in gradients.items()}

    return {
        "min(1, c / (norm + 1e-6))": scaled(min(1.0, limit / (norm + 1e-6))),
        "min(1, c / norm)": scaled(min(1.0, limit / norm)),
        "c / norm always": scaled(limit / norm),
        "nothing": scaled(1.0),
        "the norm of each tensor": {
            name: array * min(1.0, limit / (norms[name] + 1e-6))
            for name, array in gradients.items()
        },
        "value": {name: np.clip(array, -limit, limit) for name, array in gradients.items()},
    }


# The optimizer.


@dataclasses.dataclass(frozen=True)
class _Way:
    """One way to compute AdamW; the defaults are PyTorch's."""

    correction: str = "both moments are corrected"
    eps: str = "eps is added to the root"
    decay: str = "the chosen tensors decay"
    schedule: str = "the schedule begins at its first value"


_CHOICES = {
    "bias-correction": (
        "correction",
        ("no moment is corrected", "only the first moment is corrected",
         "only the second moment is corrected"),
    ),
    "eps-place": ("eps", ("eps is added under the root",)),
    "weight-decay": (
        "decay",
        ("all tensors decay", "no tensor decays", "decay is added to the gradient",
         "decay is not multiplied by the learning rate"),
    ),
    "schedule": (
        "schedule",
        ("the schedule is one step ahead", "the schedule is one step behind"),
    ),
}  # fmt: skip


def optimizer_suspects(
    one: Sequence[Step], other: Sequence[Step], recipe: AdamW, before: float, bound: float
) -> Iterator[Suspect]:
    """One thing in AdamW done otherwise."""
    ways = [("", _Way())]
    for name, (field, choices) in _CHOICES.items():
        ways += [(name, dataclasses.replace(_Way(), **{field: choice})) for choice in choices]
    said = []
    for steps in (one, other):
        errors = []
        for name, way in ways:
            after = adamw(steps, recipe, way)
            errors.append((relative_error(_flat(after), _flat(steps[-1].after)), name, way))
        said.append(min(errors, key=lambda e: e[0]))
    (error, _, mine), (after_error, name, theirs) = said
    if mine != theirs and max(error, after_error) <= bound:
        differing = [f.name for f in dataclasses.fields(_Way)
                     if getattr(mine, f.name) != getattr(theirs, f.name)]  # fmt: skip
        name = name or said[0][1]
        words = "; ".join(
            f"{getattr(theirs, field)} in Flax, {getattr(mine, field)} in PyTorch"
            for field in differing
        )
        yield Suspect(name, words, before, after_error)


def adamw(steps: Sequence[Step], recipe: AdamW, way: _Way) -> dict[str, Array]:
    """The parameters after the last of the steps, from the gradients that each was given.

    Source: Loshchilov and Hutter, arXiv:1711.05101, as `torch.optim.AdamW` computes it.
    """
    shift = {"the schedule is one step ahead": 1, "the schedule is one step behind": -1}
    rates = recipe.learning_rates
    after: dict[str, Array] = {}
    for name, first in steps[0].before.items():
        p = first.astype(np.float64)
        mean, square = np.zeros_like(p), np.zeros_like(p)
        decays = way.decay == "all tensors decay" or (
            name in recipe.decayed and way.decay != "no tensor decays"
        )
        decay = recipe.weight_decay if decays else 0.0
        for count, step in enumerate(steps):
            place = min(max(count + shift.get(way.schedule, 0), 0), len(rates) - 1)
            rate = rates[place]
            gradient = step.clipped[name].astype(np.float64)
            if way.decay == "decay is added to the gradient":
                gradient = gradient + decay * p
            mean = recipe.beta1 * mean + (1 - recipe.beta1) * gradient
            square = recipe.beta2 * square + (1 - recipe.beta2) * gradient**2
            m, v = mean, square
            if way.correction in (
                "both moments are corrected",
                "only the first moment is corrected",
            ):
                m = m / (1 - recipe.beta1 ** (count + 1))
            if way.correction in (
                "both moments are corrected",
                "only the second moment is corrected",
            ):
                v = v / (1 - recipe.beta2 ** (count + 1))
            under = way.eps == "eps is added under the root"
            update = m / (np.sqrt(v + recipe.eps) if under else np.sqrt(v) + recipe.eps)
            if way.decay == "decay is not multiplied by the learning rate":
                p = p - decay * p - rate * update
            elif way.decay == "decay is added to the gradient":
                p = p - rate * update
            else:
                p = p * (1 - rate * decay) - rate * update
        after[name] = p
    return after


def _flat(tensors: Any) -> Array:
    return np.concatenate([np.asarray(tensors[name], np.float64).ravel() for name in tensors])
