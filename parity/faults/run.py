"""Plant each fault, trace, and see what the tracer says: detected, localised, named."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import diy_jax
import diy_torch
from diy_core.config import DIYConfig
from parity.environment import Device, exact
from parity.faults.fault import Fault
from parity.faults.trainers import HEALTHY, trace_training
from parity.faults.training import TrainingFault
from parity.random_models import small_configs, write_random_model
from parity.tracer import trace
from parity.tracing.match.rules import twin_rules
from parity.tracing.result import Divergence, TraceResult

_LENGTHS = ((24, 17), (5, 3))  # valid tokens of each row: of a prompt, then of a cached call


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was said of one fault.

    Attributes:
        detected: a divergence was found.
        localised: in the very module.
        named: with a right suspect among those shown.
    """

    fault: Fault | TrainingFault
    divergence: Divergence | None

    @property
    def detected(self) -> bool:
        """A divergence was found."""
        return self.divergence is not None

    @property
    def localised(self) -> bool:
        """It is in the module where the fault sits."""
        return self.divergence is not None and self.divergence.torch == self.fault.module

    @property
    def named(self) -> bool:
        """A right suspect is among those that are shown."""
        if self.divergence is None or not self.localised:
            return False
        return any(suspect.name in self.fault.suspects for suspect in self.divergence.suspects)


def run_faults(
    faults: Iterable[Fault | TrainingFault],
    device: Device,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Outcome]:
    """Plant faults one after the other into a small random model, in float64."""
    found = []
    with exact(device), tempfile.TemporaryDirectory() as folder:
        for fault in faults:
            progress(fault.name)
            path = Path(folder) / fault.model
            if not path.exists():
                write_random_model(path, small_configs()[fault.model], "fan-in")
            found.append(Outcome(fault, trace_fault(fault, path, device)))
    return found


def trace_fault(fault: Fault | TrainingFault, path: Path, device: Device) -> Divergence | None:
    """Trace the PyTorch twin against the Flax twin with the fault in it; inside `exact`."""
    if isinstance(fault, TrainingFault):
        trainer = dataclasses.replace(HEALTHY, **fault.change)
        return trace_training(path, device, trainer)
    return trace_model(fault, path, device).first_divergence


def trace_model(fault: Fault, path: Path, device: Device) -> TraceResult:
    """A pass through both models, or a step with a cache; inside `exact`."""
    whole = diy_torch.DIYForCausalLM.from_pretrained(path, torch.float64, device.torch)
    config = whole.config
    _, params = diy_jax.DIYForCausalLM.from_pretrained(path, jnp.float64)
    params = jax.tree.map(np.array, params)
    if fault.params is not None:
        params = copy.deepcopy(params)
        fault.params(params)
    damaged = fault.config(config) if fault.config is not None else config
    with fault.planted():
        other = diy_jax.DIYForCausalLM(damaged, dtype=jnp.float64, param_dtype=jnp.float64)
        return trace(
            whole,
            other,
            params,
            _inputs(fault, whole, config),
            rules=twin_rules(config),
            backward=fault.scenario == "backward",
        )


def _inputs(fault: Fault, model: Any, config: DIYConfig) -> Any:
    """A prompt; or a cached call after it, ragged both times."""
    generator = np.random.default_rng(0)
    prompt, step = (generator.integers(0, config.vocab_size, (2, n[0]), np.int32) for n in _LENGTHS)
    lengths, more = (np.array(n, np.int32) for n in _LENGTHS)
    if fault.scenario != "decode":
        return (prompt, None, lengths)
    with torch.no_grad():
        _, past = model(torch.from_numpy(prompt), None, lengths.tolist(), use_cache=True)
    kept = [
        ({name: array.numpy().copy() for name, array in cached.items()}, position.numpy())
        for cached, position in past
    ]
    return (step, None, more, kept, True)
