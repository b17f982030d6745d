"""Checkpoints of runs, read while somebody else may write them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from diy_core.checkpoints.training_run import Place
from diy_core.errors import CheckpointError
from parity.inspect.run_checkpoint import (
    GoneError,
    RunCheckpoint,
    config_of,
    place_of_run,
    steps_of,
)
from tests.tiny_checkpoints import put, weights
from tests.written_runs import CONFIG, STORES, snapshot, state, write_run


@pytest.mark.parametrize("twin", STORES)
def test_a_checkpoint_is_what_was_written(tmp_path: Path, twin: str) -> None:
    arrays = state()
    run = write_run(tmp_path / "run", twin, {4: state(1), 8: arrays})
    found = RunCheckpoint.open(run, None)
    assert (found.run, found.step, found.program) == (run, 8, f"diy-{twin}")
    assert found.config.to_dict() == CONFIG.to_dict()
    assert (found.position.step, found.position.tokens) == (8, 800)
    read = found.read(list(found.stored))
    assert {n: a.tobytes() for n, a in read.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert RunCheckpoint.open(run, 4).step == 4
    assert steps_of(run) == [4, 8]


def test_a_path_names_a_run_or_one_of_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", "torch", {4: state()})
    assert place_of_run(run) == Place(run, "", None)
    assert place_of_run(run, 4) == Place(run, "", 4)
    assert place_of_run(run / "checkpoints") == Place(run, "checkpoints", None)
    for path in ("00000004", "4", "00000004/state.safetensors"):
        assert place_of_run(run / "checkpoints" / path) == Place(run, "checkpoints", 4)
        assert place_of_run(run / "checkpoints" / path, 4) == Place(run, "checkpoints", 4)
    for path in (tmp_path, run / "model", run / "data", tmp_path / "nowhere"):
        assert place_of_run(path) is None
    with pytest.raises(CheckpointError, match="is the checkpoint of step 4: leave step out"):
        place_of_run(run / "checkpoints" / "00000004", 5)
    monkeypatch.chdir(tmp_path)
    assert place_of_run("run/checkpoints/00000004") == Place(Path("run"), "checkpoints", 4)


def test_what_holds_no_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), "torch", {4: state()})
    write_run(Path("empty"), "torch", {})
    put(Path("model"), weights())
    Path("other").mkdir()
    (put(Path("pickled"), {}) / "model.safetensors").rename("pickled/pytorch_model.bin")
    for path, words in (
        ("nowhere", "does not exist: give the directory of a training run"),
        ("empty", "is a training run that has saved no checkpoint yet: it saves one after each"),
        ("run/model", "lies in the training run run: give run"),
        ("run/checkpoints", "lies in the training run run: give run"),
        ("run/checkpoints/00000004", "lies in the training run run: give run and step=4"),
        ("model", "is a model (Hugging Face directory), not a training run: give the directory"),
        ("pickled", "is not a training run: it has only pickled weights (pytorch_model.bin), "),
        ("other", "is not a training run: it has no checkpoints/ with the steps of one"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(f"{path}: {words}")):
            RunCheckpoint.open(Path(path), None)


@pytest.mark.parametrize("twin", STORES)
def test_reading_changes_nothing(tmp_path: Path, twin: str) -> None:
    """Not the remains of a killed write either, which the run itself will see to."""
    run = write_run(tmp_path / "run", twin, {4: state()})
    (run / "checkpoints" / ".00000008.tmp-0123abcd").mkdir()
    (run / "checkpoints" / ".00000009.old").mkdir()
    before = snapshot(run)
    found = RunCheckpoint.open(run, None)
    found.read(list(found.stored))
    with pytest.raises(CheckpointError, match="has no checkpoint of step 8, only of 4"):
        RunCheckpoint.open(run, 8)
    with pytest.raises(CheckpointError, match="has no checkpoint of step 9"):
        RunCheckpoint.open(run, 9)
    assert snapshot(run) == before


@pytest.mark.parametrize("twin", STORES)
def test_a_checkpoint_that_the_run_deletes_meanwhile_is_called_gone(
    tmp_path: Path, twin: str
) -> None:
    run = write_run(tmp_path / "run", twin, {4: state()})
    found = RunCheckpoint.open(run, None)
    shutil.rmtree(run / "checkpoints" / "00000004")
    with pytest.raises(GoneError, match=r"00000004: was deleted while it was read.*keep_every"):
        found.read(list(found.stored))


@pytest.mark.parametrize("twin", STORES)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, twin: str) -> None:
    run = write_run(tmp_path / "run", twin, {4: state()})
    folder = run / "checkpoints" / "00000004"
    found = RunCheckpoint.open(run, None)
    shutil.rmtree(folder / "orbax", ignore_errors=True)
    (folder / "state.safetensors").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="00000004"):
        found.read(list(found.stored))
    with pytest.raises(CheckpointError, match=r"00000004: is damaged: it has none of state\.safe"):
        RunCheckpoint.open(run, 4)


def test_a_changed_value_does_not_have_its_sum(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "torch", {4: state()})
    file = run / "checkpoints" / "00000004" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    found = RunCheckpoint.open(run, None)
    with pytest.raises(CheckpointError, match=r"00000004: tensor .* does not have the SHA-256"):
        found.read(list(found.stored))


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "torch", {})
    assert config_of(run)["steps"] == 20
    for text in ("a: [", "just words"):
        (run / "config.yaml").write_text(text)
        with pytest.raises(
            CheckpointError, match=r"config\.yaml: (is not valid YAML|holds no config)"
        ):
            config_of(run)
