"""Which checkpoints are kept, full disks, damaged checkpoints, and the lines of metrics."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from diy_core.errors import CheckpointError
from diy_core.system import disk
from diy_core.training.command import run
from diy_core.training.config import OptimizerConfig, as_dict
from diy_core.training.log.json_lines import JsonLines
from diy_core.training.log.metrics import Metrics
from diy_core.training.protocols import TrainingError
from tests.core.training_fake import MODEL, FakeStore, FakeTrainer, Runner, assemble

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def test_the_last_the_best_and_every_so_manieth_are_kept(runner: Runner) -> None:
    # The weights oscillate around the mean, so the best evaluation is not the last.
    options: dict[str, Any] = {"steps": 60, "checkpoint_every": 3, "eval_every": 4, "keep_last": 2}
    options["optimizer"] = OptimizerConfig(learning_rate=0.3, schedule="constant")
    runner(keep_every=15, **options)
    losses = {row["step"]: row["loss"] for row in runner.evaluations}
    best = min(losses, key=lambda step: losses[step])
    assert best not in (15, 30, 45, 57, 60)
    assert runner.checkpoints == sorted({15, 30, 45, 57, 60, best})


def test_without_keep_best_evaluations_save_nothing(runner: Runner) -> None:
    runner(eval_every=1, keep_best=False, keep_last=9)
    assert runner.checkpoints == [5, 10, 12]


def set_free(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """What the disk says, each time that it is asked, and at last for good."""
    answers = list(free)

    def usage(path: Any) -> Any:
        return type("Usage", (), {"free": answers.pop(0) if answers[1:] else answers[0]})

    monkeypatch.setattr(disk.shutil, "disk_usage", usage)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enough = 10**12
    set_free(monkeypatch, enough, enough, 0, enough)  # to begin, before step 1, at 5
    assert runner() == 0
    assert runner.checkpoints == [10, 12]
    said = capsys.readouterr().err
    where = runner.path / "checkpoints"
    assert (
        f"no checkpoint of step 5: 1.0 MB are needed, 0.0 MB are free ({where}). The run goes on "
        "and tries again at the next\n" in said
    )


def test_a_disk_without_room_is_named_before_the_first_step_and_once(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_free(monkeypatch, 10**12, 0)
    with pytest.raises(TrainingError) as caught:
        runner(steps=15)  # which is a multiple of checkpoint_every
    said = capsys.readouterr().err
    assert said.index("a checkpoint does not fit on the disk: 1.0 MB are n") < said.index("step 3/")
    assert said.count("The run continues") == 1
    assert said.count("no checkpoint of step") == 2  # 5 and 10; the error speaks of 15
    assert "there was no room for a checkpoint of step 15: 1.0 MB are needed, 0.0 MB are " in str(
        caught.value
    )
    assert str(caught.value).endswith("free some, then --resume auto begins at step 0")


@pytest.mark.parametrize(("nbytes", "wanted"), [(10**6, 100_000 + 2**20), (10**12, 2**26)])
def test_what_stays_free_is_a_tenth_and_not_more_than_64_mb(nbytes: int, wanted: int) -> None:
    assert disk.spare(nbytes) == wanted


def test_a_full_disk_at_the_start_is_named_with_what_to_do(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_free(monkeypatch, 1000)
    words = [
        "--run_dir",
        str(runner.path),
        f"--model={json.dumps(MODEL)}",
        "--data.train=builtin:pydoc",
    ]
    words += ["--steps=12", "--batch_size=4", "--sequence_length=8"]
    assert run("diy train", words, assemble, FakeStore.verify) == 2
    first, _, said = capsys.readouterr().err.partition("\n")
    assert first.startswith("4,584 parameters, 384 tokens (12 steps of 4 x 8), device auto: ")
    assert said == (
        f"diy train: {runner.path}: 1.0 MB are needed, 0.0 MB are free: free some, or choose "
        "another directory, then give the same command again\n"
    )


def test_a_last_evaluation_that_was_interrupted_is_made_up_for(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate, calls = FakeTrainer.evaluate, []

    def interrupted(trainer: FakeTrainer, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 7:  # two batches at steps 0, 5, 10, 12
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(trainer, batch)

    monkeypatch.setattr(FakeTrainer, "evaluate", interrupted)
    assert runner(eval_every=5) == 143
    assert "SIGTERM: leaving this evaluation, which is made up for" in capsys.readouterr().err
    assert [row["step"] for row in runner.evaluations] == [0, 5, 10]
    assert runner(eval_every=5, resume=True) == 0
    assert [row["step"] for row in runner.evaluations] == [0, 5, 10, 12]
    runner.pieces = None
    assert runner(eval_every=5, resume=True) == 0
    assert runner.pieces is None


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    write, failed = FakeStore._write, []

    def fail_once(store: FakeStore, step: int, arrays: Any, extra: Any) -> None:
        if step == 10 and not failed:
            failed.append(step)
            store._error = OSError(28, "No space left on device")
            return
        write(store, step, arrays, extra)

    monkeypatch.setattr(FakeStore, "_write", fail_once)
    assert runner(model={"background": background}) == 0
    assert runner.checkpoints == [5, 12]


def test_no_room_for_the_last_checkpoint_is_an_error(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, 10**12, 10**12, 10**12, 0)
    with pytest.raises(TrainingError, match="no room for a checkpoint of step 12") as e:
        runner()
    assert "free some, then --resume auto goes on from step 5" in str(e.value)
    monkeypatch.undo()
    assert runner(resume=True) == 0
    assert runner.checkpoints == [10, 12]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    runner(stop_at=11)
    whole = Runner(runner.path.with_name("whole"))
    whole()
    (runner.path / "checkpoints/00000011/mean.npy").write_bytes(b"\x93NUMPY")
    assert runner(resume=True) == 0
    assert "checkpoint 11 cannot be read, the one before is tried" in capsys.readouterr().err
    assert runner.metrics == whole.metrics
    assert runner.checkpoints == [10, 12]


@pytest.mark.parametrize("stop_at", [None, 11])
def test_a_damaged_last_checkpoint_is_no_finished_run(
    runner: Runner, capsys: pytest.CaptureFixture[str], stop_at: int | None
) -> None:
    runner(stop_at=stop_at)
    last = runner.checkpoints[-1]
    good = (runner.path / f"checkpoints/{last:08d}/mean.npy").read_bytes()
    (runner.path / f"checkpoints/{last:08d}/mean.npy").write_bytes(b"\x93NUMPY")
    assert runner(resume=True, stop_at=stop_at) == 0
    said = capsys.readouterr().err
    assert f"checkpoint {last} cannot be read, the one before is tried" in said
    assert "continuing from step 10 of 12" in said
    assert (runner.path / f"checkpoints/{last:08d}/mean.npy").read_bytes() == good


@pytest.mark.parametrize("background", [False, True])
def test_damaged_checkpoints_stay_until_they_are_replaced_or_passed(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    options: dict[str, Any] = {"keep_last": 9, "checkpoint_every": 2}
    options["model"] = {"background": background}
    runner(stop_at=11, **options)
    for step in (8, 10, 11):
        (runner.path / f"checkpoints/{step:08d}/mean.npy").write_bytes(b"")
    save, seen = FakeStore.save, []

    def note(store: FakeStore, step: int, extra: Any) -> None:
        seen.append(store.steps())
        save(store, step, extra)

    monkeypatch.setattr(FakeStore, "save", note)
    assert runner(resume=True, **options) == 0
    assert seen[:2] == [[2, 4, 6, 8, 10, 11], [2, 4, 6, 8, 10, 11]]
    assert 11 not in seen[2]
    assert runner.checkpoints == [2, 4, 6, 8, 10, 12]
    for step in runner.checkpoints:
        assert np.load(runner.path / f"checkpoints/{step:08d}/mean.npy").size == 8


def test_only_damaged_checkpoints_are_an_error_and_stay(runner: Runner) -> None:
    runner()
    for file in runner.path.glob("checkpoints/*/extra.json"):
        file.write_text("{}")
    for path in runner.path.glob("checkpoints/00000012"):
        path.rename(path.with_name("00000011"))
    with pytest.raises(CheckpointError, match=r"00000011.*no position") as caught:
        runner(resume=True)
    away = runner.path / "checkpoints"
    assert f"with {away} moved away, --resume auto begins at step 0" in str(caught.value)
    assert runner.checkpoints == [10, 11]
    away.rename(away.with_name("damaged"))
    assert runner(resume=True) == 0


def test_lines_that_find_no_room_wait(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "x.jsonl", 0)

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def fileno(self) -> int:
            return real.fileno()

        def close(self) -> None:
            pass

    real = lines._file
    lines._file = Full()  # type: ignore[assignment]
    lines.write({"step": 1})
    with pytest.raises(disk.DiskFull, match=r"x\.jsonl"):
        lines.sync()
    lines._file = real
    lines.write({"step": 2})
    lines.sync()
    lines.close()
    assert (tmp_path / "x.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_metrics_with_a_gap_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0, "skipped": false}\n')
    for step, complete in ((1, True), (2, False), (0, True)):
        metrics = Metrics(file, tmp_path / "evaluations.jsonl", step)
        metrics.close()
        assert metrics.complete is complete


def test_an_infinite_perplexity_is_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", tmp_path / "evaluations.jsonl", 0)
    row = metrics.evaluation(1, 1000.0, 3)
    assert row == {"step": 1, "loss": 1000.0, "perplexity": None, "tokens": 3}
    assert metrics.is_best(1)
    metrics.evaluation(2, math.nan, 0)
    assert not metrics.is_best(2)
    metrics.close()


def test_a_run_that_begins_anew_evaluates_anew(runner: Runner) -> None:
    """Of a run that left no checkpoint, whatever it evaluated at step 0."""
    runner.path.mkdir()
    (runner.path / ".lock").touch()
    (runner.path / "config.yaml").write_text(yaml.safe_dump(as_dict(runner.config())))
    file = runner.path / "evaluations.jsonl"
    file.write_text('{"step": 0, "loss": 9.0, "perplexity": 8103.1, "tokens": 1}\n')
    assert runner(eval_every=4) == 0
    assert [row["step"] for row in runner.evaluations] == [0, 4, 8, 12]
    assert runner.evaluations[0]["loss"] != 9.0
