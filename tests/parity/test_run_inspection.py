"""`parity inspect` of a training run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from diy_core.checkpoints.kinds import kind_of
from diy_core.errors import CheckpointError
from diy_core.training.export import export as export_from
from diy_core.training.run.seal import resealed, seal_of
from diy_torch.training_store import TrainingStore as TorchStore
from parity.__main__ import main
from parity.inspect.run_checkpoint import config_of
from parity.inspect.run_diff import diff_runs
from parity.inspect.runs import inspect_run
from tests.written_runs import STORES, add_checkpoint, line, snapshot, state, write_run

Capture = pytest.CaptureFixture[str]
LINES = [line(step, 3.0 - step / 10) for step in range(1, 10)]


def record_of(capsys: Capture, *words: object) -> Any:
    assert main(["inspect", *map(str, words), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("twin", STORES)
def test_a_record(tmp_path: Path, twin: str, capsys: Capture) -> None:
    run = write_run(tmp_path / "run", twin, {4: state(4), 8: state(8)}, LINES)
    before = snapshot(run)
    record = record_of(capsys, run, "--verify")
    assert snapshot(run) == before
    assert (record["kind"], record["program"]) == ("run", f"diy-{twin}")
    assert (record["step"], record["steps"]) == (8, [4, 8])
    assert record["position"]["data"] == {"next_index": 8}
    assert record["run"]["optimizer"]["learning_rate"] == 3e-3
    assert record["config"]["hidden_size"] == 8
    assert [row["name"] for row in record["tensors"]] == list(state())
    for row in record["tensors"]:
        array = state(8)[row["name"]]
        assert (row["shape"], row["dtype"]) == (list(array.shape), "float32")
        assert row["bytes"] == array.nbytes
        assert row["sha256"] == hashlib.sha256(array.tobytes()).hexdigest()
    assert record["total"]["tensors"] == 60
    assert record["total"]["bytes"] == sum(array.nbytes for array in state().values())
    assert record["logs"] == {"metrics.jsonl": LINES[-1], "evaluations.jsonl": None}
    folder = run / "checkpoints" / "00000008"
    assert record["total"]["bytes_on_disk"] == sum(
        file.stat().st_size for file in folder.rglob("*") if file.is_file()
    )
    assert record["verified"] is True
    other = record_of(capsys, run, "--step", 4)
    assert (other["step"], other["verified"]) == (4, False)
    assert other == record_of(capsys, run / "checkpoints" / "00000004") | {"path": str(run)}


def test_a_page_for_people(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write_run(Path("run"), "jax", {4: state(4), 8: state(8)}, LINES)
    assert main(["inspect", "run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [text.rstrip() for text in out.splitlines()]
    assert lines[:4] == [
        "run: a training run of diy-jax, step 8 of 20",
        "checkpoints: 4, 8",
        "position: 800 tokens in the loss, 0 steps skipped, batch 8 of the data next",
        "metrics.jsonl: up to step 9, loss 2.1, grad_norm 1, learning_rate 0.001, tokens 100, "
        "total_tokens 900, skipped False",
    ]
    words = {tuple(text.split()) for text in lines}
    keys = [text.split()[0] for text in lines if re.match(r"model\.\w+ ", text)]
    assert len(set(keys)) == len(keys) > 10  # the run's own config has some of them too
    for pair in (("optimizer.learning_rate", "0.003"), ("model.hidden_size", "8")):
        assert pair in words
    assert (
        "model.layers.*.self_attn.q_proj.weight",
        "8",
        "x",
        "8",
        "float32",
        "2",
        "512",
        "bytes",
    ) in words
    assert lines[-1] == "checksums: present, not checked (--verify checks them)"
    assert lines[-2].startswith("20 tensors, ")
    assert main(["inspect", "run", "--verify"]) == 0
    assert "checksums: all match" in capsys.readouterr().out


def test_a_run_that_has_no_checkpoint_yet(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path / "run", "torch", {}, LINES[:2])
    record = record_of(capsys, run, "--verify")
    assert (record["step"], record["tensors"], record["verified"]) == (None, [], False)
    assert record["logs"]["metrics.jsonl"] == LINES[1]
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    assert "tensors," not in out
    assert "checksums" not in out
    assert first == f"{run}: a training run of 20 steps, without a checkpoint yet"
    assert main(["inspect", str(run), "--step", "4"]) == 2
    assert "is a training run that has saved no checkpoint yet" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")  # as people make room
    assert main(["inspect", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == first
    assert main(["diff", str(run), str(run)]) == 2
    assert "is a training run that has saved no checkpoint yet" in capsys.readouterr().err


def test_a_damaged_line_is_noted(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path / "run", "torch", {4: state(4)}, LINES)
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:3], b"\0\0\0\n", *lines[4:], lines[0][:7]]))
    assert main(["inspect", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "up to step 9" in out
    assert err == f"note: {run}: line 4 of metrics.jsonl cannot be read\n"
    assert main(["inspect", str(run), "--strict"]) == 2


def test_values_with_brackets_are_printed_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path / "run", "torch", {})
    config = run / "config.yaml"
    config.write_text(config.read_text() + "mine: '[/x] [red]'\n")
    assert main(["inspect", str(run)]) == 0
    assert "[/x] [red]" in capsys.readouterr().out


def test_progress_comes_to_all_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "torch", {4: state()})
    seen: list[tuple[str, int, int]] = []
    inspect_run(run, verify=True, progress=lambda *words: seen.append(words))
    total = sum(array.nbytes for array in state().values())
    assert seen[-1] == ("verifying", total, total)
    seen.clear()
    inspect_run(run, progress=lambda *words: seen.append(words))
    assert seen == []


def test_what_is_no_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "torch", {4: state(4)})
    for path in (tmp_path, run / "model"):
        with pytest.raises(CheckpointError, match=r": is not a training run$"):
            inspect_run(path, progress=lambda what, done, total: None)


def test_what_cannot_be_read(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path / "run", "torch", {4: state(4)})
    file = run / "checkpoints" / "00000004" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert main(["inspect", str(run)]) == 0  # reads no arrays
    capsys.readouterr()
    for words, message in (
        ([run, "--verify"], "00000004: tensor square/model.norm.weight does not have the SHA-256"),
        (
            [run, "--config", run],
            f"--config is of an Orbax checkpoint, and {run} is a training run",
        ),
        ([run, "--step", 5], "has no checkpoint of step 5, only of 4"),
        ([run / "checkpoints" / "00000005"], "has no checkpoint of step 5, only of 4"),
        ([run / "model"], "is a training run and not a model"),
        ([tmp_path, "--step", 4], f"--step is of training runs, and {tmp_path} is none"),
    ):
        assert main(["inspect", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
    (file.parent / "position.json").unlink()
    assert main(["inspect", str(run)]) == 2
    assert "00000004: is damaged: it has no position.json" in capsys.readouterr().err


def break_position(run: Path, step: int) -> None:
    (run / "checkpoints" / f"{step:08d}" / "position.json").write_text("{}")


@pytest.mark.parametrize("twin", STORES)
def test_a_damaged_checkpoint_is_named_after_what_can_be_read(
    tmp_path: Path, twin: str, capsys: Capture
) -> None:
    run = write_run(tmp_path / "run", twin, {step: state(step) for step in (4, 8, 12)}, LINES)
    break_position(run, 12)
    assert main(["inspect", str(run)]) == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == f"{run}: a training run of diy-{twin}, step 8 of 20"
    assert lines[1] == "checkpoints: 4, 8, 12 (damaged)"
    assert "position: 800 tokens in the loss" in lines[2]
    assert err.startswith(f"parity inspect: {run}/checkpoints/00000012: position.json: is damaged")
    assert err.count("\n") == 1
    break_position(run, 4)
    assert main(["inspect", str(run), "--json", "-"]) == 2
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert (record["step"], record["steps"]) == (8, [4, 8, 12])
    assert [one["step"] for one in record["damaged"]] == [12, 4]
    assert "2 faults" in err
    assert f"{run}/checkpoints/00000004: position.json: is damaged" in err
    assert record_of(capsys, run, "--step", 8)["damaged"] == []
    assert main(["inspect", str(run), "--step", "12"]) == 2
    assert capsys.readouterr().out == ""
    break_position(run, 8)
    assert main(["inspect", str(run)]) == 2  # nothing is left to show
    out, err = capsys.readouterr()
    assert out == ""
    assert "3 faults" in err


def test_with_verify_the_newest_that_has_its_sums_is_shown(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path / "run", "torch", {4: state(4), 8: state(8)}, LINES)
    file = run / "checkpoints" / "00000008" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert main(["inspect", str(run), "--verify"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{run}: a training run of diy-torch, step 4 of 20\n")
    assert "checksums: all match" in out
    assert "00000008: tensor square/model.norm.weight does not have the SHA-256" in err


@pytest.mark.parametrize("command", ["inspect", "diff", "convert", "check"])
@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/00000004"])
def test_a_run_that_lacks_its_config_is_called_one(
    tmp_path: Path, command: str, inside: str, capsys: Capture
) -> None:
    run = write_run(tmp_path / "run", "torch", {4: state(4)}, LINES)
    (run / "config.yaml").unlink()
    other = [str(tmp_path / "out")] if command in ("diff", "convert") else []
    assert main([command, str(run / inside), *other]) == 2
    err = capsys.readouterr().err
    assert "a training run of diy-torch without config.yaml: put back what was there, or" in err
    assert f"`diy-torch export {run} --out DIR`" in err
    (run / "model" / "config.json").unlink()
    assert main([command, str(run / inside), *other]) == 2
    err = capsys.readouterr().err
    assert "without config.yaml and model/config.json: put back what was there\n" in err


def test_a_run_that_lacks_its_config_is_exported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "torch", {4: state(4)}, LINES)
    (run / "config.yaml").unlink()
    export_from(TorchStore, run, None, tmp_path / "out")
    assert kind_of(tmp_path / "out") == "hf"


def test_what_a_checkpoint_was_not_made_with_is_said(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path / "run", "torch", {})
    sealed = resealed(seal_of(run, config_of(run)))
    add_checkpoint(run, "torch", 4, state(4), made_with=sealed)
    assert main(["inspect", str(run)]) == 0
    assert "changed since" not in "".join(capsys.readouterr())
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.003", "learning_rate: 0.05"))
    words = (
        "changed since checkpoint 4 was made: config.yaml: optimizer.learning_rate: 0.003, now 0.05"
    )
    assert inspect_run(run, progress=lambda *_: None)["notes"] == [words]
    record = diff_runs(run, run)
    assert record["equal"]
    assert record["one"]["notes"] == record["other"]["notes"] == [words]
    assert main(["inspect", str(run), "--strict"]) == 2
    assert words in capsys.readouterr().err
