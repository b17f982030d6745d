"""Steps that change nothing, with a trainer of numpy alone: they cost no good checkpoint."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any

import pytest

from diy_core.training.log.skipped_steps import Uncounted, skipped_line
from diy_core.training.protocols import TrainingError
from diy_core.training.state import Position
from tests.core.training_fake import FakeStore, FakeTrainer, Runner

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send a signal while this step (from 0) runs, the first time that it does."""
    train_step = FakeTrainer.train_step
    sent: list[int] = []

    def signalling(trainer: FakeTrainer, batch: Any, rate: float, number: int) -> Any:
        if number == step and not sent:
            sent.append(number)
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(trainer, batch, rate, number)

    monkeypatch.setattr(FakeTrainer, "train_step", signalling)


def test_too_many_skipped_steps_end_the_run_and_the_checkpoint_stays(runner: Runner) -> None:
    options: dict[str, Any] = {"model": {"nan_at": list(range(7, 12))}, "max_skipped_steps": 3}
    said = r"3 steps in a row, up to 10, .*of step 5 in .*`export --step 5`.*lower optimizer.lear"
    with pytest.raises(TrainingError, match=said):
        runner(**options)
    assert runner.checkpoints == [5]
    assert runner.rows[-1]["step"] == 10
    with pytest.raises(TrainingError, match="3 steps in a row, up to 10"):
        runner(resume=True, **options)


def test_a_gradient_that_cannot_be_squared_is_called_so() -> None:
    position = Position(seed=0, step=7, skipped_steps=2, skipped_in_a_row=1)
    said = skipped_line(position, 1.5, 1e20)
    assert said == (
        "step 7 was skipped: loss 1.5, gradient norm 1e+20, too large to be squared "
        "(1 in a row, 2 in all)"
    )
    assert "squared" not in skipped_line(position, 1.5, float("inf"))


@pytest.mark.parametrize("background", [False, True])
def test_a_streak_writes_and_deletes_no_checkpoint(runner: Runner, background: bool) -> None:
    options: dict[str, Any] = {"checkpoint_every": 1, "eval_every": 1, "max_skipped_steps": 5}
    options["model"] = {"nan_at": list(range(4, 9)), "background": background}
    with pytest.raises(TrainingError, match="newest checkpoint from before them is that of step 4"):
        runner(**options)
    # In the background that of step 4 may not be whole yet when old ones are deleted for it.
    assert runner.checkpoints in ([[2, 3, 4], [3, 4]] if background else [[3, 4]])


def test_a_checkpoint_that_is_still_being_written_counts_as_one_from_before(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, wait, wanted = FakeStore._write, FakeStore.wait, threading.Event()

    def write_when_wanted(store: FakeStore, *arguments: Any) -> None:
        wanted.wait(60)
        write(store, *arguments)

    def want(store: FakeStore) -> None:
        if store._thread is not None:
            wanted.set()
        wait(store)

    monkeypatch.setattr(FakeStore, "_write", write_when_wanted)
    monkeypatch.setattr(FakeStore, "wait", want)
    with pytest.raises(TrainingError, match="newest checkpoint from before them is that of step 5"):
        runner(model={"nan_at": [5, 6], "background": True}, max_skipped_steps=2)


def test_without_a_checkpoint_from_before_the_error_says_so(runner: Runner) -> None:
    with pytest.raises(TrainingError, match="There is no checkpoint from before them in"):
        runner(model={"nan_at": [0, 1, 2]}, max_skipped_steps=3, checkpoint_every=1)
    assert runner.checkpoints == []


def test_after_a_streak_checkpoints_are_written_and_deleted_again(runner: Runner) -> None:
    assert runner(model={"nan_at": [4, 5]}, checkpoint_every=1) == 0
    assert runner.checkpoints == [11, 12]
    assert runner.pieces is not None
    assert runner.pieces.store.deleted == [1, 2, 3, 4, 7, 8, 9, 10]  # type: ignore[attr-defined]


def test_a_signal_in_a_streak_saves_and_the_checkpoints_before_stay(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"checkpoint_every": 1, "max_skipped_steps": 5, "keep_last": 1}
    options["model"] = {"nan_at": [4, 5, 6, 7]}
    whole = Runner(runner.path.with_name("whole"))
    assert whole(**options) == 0
    interrupt_at(monkeypatch, 5)
    assert runner(**options) == 143
    assert runner.checkpoints == [4, 6]
    with monkeypatch.context() as patch:  # a signal before the first step
        patch.setattr(
            "diy_core.training.checkpoints.retention.Keeper.say_if_there_is_no_room",
            lambda keeper: os.kill(os.getpid(), signal.SIGTERM),
        )
        assert runner(resume=True, **options) == 143
    assert runner.checkpoints == [4, 6]
    assert runner(resume=True, stop_at=7, **options) == 0
    assert runner.checkpoints == [4, 6, 7]
    assert runner(resume=True, **options) == 0
    assert runner.checkpoints == whole.checkpoints == [12]
    assert runner.metrics == whole.metrics
    assert runner.trainer.weights.tobytes() == whole.trainer.weights.tobytes()


def test_a_checkpoint_from_a_streak_is_not_named_as_one_from_before(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"max_skipped_steps": 4, "model": {"nan_at": list(range(6, 12))}}
    interrupt_at(monkeypatch, 7)
    assert runner(**options) == 143
    assert runner.checkpoints == [5, 8]
    with pytest.raises(TrainingError, match=r"up to 10, .*that of step 5 in"):
        runner(resume=True, **options)
    assert runner.checkpoints == [5, 8]


def test_steps_without_a_counted_token_are_no_fault(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    """More in a row than may be skipped, and they keep no checkpoint from being written."""
    empty = list(range(1, 9))
    options: dict[str, Any] = {"max_skipped_steps": 3, "keep_last": 1, "log_every": 1}
    assert runner(model={"empty_at": empty}, **options) == 0
    assert runner.checkpoints == [12]
    rows = runner.rows
    assert [row["step"] - 1 for row in rows if row["skipped"]] == empty
    for row in (rows[step] for step in empty):
        assert row["loss"] is row["grad_norm"] is None
        assert row["tokens"] == 0
        assert row["total_tokens"] == rows[0]["total_tokens"] > 0
    assert b"NaN" not in runner.metrics
    assert runner.pieces is not None
    file = runner.path / "checkpoints" / "00000012" / "extra.json"
    extra = json.loads(file.read_text())
    assert extra["skipped_steps"] == len(empty)  # the optimizer moved four times
    assert extra["skipped_in_a_row"] == 0
    said = capfd.readouterr().err
    assert "not finite" not in said
    assert said.count("step 5/12  no token counted") == 1
    remedy = "longer sequence_length (now 8) or a larger batch_size (now 4)"
    assert f"no token was counted in 1 of 2 steps, which changed nothing: {remedy}" in said.replace(
        "prompts or padding fill the batch. With a ", ""
    )
    assert "no token was counted in 8 of 12 steps" in said


def test_where_no_step_counts_a_token_the_run_says_so(
    runner: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    assert runner(model={"empty_at": list(range(12))}) == 0
    said = capfd.readouterr().err
    for steps in ("the first step", "any of the first 10 steps", "any of the first 12 steps"):
        assert f"no token was counted in {steps}, and nothing was learnt" in said


def test_they_neither_end_nor_lengthen_a_streak(runner: Runner) -> None:
    options: dict[str, Any] = {"model": {"nan_at": [6, 8, 10], "empty_at": [7, 9]}}
    with pytest.raises(TrainingError, match="3 steps in a row, up to 11"):
        runner(max_skipped_steps=3, checkpoint_every=1, **options)
    assert runner.checkpoints[-1] == 6


def test_going_on_gives_the_same_metrics_as_one_run(runner: Runner) -> None:
    options: dict[str, Any] = {"model": {"empty_at": [2, 3, 4, 7]}}
    whole = Runner(runner.path.with_name("whole"))
    assert whole(**options) == 0
    assert runner(stop_at=4, **options) == 0
    assert runner(resume=True, **options) == 0
    assert runner.metrics == whole.metrics
    assert runner.trainer.weights.tobytes() == whole.trainer.weights.tobytes()


def test_steps_without_a_label_are_told_ever_more_seldom(runner: Runner) -> None:
    said: list[str] = []
    uncounted = Uncounted(runner.config(), said.append)
    for step in range(1, 151):
        uncounted.add(2 * step)
    uncounted.finish(300)
    numbers = [line.split(" of ")[0].rpartition(" ")[2] for line in said]
    assert numbers == ["1", "10", "100", "150"]
    alone = Uncounted(runner.config(), said.append)
    alone.add(1)
    alone.finish(5)
    assert len(said) == 5
