"""Which call on one side is which on the other: those that use the same parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from parity.tracing.match.names import words_of
from parity.tracing.match.rules import Link
from parity.tracing.record.calls import Call, Site

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
        keys: the numbers of the links whose tensors a pair's modules hold.
        torch_alone: calls of the PyTorch side with parameters of which nothing is compared.
        flax_alone: the same of the Flax side.
    """

    pairs: list[Pair]
    parent: dict[Pair, Pair | None]
    keys: dict[Pair, Key]
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

    def sharing(self, pair: Pair) -> set[Pair]:
        """The pair and others beside it that hold some of its tensors, as further calls do."""
        above, parent = set[Pair](), self.parent[pair]
        while parent is not None:
            above.add(parent)
            parent = self.parent[parent]
        beside = set(self.pairs) - above - self.inside(pair)
        return {pair} | {other for other in beside if self.keys[other] & self.keys[pair]}


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
    owners = [(name.rpartition(".")[0], i) for name, i in names]
    owners_2 = [(_module_path(link.flax), i) for i, link in enumerate(links)]
    one_keys = _keys(torch, owners, ".")
    other_keys = _in_their_layer(_keys(flax, owners_2, "/"), flax, links)
    pairs = [Pair((Site(""),), (Site(""),))]
    for key in dict.fromkeys(one_keys.values()):
        ones = [site for site, k in one_keys.items() if k == key and site != Site("")]
        others = [site for site, k in other_keys.items() if k == key and site != Site("")]
        if key:
            chains = (_chains(ones, torch, owners), _chains(others, flax, owners_2))
            pairs += _matched(ones, others, *chains)
    pairs += _fused(one_keys, other_keys, pairs)
    pairs += _without_parameters(one_keys, other_keys, torch, flax, pairs)
    order = {site: i for i, site in enumerate(flax)}
    pairs.sort(key=lambda pair: order[pair.flax[0]])
    return Alignment(
        pairs,
        _parents(pairs, flax),
        {pair: frozenset().union(*(one_keys[site] for site in pair.torch)) for pair in pairs},
        _alone(one_keys, torch, {site for pair in pairs for site in pair.torch}),
        _alone(other_keys, flax, {site for pair in pairs for site in pair.flax}),
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


def _in_their_layer(keys: dict[Site, Key], calls: Calls, links: Sequence[Link]) -> dict[Site, Key]:
    """Of tensors that hold all layers of a loop, a call in it has only those of its own layer."""

    def held(link: Link, layer: int) -> bool:
        if link.flax_part is None or link.flax_part[2] - link.flax_part[1] > 1:
            return True
        return link.flax_part[1] == layer

    found = {}
    for site, key in keys.items():
        layer = calls[site].layer
        found[site] = key if layer is None else frozenset(i for i in key if held(links[i], layer))
    return found


@dataclasses.dataclass(frozen=True)
class _Chain:
    """Nested calls of modules with the same tensors.

    Attributes:
        sites: the outermost call, and those made in it.
        holders: those whose module holds the tensors itself, as a linear layer does.
    """

    sites: list[Site]
    holders: list[Site]


def _chains(sites: list[Site], calls: Calls, owners: Iterable[tuple[str, int]]) -> list[_Chain]:
    holding = {path for path, _ in owners}
    found = []
    for outer in sites:
        if not any(_inside(outer, other, calls) for other in sites):
            chain = [outer, *(site for site in sites if _inside(site, outer, calls))]
            found.append(_Chain(chain, [site for site in chain if site.path in holding]))
    return found


def _matched(
    ones: list[Site], others: list[Site], chains: list[_Chain], chains_2: list[_Chain]
) -> list[Pair]:
    """Calls of modules with the same tensors.

    In order, if they are as many. Else a layer belongs to the layer in a wrapper, which may do
    more; and of two wrappers the outermost calls, and the innermost ones, belong to each other.
    """
    plain = [site for site in others if site.method == "__call__"]
    if len(plain) == len(ones):
        others = plain  # a method that the other side has no call for
    if len(ones) == len(others):
        return [Pair((a,), (b,)) for a, b in zip(ones, others, strict=True)]
    pairs = []
    for one, other in zip(chains, chains_2, strict=False):
        if min(len(one.sites), len(other.sites)) == 1:
            if len(one.holders) == len(other.holders) == 1:
                pairs.append(Pair((one.holders[0],), (other.holders[0],)))
            else:
                pairs.append(Pair((one.sites[0],), (other.sites[0],)))
        else:
            pairs.append(Pair((one.sites[0],), (other.sites[0],)))
            pairs.append(Pair((one.sites[-1],), (other.sites[-1],)))
    return pairs


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
    """Calls of modules without parameters: those alike of one paired call, if they are as many."""
    home = {site: pair for pair in pairs for site in (*pair.torch, *pair.flax)}
    groups: dict[Pair, tuple[list[Site], list[Site]]] = {}
    for side, (keys, calls) in enumerate(((ones, torch), (others, flax))):
        for site, key in keys.items():
            parent = calls[site].parent
            if not key and parent in home and calls[site].outputs:
                groups.setdefault(home[parent], ([], []))[side].append(site)
    found = []
    for left, right in groups.values():
        words = {site: words_of(f"{torch[site].kind}.{site.path}") for site in left}
        words_2 = {site: words_of(f"{flax[site].kind}.{site.path}") for site in right}
        left = [a for a in left if any(words[a] & words_2[b] for b in right)]
        right = [b for b in right if any(words[a] & words_2[b] for a in left)]
        if len(left) == len(right):
            found += [Pair((a,), (b,)) for a, b in zip(left, right, strict=True)]
    return found


def _parents(pairs: list[Pair], flax: Calls) -> dict[Pair, Pair | None]:
    home = {site: pair for pair in pairs for site in pair.flax}
    parents: dict[Pair, Pair | None] = {}
    for pair in pairs:
        site = flax[pair.flax[0]].parent
        while site is not None and site not in home:
            site = flax[site].parent
        parents[pair] = home[site] if site is not None else None
    return parents


def _alone(keys: Mapping[Site, Key], calls: Calls, paired: set[Site]) -> list[Site]:
    """Calls that have parameters and of which nothing is compared, neither within nor around."""
    seen = set(paired)
    for site in paired:
        parent = calls[site].parent
        while parent is not None:
            seen.add(parent)
            parent = calls[parent].parent
    return [
        site
        for site, key in keys.items()
        if key
        and site not in seen
        and not any(keys[other] == key and _inside(site, other, calls) for other in paired)
    ]
