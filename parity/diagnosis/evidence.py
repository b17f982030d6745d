"""What is known of a culprit: its tensors, what went in and came out, and the calls made in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from parity.tracing.compare.comparison import Comparison
from parity.tracing.compare.errors import Arrays, LeafError, relative_error
from parity.tracing.match.align import Alignment, Pair
from parity.tracing.match.rules import Link
from parity.tracing.record.calls import Kind
from parity.tracing.result import Suspect

Array = NDArray[Any]
# What values are rounded to, the widest first.
ROUNDED: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8": ml_dtypes.float8_e4m3fn,
    "float8 (e5m2)": ml_dtypes.float8_e5m2,
}


@dataclasses.dataclass(frozen=True)
class Value:
    """One array as each side has it, both in Flax's layout; floats as float64.

    Attributes:
        name: which of the call's arrays, as the Flax side names it: `args.0`.
    """

    name: str
    torch: Array
    flax: Array

    @property
    def error(self) -> float:
        """How far they are apart."""
        return relative_error(self.torch, self.flax)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One tensor of the culprit, both sides in Flax's layout, as float64.

    Attributes:
        name: within the culprit: `weight`, `q_proj.bias`.
        link: what it is called on both sides.
    """

    name: str
    link: Link
    torch: Array
    flax: Array


@dataclasses.dataclass(frozen=True)
class Part:
    """A call made in the culprit: what it is called there, its inputs and outputs.

    Attributes:
        alone: whether PyTorch alone makes it; its values are PyTorch's on both sides.
    """

    name: str
    inputs: list[Value]
    outputs: list[Value]
    alone: bool = False


@dataclasses.dataclass
class Evidence:
    """What hypotheses are tried on.

    Attributes:
        name: the culprit's path on the PyTorch side.
        module: the culprit there.
        target: the value that differs: an output, or what goes into one of the parts.
        stage: the name of that part; empty for an output.
        inputs: of the culprit; the same on both sides, since the Flax side got PyTorch's.
        given: what PyTorch's side alone was given, as a mask or tables that Flax makes inside.
        outputs: of the culprit.
        parts: the calls made in it, in order.
        parameters: of the culprit and of its parts.
        torch_only: tensors of the PyTorch culprit without a partner, by name within it.
        flax_only: the same of the Flax side.
        others: all tensors of the PyTorch model that links know: `(link, array)`.
        dtype: the precision they are judged by.
        bound: what error is none in that precision.
        with_parameters: the error of the target with other parameters on the Flax side.
        calls: parts that are not called as often on both sides: name, times in PyTorch, in Flax.
        words: what the target is called; empty for what goes into the stage, or the output.
        odd: the side that is taken for the wrong one, as it is called.
        usual: the other side.
    """

    name: str
    module: torch.nn.Module
    target: Value
    stage: str
    inputs: list[Value]
    outputs: list[Value]
    parts: list[Part]
    parameters: list[Parameter]
    torch_only: Arrays
    flax_only: Arrays
    others: Sequence[tuple[Link, Array]]
    dtype: str
    bound: float
    with_parameters: Callable[[Mapping[Link, Array]], float]
    calls: Sequence[tuple[str, int, int]] = ()
    odd: str = "Flax"
    usual: str = "PyTorch"
    words: str = ""
    given: Sequence[Array] = ()

    @property
    def what(self) -> str:
        """The value that differs, in words."""
        return self.words or (f"what goes into {self.stage}" if self.stage else "the output")

    def mirrored(self) -> Evidence:
        """The same with the sides exchanged: PyTorch's is taken for the wrong one."""

        def turned(values: Sequence[Value]) -> list[Value]:
            return [Value(v.name, v.flax, v.torch) for v in values]

        return dataclasses.replace(
            self,
            target=turned([self.target])[0],
            inputs=turned(self.inputs),
            outputs=turned(self.outputs),
            parts=[
                dataclasses.replace(p, inputs=turned(p.inputs), outputs=turned(p.outputs))
                for p in self.parts
            ],
            parameters=[Parameter(p.name, p.link, p.flax, p.torch) for p in self.parameters],
            torch_only=self.flax_only,
            flax_only=self.torch_only,
            odd=self.usual,
            usual=self.odd,
        )

    def suspect(self, name: str, sentence: str, torch: Array, flax: Array) -> Suspect | None:
        """A hypothesis under which the two sides are these, if they then agree."""
        after = relative_error(torch, flax) if torch.shape == flax.shape else np.inf
        return self.judge(name, sentence, after)

    def judge(self, name: str, sentence: str, after: float) -> Suspect | None:
        """A hypothesis that leaves this error; None where that is still one."""
        before = self.target.error
        if after <= self.bound and before > self.bound:
            return Suspect(name, sentence, before, after)
        return None


def value_evidence(value: Value, words: str, bound: float) -> Evidence:
    """A value alone, of which nothing else is known; no parameter's change changes its error."""
    return Evidence(
        name="", module=torch.nn.Identity(), target=value, stage="", inputs=[], outputs=[],
        parts=[], parameters=[], torch_only={}, flax_only={}, others=[], dtype="float64",
        bound=bound, with_parameters=lambda changes: value.error, words=words,
    )  # fmt: skip


class Capture(Comparison):
    """A comparison that keeps the arrays of one pair and of the calls made in it."""

    def __init__(self, alignment: Alignment, pair: Pair, *args: Any) -> None:
        super().__init__(*args)
        self._kept = {pair, *alignment.children(pair)}
        self.values: dict[tuple[Pair, Kind], list[Value]] = {}
        self.layouts: list[LeafError] = []

    def _keep(
        self, pair: Pair, kind: Kind, torch: Arrays, flax: Arrays, errors: list[LeafError]
    ) -> None:
        if pair in self._kept:
            self.layouts += errors
            self.values.setdefault((pair, kind), []).extend(
                Value(e.flax, wide(e.operation(torch[e.torch])), wide(flax[e.flax])) for e in errors
            )


class GradientCapture(Comparison):
    """A comparison that keeps the gradients of some pairs' inputs and outputs."""

    def __init__(self, pairs: Collection[Pair], *args: Any) -> None:
        super().__init__(*args)
        self._pairs = pairs
        self.gradients: dict[tuple[Pair, Kind], list[Value]] = {}

    def hear_gradient(self, pair: Pair, kind: Kind, name: str, torch: Array, flax: Array) -> None:
        """Keep it."""
        if pair in self._pairs:
            value = Value(name, wide(torch), wide(flax))
            self.gradients.setdefault((pair, kind), []).append(value)


def wide(array: Array) -> Array:
    """Floats as float64; anything else as it is."""
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if is_float else array


def rounded(array: Array, precision: str) -> Array:
    """In a narrower dtype, or TF32, and back in float64; as it is where that is empty."""
    if not precision:
        return array
    if precision == "TF32":  # float32 with 10 bits of the mantissa
        bits = array.astype(np.float32).view(np.uint32)
        return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return array.astype(ROUNDED[precision]).astype(np.float64)
