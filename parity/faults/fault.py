"""A deliberate port bug: what is damaged, where it sits, and what a tracer should say of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal
from unittest import mock

from diy_core.config import DIYConfig

Scenario = Literal["forward", "backward", "decode"]
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Patch:
    """One name of a module that stands for something else while the fault is there."""

    owner: Any
    name: str
    make: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Fault:
    """One bug of the Flax twin.

    Attributes:
        name: for tables and commands.
        sentence: what was done wrong.
        module: the PyTorch path of the module that it sits in; of several, the first to run.
        suspects: names of hypotheses that are right about it.
        scenario: what shows it: a forward pass, a backward pass, or a step with a cache.
        model: which of `parity.random_models.small_configs` it is put into.
        params: damages the parameters (a fresh copy).
        config: damages the config of the Flax twin.
        patches: damage functions.
    """

    name: str
    sentence: str
    module: str
    suspects: tuple[str, ...]
    scenario: Scenario = "forward"
    model: str = "gqa"
    params: Callable[[Params], None] | None = None
    config: Callable[[DIYConfig], DIYConfig] | None = None
    patches: tuple[Patch, ...] = ()

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Inside, the functions are damaged."""
        with contextlib.ExitStack() as stack:
            for patch in self.patches:
                original = getattr(patch.owner, patch.name)
                stack.enter_context(
                    mock.patch.object(patch.owner, patch.name, patch.make(original))
                )
            yield
