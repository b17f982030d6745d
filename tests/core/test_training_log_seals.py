"""What checkpoints hold of the logs: what was changed is said, and never decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diy_core.errors import CheckpointError
from diy_core.training.config import OptimizerConfig
from diy_core.training.state import Position
from tests.core.training_fake import Runner, forget_seals

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")

Capture = pytest.CaptureFixture[str]
SAID = "is not what it was"
# The validation loss falls up to step 6, and is higher ever after.
BEST = 6
OPTIONS: dict[str, Any] = {
    "eval_every": 2,
    "checkpoint_every": 2,
    "keep_last": 9,
    "optimizer": OptimizerConfig(learning_rate=0.1, warmup_steps=3),
}


def begin(runner: Runner, stop_at: int = 8) -> None:
    assert runner(stop_at=stop_at, **OPTIONS) == 0


def go_on(runner: Runner, capsys: Capture, **changes: Any) -> str:
    """What the run says that goes on to the end."""
    capsys.readouterr()
    assert runner(resume=True, **(OPTIONS | changes)) == 0
    assert runner.rows[-1]["step"] == 12
    return capsys.readouterr().err


def edit(log: Path, step: int, **values: Any) -> None:
    """Change the line of a step, or remove it where no values are given."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [row | values if row["step"] == step else row for row in rows]
    kept = [row for row in kept if values or row["step"] != step]
    log.write_text("".join(json.dumps(row) + "\n" for row in kept))


def test_an_untouched_run_says_nothing(runner: Runner, capsys: Capture, tmp_path: Path) -> None:
    begin(runner, stop_at=3)
    begin_again = Runner(runner.path)
    assert begin_again(resume=True, stop_at=8, **OPTIONS) == 0
    assert SAID not in go_on(runner, capsys)
    whole = Runner(tmp_path / "whole")
    assert whole(**OPTIONS) == 0
    assert (runner.metrics, runner.evaluations) == (whole.metrics, whole.evaluations)
    logs = [
        json.loads((run.path / "checkpoints" / "00000012" / "extra.json").read_text())["logs"]
        for run in (runner, whole)
    ]
    assert logs[0] == logs[1]


def test_lines_after_the_checkpoint_are_no_change(runner: Runner, capsys: Capture) -> None:
    """Those of a run that was killed, or whose newest checkpoint is damaged."""
    begin(runner)
    (runner.path / "checkpoints" / "00000008" / "mean.npy").write_bytes(b"")
    said = go_on(runner, capsys)
    assert "continuing from step 6" in said
    assert SAID not in said


def test_a_digit_changed_in_the_metrics_is_said(runner: Runner, capsys: Capture) -> None:
    begin(runner)
    edit(runner.path / "metrics.jsonl", 5, loss=0.125)
    said = go_on(runner, capsys)
    assert (
        f"{runner.path}/metrics.jsonl {SAID} when checkpoint 8 was made: lines of steps 1 to 8 "
        "were changed, removed or added. The weights do not depend on it"
    ) in " ".join(said.split())
    assert said.count(SAID) == 1
    assert runner.rows[4]["loss"] == 0.125


@pytest.mark.parametrize("log", ["metrics.jsonl", "evaluations.jsonl"])
def test_a_removed_line_is_said(runner: Runner, capsys: Capture, log: str) -> None:
    begin(runner)
    edit(runner.path / log, 4)
    said = " ".join(go_on(runner, capsys).split())
    assert said.count(f"{runner.path}/{log} {SAID} when checkpoint 8 was made: ") == 1
    assert ("at step 4 it says nothing, the checkpoint loss 2.5" in said) == (log[0] == "e")


def test_an_edited_evaluation_makes_no_other_checkpoint_the_best(
    runner: Runner, capsys: Capture
) -> None:
    begin(runner)
    losses = {row["step"]: row["loss"] for row in runner.evaluations}
    assert min(losses, key=lambda step: losses[step]) == BEST
    log = runner.path / "evaluations.jsonl"
    edit(log, 2, loss=0.01)
    edit(log, BEST, loss=9.5)
    said = " ".join(go_on(runner, capsys, keep_last=1).split())
    assert (
        f"{log} {SAID} when checkpoint 8 was made: at step 2 it says loss 0.01, the checkpoint "
        f"loss {losses[2]!r}; at step 6 it says loss 9.5, the checkpoint loss {losses[BEST]!r}. "
        "Which checkpoint is the best is decided by what the checkpoint says"
    ) in said
    assert runner.checkpoints == [BEST, 12]


def test_an_invented_evaluation_is_none(runner: Runner, capsys: Capture) -> None:
    begin(runner)
    log = runner.path / "evaluations.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 7, "loss": 0.001, "tokens": 1}) + "\n")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(sorted(lines, key=lambda line: int(json.loads(line)["step"]))))
    said = " ".join(go_on(runner, capsys, keep_last=1).split())
    assert "at step 7 it says loss 0.001, the checkpoint nothing. " in said
    assert runner.checkpoints == [BEST, 12]


def test_what_is_no_loss_in_an_evaluation_is_said_too(runner: Runner, capsys: Capture) -> None:
    begin(runner)
    edit(runner.path / "evaluations.jsonl", 2, perplexity=1.5)
    said = " ".join(go_on(runner, capsys).split())
    assert "evaluations.jsonl is not what it was when checkpoint 8 was made: lines of st" in said


def test_the_seal_has_the_loss_of_a_damaged_line(runner: Runner, capsys: Capture) -> None:
    """It shows that checkpoint 2 is not the best one, and that checkpoint 6 is."""
    begin(runner)
    log = runner.path / "evaluations.jsonl"
    log.write_text(log.read_text().replace('{"step": 2,', '{"step" 2,').replace(": 6,", " 6,"))
    said = " ".join(go_on(runner, capsys, keep_last=1).split())
    assert "lines 2, 4 are damaged and were moved" in said
    assert "at step 2 it says nothing, the checkpoint loss " in said
    assert runner.checkpoints == [BEST, 12]


def test_a_repaired_log_is_sealed_as_it_is_then(runner: Runner, capsys: Capture) -> None:
    begin(runner)
    log = runner.path / "metrics.jsonl"
    log.write_text(log.read_text().replace('{"step": 5,', '{"step" 5,'))
    assert runner(resume=True, stop_at=10, **OPTIONS) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{log} {SAID} when checkpoint 8 was made: " in said
    assert "line 5 is damaged and was moved" in said
    assert SAID not in go_on(runner, capsys)


def test_checkpoints_of_earlier_versions_are_taken_as_they_are(
    runner: Runner, capsys: Capture
) -> None:
    begin(runner)
    forget_seals(runner.path)
    edit(runner.path / "evaluations.jsonl", 2, loss=0)
    assert runner(resume=True, stop_at=10, **OPTIONS) == 0
    said = go_on(runner, capsys, keep_last=1)  # from a checkpoint with a seal
    assert "cannot be read" not in said
    assert SAID not in said
    assert runner.checkpoints == [2, 12]


SUM = {"bytes": 0, "sha256": "0" * 64}
EVALUATED = SUM | {"losses": {"0": 1.5, "2": None}}


@pytest.mark.parametrize(
    "logs",
    [
        [],
        {},
        {"metrics.jsonl": SUM},
        {"metrics.jsonl": SUM, "evaluations.jsonl": SUM},
        {"metrics.jsonl": SUM | {"bytes": True}, "evaluations.jsonl": EVALUATED},
        {"metrics.jsonl": SUM | {"bytes": -1}, "evaluations.jsonl": EVALUATED},
        {"metrics.jsonl": SUM | {"sha256": 5}, "evaluations.jsonl": EVALUATED},
        {"metrics.jsonl": SUM, "evaluations.jsonl": SUM | {"losses": {"x": 1.5}}},
        {"metrics.jsonl": SUM, "evaluations.jsonl": SUM | {"losses": {"2": "1.5"}}},
        {"metrics.jsonl": SUM, "evaluations.jsonl": SUM | {"losses": {"2": True}}},
    ],
    ids=lambda logs: str(logs)[:60],
)
def test_a_seal_of_another_form_is_refused(logs: Any) -> None:
    values = Position(seed=1).to_json()
    good = {"metrics.jsonl": SUM, "evaluations.jsonl": EVALUATED}
    assert Position.from_json(values | {"logs": good}, "x").logs == good
    with pytest.raises(CheckpointError, match="x: does not say what its logs were"):
        Position.from_json(values | {"logs": logs}, "x")
