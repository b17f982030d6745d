"""The hypotheses in their order, and what they find at a culprit."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.attention.cache import cache_suspects
from parity.diagnosis.attention.hypotheses import attention_suspects
from parity.diagnosis.attention.masks import causal_suspects, differing_mask, mask_suspects
from parity.diagnosis.attention.tables import table_suspects
from parity.diagnosis.chance import chance_suspects
from parity.diagnosis.evidence import Evidence, GradientCapture, Value, wide
from parity.diagnosis.gather import gather, within
from parity.diagnosis.layers.glue import (
    call_suspects,
    glue_suspects,
    lonely_tensors,
    unknown_input,
)
from parity.diagnosis.layers.hypotheses import layer_suspects
from parity.diagnosis.layers.reductions import reduction_suspects
from parity.diagnosis.tensors.hypotheses import parameter_suspects
from parity.diagnosis.values.gradients import gradient_suspects, missing_gradient
from parity.diagnosis.values.integers import integer_suspects
from parity.diagnosis.values.outputs import channel_suspects, output_suspects
from parity.diagnosis.values.places import place_suspects
from parity.diagnosis.values.rounding import rounding_suspects
from parity.tracing.compare.errors import BACKWARD
from parity.tracing.match.align import Pair
from parity.tracing.result import Divergence, Suspect
from parity.tracing.walk import Culprit, Walk

Array = NDArray[Any]
# In this order: what says most precisely what is wrong comes first.
HYPOTHESES: tuple[Callable[[Evidence], Iterable[Suspect]], ...] = (
    parameter_suspects,
    layer_suspects,
    cache_suspects,
    attention_suspects,
    glue_suspects,
    reduction_suspects,
    mask_suspects,
    causal_suspects,
    table_suspects,
    integer_suspects,
    output_suspects,
    channel_suspects,
    rounding_suspects,
    differing_mask,
    call_suspects,
    unknown_input,
    lonely_tensors,
    place_suspects,
)
# These take PyTorch's side for the right one, and are tried the other way round too.
_ONE_SIDED = {
    cache_suspects,
    mask_suspects,
    causal_suspects,
    table_suspects,
    integer_suspects,
    output_suspects,
    unknown_input,
}
_SHOWN = 3


def diagnose(walk: Walk, culprit: Culprit) -> Divergence:
    """What is said of a culprit, with the hypotheses that explain it, at most three."""
    find = find_suspects if culprit.divergence.direction == "forward" else find_backward_suspects
    suspects = find(walk, culprit.pair, culprit.stage)
    return dataclasses.replace(culprit.divergence, suspects=suspects)


def find_suspects(walk: Walk, pair: Pair, stage: Pair | None) -> tuple[Suspect, ...]:
    """Hypotheses that make a forward culprit's error vanish, at most three.

    Args:
        walk: the search that found it.
        pair: the culprit.
        stage: the part that gets something else; None where the output differs.
    """
    evidence = gather(walk, pair, stage)
    if evidence is None:
        return ()
    return tuple(chance_suspects(walk, pair, stage, evidence)) or explain(evidence)


def explain(evidence: Evidence) -> tuple[Suspect, ...]:
    """What the first hypotheses find that say anything, at most three: weaker ones repeat it."""
    found: dict[str, Suspect] = {}
    if not evidence.target.torch.size:
        return ()
    with np.errstate(all="ignore"):  # one that overflows explains nothing
        for hypothesis in HYPOTHESES:
            for view in (evidence, evidence.mirrored())[: 1 + (hypothesis in _ONE_SIDED)]:
                for suspect in _tried(hypothesis, view):
                    found.setdefault(suspect.name, suspect)
                if found:
                    break
            if found:
                break
    # What is tried first says most; what cannot be tried comes last.
    best = sorted(found.values(), key=lambda suspect: suspect.after is None)
    return tuple(best[:_SHOWN])


def _tried(
    hypothesis: Callable[[Evidence], Iterable[Suspect]], evidence: Evidence
) -> list[Suspect]:
    """What a hypothesis finds; one that fails says nothing, and does not hide what was found."""
    try:
        return list(hypothesis(evidence))
    except (ValueError, ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        warnings.warn(
            f"{hypothesis.__name__} could not be tried on {evidence.name or 'the model'}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return []


def find_backward_suspects(walk: Walk, pair: Pair, stage: Pair | None) -> tuple[Suspect, ...]:
    """Hypotheses about the gradients of a backward culprit, at most three.

    The culprit is run once more, with the PyTorch side's gradients of its outputs.

    Args:
        walk: the search that found it.
        pair: the culprit.
        stage: the part whose outputs get another gradient; None where that of the culprit's own
            parameters or inputs differs.
    """
    children = walk.alignment.children(pair)
    place = (walk.record, walk.alignment, walk.shapes, pair, "output_gradients", walk.natural)
    capture = GradientCapture([pair, *children], *place)
    _, gradients = walk.model.backward(capture, walk.alignment.pairs[0])
    path = pair.torch[0].path
    heard = capture.gradients
    if stage is not None:
        name = within(stage.torch[0].path, path)
        targets = [(f"what {name} gives", v) for v in heard.get((stage, "output_gradients"), [])]
    else:
        targets = [
            (within(name, path), Value(name, wide(one), wide(other)))
            for name, one, other in walk.parameter_gradients(gradients)
            if not path or name.startswith(f"{path}.")
        ]
        targets += [(f"its input {v.name}", v) for v in heard.get((pair, "input_gradients"), [])]
    known = {"the output": heard.get((pair, "output_gradients"), [])}
    for child in children:
        name = within(child.torch[0].path, path)
        known[f"what goes into {name}"] = heard.get((child, "input_gradients"), [])
        known[f"what {name} gives"] = heard.get((child, "output_gradients"), [])
    if stage is not None and not targets:
        # JAX tells nothing of what is known to be zero.
        words = f"what {within(stage.torch[0].path, path)} gives"
        return (missing_gradient(words, "Flax", 1.0),)
    bound = BACKWARD[walk.natural.dtype.get(pair, "float64")]
    first = {what: values[0] for what, values in known.items() if values}
    suspects: dict[str, Suspect] = {}
    with np.errstate(all="ignore"):
        for suspect in gradient_suspects(targets, first, bound):
            suspects.setdefault(suspect.name, suspect)
    return tuple(suspects.values())[:_SHOWN]
