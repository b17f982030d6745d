"""Which call on one side is which on the other: those that use the same parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from parity.tracing.calls import Call, Site
from parity.tracing.rules import Link

Calls = Mapping[Site, Call[Any]]
Key = frozenset[int]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One call on each side, or one that does the work of several on the other.

    Attributes:
        torch: and flax: the calls; several where the other side has them fused.
    """

    torch: tuple[Site, ...]
    flax: tuple[Site, ...]


@dataclasses.dataclass
class Alignment:
    """The pairs in the order of execution, and how they are nested.

    Attributes:
        pairs: as the Flax side began them.
        parent: the pair that a pair was called in; None for the root's.
        torch_alone: calls of the PyTorch side without a partner, with parameters of their own.
        flax_alone: the same of the Flax side.
    """

    pairs: list[Pair]
    parent: dict[Pair, Pair | None]
    torch_alone: list[Site]
    flax_alone: list[Site]

    def children(self, pair: Pair | None) -> list[Pair]:
        """The pairs that were called in this one, in order."""
        return [other for other in self.pairs if self.parent[other] == pair]

    def inside(self, pair: Pair | None) -> set[Pair]:
        """The pair and all that were called in it, at any depth; for None all pairs."""
        if pair is None:
            return set(self.pairs)
        found = {pair}
        for other in self.pairs:  # callers come before what they call
            if self.parent[other] in found:
                found.add(other)
        return found


def align(links: Sequence[Link], torch: Calls, flax: Calls, tied: Mapping[str, str]) -> Alignment:
    """Pair the calls of two models.

    Args:
        links: which tensors are the same.
        torch: and flax: all calls, in the order in which they began.
        tied: further names of PyTorch tensors, and the name that the links know.
    """
    names: list[tuple[str, int]] = [(link.torch, i) for i, link in enumerate(links)]
    known = dict.fromkeys(link.torch for link in links)
    names += [
        (other, i)
        for other, name in tied.items()
        if other not in known
        for i, link in enumerate(links)
        if link.torch == name
    ]
    paths = [(_module_path(link.flax), i) for i, link in enumerate(links)]
    one_keys = _keys(torch, [(name.rpartition(".")[0], i) for name, i in names], ".")
    other_keys = _keys(flax, paths, "/")
    pairs: list[Pair] = []
    for key in dict.fromkeys(one_keys.values()):
        ones = [site for site, k in one_keys.items() if k == key]
        others = [site for site, k in other_keys.items() if k == key]
        if key:
            pairs += _matched(ones, others, torch, flax)
    pairs += _fused(one_keys, other_keys, pairs)
    pairs += _without_parameters(one_keys, other_keys, torch, flax, pairs)
    order = {site: i for i, site in enumerate(flax)}
    pairs.sort(key=lambda pair: order[pair.flax[0]])
    return Alignment(
        pairs,
        _parents(pairs, flax),
        _alone(one_keys, {site for pair in pairs for site in pair.torch}),
        _alone(other_keys, {site for pair in pairs for site in pair.flax}),
    )


def _module_path(flax: str) -> str:
    return flax.rpartition("/")[0].partition(":")[2] if ":" in flax else flax.rpartition("/")[0]


def _keys(calls: Calls, owners: Iterable[tuple[str, int]], separator: str) -> dict[Site, Key]:
    """For each call the tensors that its module holds."""
    owners = list(owners)
    found: dict[str, Key] = {}
    for path in dict.fromkeys(site.path for site in calls):
        inside = path + separator if path else ""
        found[path] = frozenset(
            i for owner, i in owners if owner == path or owner.startswith(inside)
        )
    return {site: found[site.path] for site in calls}


def _matched(ones: list[Site], others: list[Site], torch: Calls, flax: Calls) -> list[Pair]:
    """Calls of modules with the same tensors: in order, or the outermost and the innermost ones."""
    plain = [site for site in others if site.method == "__call__"]
    if len(plain) == len(ones):
        others = plain  # a method that the other side has no call for
    if len(ones) == len(others):
        return [Pair((a,), (b,)) for a, b in zip(ones, others, strict=True)]
    outer, outer_2 = _outermost(ones, torch), _outermost(others, flax)
    pairs = []
    for a, b in zip(outer, outer_2, strict=False):
        pairs.append(Pair((a,), (b,)))
        inner = [site for site in ones if site != a and _inside(site, a, torch)]
        inner_2 = [site for site in others if site != b and _inside(site, b, flax)]
        if inner and inner_2:
            pairs.append(Pair((inner[-1],), (inner_2[-1],)))
    return pairs


def _outermost(sites: list[Site], calls: Calls) -> list[Site]:
    return [s for s in sites if not any(o != s and _inside(s, o, calls) for o in sites)]


def _inside(site: Site, other: Site, calls: Calls) -> bool:
    """Whether a call was made in another, at any depth."""
    parent = calls[site].parent
    while parent is not None and parent != other:
        parent = calls[parent].parent
    return parent == other


def _fused(ones: Mapping[Site, Key], others: Mapping[Site, Key], pairs: list[Pair]) -> list[Pair]:
    """One call on the one side whose tensors are those of several on the other."""
    done = {site for pair in pairs for site in (*pair.torch, *pair.flax)}
    free = {s: k for s, k in ones.items() if k and s not in done}
    free_2 = {s: k for s, k in others.items() if k and s not in done}
    found = []
    for site, key in free.items():
        if parts := _parts(key, free_2):
            found.append(Pair((site,), parts))
    for site, key in free_2.items():
        if parts := _parts(key, free):
            found.append(Pair(parts, (site,)))
    return found


def _parts(key: Key, sites: Mapping[Site, Key]) -> tuple[Site, ...]:
    """Sites whose tensors together are these, in the order of the tensors; or none."""
    inside = sorted((s for s, k in sites.items() if k < key), key=lambda s: min(sites[s]))
    covered = [number for site in inside for number in sites[site]]
    return tuple(inside) if len(inside) > 1 and sorted(covered) == sorted(key) else ()


def _without_parameters(
    ones: Mapping[Site, Key],
    others: Mapping[Site, Key],
    torch: Calls,
    flax: Calls,
    pairs: list[Pair],
) -> list[Pair]:
    """Calls of modules without parameters: those of one paired call, if they are as many."""
    home = {pair.torch[0]: pair for pair in pairs} | {pair.flax[0]: pair for pair in pairs}
    groups: dict[Pair, tuple[list[Site], list[Site]]] = {}
    for side, (keys, calls) in enumerate(((ones, torch), (others, flax))):
        for site, key in keys.items():
            parent = calls[site].parent
            if not key and parent in home and calls[site].outputs:
                groups.setdefault(home[parent], ([], []))[side].append(site)
    return [
        Pair((a,), (b,))
        for left, right in groups.values()
        if len(left) == len(right)
        for a, b in zip(left, right, strict=True)
    ]


def _parents(pairs: list[Pair], flax: Calls) -> dict[Pair, Pair | None]:
    home = {site: pair for pair in pairs for site in pair.flax}
    parents: dict[Pair, Pair | None] = {}
    for pair in pairs:
        site = flax[pair.flax[0]].parent
        while site is not None and site not in home:
            site = flax[site].parent
        parents[pair] = home[site] if site is not None else None
    return parents


def _alone(keys: Mapping[Site, Key], paired: set[Site]) -> list[Site]:
    return [site for site, key in keys.items() if key and site not in paired]
