"""A run that changes the framework on its way comes to the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diy_core.errors import CheckpointError
from diy_jax.train import assemble as assemble_jax
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.train import assemble as assemble_torch
from diy_torch.training_store import TrainingStore as TorchStore
from parity.__main__ import main
from parity.environment import Device, exact
from parity.switch import switch
from tests.jax_cache import compiled_once
from tests.training_runs import STEPS, Runs, distance, losses, same_bits


@pytest.fixture
def twins(tmp_path: Path, device: Device) -> dict[str, Runs]:
    return {
        "torch": Runs(assemble_torch, TorchStore, tmp_path, device.torch.type),
        "jax": Runs(assemble_jax, JaxStore, tmp_path, device.name),
    }


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_steps_here_and_then_there_are_the_steps_of_one(
    twins: dict[str, Runs], device: Device, first: str, second: str
) -> None:
    one, other = twins[first], twins[second]
    folder = one.folder
    with exact(device), compiled_once():
        one.train("whole")
        one.train("run", stop_at=9)
        assert switch(folder / "run", folder / "there") == f"diy-{second}"
        assert same_bits(one.state("run", 9), other.state("there", 9))
        assert one.position("run", 9) == other.position("there", 9)
        assert other.train("there", stop_at=14, resume=True) == 0
        assert switch(folder / "there", folder / "back") == f"diy-{first}"
        assert one.train("back", resume=True) == 0
        assert other.train("there", resume=True) == 0
    for runs, name in ((other, "there"), (one, "back")):
        assert distance(one.state("whole"), runs.state(name)) <= 1e-9
        assert losses(folder / name) == pytest.approx(losses(folder / "whole"), rel=1e-11, abs=0)
        assert len(losses(folder / name)) == STEPS
    assert one.position("back") == one.position("whole")


def test_there_and_back_is_the_same_to_the_bit(
    twins: dict[str, Runs], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of a few arrays each, as the state of a large model goes over."""
    monkeypatch.setattr("parity.switch._PART", 20_000)
    runs, folder = twins["torch"], twins["torch"].folder
    with exact(device), compiled_once():
        runs.train("whole")
        runs.train("run", stop_at=6)
        runs.train("run", stop_at=9, resume=True)
        for name, new in (("run", "there"), ("there", "back")):
            switch(folder / name, folder / new, step=6 if name == "run" else None)
        assert runs.steps("back") == [6]
        assert runs.train("back", resume=True) == 0
    assert same_bits(runs.state("back"), runs.state("whole"))
    one, other = (folder / name / "metrics.jsonl" for name in ("back", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_the_other_twin_says_that_it_needs_a_switch(twins: dict[str, Runs], device: Device) -> None:
    with exact(device), compiled_once():
        for name, other in (("torch", "jax"), ("jax", "torch")):
            twins[name].train(name, stop_at=1)
            with pytest.raises(CheckpointError, match=f"written by diy-{name}.*parity switch"):
                twins[other].train(name, resume=True)


def test_what_cannot_be_switched_is_refused(
    twins: dict[str, Runs], device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, folder = twins["torch"], twins["torch"].folder
    with exact(device), compiled_once():
        runs.train("run", stop_at=2)
    run, new = str(folder / "run"), str(folder / "new")
    assert main(["switch", str(folder / "nowhere"), new]) == 2
    assert "holds no training checkpoint" in capsys.readouterr().err
    assert not (folder / "nowhere").exists()
    assert main(["switch", run, new, "--step", "1"]) == 2
    assert "has no checkpoint of step 1; there are 2" in capsys.readouterr().err
    assert main(["switch", run, run]) == 2
    assert "exists already" in capsys.readouterr().err
    shutil.copytree(run, folder / "damaged")
    file = folder / "damaged" / "checkpoints" / "00000002" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert main(["switch", str(folder / "damaged"), new]) == 2
    assert "does not have the SHA-256" in capsys.readouterr().err
    assert not Path(new).exists()
    assert main(["switch", run, new]) == 0
    said = capsys.readouterr().out
    assert f"diy-jax train --config {new}/config.yaml --resume auto" in said
    assert json.loads((Path(new) / "model" / "config.json").read_text())["vocab_size"] == 257
