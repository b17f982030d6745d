"""What a trace found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from parity.tracing.match.infer import Inferred


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


@dataclasses.dataclass(frozen=True)
class Note:
    """Something that was not compared, and all that this is true of.

    Attributes:
        sentence: with a `{}` where a thing's name belongs; or the whole of it, without things.
        things: names of tensors and calls.
    """

    sentence: str
    things: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """One for each of the first things, and one for the rest."""
        if not self.things:
            return [self.sentence]
        found = [self.sentence.format(thing) for thing in self.things[:_SHOWN]]
        more = len(self.things) - _SHOWN
        return [*found, f"and {more} more of this kind"] if more > 0 else found

    def __str__(self) -> str:
        """In one line, with the first of the things."""
        if not self.things:
            return self.sentence
        more = len(self.things) - 1
        return self.sentence.format(self.things[0]) + (f" (and {more} more)" if more else "")


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
        kinds_of_notes: what was not compared, by kind.
        config: keys of the two models' configs that differ, `{key: [PyTorch's, Flax's]}`; empty
            where they have none that are known.
    """

    first_divergence: Divergence | None
    rows: list[Row]
    parameters: dict[str, float]
    gradients: dict[str, float]
    loss: tuple[float, float] | None
    rules: Inferred | None
    kinds_of_notes: Sequence[Note]
    config: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether no divergence was found."""
        return self.first_divergence is None

    @property
    def notes(self) -> list[str]:
        """What was not compared, a sentence each."""
        return [sentence for note in self.kinds_of_notes for sentence in note.sentences()]

    def to_dict(self) -> dict[str, Any]:
        """For a record."""
        found = self.first_divergence
        return {
            "equal": self.equal,
            "first_divergence": None if found is None else found.to_dict(),
            "config": {key: list(values) for key, values in self.config.items()},
            "calls": [dataclasses.asdict(row) for row in self.rows],
            "parameters": self.parameters,
            "gradients": self.gradients,
            "loss": self.loss,
            "notes": self.notes,
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

    def answer(self) -> str:
        """The culprit, or that there is none; and where the configs differ."""
        found = self.first_divergence
        lines = [f"no divergence in {len(self.rows)} calls" if found is None else str(found)]
        for key, (one, other) in self.config.items():
            lines.append(f"config: {key} is {one} in PyTorch, {other} in Flax")
        return "\n".join(lines)

    def __str__(self) -> str:
        """The answer, and below it what was not compared, a line for each kind."""
        return "\n".join([self.answer(), *(f"note: {note}" for note in self.kinds_of_notes)])

    def print(self, console: Console | None = None, *, calls: bool = False) -> None:
        """Show what was found, the answer first.

        Args:
            console: where; a new one on stdout without it.
            calls: show every pair of calls too.
        """
        console = console or Console()
        console.print(self.answer(), highlight=False, markup=False)
        if calls:
            console.print(self.table())
        for note in self.kinds_of_notes:
            console.print(f"note: {note}", highlight=False, markup=False)


_SHOWN = 5  # things of one kind, a sentence each
