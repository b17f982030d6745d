"""One call of one module, as it is recorded on either side."""

from __future__ import annotations

import dataclasses
from typing import Generic, Literal, TypeVar

Leaf = TypeVar("Leaf")
Kind = Literal["inputs", "outputs", "input_gradients", "output_gradients"]


@dataclasses.dataclass(frozen=True)
class Site:
    """Which call: the module's path (`""` is the root), the method, and the number of the call."""

    path: str
    method: str = "__call__"
    nth: int = 0

    def __str__(self) -> str:
        """As it is shown: `layers.3.attention`, with method and number where they say something."""
        text = self.path or "(root)"
        text += "" if self.method == "__call__" else f".{self.method}"
        return text if self.nth == 0 else f"{text} (call {self.nth + 1})"


@dataclasses.dataclass
class Call(Generic[Leaf]):
    """What went into a call and came out, arrays by their place among the arguments or results.

    Attributes:
        site: which call.
        parent: the call that it was made in; None for the root's.
        kind: the name of the module's class.
        inputs: and the others: `{"args.0": ..., "kwargs.mask": ...}`, `{"": ...}`, `{"0": ...}`.
        unknown: arrays without a gradient, or whose gradients could not be seen.
        batched: whether the call is one of many that JAX makes at once (`vmap`).
        layer: in a loop of JAX (`nn.scan`), the iteration; None elsewhere.
        kept: of a norm with running statistics, what share of them a training step keeps.
    """

    site: Site
    parent: Site | None
    kind: str = ""
    inputs: dict[str, Leaf] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Leaf] = dataclasses.field(default_factory=dict)
    input_gradients: dict[str, Leaf] = dataclasses.field(default_factory=dict)
    output_gradients: dict[str, Leaf] = dataclasses.field(default_factory=dict)
    unknown: set[tuple[Kind, str]] = dataclasses.field(default_factory=set)
    batched: bool = False
    layer: int | None = None
    kept: float | None = None

    def of(self, kind: Kind) -> dict[str, Leaf]:
        """The arrays of one kind."""
        found: dict[str, Leaf] = getattr(self, kind)
        return found


class Numbering:
    """Counts the calls of each module's methods."""

    def __init__(self) -> None:
        self._count: dict[tuple[str, str], int] = {}

    def next(self, path: str, method: str = "__call__") -> Site:
        """The next call of that method."""
        nth = self._count.get((path, method), 0)
        self._count[path, method] = nth + 1
        return Site(path, method, nth)
