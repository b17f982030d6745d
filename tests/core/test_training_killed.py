"""Runs in processes of their own: killed at any moment, interrupted, and resumed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.core.training_fake import MODEL

SCRIPT = Path(__file__).with_name("training_fake.py")
ROOT = Path(__file__).parents[2]


def options(run_dir: Path, **model: Any) -> list[str]:
    times = {"step_seconds": 0.002, "save_seconds": 0.005}
    model = MODEL | times | {"nan_at": [20], "background": False} | model
    values = {
        "run_dir": run_dir,
        "model": json.dumps(model),
        "data.train": "builtin:pydoc",
        "steps": 150,
        "batch_size": 4,
        "sequence_length": 8,
        "checkpoint_every": 10,
        "eval_every": 15,
        "keep_every": 50,
        "optimizer.learning_rate": 0.01,
    }
    return [f"--{name}={value}" for name, value in values.items()]


def start(arguments: list[str], **changes: Any) -> subprocess.Popen[str]:
    """Python starts in a second; a process group of its own takes no signals from the tests'."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(SCRIPT), *arguments],
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"},
        start_new_session=True,
        **({"stderr": subprocess.PIPE} | changes),
    )


def wait_for_step(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """Return when the run has written this step, or has ended."""
    while process.poll() is None:
        lines = metrics.read_bytes().splitlines() if metrics.exists() else []
        if lines and lines[-1].endswith(b"}") and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.001)


def result(run: Path) -> dict[str, bytes]:
    """Every byte that must not depend on how often the run was killed."""
    files = [run / "metrics.jsonl", run / "evaluations.jsonl", *(run / "checkpoints").rglob("*")]
    # What a checkpoint was made with names how the fake store writes.
    was = (b'"background": true', b'"background": false')
    return {
        str(p.relative_to(run)): p.read_bytes().replace(*was) for p in sorted(files) if p.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("whole") / "run"
    process = start(options(run))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return result(run)


@pytest.mark.parametrize("background", [False, True])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], background: bool
) -> None:
    run, rng = tmp_path / "run", random.Random(background)
    arguments = [*options(run, background=background), "--resume=auto"]
    for target in (5, 70, 140):
        process = start(arguments)
        wait_for_step(process, run / "metrics.jsonl", target)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
    process = start(arguments)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "continuing from step" in said
    assert result(run) == whole
    assert len(json.loads(whole["metrics.jsonl"].splitlines()[-1])) > 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_leaves(
    tmp_path: Path, whole: dict[str, bytes], number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    process = start(options(run))
    wait_for_step(process, run / "metrics.jsonl", 63)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert f"{number.name}: saving and leaving after this step" in said or "this eval" in said
    last = json.loads((run / "metrics.jsonl").read_bytes().splitlines()[-1])["step"]
    assert (run / "checkpoints" / f"{last:08d}").is_dir()
    process = start([*options(run), "--resume=auto"])
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"continuing from step {last} of 150" in said
    assert result(run) == whole


def test_a_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(options(run, step_seconds=0.01, save_seconds=60))
    wait_for_step(process, run / "metrics.jsonl", 3)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "SIGINT" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)  # the checkpoint would take two minutes
    assert process.returncode == -signal.SIGINT  # a shell says 130
    assert not list((run / "checkpoints").glob("[0-9]*"))


def test_under_nohup_the_end_of_the_terminal_is_ignored(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # What a process ignores its children ignore; no code between fork and exec, as JAX has threads.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(options(run, step_seconds=0.01))
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_step(process, run / "metrics.jsonl", 3)
    process.send_signal(signal.SIGHUP)
    wait_for_step(process, run / "metrics.jsonl", 20)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_second_interrupt_leaves_a_terminal_with_its_cursor(tmp_path: Path) -> None:
    run = tmp_path / "run"
    master, terminal = pty.openpty()
    process = start(options(run, step_seconds=0.01, save_seconds=60), stderr=terminal)
    os.close(terminal)
    wait_for_step(process, run / "metrics.jsonl", 3)
    process.send_signal(signal.SIGINT)
    said = b""
    while b"SIGINT" not in said:
        said += os.read(master, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == -signal.SIGINT
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while more := os.read(master, 65536):
            said += more
    os.close(master)
    hidden, shown = said.rindex(b"\x1b[?25l"), said.rindex(b"\x1b[?25h")
    assert hidden < shown


def test_a_run_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(options(run, step_seconds=0.05))
    wait_for_step(first, run / "metrics.jsonl", 1)
    second = start([*options(run, step_seconds=0.05), "--resume=auto"])
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"is in use by process {first.pid} on " in said
    first.kill()
    first.communicate()
    third = start([*options(run, step_seconds=0.05), "--resume=auto", "--stop_at=2"])
    _, said = third.communicate(timeout=60)
    assert third.returncode == 0, said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_whose_reader_is_gone_saves_and_leaves(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """As after Ctrl-C in `... 2>&1 | tee log`, which ends tee first."""
    run = tmp_path / "run"
    process = start([*options(run, step_seconds=0.01), "--log_every=1"])
    wait_for_step(process, run / "metrics.jsonl", 3)
    assert process.stderr is not None
    process.stderr.close()
    wait_for_step(process, run / "metrics.jsonl", 12)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    last = json.loads((run / "metrics.jsonl").read_bytes().splitlines()[-1])["step"]
    assert last >= 12
    assert (run / "checkpoints" / f"{last:08d}").is_dir()


def test_a_refusal_that_nobody_reads_keeps_its_exit_code(tmp_path: Path) -> None:
    process = start([*options(tmp_path / "run"), "--steps=0"])
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(timeout=60) == 2
