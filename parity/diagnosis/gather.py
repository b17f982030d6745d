"""What is known of a culprit: it is run alone once more, and its arrays are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from parity.diagnosis.evidence import Capture, Evidence, Parameter, Part, Value, wide
from parity.tracing.compare.comparison import Comparison
from parity.tracing.compare.errors import FORWARD, worst
from parity.tracing.match.align import Pair
from parity.tracing.match.rules import Link
from parity.tracing.record.calls import Call, Kind, Site
from parity.tracing.record.spool import Stored
from parity.tracing.walk import Walk

Array = NDArray[Any]


def gather(walk: Walk, pair: Pair, stage: Pair | None) -> Evidence | None:
    """Run the culprit alone once more and keep its arrays; None where nothing can be compared."""
    capture = Capture(walk.alignment, pair, *walk.alone(pair))
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
        comparison = Comparison(*walk.alone(pair))
        model.forward(comparison)
        return worst(comparison.errors.get(place, []))

    mine, theirs = walk.tensors
    parameters = _parameters(walk, path)
    return Evidence(
        name=path,
        module=walk.torch_module.get_submodule(path),
        target=target,
        stage="" if stage is None else within(stage.torch[0].path, path),
        inputs=capture.values.get((pair, "inputs"), []),
        outputs=capture.values.get((pair, "outputs"), []),
        parts=_parts(walk, pair, capture),
        parameters=parameters,
        torch_only=_alone_on_its_side(mine, path, ".", {link.torch for link in walk.links}),
        flax_only=_alone_on_its_side(
            theirs, pair.flax[0].path, "/", {link.flax for link in walk.links}
        ),
        others=[
            (link, wide(link.from_torch(mine[link.torch])))
            for link in walk.links
            if any(sorted(link.operation.merged) == sorted(p.flax.shape) for p in parameters)
            or link.torch.startswith(f"{path.rpartition('.')[0]}.")
        ]
        if any(not np.array_equal(p.torch, p.flax) for p in parameters)
        else [],
        dtype=dtype,
        bound=max(FORWARD[dtype], walk.least),
        with_parameters=with_parameters,
        calls=_calls(walk, pair),
        given=_given(walk, pair),
    )


def _given(walk: Walk, pair: Pair) -> list[Array]:
    """Inputs of the PyTorch call that the Flax call does not have."""
    known = {error.torch for error in walk.natural.errors.get((pair, "inputs"), [])}
    stored = walk.record.calls[pair.torch[0]].inputs
    return [wide(walk.record.spool.get(at)) for name, at in stored.items() if name not in known]


def _parts(walk: Walk, pair: Pair, capture: Capture) -> list[Part]:
    """The calls made in a call, in PyTorch's order; those that PyTorch alone makes among them.

    Such a call, as of a layer that the other side writes out, is known by what PyTorch gave it.
    """
    path = pair.torch[0].path
    found = {
        child.torch[0]: Part(
            within(child.torch[0].path, path),
            capture.values.get((child, "inputs"), []),
            capture.values.get((child, "outputs"), []),
        )
        for child in walk.alignment.children(pair)
    }
    calls, spool = walk.record.calls, walk.record.spool
    paired = {site for other in walk.alignment.pairs for site in other.torch}
    layouts = {error.operation.source: error.operation for error in capture.layouts}

    def alone(arrays: Mapping[str, Stored]) -> list[Value]:
        """As if the other side had the same; in its layout, where another array shows that."""
        values = []
        for name, stored in arrays.items():
            array = wide(spool.get(stored))
            array = layouts[array.shape](array) if array.shape in layouts else array
            values.append(Value(name, array, array))
        return values

    for site, call in calls.items():
        if site not in paired and call.parent == pair.torch[0]:
            name = within(site.path, path)
            found[site] = Part(name, alone(call.inputs), alone(call.outputs), alone=True)
    order = {site: i for i, site in enumerate(calls)}
    return [found[site] for site in sorted(found, key=order.__getitem__)]


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
                found.append((within(one, path), times[0], times[1]))
    return found


def _is_call(site: Site, path: str) -> bool:
    return site.path == path and site.method == "__call__"


def _first_turn(calls: Mapping[Site, Call[Any]], path: str) -> int | None:
    """In a loop of layers each turn counts by itself."""
    return next((call.layer for site, call in calls.items() if _is_call(site, path)), None)


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
                found.append(Parameter(within(name, path), link, wide(one), wide(other)))
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


def within(path: str, parent: str) -> str:
    """The name of a part within another."""
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
