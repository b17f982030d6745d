"""Tensors that belong to no layer alike on both sides: fused ones, and single ones."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.match.fused import Cut, index
from parity.tracing.match.names import parse, words_and_kind
from parity.tracing.match.operations import Rearrange, candidates
from parity.tracing.match.rules import Link, usual_operation

_PART = 1 << 18  # values at a time
_FUSED = ("query", "key", "value", "gate", "up")  # in the order in which they are fused


def by_values(one: NDArray[Any], other: NDArray[Any]) -> Rearrange | None:
    """The operation that leads to equal values, if there is one.

    The spatial axes of a kernel may run the other way, as those of a transposed convolution do.
    """
    operations = list(candidates(one.shape, other.shape))
    if one.ndim == other.ndim > 2:
        spatial = tuple(range(2, one.ndim))
        operations += [dataclasses.replace(o, flipped=spatial) for o in operations]
    return next((o for o in operations if np.array_equal(o(one), other)), None)


def fingerprint(array: NDArray[Any]) -> tuple[int, int] | None:
    """Equal for equal values in any order; None for tensors of one value, which say nothing.

    The sum of a hash of each value, the finalizer of SplitMix64 (Steele et al. 2014).
    """
    flat, total = array.reshape(-1), 0
    if array.size == 0 or (flat == flat[0]).all():
        return None
    for start in range(0, flat.size, _PART):
        part = flat[start : start + _PART].astype(np.float64) + 0.0  # one zero, not two
        bits = part.view(np.uint64)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += int((bits ^ (bits >> np.uint64(31))).sum(dtype=np.uint64))
    return flat.size, total % 2**64


def fused(
    torch: Mapping[str, NDArray[Any]],
    flax: Mapping[str, NDArray[Any]],
    left: dict[str, tuple[int, ...]],
    right: dict[str, tuple[int, ...]],
    usual: Container[str],
) -> list[tuple[list[Link], str]]:
    """One tensor against several whose sizes add up, and why; found ones leave the rest.

    Equal values say which parts they are, in which order, and how they lie; else their names do
    (query before key), and what is usual.
    """
    found = []
    for torch_is_whole in (True, False):
        wholes, parts = (left, right) if torch_is_whole else (right, left)
        arrays, others = (torch, flax) if torch_is_whole else (flax, torch)
        prints = {name: fingerprint(others[name]) for name in parts} if wholes else {}
        # What equal values say comes first: a name may fit what is the part of another.
        for one, by_value in [(one, first) for first in (True, False) for one in list(wholes)]:
            free = {name: others[name] for name in parts}
            if one not in wholes:
                continue
            if by_value:
                cuts = _by_prints(arrays[one], free, {name: prints[name] for name in free})
                options = [cuts] if cuts else []
            else:
                options = _by_names(arrays[one], free)
            made = [
                _part_links(one, arrays[one], option, others, usual, torch_is_whole)
                for option in options
            ]
            # Of several axes that can be cut, the one with the most equal values.
            if best := max((m for m in made if m), key=lambda m: m[1], default=None):
                links, same, ordered = best
                if same or ordered:
                    found.append((links, "values" if same == len(links) else "shapes"))
                    del wholes[one]
                    for link in links:
                        del parts[link.flax if torch_is_whole else link.torch]
    return found


def _by_prints(
    array: NDArray[Any],
    parts: Mapping[str, NDArray[Any]],
    prints: Mapping[str, tuple[int, int] | None],
) -> dict[str, Cut]:
    """Equal cuts along an axis that are other tensors, by their values; where most of them are.

    Those that are not are what is left of the same kind, if that is as many.
    """
    by_print = {mark: name for name, mark in prints.items() if mark is not None}

    def known_as(part: NDArray[Any]) -> str | None:
        mark = fingerprint(part)
        return None if mark is None else by_print.get(mark)

    for axis, length in enumerate(array.shape):
        for size in sorted({p.size for p in parts.values() if p.size}):
            count = array.size // size
            if count < 2 or array.size % size or length % count:
                continue
            width = length // count
            places = [(axis, i * width, (i + 1) * width) for i in range(count)]
            names = [known_as(array[index(place)]) for place in places]
            known = [name for name in names if name is not None]
            if 2 * len(known) < count or len(set(known)) < len(known):
                continue
            rest = (
                []
                if len(known) == count
                else [
                    name
                    for name, part in parts.items()
                    if name not in known
                    and part.shape == parts[known[0]].shape
                    and all(_kin(name, other) for other in known)
                ]
            )
            missing = iter(rest)
            if len(rest) == count - len(known):
                return {n or next(missing): p for n, p in zip(names, places, strict=True)}
    return {}


def _kin(one: str, other: str) -> bool:
    """Whether two names differ in one part only, as those of q, k and v of a layer do."""
    a, b = (re.split(r"[./]", name) for name in (one, other))
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1


def _by_names(array: NDArray[Any], parts: Mapping[str, NDArray[Any]]) -> list[dict[str, Cut]]:
    """Cuts along each axis into tensors whose names differ in one part, in the order of these."""
    found = []
    for group in _groups(list(parts)):
        for axis, length in enumerate(array.shape):
            rest = array.size // length
            sizes = [parts[name].size / rest for name in group]
            if sum(sizes) == length and all(size == int(size) for size in sizes):
                ends = np.cumsum(sizes).astype(int)
                starts = [0, *ends[:-1]]
                found.append(
                    {
                        name: (axis, int(start), int(end))
                        for name, start, end in zip(group, starts, ends, strict=True)
                    }
                )
        if found:
            break
    return found


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Names that differ in one part only, in the order in which they are usually fused."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        head, _, leaf = re.sub("/", ".", name).rpartition(".")
        groups.setdefault((head.rpartition(".")[0], leaf), []).append(name)
    return [
        sorted(group[:n], key=_rank) for group in groups.values() for n in range(len(group), 1, -1)
    ]


def _rank(name: str) -> int:
    """The place of a tensor among those that it is fused with."""
    words = parse(name)[0]
    return next((i for i, word in enumerate(_FUSED) if word in words), len(_FUSED))


def _part_links(
    whole: str,
    array: NDArray[Any],
    cuts: Mapping[str, Cut],
    others: Mapping[str, NDArray[Any]],
    usual: Container[str],
    torch_is_whole: bool,
) -> tuple[list[Link], int, bool] | None:
    """Links between parts of one tensor and tensors of the other side; None where shapes forbid.

    Returns them, how many hold equal values, and whether their names say their order.
    """
    sides = []
    for name, place in cuts.items():
        part = array[index(place)]
        one, other = (part, others[name]) if torch_is_whole else (others[name], part)
        torch_name, flax_name = (whole, name) if torch_is_whole else (name, whole)
        operation = usual_operation(torch_name, flax_name, one.shape, other.shape)
        if operation is None:
            return None
        sides.append((torch_name, flax_name, place, operation, by_values(one, other)))
    votes = Counter(o.axes for *_, o in sides if o is not None)
    links = []
    for torch_name, flax_name, place, operation, _ in sides:
        if votes and torch_name not in usual:
            most, _count = votes.most_common(1)[0]
            fitting = candidates(operation.source, operation.merged)
            operation = next((o for o in fitting if o.axes == most), operation)
        torch_part, flax_part = (place, None) if torch_is_whole else (None, place)
        links.append(Link(torch_name, flax_name, operation, torch_part, flax_part))
    ranks = [_rank(name) for name in cuts]
    ordered = len(set(ranks)) == len(ranks) and max(ranks) < len(_FUSED)
    same = sum(link.operation == o for link, (*_, o) in zip(links, sides, strict=True))
    return links, same, ordered


def singles(
    torch: Mapping[str, NDArray[Any]],
    flax: Mapping[str, NDArray[Any]],
    left: dict[str, tuple[int, ...]],
    right: dict[str, tuple[int, ...]],
    usual: Container[str],
) -> list[tuple[Link, str]]:
    """Tensors that belong to no layer alike, as those of a layer that one side writes out.

    By equal values, else by names of the same words; found ones leave the rest. A linear layer's
    weight lies in all layers as it does in most, by equal values: one that is reshaped where others
    are transposed has equal values too.
    """
    found: list[tuple[Link, str]] = []
    prints = {name: fingerprint(flax[name]) for name in right} if left else {}
    for one in list(left):
        fitting = [n for n in right if any(candidates(left[one], right[n]))]
        mark = fingerprint(torch[one])
        same = [n for n in fitting if mark is not None and prints[n] == mark]
        named = [n for n in fitting if words_and_kind(one) == words_and_kind(n)]
        either = [n for n in same if n in named] or same or named
        if len(either) == 1:
            operation = by_values(torch[one], flax[either[0]])
            # What PyTorch has as a layer lies as a kernel does, whatever it is called.
            as_kernel = one in usual and len(right[either[0]]) > 2
            name = f"{either[0]}/kernel" if as_kernel else either[0]
            operation = operation or usual_operation(one, name, left[one], right[either[0]])
            assert operation is not None  # or it did not fit
            found.append((Link(one, either[0], operation), "values" if same else "names"))
            del left[one], right[either[0]]
    votes: dict[tuple[str, tuple[int, ...]], Counter[Rearrange]] = {}
    for link, _ in found:
        if link.torch in usual and by_values(torch[link.torch], flax[link.flax]) is not None:
            kind = (re.sub(r"\d+", "", link.torch), link.operation.merged)
            votes.setdefault(kind, Counter())[link.operation] += 1
    for i, (link, why) in enumerate(found):
        kind = (re.sub(r"\d+", "", link.torch), link.operation.merged)
        if kind in votes:
            (most, _), *_ = votes[kind].most_common(1)
            found[i] = (dataclasses.replace(link, operation=most), why)
    return found
