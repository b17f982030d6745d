"""The loop, with a trainer of numpy alone."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diy_core.training.protocols import Pieces, TrainingError
from diy_core.training.run.directory import RunDirectory
from diy_core.training.schedule import learning_rate
from diy_core.training.start.begin import train_config
from tests.core.training_fake import FakeStore, Runner, assemble

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def test_a_run_leaves_metrics_events_a_plot_and_checkpoints(runner: Runner) -> None:
    assert runner(eval_every=4) == 0
    steps = runner.rows
    assert [row["step"] for row in steps] == list(range(1, 13))
    config = runner.config()
    assert [row["learning_rate"] for row in steps] == [
        learning_rate(config.optimizer, step, 12) for step in range(12)
    ]
    assert runner.trainer.rates == [row["learning_rate"] for row in steps]
    assert np.cumsum([row["tokens"] for row in steps]).tolist() == [
        row["total_tokens"] for row in steps
    ]
    evaluations = {row["step"]: row for row in runner.evaluations}
    assert list(evaluations) == [0, 4, 8, 12]
    for evaluation in evaluations.values():
        assert evaluation["perplexity"] == math.exp(evaluation["loss"])
    weights = runner.trainer.weights
    total = tokens = 0.0
    for batch in runner.pieces.validation():  # type: ignore[union-attr, misc]
        count = float((batch["labels"] != -100).sum())
        total += float(np.mean((weights - batch["input_ids"].mean()) ** 2)) * count
        tokens += count
    assert evaluations[12]["loss"] == pytest.approx(total / tokens, rel=1e-6)
    assert evaluations[12]["tokens"] == tokens
    assert (runner.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    timings = [
        json.loads(line) for line in (runner.path / "timings.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in timings] == [3, 6, 9, 12]
    assert all(row["tokens_per_second"] > 0 and row["memory"] > 0 for row in timings)


def test_no_step_is_said_to_take_less_than_it_did(runner: Runner) -> None:
    """Also before an evaluation or a checkpoint, where there is no next step to wait for."""
    assert runner(model={"size": 5, "step_seconds": 0.02}, log_every=1, eval_every=4) == 0
    lines = (runner.path / "timings.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds_per_step"] for line in lines]
    assert len(seconds) == 12
    assert sum(found is None for found in seconds) <= 1  # the first has nothing before it
    assert all(found >= 0.02 for found in seconds if found is not None)


def test_tensorboard_shows_what_the_metrics_hold(runner: Runner) -> None:
    runner(eval_every=6, stop_at=7)
    runner(eval_every=6, resume=True)
    events = EventAccumulator(str(runner.path / "tensorboard")).Reload()
    losses = {row["step"]: row["loss"] for row in runner.rows}
    # Steps where a line of the log was due; the end of the first start was one.
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(
        {step: losses[step] for step in (3, 6, 7, 9, 12)}
    )
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 6, 12]


@pytest.mark.parametrize("background", [False, True])
def test_a_run_that_stops_and_goes_on_is_one_run(tmp_path: Path, background: bool) -> None:
    whole, parts = Runner(tmp_path / "whole"), Runner(tmp_path / "parts")
    options = {"eval_every": 4, "model": {"background": background, "nan_at": [6]}}
    assert whole(**options) == 0
    for stop_at in (1, 4, 7, 9):
        assert parts(resume=True, stop_at=stop_at, **options) == 0
        assert parts.checkpoints[-1] == stop_at
        assert parts.rows[-1]["step"] == stop_at
    assert parts(resume=True, **options) == 0
    assert parts.metrics == whole.metrics
    assert parts.trainer.weights.tobytes() == whole.trainer.weights.tobytes()
    assert parts.trainer.mean.tobytes() == whole.trainer.mean.tobytes()
    extra = [
        json.loads((r.path / "checkpoints/00000012/extra.json").read_text()) for r in (whole, parts)
    ]
    assert extra[0] == extra[1]
    assert extra[0]["skipped_steps"] == 1


def test_a_checkpoint_from_which_a_run_goes_on_is_not_written_again(runner: Runner) -> None:
    assert runner(stop_at=5) == 0  # where one is due anyway
    checkpoint = runner.path / "checkpoints/00000005"
    before = checkpoint.stat().st_ino
    assert runner(resume=True, stop_at=7) == 0
    assert checkpoint.stat().st_ino == before


def test_metrics_beyond_the_checkpoint_are_dropped(runner: Runner) -> None:
    runner()
    whole = runner.metrics
    with (runner.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13, "loss": 1.0}\n{"step": 14, "lo')
    shutil.rmtree(runner.path / "checkpoints/00000012")
    assert runner(resume=True) == 0
    assert runner.metrics == whole


def test_a_finished_run_is_left_as_it_is(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    runner()
    before = {p: p.stat().st_mtime_ns for p in runner.path.rglob("*.jsonl")}
    runner.pieces = None
    assert runner(resume=True) == 0
    assert runner.pieces is None  # nothing was built
    assert "is finished: step 12 of 12" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in runner.path.rglob("*.jsonl")} == before
    assert runner(resume=True, stop_at=7) == 0
    assert "is finished" in capsys.readouterr().err


def test_a_directory_with_a_run_is_refused_without_resume(runner: Runner) -> None:
    runner(stop_at=2)
    with pytest.raises(ValueError, match="holds a run: --resume auto goes on with it"):
        runner()
    assert runner.checkpoints == [2]


def test_a_start_that_failed_is_not_in_the_way(runner: Runner) -> None:
    def fails(*arguments: object) -> Pieces:
        raise ValueError("sequence_length")

    with pytest.raises(ValueError, match="sequence_length"):
        train_config(
            runner.config(sequence_length=99), fails, FakeStore.verify, program="diy train"
        )
    assert (runner.path / "config.yaml").exists()
    (runner.path / "metrics.jsonl").touch()
    assert runner() == 0
    assert "sequence_length: 8\n" in (runner.path / "config.yaml").read_text()
    shutil.rmtree(runner.path / "checkpoints")
    with pytest.raises(ValueError, match="holds a run"):  # its metrics are worth something
        runner()


def test_another_config_is_refused_with_both_values(runner: Runner) -> None:
    runner(stop_at=2)
    metrics = runner.metrics
    with pytest.raises(ValueError) as caught:
        runner(resume=True, seed=5, batch_size=8, checkpoint_every=3)
    assert "  seed: 0, now 5\n" in str(caught.value)
    assert "  batch_size: 4, now 8\n" in str(caught.value)
    assert "checkpoint_every" not in str(caught.value)
    assert runner.metrics == metrics
    assert runner(resume=True, checkpoint_every=3, eval_every=2) == 0


def test_a_moved_run_goes_on(tmp_path: Path) -> None:
    first = Runner(tmp_path / "first")
    first(stop_at=6)
    moved = Runner(tmp_path / "moved")
    first.path.rename(moved.path)
    assert moved(resume=True) == 0
    assert moved.rows[-1]["step"] == 12


def test_what_is_not_finite_is_skipped_counted_and_reported(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner(model={"nan_at": [3, 4, 9]}, max_skipped_steps=3) == 0
    skipped = [row for row in runner.rows if row.get("skipped")]
    assert [row["step"] for row in skipped] == [4, 5, 10]
    assert [row["loss"] for row in skipped] == [None] * 3
    good = [row["tokens"] for row in runner.rows if not row["skipped"]]
    assert runner.rows[-1]["total_tokens"] == sum(good)
    said = capsys.readouterr().err
    assert "step 5 was skipped: loss nan, gradient norm inf (2 in a row, 2 in all)" in said
    assert "step 10 was skipped: loss nan, gradient norm inf (1 in a row, 3 in all)" in said


def test_the_last_step_is_evaluated_whatever_its_number(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = Runner(runner.path.with_name("parts"))
    assert runner(eval_every=5) == 0
    assert [row["step"] for row in runner.evaluations] == [0, 5, 10, 12]
    said = [line for line in capsys.readouterr().err.splitlines() if "perplexity" in line]
    assert len(said) == 4
    for words, row in zip(said, runner.evaluations, strict=True):
        assert words.endswith(f"perplexity {row['perplexity']:.4f}")
    assert parts(eval_every=5, stop_at=7) == 0  # which is not the last step of the run
    assert [row["step"] for row in parts.evaluations] == [0, 5]
    assert parts(eval_every=5, resume=True) == 0
    assert parts.evaluations == runner.evaluations
    assert parts.checkpoints[-1] == 12


def test_evaluations_without_data_are_named_once(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(*arguments: Any) -> Pieces:
        return dataclasses.replace(assemble(*arguments), validation=None)

    assert (
        train_config(runner.config(eval_every=5), without, FakeStore.verify, program="diy train")
        == 0
    )
    said = capsys.readouterr().err
    assert said.count("eval_every is 5, but there is no validation data: nothing is evaluated") == 1


def interrupted(*arguments: Any) -> Pieces:
    os.kill(os.getpid(), signal.SIGTERM)
    return assemble(*arguments)


def test_what_was_not_saved_is_not_said_to_be(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner(stop_at=0) == 0
    assert capsys.readouterr().err == "no step was taken, and nothing was saved\n"

    assert train_config(runner.config(), interrupted, FakeStore.verify, program="diy train") == 143
    said = capsys.readouterr().err
    assert "SIGTERM: leaving as soon as everything is loaded, before the next step (Ctrl-C" in said
    assert "saved step" not in said
    assert "after this step" not in said
    assert runner(stop_at=5) == 0
    assert "saved step 5 of 12 in " in capsys.readouterr().err
    assert (
        train_config(
            runner.config(), interrupted, FakeStore.verify, program="diy train", resume=True
        )
        == 143
    )
    assert "no step was taken: step 5 of 12 was saved before" in capsys.readouterr().err


def test_a_run_that_left_early_says_how_it_goes_on(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    command = shlex.join(["--config", str(runner.path / "config.yaml"), "--resume", "auto"])
    for _ in range(2):  # the second time it stands there already
        assert runner(stop_at=5, resume=True) == 0
        said = capsys.readouterr().err
        assert said.endswith(f"to continue: diy train {command} --stop-at null\n")

    config, options = runner.config(), {"program": "diy train", "resume": True, "device": "gpu:1"}
    assert train_config(config, interrupted, FakeStore.verify, **options) == 143
    assert capsys.readouterr().err.endswith(f"to continue: diy train {command} --device gpu:1\n")
    for _ in range(2):
        assert runner(resume=True) == 0
        assert "to continue" not in capsys.readouterr().err


def test_data_that_ends_is_an_error(runner: Runner) -> None:
    with pytest.raises(TrainingError, match="the data ended after 7 steps"):
        runner(model={"batches": 7})
    assert runner.checkpoints == [5]


def test_a_directory_in_use_is_refused_with_the_process(runner: Runner) -> None:
    with RunDirectory(runner.path, print), pytest.raises(ValueError) as caught:
        runner()
    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
    assert runner() == 0


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from diy_core.training.run.directory import RunDirectory
reading, writing = os.pipe()
with RunDirectory(sys.argv[1], print):
    child = os.fork()
    if child == 0:
        os.write(writing, b"1")
        signal.pause()
    os.read(reading, 1)
try:
    with RunDirectory(sys.argv[1], print):
        print("free")
finally:
    os.kill(child, signal.SIGKILL)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "free\n"
