"""What a trace found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from parity.tracing.infer import Inferred


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A hypothesis about a culprit that was tried.

    Attributes:
        name: which one, for machines: `weight-transposed`.
        sentence: what it says of this module.
        before: the error of the module as it is.
        after: what is left of it under the hypothesis; None where it cannot vanish, as rounding.
    """

    name: str
    sentence: str
    before: float
    after: float | None

    def __str__(self) -> str:
        """`weight looks transposed (error 1.3e+00 -> 2.0e-16)`."""
        if self.after is None:
            return f"{self.sentence} (error {self.before:.1e})"
        return f"{self.sentence} (error {self.before:.1e} -> {self.after:.1e})"


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first place where the two models part.

    Attributes:
        torch: and flax: the module's path in both worlds; `""` is the model itself.
        direction: `forward` or `backward`.
        where: which of its values: its output, what it passes on to a part of it, a parameter.
        error: relative error of that value as the models ran.
        input_error: the largest one of what went in.
        alone_error: that of the module run alone on what the PyTorch side put in.
        dtype: the precision it is judged by.
        bound: what is allowed in that precision.
        suspects: hypotheses that make the error vanish, the best first.
    """

    torch: str
    flax: str
    direction: str
    where: str
    error: float
    input_error: float
    alone_error: float
    dtype: str
    bound: float
    suspects: tuple[Suspect, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For a record."""
        return {
            "module_torch": self.torch,
            "module_flax": self.flax,
            "direction": self.direction,
            "where": self.where,
            "error": self.error,
            "input_error": self.input_error,
            "alone_error": self.alone_error,
            "dtype": self.dtype,
            "bound": self.bound,
            "suspects": [
                {
                    "suspect": suspect.name,
                    "sentence": suspect.sentence,
                    "error_before": suspect.before,
                    "error_after": suspect.after,
                }
                for suspect in self.suspects
            ],
        }

    def __str__(self) -> str:
        """The culprit, its numbers, and what is suspected."""
        names = self.torch or "(root)"
        if self.flax.replace("/", ".").replace("_", ".") != names.replace("_", "."):
            names += f" | {self.flax or '(root)'}"
        lines = [
            f"{names}: {self.direction}, {self.where} is off by {self.error:.1e}, its inputs by "
            f"{self.input_error:.1e}; alone on the same inputs by {self.alone_error:.1e}"
        ]
        lines += [f"{self.torch or '(root)'}: {suspect}" for suspect in self.suspects]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Row:
    """One pair of calls: the largest error of its inputs, its outputs, and their gradients."""

    torch: str
    flax: str
    inputs: float
    outputs: float
    input_gradients: float | None
    output_gradients: float | None


@dataclasses.dataclass
class TraceResult:
    """What a trace found.

    Attributes:
        first_divergence: the culprit, or None where the two models agree.
        rows: every pair of calls in the order of execution.
        parameters: relative error of every pair of tensors, by PyTorch name.
        gradients: the same of their gradients.
        loss: of both sides, or None.
        rules: the table that was used, if it was inferred.
        notes: what was not compared.
    """

    first_divergence: Divergence | None
    rows: list[Row]
    parameters: dict[str, float]
    gradients: dict[str, float]
    loss: tuple[float, float] | None
    rules: Inferred | None
    notes: Sequence[str]

    @property
    def equal(self) -> bool:
        """Whether no divergence was found."""
        return self.first_divergence is None

    def to_dict(self) -> dict[str, Any]:
        """For a record."""
        found = self.first_divergence
        return {
            "equal": self.equal,
            "first_divergence": None if found is None else found.to_dict(),
            "calls": [dataclasses.asdict(row) for row in self.rows],
            "parameters": self.parameters,
            "gradients": self.gradients,
            "loss": self.loss,
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """Every pair of calls, in the order of execution."""
        table = Table(box=None, pad_edge=False)
        table.add_column("module", overflow="fold")
        for column in ("inputs", "outputs", "grad out", "grad in"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            numbers = (row.inputs, row.outputs, row.output_gradients, row.input_gradients)
            cells = ["" if number is None else f"{number:.1e}" for number in numbers]
            table.add_row(row.torch, *cells)
        return table

    def print(self, console: Console | None = None) -> None:
        """Show what was found."""
        console = console or Console()
        for note in self.notes:
            console.print(f"note: {note}", highlight=False, markup=False)
        if self.first_divergence is None:
            console.print(f"no divergence in {len(self.rows)} calls")
        else:
            console.print(str(self.first_divergence), highlight=False, markup=False)
