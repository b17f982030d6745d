"""A deliberate port bug: what is damaged, where it sits, and what a tracer should say of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal
from unittest import mock

from diy_core.config import DIYConfig
from parity.faults.listed import LISTED

Scenario = Literal["forward", "backward", "decode"]
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Patch:
    """One name of a module that stands for something else while the fault is there."""

    owner: Any
    name: str
    make: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class ListedFault:
    """What every fault has: its name, under which `parity.faults.listed` says what it is."""

    name: str

    @property
    def sentence(self) -> str:
        """What was done wrong."""
        return LISTED[self.name].sentence

    @property
    def module(self) -> str:
        """The PyTorch path of the module that it sits in, or the stage of a training step."""
        return LISTED[self.name].module


@dataclasses.dataclass(frozen=True)
class Fault(ListedFault):
    """One bug of the Flax twin.

    Attributes:
        suspects: names of hypotheses that are right about it.
        scenario: what shows it: a forward pass, a backward pass, or a step with a cache.
        model: which of `parity.random_models.small_configs` it is put into.
        params: damages the parameters (a fresh copy).
        config: damages the config of the Flax twin.
        patches: damage functions.
    """

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
