"""Logs of a run: what is kept of a damaged one, and where the rest goes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from diy_core.errors import CheckpointError
from diy_core.training.config import as_dict
from diy_core.training.log.json_lines import LONGEST, JsonLines, aside, logged_steps, parse_line
from tests.core.training_fake import Runner
from tests.tiny_checkpoints import snapshot

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def line(step: int, **changes: Any) -> str:
    return json.dumps({"step": step, "loss": 1.5 / (step + 1), "skipped": False} | changes) + "\n"


WHOLE = [line(step) for step in range(1, 7)]


@pytest.mark.parametrize(
    "damage",
    [
        '{"step": 3, "loss": 0.\x00\n',
        "\n",
        "[3]\n",
        "[" * 100_000 + "\n",
        line(3).replace("3", "9" * 5000),
        line(3, loss="a"),
        line(3, loss=True),
        line(3, skipped=0),
        line(3, loss=10**400),
        line(3, total_tokens=-1),
        line(3, tokens=2**70),
        line(-3),
        line(True),
        line(3.0),  # type: ignore[arg-type]
        line(3, loss=float("nan")),
        '{"step": 3}\n',
        line(1),
        line(5),
        line(99),
    ],
    ids=lambda text: text[:30],
)
def test_a_damaged_line_costs_itself_alone(tmp_path: Path, damage: str) -> None:
    file, said = tmp_path / "metrics.jsonl", []
    file.write_text("".join([*WHOLE[:2], damage, *WHOLE[3:]]))
    lines = JsonLines(file, 5, said.append)
    lines.write({"step": 6})
    lines.close()
    assert file.read_text() == "".join([*WHOLE[:2], *WHOLE[3:5]]) + '{"step": 6}\n'
    assert [row["step"] for row in lines.kept] == [1, 2, 4, 5]
    assert aside(file).read_text() == damage
    assert said == [
        f"{file}: line 3 is damaged and was moved to {file}.damaged; all others are kept"
    ]


def test_damaged_lines_are_collected(tmp_path: Path) -> None:
    file, said = tmp_path / "metrics.jsonl", []
    file.write_text("".join(["x\n" * 7, *WHOLE]))
    JsonLines(file, 6, said.append).close()
    file.write_text("".join([*WHOLE[:5], '{"step": 6, "lo']))
    JsonLines(file, 6, said.append).close()
    assert aside(file).read_text() == "x\n" * 7 + '{"step": 6, "lo\n'
    assert file.read_text() == "".join(WHOLE[:5])
    assert "lines 1, 2, 3, 4, 5 and 2 more are damaged and were moved" in said[0]


@pytest.mark.parametrize("end", ["", "{", '{"step": ', '{"step": 7, "lo', '{"step": 7,', line(7)])
def test_what_a_kill_left_of_a_later_step_is_dropped(tmp_path: Path, end: str) -> None:
    file, said = tmp_path / "metrics.jsonl", []
    file.write_text("".join(WHOLE) + end)
    JsonLines(file, 6, said.append).close()
    assert (file.read_text(), said, aside(file).exists()) == ("".join(WHOLE), [], False)


def test_a_last_line_without_its_end_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(WHOLE)[:-1])
    lines = JsonLines(file, 6)
    lines.write({"step": 7})
    lines.close()
    assert file.read_text() == "".join(WHOLE) + '{"step": 7}\n'


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.jsonl"
    with file.open("wb") as holes:
        holes.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=rf"evaluations\.jsonl: .*longer than {LONGEST}"):
        logged_steps(file)


def test_a_backup_of_hard_links_keeps_what_it_has(tmp_path: Path) -> None:
    """Such as `cp -al` makes, before the log is opened or while it grows."""
    file, before, meanwhile = (tmp_path / name for name in ("metrics.jsonl", "before", "meanwhile"))
    file.write_text("".join(WHOLE))
    before.hardlink_to(file)
    log = JsonLines(file, 4)
    log.write(json.loads(line(5, loss=2.0)))
    meanwhile.hardlink_to(file)
    for step in (6, 7):
        log.write(json.loads(line(step)))
    log.close()
    assert before.read_text() == "".join(WHOLE)
    assert meanwhile.read_text() == "".join(WHOLE[:4]) + line(5, loss=2.0)
    assert file.read_text() == meanwhile.read_text() + line(6) + line(7)
    assert {item.name for item in tmp_path.iterdir()} == {file.name, before.name, meanwhile.name}


def test_a_run_leaves_its_copy_of_hard_links_alone(runner: Runner, tmp_path: Path) -> None:
    assert runner(stop_at=6, checkpoint_every=2, eval_every=2) == 0
    shutil.copytree(runner.path, tmp_path / "backup", copy_function=os.link)
    backup = snapshot(tmp_path / "backup")
    assert runner(resume=True, checkpoint_every=2, eval_every=2) == 0
    assert snapshot(tmp_path / "backup") == backup


def test_each_log_needs_what_is_read_of_it() -> None:
    assert parse_line(b'{"step": 1}\n', "timings.jsonl") == {"step": 1}
    assert parse_line(b'{"step": 1}\n', "evaluations.jsonl") is None
    assert parse_line(b'{"step": 1, "loss": null}\n', "evaluations.jsonl") is not None
    assert parse_line(b'{"step": 1, "loss": null}\n', "metrics.jsonl") is None


def test_a_checkpoint_whose_evaluation_is_lost_may_be_the_best_and_stays(runner: Runner) -> None:
    options: dict[str, Any] = {"eval_every": 2, "checkpoint_every": 2, "keep_last": 1}
    runner(stop_at=6, **(options | {"keep_last": 9}))
    assert runner.checkpoints == [2, 4, 6]
    file = runner.path / "evaluations.jsonl"
    file.write_text(file.read_text().replace('{"step": 2,', '{"step" 2,'))
    assert runner(resume=True, stop_at=8, **options) == 0
    assert 2 in runner.checkpoints
    assert runner(resume=True, **options) == 0
    assert 2 in runner.checkpoints
    assert {row["step"] for row in runner.evaluations} == {0, 4, 6, 8, 10, 12}
    aside(file).unlink()
    assert runner(resume=True, steps=12, **(options | {"keep_best": False})) == 0


def test_what_cannot_be_deleted_ends_nothing_and_is_said_once(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.core.training_fake import FakeStore

    delete, tried = FakeStore.delete, []

    def failing(self: FakeStore, step: int) -> None:
        tried.append(step)
        if step == 2 and tried.count(2) < 3:
            raise PermissionError(13, "Permission denied", "x")
        delete(self, step)

    monkeypatch.setattr(FakeStore, "delete", failing)
    assert runner(checkpoint_every=2, keep_last=1) == 0
    said = capsys.readouterr().err
    assert (
        said.count("checkpoint 00000002 could not be deleted, which is tried again later: x:") == 1
    )
    assert tried.count(2) == 3
    assert runner.checkpoints == [12]


def test_curves_that_cannot_be_drawn_end_nothing(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    (runner.path / "loss.png").mkdir(parents=True)
    (runner.path / "config.yaml").write_text(yaml.safe_dump(as_dict(runner.config())))
    (runner.path / ".lock").touch()
    assert runner() == 0
    assert "loss.png was not drawn: " in capsys.readouterr().err
