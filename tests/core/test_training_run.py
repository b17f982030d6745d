"""What is a training run, and what only has the names of one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from diy_core.checkpoints.kinds import kind_of
from diy_core.checkpoints.training_run import place_in_run
from diy_core.errors import CheckpointError
from diy_core.training.config import as_dict
from diy_core.training.log.metrics import Events
from diy_core.training.run.directory import RunDirectory, require_run_directory
from tests.core.training_fake import Runner
from tests.tiny_checkpoints import snapshot


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_a_project_of_another_tool_is_no_run(tmp_path: Path) -> None:
    model = ("config.json", "model.safetensors")
    put(tmp_path / "model", *model)
    put(tmp_path / "checkpoints" / "exp1", *model)
    put(tmp_path / "checkpoints" / "100", *model)
    put(tmp_path, "metrics.jsonl")
    (tmp_path / "config.yaml").write_text("steps: 100\nmodel: big\ndata: x\nlr: 1\n")
    for name in ("model", "checkpoints/exp1", "checkpoints/100"):
        assert place_in_run(tmp_path / name) is None
        assert kind_of(tmp_path / name) == "hf"
    with pytest.raises(CheckpointError, match="is not a training run: choose another run_dir"):
        require_run_directory(tmp_path)


@pytest.mark.parametrize("mark", ["config", "checkpoints/00000100/position.json"])
def test_one_mark_is_enough_as_others_may_be_damaged(
    tmp_path: Path, runner: Runner, mark: str
) -> None:
    put(tmp_path, "model/config.json", "checkpoints/00000100/x", "config.yaml")
    assert place_in_run(tmp_path) is None
    if mark == "config":
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(as_dict(runner.config())))
    else:
        put(tmp_path, mark)
    place = place_in_run(tmp_path / "checkpoints" / "00000100")
    assert place is not None
    assert (place.run, place.step) == (tmp_path, 100)
    require_run_directory(tmp_path)


def test_a_folder_that_is_called_state_makes_no_orbax_checkpoint(tmp_path: Path) -> None:
    put(tmp_path, "config.json", "model.safetensors", "state/rng.json")
    assert kind_of(tmp_path) == "hf"
    put(tmp_path, "state/_METADATA")
    assert kind_of(tmp_path) == "orbax"


def test_a_lock_that_leads_elsewhere_is_not_written_through(tmp_path: Path, runner: Runner) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    runner.path.mkdir()
    (runner.path / ".lock").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(CheckpointError, match=r"\.lock: is a link, .* remove it") as caught:
        runner()
    assert str(caught.value).startswith(str(runner.path))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("log", ["metrics.jsonl", "evaluations.jsonl", "timings.jsonl"])
@pytest.mark.parametrize("leads_to", ["a file", "nothing"])
def test_a_log_that_leads_elsewhere_is_not_written_through(
    tmp_path: Path, runner: Runner, log: str, leads_to: str
) -> None:
    assert runner(stop_at=5) == 0
    other, file = tmp_path / "other.jsonl", runner.path / log
    content = file.read_bytes() if file.exists() else b""
    if leads_to == "a file":
        other.write_bytes(content + b"mine\n")
    file.unlink(missing_ok=True)
    file.symlink_to(other)
    before = (runner.path / "config.yaml").stat().st_ino
    match = rf"{log}: is a link, and a run adds to .*: put a copy in its place, or remove it"
    with pytest.raises(CheckpointError, match=match):
        runner(resume=True)
    assert (runner.path / "config.yaml").stat().st_ino == before
    assert other.exists() == (leads_to == "a file")
    assert not other.exists() or other.read_bytes() == content + b"mine\n"
    file.unlink()
    file.write_bytes(content)
    assert runner(resume=True) == 0


def test_copies_of_hard_links_are_locked_each_by_itself(tmp_path: Path) -> None:
    """Such as `cp -al` makes, also of a run that goes on."""
    run, before, meanwhile = (tmp_path / name for name in ("run", "before", "meanwhile"))
    with RunDirectory(run, pytest.fail):
        pass
    shutil.copytree(run, before, copy_function=os.link)
    with RunDirectory(run, pytest.fail):
        shutil.copytree(run, meanwhile, copy_function=os.link)
        with RunDirectory(before, pytest.fail), RunDirectory(meanwhile, pytest.fail):
            for path in (run, before, meanwhile):
                with pytest.raises(ValueError, match=f"{path} is in use by process {os.getpid()}"):
                    RunDirectory(path, pytest.fail).__enter__()
            assert len({(path / ".lock").stat().st_ino for path in (run, before, meanwhile)}) == 3
    assert [item.name for item in before.iterdir()] == [".lock"]


def test_a_run_that_was_copied_by_hard_links_while_it_goes_on_stays_locked(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", pytest.fail):
        shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=os.link)
        lock = (tmp_path / "run" / ".lock").stat()
        with pytest.raises(ValueError, match="is in use by process"):
            RunDirectory(tmp_path / "run", pytest.fail).__enter__()
        assert os.path.samestat(lock, (tmp_path / "run" / ".lock").stat())


def test_events_are_not_added_to_a_copy_of_hard_links(tmp_path: Path) -> None:
    events = Events(tmp_path / "tensorboard", 0)
    events.write(1, {"loss": 1.0})
    shutil.copytree(tmp_path / "tensorboard", tmp_path / "copy", copy_function=os.link)
    copied = snapshot(tmp_path / "copy")
    events.write(2, {"loss": 0.5})
    events.close()
    assert snapshot(tmp_path / "copy") == copied
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
