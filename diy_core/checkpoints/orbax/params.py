"""The parameters of the Flax twin within the tree that an Orbax checkpoint holds.

Programs save `params`, `{"params": ...}`, a TrainState with moments and counters beside them, or an
`nnx.State`, whose every leaf is called `value`. Where the parameters lie is told by the one that
every model has, the embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diy_core.errors import CheckpointError

Path = tuple[str, ...]
_EMBEDDING = ("model", "embed_tokens", "embedding")
_BOX = "value"
# Copies of the tree that are no parameters: of optax, and averages.
_OTHERS = {"opt_state", "optimizer", "optimizer_state", "mu", "nu", "grads", "ema", "ema_params"}


@dataclasses.dataclass(frozen=True)
class Params:
    """Where the parameters lie in a tree.

    Attributes:
        leaves: what the tree has for each, by its path in the Flax twin.
        places: the path of each in the tree, by its path in the Flax twin.
        notes: what else the tree holds.
    """

    leaves: dict[Path, Any]
    places: dict[Path, Path]
    notes: tuple[str, ...]


def find_params(tree: Mapping[str, Any], where: object) -> Params:
    """The parameters in a tree.

    Args:
        tree: nested mappings and lists, with anything for a leaf that has a `shape`.
        where: what error messages name.

    Raises:
        CheckpointError: no parameters of the Flax twin, several sets of them, or layers stacked in
            one array.
    """
    flat = dict(_leaves(tree))
    prefix = _prefix(flat, where)
    inside = {path[len(prefix) :]: path for path in flat if path[: len(prefix)] == prefix}
    if all(path[-1] == _BOX for path in inside):
        inside = {path[:-1]: place for path, place in inside.items()}
    stacked = next((place for path, place in inside.items() if is_stacked(path)), None)
    if stacked:
        raise CheckpointError(where, on_stacked(stacked, flat[stacked]))
    others = sorted({"/".join(_branch(path, prefix)) for path in set(flat) - set(inside.values())})
    note = f"only {'/'.join(prefix)} was read, and {', '.join(others)} left out"
    leaves = {path: flat[place] for path, place in inside.items()}
    return Params(leaves, inside, (note,) if others else ())


def is_stacked(path: Path) -> bool:
    """True for a parameter of layers without a layer's number."""
    return path[:2] == ("model", "layers") and not "".join(path[2:3]).isdecimal()


def on_stacked(path: Path, leaf: Any) -> str:
    """What is wrong with such a parameter, and what to do."""
    return (
        f"has all layers stacked in one array, as nn.scan leaves them ({'/'.join(path)} "
        f"{tuple(leaf.shape)}): unstack them into layers_0, layers_1, ... first"
    )


def _branch(path: Path, prefix: Path) -> Path:
    """Where a path leaves another one, the first step included."""
    same = next((i for i, (a, b) in enumerate(zip(path, prefix, strict=False)) if a != b), 0)
    return path[: same + 1]


def _prefix(flat: Mapping[Path, Any], where: object) -> Path:
    """The path of the tree of parameters."""
    found = [
        path[: -len(_EMBEDDING)]
        for path in (place[:-1] if place[-1:] == (_BOX,) else place for place in flat)
        if path[-len(_EMBEDDING) :] == _EMBEDDING
    ]
    usual = [prefix for prefix in found if not _OTHERS & set(prefix)] or found
    if len(usual) > 1:
        usual = [prefix for prefix in usual if prefix[-1:] == ("params",)] or usual
    if len(usual) == 1:
        return usual[0]
    if usual:
        sets = ", ".join("/".join(prefix) for prefix in usual)
        raise CheckpointError(where, f"holds several sets of parameters, {sets}: save one alone")
    if any(path[:1] == _EMBEDDING[:1] for path in flat):
        return ()  # and it lacks the embedding: compared with the config, all faults come at once
    first = "/".join(next(iter(flat), ())) or "nothing"
    raise CheckpointError(
        where,
        f"holds {first}, ..., and not the parameters of the Flax twin, which are called as "
        f"params/{'/'.join(_EMBEDDING)}: rename them as docs/layout.md says",
    )


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(tree, Mapping):
        items: Sequence[tuple[Any, Any]] = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        items = list(enumerate(tree))
    elif tree is None:
        return
    else:
        yield path, tree
        return
    for key, item in items:
        yield from _leaves(item, (*path, str(key)))
