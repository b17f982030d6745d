"""Hypotheses about a convolution: its padding, stride, dilation, and which way the kernel lies."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parity.diagnosis.evidence import Evidence
from parity.tracing.compare.errors import relative_error
from parity.tracing.result import Suspect

Array = NDArray[Any]
Padding = tuple[tuple[int, int], ...]
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
_SEARCHED = 8  # the longest kernel of which every place is tried
_CHANNELS = 8  # outputs that are computed while it is searched


@dataclasses.dataclass(frozen=True)
class Way:
    """How to convolve.

    Attributes:
        padding: before and after, along each spatial axis; or `SAME`, as Flax and TensorFlow have
            it: as little as gives size / stride outputs, the odd one after.
        mode: what is padded with, as PyTorch calls it.
        flipped: a true convolution, not a cross-correlation.
    """

    padding: Padding | str
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    mode: str = "zeros"
    flipped: bool = False
    biased: bool = True

    def words(self) -> tuple[str, ...]:
        """What may be otherwise, in words."""
        return (
            self.padding if isinstance(self.padding, str) else f"padding {_shown(self.padding)}",
            f"padded with {self.mode}",
            f"stride {_list(self.stride)}",
            f"dilation {_list(self.dilation)}",
            "kernel flipped (a true convolution)" if self.flipped else "kernel as it is",
            "with bias" if self.biased else "bias left out",
        )


def convolution_suspects(
    evidence: Evidence, x: Array, kernel: Array, bias: Array | None
) -> Iterator[Suspect]:
    """What of a convolution is otherwise; every way is tried on one row and few channels.

    Args:
        evidence: the culprit; its module says how PyTorch convolves.
        x: (B, ..., I), channels last.
        kernel: (..., I / groups, O).
        bias: (O,).
    """
    sides = evidence.target.torch, evidence.target.flax
    groups = x.shape[-1] // max(kernel.shape[-2], 1)
    few = kernel.shape[-1] if groups > 1 else _CHANNELS
    part = (x[:1], kernel[..., :few], None if bias is None else bias[:few])
    best: list[tuple[float, Way | None]] = [(np.inf, None), (np.inf, None)]
    for way in _ways(evidence.module, x.shape[1:-1], kernel.shape[:-2], bias is not None):
        value = convolved(*part, way)
        for i, side in enumerate(sides):
            wanted = side[:1, ..., :few]
            if value is not None and value.shape == wanted.shape:
                best[i] = min(best[i], (relative_error(value, wanted), way), key=lambda b: b[0])
    (after_torch, mine), (after_flax, theirs) = best
    if after_flax <= evidence.bound < after_torch and x.shape[1] == x.shape[-1]:
        yield from _untransposed(evidence, x, kernel, bias)
    if mine is None or theirs is None or mine == theirs:
        return
    said = [(a, b) for a, b in zip(mine.words(), theirs.words(), strict=True) if a != b]
    sentence = "; ".join(f"{b} in Flax, {a} in PyTorch" for a, b in said)
    after = [
        np.inf if value is None or value.shape != side.shape else relative_error(value, side)
        for side, way in zip(sides, (mine, theirs), strict=True)
        for value in [convolved(x, kernel, bias, way)]
    ]
    if suspect := evidence.judge(f"conv-{said[0][1].split(' ')[0]}", sentence, max(after)):
        yield suspect


def _untransposed(
    evidence: Evidence, x: Array, kernel: Array, bias: Array | None
) -> Iterator[Suspect]:
    """An image as wide as it has channels, which Flax is given channels first, as PyTorch is."""
    way = next(_ways(evidence.module, x.shape[2:], kernel.shape[:-2], bias is not None))
    value = convolved(np.moveaxis(x, 1, -1), kernel, bias, way)
    side = evidence.target.torch
    if value is None or sorted(value.shape) != sorted(side.shape):
        return
    # What came out lies in any order: it is as square as what went in.
    orders = [(0, *order) for order in itertools.permutations(range(1, side.ndim))]
    turned = [side.transpose(order) for order in orders]
    after = min(relative_error(value, a) for a in turned if a.shape == value.shape)
    words = "the image lies channels first, as PyTorch reads it, and Flax takes its last axis for "
    words += "the channels: transpose it for Flax"
    if suspect := evidence.judge("conv-channels-first", words, after):
        yield suspect


def _ways(module: Any, sizes: Sequence[int], kernel: Sequence[int], biased: bool) -> Iterator[Way]:
    """As the module is, and with one thing otherwise."""
    axes = len(sizes)
    stride, dilation = (_each(getattr(module, n, 1), axes) for n in ("stride", "dilation"))
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        half: Padding = tuple((n // 2, n - n // 2) for n in reach)
        padding = half if padding == "same" else ((0, 0),) * axes
    else:
        padding = tuple((p, p) for p in _each(padding, axes))
    own = Way(padding, stride, dilation, getattr(module, "padding_mode", "zeros"))
    yield own
    paddings: dict[Padding | str, None] = {padding: None, "SAME": None}
    paddings |= {((p, p),) * axes: None for p in range(max(kernel) + 1)}
    paddings |= {tuple((n // 2, n - n // 2) for n in reach): None}
    paddings |= {tuple((n - n // 2, n // 2) for n in reach): None}
    for sides in ((1, 0), (0, 1)):  # all before, as where it is causal, or all after
        paddings |= {tuple((n * sides[0], n * sides[1]) for n in reach): None}
    for p in paddings:
        for mode in _MODES:
            yield dataclasses.replace(own, padding=p, mode=mode)
    wide = [tuple((n * (k // 2),) * 2 for k in kernel) for n in (1, 2, 3)]
    for p in (padding, "SAME", ((0, 0),) * axes, *wide):
        for n in (1, 2, 3, 4):
            yield dataclasses.replace(own, padding=p, stride=(n,) * axes)
            yield dataclasses.replace(own, padding=p, dilation=(n,) * axes)
        yield dataclasses.replace(own, padding=p, flipped=True)
    if biased:
        yield dataclasses.replace(own, biased=False)


def transposed_suspects(evidence: Evidence, x: Array) -> Iterator[Suspect]:
    """Where the output of a transposed convolution begins in the one without padding, on each side.

    Args:
        evidence: the culprit; its module is PyTorch's.
        x: (B, ..., I), channels last.
    """
    module: Any = evidence.module
    axes, sides = x.ndim - 2, (evidence.target.torch, evidence.target.flax)
    function = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[axes - 1]
    weight, bias = module.weight.detach().double().cpu(), module.bias
    image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], module.dilation, strict=True)]
    found: list[tuple[float, str]] = [(np.inf, ""), (np.inf, "")]
    for flipped in (False, True):
        kernel = weight.flip(tuple(range(2, 2 + axes))) if flipped else weight
        whole = function(image, kernel, None, module.stride, 0, 0, module.groups, module.dilation)
        full = np.moveaxis(whole.numpy(), 1, -1)
        # Further on there is nothing but the bias: output_padding, or a stride above the kernel.
        full = np.pad(full, ((0, 0), *((0, max(module.stride)),) * axes, (0, 0)))
        full = full if bias is None else full + bias.detach().double().cpu().numpy()
        starts = [range(r + 1) for r in reach] if axes == 1 or max(reach) <= _SEARCHED else []
        alike = ((start,) * axes for start in range(max(reach) + 1))
        for start in dict.fromkeys((*alike, *itertools.product(*starts))):
            for i, side in enumerate(sides):
                place = tuple(slice(s, s + n) for s, n in zip(start, side.shape[1:-1], strict=True))
                part = full[(slice(None), *place)]
                if part.shape == side.shape and (error := relative_error(part, side)) < found[i][0]:
                    words = _placed(start, x.shape[1:-1], side.shape[1:-1], reach, module.stride)
                    found[i] = error, words + (", kernel flipped" if flipped else "")
    (_, mine), (_, theirs) = found
    sentence = f"the transposed convolution {theirs} in Flax, {mine} in PyTorch"
    after = max(error for error, _ in found)
    if mine != theirs and (suspect := evidence.judge("conv-transposed", sentence, after)):
        yield suspect


def _placed(
    start: Sequence[int],
    sizes: Sequence[int],
    found: Sequence[int],
    reach: Sequence[int],
    stride: Sequence[int],
) -> str:
    """Where a side's output begins in the full one, and whether that is what Flax calls SAME."""
    same = tuple(
        r - 1 - (r - 1 if s > r - 1 else -(-(r + s - 2) // 2))
        for r, s in zip(reach, stride, strict=True)
    )
    whole = all(n * s == f for n, s, f in zip(sizes, stride, found, strict=True))
    padding = "SAME" if whole and tuple(start) == same else f"padding {_list(start)}"
    return f"with {padding} starts {_list(start)} into the full output"


def convolved(x: Array, kernel: Array, bias: Array | None, way: Way) -> Array | None:
    """The convolution, channels last; None where these sizes do not allow it."""
    axes, sizes = x.ndim - 2, x.shape[1:-1]
    reach = [(k - 1) * d for k, d in zip(kernel.shape[:-2], way.dilation, strict=True)]
    if isinstance(way.padding, str):
        padding = same_padding(sizes, reach, way.stride)
    else:
        padding = way.padding
    if any(n + sum(p) <= r for n, p, r in zip(sizes, padding, reach, strict=True)):
        return None
    mode: Any = _MODES.get(way.mode, "constant")
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), mode)
    spatial = tuple(range(axes))
    kernel = np.flip(kernel, spatial) if way.flipped else kernel
    given = [
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(padded, -1, 1))),
        torch.from_numpy(np.ascontiguousarray(kernel.transpose(axes + 1, axes, *spatial))),
    ]
    groups = x.shape[-1] // kernel.shape[-2]
    function: Any = _CONVOLUTIONS[axes - 1]
    value = function(*given, None, way.stride, 0, way.dilation, groups).numpy()
    value = np.moveaxis(value, 1, -1)
    return value if bias is None or not way.biased else value + bias


def same_padding(sizes: Sequence[int], reach: Sequence[int], stride: Sequence[int]) -> Padding:
    """What Flax and TensorFlow call SAME: ceil(size / stride) outputs, the odd one after."""
    found = []
    for n, r, s in zip(sizes, reach, stride, strict=True):
        total = max((-(-n // s) - 1) * s + r + 1 - n, 0)
        found.append((total // 2, total - total // 2))
    return tuple(found)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _list(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers)) if len(set(numbers)) > 1 else str(numbers[0])


def _shown(padding: Padding) -> str:
    """`1`, where it is the same on all sides; else `(0, 1) x (1, 1)`, before and after."""
    alike = len({n for pair in padding for n in pair}) == 1
    return str(padding[0][0]) if alike else " x ".join(map(str, padding))
