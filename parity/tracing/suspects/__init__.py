"""What may be wrong with a culprit: hypotheses, each tried on what the culprit was given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from parity.tracing.align import Pair
from parity.tracing.calls import Call, Kind, Site
from parity.tracing.comparison import Comparison
from parity.tracing.errors import BACKWARD, FORWARD, worst
from parity.tracing.result import Suspect
from parity.tracing.rules import Link
from parity.tracing.suspects.attention import attention_suspects
from parity.tracing.suspects.cache import cache_suspects
from parity.tracing.suspects.evidence import (
    Capture,
    Evidence,
    GradientCapture,
    Parameter,
    Part,
    Value,
    wide,
)
from parity.tracing.suspects.glue import call_suspects, glue_suspects, unknown_input
from parity.tracing.suspects.gradients import gradient_suspects, missing_gradient
from parity.tracing.suspects.layers import layer_suspects
from parity.tracing.suspects.masks import causal_suspects, differing_mask, mask_suspects
from parity.tracing.suspects.outputs import channel_suspects, output_suspects, rounding_suspects
from parity.tracing.suspects.parameters import parameter_suspects
from parity.tracing.suspects.places import place_suspects
from parity.tracing.suspects.tables import table_suspects

if TYPE_CHECKING:
    from parity.tracing.walk import Walk

Array = NDArray[Any]
# In this order: what says most precisely what is wrong comes first.
HYPOTHESES: tuple[Callable[[Evidence], Iterable[Suspect]], ...] = (
    parameter_suspects,
    layer_suspects,
    cache_suspects,
    attention_suspects,
    glue_suspects,
    mask_suspects,
    causal_suspects,
    table_suspects,
    output_suspects,
    channel_suspects,
    rounding_suspects,
    differing_mask,
    call_suspects,
    unknown_input,
    place_suspects,
)
# These take PyTorch's side for the right one, and are tried the other way round too.
_ONE_SIDED = {
    cache_suspects,
    mask_suspects,
    causal_suspects,
    table_suspects,
    output_suspects,
    unknown_input,
}
_SHOWN = 3


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
    return explain(evidence)


def explain(evidence: Evidence) -> tuple[Suspect, ...]:
    """What the first hypotheses find that say anything, at most three: weaker ones repeat it."""
    found: dict[str, Suspect] = {}
    if not evidence.target.torch.size:
        return ()
    with np.errstate(all="ignore"):  # one that overflows explains nothing
        for hypothesis in HYPOTHESES:
            for view in (evidence, evidence.mirrored())[: 1 + (hypothesis in _ONE_SIDED)]:
                for suspect in hypothesis(view):
                    found.setdefault(suspect.name, suspect)
                if found:
                    break
            if found:
                break
    # What is tried first says most; what cannot be tried comes last.
    best = sorted(found.values(), key=lambda suspect: suspect.after is None)
    return tuple(best[:_SHOWN])


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
        name = _within(stage.torch[0].path, path)
        targets = [(f"what {name} gives", v) for v in heard.get((stage, "output_gradients"), [])]
    else:
        targets = [
            (_within(name, path), Value(name, wide(one), wide(other)))
            for name, one, other in walk.parameter_gradients(gradients)
            if not path or name.startswith(f"{path}.")
        ]
        targets += [(f"its input {v.name}", v) for v in heard.get((pair, "input_gradients"), [])]
    known = {"the output": heard.get((pair, "output_gradients"), [])}
    for child in children:
        name = _within(child.torch[0].path, path)
        known[f"what goes into {name}"] = heard.get((child, "input_gradients"), [])
        known[f"what {name} gives"] = heard.get((child, "output_gradients"), [])
    if stage is not None and not targets:
        # JAX tells nothing of what is known to be zero.
        words = f"what {_within(stage.torch[0].path, path)} gives"
        return (missing_gradient(words, "Flax", 1.0),)
    bound = BACKWARD[walk.natural.dtype.get(pair, "float64")]
    first = {what: values[0] for what, values in known.items() if values}
    suspects: dict[str, Suspect] = {}
    with np.errstate(all="ignore"):
        for suspect in gradient_suspects(targets, first, bound):
            suspects.setdefault(suspect.name, suspect)
    return tuple(suspects.values())[:_SHOWN]


def gather(walk: Walk, pair: Pair, stage: Pair | None) -> Evidence | None:
    """Run the culprit alone once more and keep its arrays; None where nothing can be compared."""
    capture = Capture(walk.alignment, pair, *_alone(walk, pair))
    walk.model.forward(capture)
    path = pair.torch[0].path
    place: tuple[Pair, Kind] = (pair, "outputs") if stage is None else (stage, "inputs")
    values = [v for v in capture.values.get(place, []) if v.error > 0]
    if not values:
        return None
    target = max(values, key=lambda value: value.error)
    dtype = walk.natural.dtype.get(pair, "float64")

    def with_parameters(changes: Mapping[Link, Array]) -> float:
        model = walk.model.with_variables(_changed(walk.model.variables, changes))
        comparison = Comparison(*_alone(walk, pair))
        model.forward(comparison)
        return worst(comparison.errors.get(place, []))

    mine, theirs = walk.tensors
    parameters = _parameters(walk, path)
    return Evidence(
        name=path,
        module=walk.torch_module.get_submodule(path),
        target=target,
        stage="" if stage is None else _within(stage.torch[0].path, path),
        inputs=capture.values.get((pair, "inputs"), []),
        outputs=capture.values.get((pair, "outputs"), []),
        parts=[
            Part(
                _within(child.torch[0].path, path),
                capture.values.get((child, "inputs"), []),
                capture.values.get((child, "outputs"), []),
            )
            for child in walk.alignment.children(pair)
        ],
        parameters=parameters,
        torch_only=_alone_on_its_side(mine, path, ".", {link.torch for link in walk.links}),
        flax_only=_alone_on_its_side(
            theirs, pair.flax[0].path, "/", {link.flax for link in walk.links}
        ),
        others=[
            (link, wide(link.from_torch(mine[link.torch])))
            for link in walk.links
            if any(link.operation.merged == p.flax.shape for p in parameters)
            or link.torch.startswith(f"{path.rpartition('.')[0]}.")
        ]
        if any(not np.array_equal(p.torch, p.flax) for p in parameters)
        else [],
        dtype=dtype,
        bound=FORWARD[dtype],
        with_parameters=with_parameters,
        calls=_calls(walk, pair),
    )


def _calls(walk: Walk, pair: Pair) -> list[tuple[str, int, int]]:
    """Parts of a call that are not called as often on both sides."""
    path = pair.torch[0].path
    partners = {
        p.torch[0].path: p.flax[0].path for p in walk.alignment.pairs if len(p.torch) == len(p.flax)
    }
    found = []
    for one, other in partners.items():
        if one != path and (not path or one.startswith(f"{path}.")):
            times = [
                len(
                    {s.nth for s, call in calls.items() if _is_call(s, name) and call.layer == turn}
                )
                for name, calls, turn in (
                    (one, walk.record.calls, None),
                    (other, walk.shapes, _first_turn(walk.shapes, other)),
                )
            ]
            if times[0] != times[1]:
                found.append((_within(one, path), times[0], times[1]))
    return found


def _is_call(site: Site, path: str) -> bool:
    return site.path == path and site.method == "__call__"


def _first_turn(calls: Mapping[Site, Call[Any]], path: str) -> int | None:
    """In a loop of layers each turn counts by itself."""
    return next((call.layer for site, call in calls.items() if _is_call(site, path)), None)


def _alone(walk: Walk, pair: Pair) -> tuple[Any, ...]:
    return (walk.record, walk.alignment, walk.shapes, pair, "inputs", walk.natural)


def _parameters(walk: Walk, path: str) -> list[Parameter]:
    """The tensors below a path, also under a further name of a tied one."""
    mine, theirs = walk.tensors
    aliases: dict[str, list[str]] = {}
    for alias, name in walk.tied.items():
        aliases.setdefault(name, []).append(alias)
    found = []
    for link in walk.links:
        for name in [link.torch, *aliases.get(link.torch, [])]:
            if not path or name.startswith(f"{path}."):
                one, other = link.from_torch(mine[link.torch]), link.from_flax(theirs[link.flax])
                found.append(Parameter(_within(name, path), link, wide(one), wide(other)))
                break
    return found


def _alone_on_its_side(
    arrays: Mapping[str, Array], path: str, separator: str, known: set[str]
) -> dict[str, Array]:
    inside = path + separator if path else ""
    return {
        name.removeprefix(inside).replace("/", "."): wide(array)
        for name, array in arrays.items()
        if name.startswith(inside) and name not in known
    }


def _within(path: str, parent: str) -> str:
    return path.removeprefix(f"{parent}.") if parent else path


def _changed(variables: Mapping[str, Any], changes: Mapping[Link, Array]) -> dict[str, Any]:
    """The variables with other arrays in the place of some, or of parts of them."""
    flat = flatten_dict(dict(variables), sep="/")
    for link, array in changes.items():
        collection, _, name = link.flax.rpartition(":")
        key = f"{collection or 'params'}/{name}"
        whole = np.array(flat[key])
        link.from_flax(whole)[...] = array  # a view of the part
        flat[key] = jnp.asarray(whole)
    changed: dict[str, Any] = unflatten_dict(flat, sep="/")
    return changed


__all__ = [
    "HYPOTHESES",
    "Evidence",
    "Value",
    "explain",
    "find_backward_suspects",
    "find_suspects",
    "gather",
]
