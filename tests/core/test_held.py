"""Directories that are held: what is written goes into them, whatever their name."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from diy_core.checkpoints.atomic import atomic_directory, atomic_file, remove_directory
from diy_core.errors import CheckpointError
from diy_core.system import held
from diy_core.system.held import HeldDirectory, named, real, with_names
from diy_core.system.standard_error import complain
from diy_core.training.protocols import TrainingError
from diy_core.training.run.directory import RunDirectory
from tests.core.training_fake import FakeTrainer, Result, Runner

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def write(path: Path) -> None:
    path.write_text("from another process")


def test_what_is_written_goes_into_the_directory_and_not_to_its_name(tmp_path: Path) -> None:
    a, b, moved = tmp_path / "a", tmp_path / "b", tmp_path / "moved"
    for folder in (a, b):
        (folder / "old").mkdir(parents=True)
    here = HeldDirectory(a)
    assert here.follows
    assert here.in_place
    a.rename(moved)
    b.rename(a)
    assert not here.in_place
    assert here.called == moved
    with atomic_directory(here.way / "new") as folder:
        (folder / "x").write_text("1")
    with atomic_file(here.way / "file") as file:
        file.write_text("2")
    remove_directory(here.way / "old")
    process = multiprocessing.get_context("spawn").Process(target=write, args=(here.way / "other",))
    process.start()
    process.join()
    here.close()
    assert sorted(os.listdir(moved)) == ["file", "new", "other"]
    assert os.listdir(a) == ["old"]


def test_links_out_of_it_lead_where_they_lead(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a / "inside", b):
        folder.mkdir(parents=True)
    (a / "out").symlink_to(b)
    (a / "in").symlink_to("inside")
    here = HeldDirectory(a)
    assert real(here.way / "out" / "x") == b / "x"
    assert real(here.way / "in" / "x") == here.way / "inside" / "x"
    assert real(here.way) == here.way
    here.close()
    assert real(tmp_path) == tmp_path.resolve()


def test_people_read_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = HeldDirectory(tmp_path)
    text = f"{here.way}/x and {here.way}1/y"
    assert named(text) == f"{tmp_path}/x and {here.way}1/y"
    complain(text)
    assert capsys.readouterr().err == f"{tmp_path}/x and {here.way}1/y\n"
    error = with_names(CheckpointError(here.way / "x", [f"lies in {here.way}", "two"]))
    assert str(error) == f"{tmp_path}/x: 2 faults\n  - lies in {tmp_path}\n  - two"
    assert error.where == f"{tmp_path}/x"
    with pytest.raises(FileNotFoundError) as caught:
        (here.way / "x").read_text()
    assert with_names(caught.value).filename == f"{tmp_path}/x"
    here.close()
    assert named(text) == text


class Mover(FakeTrainer):
    """Moves the run, and another one to its place, in the step after the first checkpoint."""

    run: Path

    def train_step(self, batch: object, learning_rate: float, step: int) -> Result:
        if step == 6:
            self.run.rename(self.run.with_name("moved"))
            shutil.copytree(self.run.with_name("other"), self.run)
        return super().train_step(batch, learning_rate, step)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def moving(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Runner:
    other = Runner(runner.path.with_name("other"))
    other(stop_at=5)
    Mover.run = runner.path
    monkeypatch.setattr("tests.core.training_fake.FakeTrainer", Mover)
    return runner


def test_a_run_that_is_moved_goes_on_where_it_is(
    moving: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert moving(eval_every=4) == 0
    moved = moving.path.with_name("moved")
    assert content(moving.path) == content(moving.path.with_name("other"))
    assert Runner(moved).checkpoints[-1] == 12
    assert [row["step"] for row in Runner(moved).rows] == list(range(1, 13))
    said = capsys.readouterr().err
    assert said.count(f"{moving.path} was moved: the run goes on in {moved}\n") == 1
    assert f"saved step 12 of 12 in {moved}/checkpoints\n" in said
    assert "/proc/" not in said


def test_where_only_names_lead_somewhere_a_run_that_is_moved_ends(
    moving: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_FOLLOWS", False)
    with pytest.raises(TrainingError, match=r"run was moved while the run went on, and is not"):
        moving(keep_last=1)
    assert content(moving.path) == content(moving.path.with_name("other"))
    assert Runner(moving.path.with_name("moved")).checkpoints == [5]


def test_paths_are_names_before_and_after(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run", print)
    assert directory.checkpoints == tmp_path / "run" / "checkpoints"
    with directory:
        assert directory.checkpoints != tmp_path / "run" / "checkpoints"
        assert directory.checkpoints.parent.samefile(tmp_path / "run")
    assert directory.checkpoints == tmp_path / "run" / "checkpoints"
