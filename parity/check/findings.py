"""What a check has found so far: its lines, each with its reach, and the curves beside them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from parity.batch import Batch
from parity.check import lines
from parity.check.compare import Check
from parity.check.curves import (
    BACKWARD_POSITIONS,
    DECODE_POSITIONS,
    FORWARD_POSITIONS,
    Curve,
    layer_curves,
    position_curve,
)
from parity.check.inputs import Inputs
from parity.check.lines import Logits
from parity.check.measures import NothingProven
from parity.twins import Observation


@dataclasses.dataclass
class Result:
    """What a check found: its lines, and the curves that belong to them."""

    checks: list[Check]
    curves: list[Curve]


class Findings:
    """Lines and curves, added one after the other."""

    def __init__(self, device: str, inputs: Inputs) -> None:
        self.device, self.inputs = device, inputs
        self.checks: list[Check] = []
        self.curves: list[Curve] = []

    def result(self) -> Result:
        """All of it."""
        return Result(self.checks, layer_curves(self.checks) + self.curves)

    def add(self, checks: Sequence[Check], reach: str = "") -> None:
        """Lines, which looked as far as `reach` says; without it, as each says itself."""
        self.checks += [dataclasses.replace(c, reach=reach or c.reach) for c in checks]

    def positions(self, name: str, batch: Batch, found: Logits, truth: Logits) -> None:
        """The float64 line of the logits of one twin at the tokens of a batch."""
        self.logits(name, batch.place, found, truth, batch.reach)

    def logits(
        self, name: str, place: Callable[[int], str], found: Logits, truth: Logits, reach: str
    ) -> None:
        """The same of tokens that stand where `place` says."""
        line = name, "float64", self.device
        make = lines.same_positions
        self.add([lines.provable(*line, make, name, place, found, truth, self.device)], reach)

    def forward_positions(
        self, dtype: str, truth: Observation | None, seen: dict[str, Observation]
    ) -> None:
        """Curves of the errors of logits and of the embedding's gradient, by position."""
        assert truth is not None
        batch = self.inputs.batch
        valid, labelled = batch.valid, batch.labels >= 0
        for side, found in seen.items():
            self._curve(FORWARD_POSITIONS, dtype, side, valid, found.logits, truth.logits)
        for side, found in seen.items():
            self._curve(BACKWARD_POSITIONS, dtype, side, labelled, found.embedded, truth.embedded)

    def decode_positions(self, dtype: str, twin: str, logits: Logits, full: Logits) -> None:
        """The curve of the errors of cached logits, by position."""
        valid = self.inputs.decoding.batch.valid
        self._curve(DECODE_POSITIONS, dtype, twin, valid, logits, full)

    def _curve(
        self,
        figure: str,
        dtype: str,
        side: str,
        where: NDArray[Any],
        found: NDArray[Any] | None,
        truth: NDArray[Any] | None,
    ) -> None:
        if found is None or truth is None:
            return
        with contextlib.suppress(NothingProven):  # the line of the check says so, and fails
            self.curves.append(position_curve(figure, dtype, side, where, found, truth))
