"""Both twins train alike when they are started apart: the same curves, the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diy_jax.train import assemble as assemble_jax
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.train import assemble as assemble_torch
from diy_torch.training_store import TrainingStore as TorchStore
from parity.environment import Device, exact
from tests.jax_cache import compiled_once
from tests.training_runs import STEPS, Runs, distance, evaluations, losses, rows


@pytest.fixture
def twins(tmp_path: Path, device: Device) -> tuple[Runs, Runs]:
    return (
        Runs(assemble_torch, TorchStore, tmp_path, device.torch.type),
        Runs(assemble_jax, JaxStore, tmp_path, device.name),
    )


def test_runs_that_are_started_apart_lie_on_each_other(
    twins: tuple[Runs, Runs], device: Device
) -> None:
    """Accumulation, packing, dropout, clipping, decay, a z-loss, warmup, evaluation."""
    with exact(device), compiled_once():
        for runs, name in zip(twins, ("torch", "jax"), strict=True):
            runs.train(name)
        twins[0].train("torch-first", stop_at=1)
    folder = twins[0].folder
    one, other = (losses(folder / name) for name in ("torch", "jax"))
    assert len(one) == len(set(one)) == STEPS
    assert one == pytest.approx(other, rel=1e-11, abs=0)
    evaluated = [[row["loss"] for row in evaluations(folder / name)] for name in ("torch", "jax")]
    assert len(evaluated[0]) == 4
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-11, abs=0)
    assert all(row["grad_norm"] > 0.5 for row in rows(folder / "torch"))  # clipped
    state, twin = twins[0].state("torch"), twins[1].state("jax")
    assert distance(state, twin) <= 1e-9
    assert distance(state, twins[0].state("torch-first", 1)) > 1e-3  # they did move
    assert twins[0].position("torch") == twins[1].position("jax")


def test_the_files_of_both_runs_hold_the_same(twins: tuple[Runs, Runs], device: Device) -> None:
    with exact(device), compiled_once():
        for runs, name in zip(twins, ("torch", "jax"), strict=True):
            runs.train(name, stop_at=1)
    names = [
        sorted(
            str(path.relative_to(twins[0].folder / name))
            for path in (twins[0].folder / name).rglob("*")
            if not {"checkpoints", "tensorboard"} & set(path.parts)
        )
        for name in ("torch", "jax")
    ]
    assert names[0] == names[1]
    for file in ("model/config.json", "data/data.json", "data/tokens.bin"):
        one, other = ((twins[0].folder / name / file).read_bytes() for name in ("torch", "jax"))
        assert one == other
    manifests = [
        json.loads((runs.path(name, 1) / "diy_manifest.json").read_text())["tensors"]
        for runs, name in zip(twins, ("torch", "jax"), strict=True)
    ]
    shapes = [{name: entry["shape"] for name, entry in m.items()} for m in manifests]
    assert shapes[0] == shapes[1]
