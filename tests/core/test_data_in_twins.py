"""The batches that the trainers of both twins are given in a run are the same, byte for byte."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from diy_jax.train import Trainer as JaxTrainer
from diy_jax.train import assemble as assemble_jax
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.train import Trainer as TorchTrainer
from diy_torch.train import assemble as assemble_torch
from diy_torch.training_store import TrainingStore as TorchStore
from parity.environment import Device, exact
from tests.jax_cache import compiled_once
from tests.training_runs import STEPS, Runs

# Of an array: its name, dtype and shape, and its bytes.
Content = list[tuple[str, str, tuple[int, ...], bytes]]
SHAPE = (2, 8, 24)


def content(batch: Mapping[str, Any]) -> Content:
    return [
        (name, batch[name].dtype.str, batch[name].shape, batch[name].tobytes())
        for name in sorted(batch)
    ]


class Received:
    """What the step and the evaluation of a twin were called with, on their side of the trainer."""

    def __init__(self, patch: pytest.MonkeyPatch, package: str, trainer: Any) -> None:
        self.steps: dict[int, Content] = {}
        self.evaluated: list[Content] = []
        patch.setattr(f"{package}.train.build_step", self._recording(package))
        evaluate = trainer.evaluate

        def recorded(trainer: Any, batch: Mapping[str, Any]) -> Any:
            self.evaluated.append(content(batch))
            return evaluate(trainer, batch)

        patch.setattr(trainer, "evaluate", recorded)

    def _recording(self, package: str) -> Callable[..., Any]:
        build = importlib.import_module(f"{package}.step").build_step

        def build_recording(*parts: Any) -> Any:
            step = build(*parts)

            def recorded(*arguments: Any) -> Any:
                *_, batch, _rate, number, _seed = arguments
                assert number not in self.steps, "a step was taken twice"
                self.steps[number] = content(batch)
                return step(*arguments)

            return recorded

        return build_recording


def test_both_twins_are_given_the_same_bytes_also_when_a_run_goes_on(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing, accumulation, more rows than an epoch has, stops beside the checkpoints."""
    twins = {
        "diy_torch": Runs(assemble_torch, TorchStore, tmp_path, device.torch.type),
        "diy_jax": Runs(assemble_jax, JaxStore, tmp_path, device.name),
    }
    trainers = {"diy_torch": TorchTrainer, "diy_jax": JaxTrainer}
    received: list[Received] = []
    with exact(device), compiled_once():
        for package, stops in (("diy_torch", []), ("diy_jax", [7, 11]), ("diy_torch", [5])):
            with monkeypatch.context() as patch:
                received.append(Received(patch, package, trainers[package]))
                name = f"{package}-{len(stops)}"
                for stop in [*stops, None]:
                    twins[package].train(name, resume=True, stop_at=stop, batch_size=16)
    whole = received[0]
    assert sorted(whole.steps) == list(range(STEPS))
    assert len({str(batch) for batch in whole.steps.values()}) == STEPS
    names = ["input_ids", "labels", "segment_ids"]
    for batch in whole.steps.values():
        assert [array[:3] for array in batch] == [(name, "<i4", SHAPE) for name in names]
    for other in received[1:]:
        assert other.steps == whole.steps
        assert other.evaluated == whole.evaluated
    assert len(whole.evaluated) > 3  # three times
