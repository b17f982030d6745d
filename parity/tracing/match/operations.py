"""Invertible operations between the layouts of two worlds, found from shapes alone.

(out, in)       -> (in, out)         a linear layer's weight
(O, I, H, W)    -> (H, W, I, O)      a convolution's weight
(B, C, H, W)    -> (B, H, W, C)      an image, channels first and channels last
(N*H, D)        -> (D, N, H)         a weight whose heads are split
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

from diy_core.mapping import Permute

_MOST_AXES = 5  # 120 permutations


@dataclasses.dataclass(frozen=True)
class Rearrange:
    """Split axes, reorder them, merge axes: each step may be the identity.

    Attributes:
        split: the shape before the axes are reordered.
        axes: the new order of these.
        merged: the shape of the result.
        source: the shape that is taken.
        flipped: axes of `split` that run the other way, as a transposed convolution's do.
    """

    source: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]
    merged: tuple[int, ...]
    flipped: tuple[int, ...] = ()

    def __call__(self, array: Any) -> Any:
        """The array in the other layout; it must have the shape `source`."""
        split = array.reshape(self.split)
        if self.flipped:
            ways = (slice(None), slice(None, None, -1))
            split = split[tuple(ways[axis in self.flipped] for axis in range(len(self.split)))]
        return split.transpose(self.axes).reshape(self.merged)

    @property
    def is_identity(self) -> bool:
        """True where nothing moves."""
        same = self.source == self.merged and not self.flipped
        return same and Permute(self.axes).is_identity

    @property
    def reorders(self) -> bool:
        """True where axes change places at most, and none is split, merged, added or flipped."""
        moved = tuple(self.split[axis] for axis in self.axes)
        return self.split == self.source and self.merged == moved and not self.flipped

    @property
    def inverse(self) -> Rearrange:
        """The operation that undoes this one."""
        moved = tuple(self.split[axis] for axis in self.axes)
        back = Permute(self.axes).inverse.axes
        flipped = tuple(i for i, axis in enumerate(self.axes) if axis in self.flipped)
        return Rearrange(self.merged, moved, back, self.source, flipped)

    def __str__(self) -> str:
        """What it does, for a table: `transpose (1, 0)`, `reshape (4, 2, 8)`, or nothing."""
        if self.is_identity:
            return ""
        steps = []
        if self.split != self.source:
            steps.append(f"reshape {self.split}")
        if self.flipped:
            steps.append(f"flip {self.flipped}")
        if not Permute(self.axes).is_identity:
            steps.append(f"transpose {self.axes}")
        if self.merged != tuple(self.split[axis] for axis in self.axes):
            steps.append(f"reshape {self.merged}")
        return ", ".join(steps)


def permutation(shape: tuple[int, ...], axes: tuple[int, ...]) -> Rearrange:
    """The operation that only reorders axes."""
    return Rearrange(shape, shape, axes, tuple(shape[axis] for axis in axes))


def candidates(source: tuple[int, ...], target: tuple[int, ...]) -> Iterator[Rearrange]:
    """Operations that lead from one shape to the other, the likelier ones first.

    With as many axes on both sides: reorderings, the identity first. Else axes of size 1 come and
    go, and the side with fewer axes has some of them merged: they are split, or merged, beside a
    reordering.
    """
    if len(source) != len(target):
        plain, plain_2 = (tuple(n for n in shape if n != 1) for shape in (source, target))
        if (plain, plain_2) != (source, target):
            for operation in candidates(plain, plain_2):
                yield dataclasses.replace(operation, source=source, merged=target)
            return
    if math.prod(source) != math.prod(target) or max(len(source), len(target)) > _MOST_AXES:
        return
    if len(source) == len(target):
        for axes in itertools.permutations(range(len(source))):
            if tuple(source[axis] for axis in axes) == target:
                yield permutation(source, axes)
    elif len(source) < len(target):
        for operation in _merging(target, source):
            yield operation.inverse
    else:
        yield from _merging(source, target)


def _merging(source: tuple[int, ...], target: tuple[int, ...]) -> Iterator[Rearrange]:
    """Reorder the axes of `source`, then merge neighbours of its order to the axes of `target`."""
    for axes in itertools.permutations(range(len(source))):
        moved = tuple(source[axis] for axis in axes)
        merged = _groups(moved, target)
        # Merged axes keep their order: (N, H) becomes N*H, never H*N.
        if merged and all(list(axes[a:b]) == sorted(axes[a:b]) for a, b in merged):
            yield Rearrange(source, source, axes, target)


def _groups(moved: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, int]]:
    """Which runs of axes multiply to the target's axes; empty if they do not."""
    runs, start = [], 0
    for size in target:
        end, product = start, 1
        while end < len(moved) and (product < size or end == start):
            product *= moved[end]
            end += 1
        if product != size:
            return []
        runs.append((start, end))
        start = end
    return runs if start == len(moved) else []
