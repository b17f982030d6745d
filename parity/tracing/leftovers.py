"""Tensors that belong to no layer alike on both sides: fused ones, and single ones."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.names import parse, words_and_kind
from parity.tracing.operations import Rearrange, candidates
from parity.tracing.rules import Link, usual_operation

_PART = 1 << 18  # values at a time


def by_values(one: NDArray[Any], other: NDArray[Any]) -> Rearrange | None:
    """The operation that leads to equal values, if there is one."""
    operations = candidates(one.shape, other.shape)
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
) -> list[list[Link]]:
    """One tensor against several of the same leaf whose sizes add up; found ones leave the rest."""
    found = []
    for one in list(left):
        for group in _groups(list(right)):
            shapes = {n: flax[n].shape for n in group}
            if links := _part_links(one, torch[one], shapes, torch_is_whole=True):
                found.append(links)
                del left[one]
                for name in group:
                    del right[name]
                break
    for other in list(right):
        for group in _groups(list(left)):
            shapes = {n: torch[n].shape for n in group}
            if links := _part_links(other, flax[other], shapes, torch_is_whole=False):
                found.append(links)
                del right[other]
                for name in group:
                    del left[name]
                break
    return found


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Names that differ in one word only, as q, k and v of a layer do."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        head, _, leaf = re.sub("/", ".", name).rpartition(".")
        groups.setdefault((head.rpartition(".")[0], leaf), []).append(name)
    order = ("query", "key", "value")

    def rank(name: str) -> int:
        words = parse(name)[0]
        return next((i for i, word in enumerate(order) if word in words), len(order))

    return [
        sorted(group[:n], key=rank) for group in groups.values() for n in range(len(group), 1, -1)
    ]


def _part_links(
    whole: str, array: NDArray[Any], parts: Mapping[str, tuple[int, ...]], *, torch_is_whole: bool
) -> list[Link]:
    """Links between one tensor and parts of the other side that fill an axis of it; [] if none."""
    side = "torch_part" if torch_is_whole else "flax_part"
    for axis in range(array.ndim):
        rest = array.size // array.shape[axis]
        sizes = [int(np.prod(shape)) / rest for shape in parts.values()]
        if sum(sizes) != array.shape[axis] or any(size != int(size) for size in sizes):
            continue
        links, start = [], 0
        for (part, shape), size in zip(parts.items(), map(int, sizes), strict=True):
            cut = (*array.shape[:axis], size, *array.shape[axis + 1 :])
            (one, source), (other, target) = (
                ((whole, cut), (part, shape)) if torch_is_whole else ((part, shape), (whole, cut))
            )
            operation = usual_operation(one, other, source, target)
            if operation is None:
                break
            place = {side: (axis, start, start + size)}
            links.append(Link(one, other, operation, **place))
            start += size
        if len(links) == len(parts):
            return links
    return []


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
