"""What a run says before its first step, and that the first step's time is nobody's estimate."""

from __future__ import annotations

import io
import json
import math
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_core.training.command import run_late
from diy_core.training.log import progress
from diy_core.training.log.progress import Report
from diy_core.training.run.directory import RunDirectory
from diy_core.training.signals import Interruption
from diy_core.training.start.announcement import first_line
from tests.core.training_fake import MODEL, FakeStore, FakeTrainer, Runner, assemble

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def test_the_first_line_has_parameters_tokens_and_device(runner: Runner, tmp_path: Path) -> None:
    model = MODEL | {"tie_word_embeddings": False}
    config = runner.config(model=model)
    written = DIYConfig.from_dict({"model_type": "llama", **model})
    parameters = sum(math.prod(tensor.shape) for tensor in tensors(written))
    line = f"{parameters:,} parameters, 384 tokens (12 steps of 4 x 8), device "
    assert first_line("diy-jax train", config, None) == f"{line}auto: loading JAX"
    assert first_line("diy-torch train", config, "cpu") == f"{line}cpu: loading PyTorch"
    # A run keeps its model, and what it began with may be gone.
    (runner.path / "model").mkdir(parents=True)
    kept = written.to_dict() | {"made_up": 1}  # of which the run warns, where it reads it
    (runner.path / "model" / "config.json").write_text(json.dumps(kept))
    gone = runner.config(model={"vocab_size": -1})
    assert first_line("diy-jax train", gone, None) is None  # what a failed start left
    (runner.path / "checkpoints" / "00000001").mkdir(parents=True)
    assert first_line("diy-jax train", gone, None) == f"{line}auto: loading JAX"
    nowhere = runner.config(run_dir=str(tmp_path / "new"), model={"vocab_size": -1})
    assert first_line("diy-jax train", nowhere, None) is None


def test_it_comes_before_the_framework_is_imported(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def load() -> Any:
        said.append(capsys.readouterr().err)
        return assemble, FakeStore.verify

    words = ["--run-dir", str(runner.path), f"--model={json.dumps(MODEL)}"]
    words += ["--data.train=builtin:pydoc", "--steps=2", "--batch-size=4", "--sequence-length=8"]
    assert run_late("diy train", words, load) == 0
    assert said[0].endswith("64 tokens (2 steps of 4 x 8), device auto: loading the framework\n")


@pytest.mark.parametrize(
    ("compiles", "first"), [(True, "compiling the step\n"), (False, "the first step\n")]
)
def test_what_takes_long_is_said_once_before_it_begins(
    runner: Runner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compiles: bool,
    first: str,
) -> None:
    monkeypatch.setattr(FakeTrainer, "compiles", compiles)
    assert runner(eval_every=4) == 0
    said = capsys.readouterr().err
    assert said.startswith("evaluating, before the first step\nstep 0: validation loss")
    assert said.count(f"\n{first}") == said.count("evaluating") == 1
    assert said.index("step 0: ") < said.index(f"\n{first}") < said.index("step 3/12")


@pytest.mark.parametrize("log_every", [1, 3])
def test_the_time_left_leaves_out_the_step_that_was_compiled(
    runner: Runner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    log_every: int,
) -> None:
    plain = FakeTrainer.train_step

    def compile_first(self: FakeTrainer, batch: Any, rate: float, step: int) -> Any:
        time.sleep(0.5 if step == 0 else 0.0)
        return plain(self, batch, rate, step)

    monkeypatch.setattr(FakeTrainer, "train_step", compile_first)
    assert runner(eval_every=6, log_every=log_every) == 0
    timings = [json.loads(row) for row in (runner.path / "timings.jsonl").read_text().splitlines()]
    seconds = [row["seconds_per_step"] for row in timings]
    if log_every == 1:
        assert seconds[0] is None
        assert " left" not in capsys.readouterr().err.partition("step 2/12")[0]
    assert max(second for second in seconds if second is not None) < 0.25


def test_on_a_terminal_what_goes_on_gives_way_to_the_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "Console", partial(Console, force_terminal=True, width=80))
    row = {"step": 1, "loss": 1.5, "skipped": False, "grad_norm": 0.25, "learning_rate": 1e-3}
    with Report(2) as report:
        report.doing("compiling the step")
        report._live.refresh()  # type: ignore[union-attr]
        assert "compiling the step" in capsys.readouterr().err
        report.step(row, {}, due=False)
        report._live.refresh()  # type: ignore[union-attr]
        said = capsys.readouterr().err
        assert "step 1/2" in said
        assert "compiling" not in said.rpartition("step 1/2")[2]
    with pytest.raises(ValueError), Report(2) as report:  # noqa: PT012
        report.doing("loading models/a")
        capsys.readouterr()
        raise ValueError
    assert "loading" not in capsys.readouterr().err  # nothing goes on any more


def test_a_run_directory_without_listener_is_silent(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, print) as directory:
        directory.doing("nobody is told")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_line_is_written_prints_no_line_twice(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Interrupted(io.StringIO):
        def flush(self) -> None:
            if "step 1/2" in self.getvalue() and not interruption.received:
                signal.raise_signal(number)  # its handler runs here, within the write

    written = Interrupted()
    monkeypatch.setattr(sys, "stderr", written)
    row = {"step": 1, "loss": 1.5, "skipped": False, "grad_norm": 0.25, "learning_rate": 1e-3}
    with Report(2) as report, Interruption(report.last_words) as interruption:
        report.step(row, {}, due=True)
        report.say("step 1 was saved")
    first, words, last = written.getvalue().splitlines()
    assert first.startswith("step 1/2")
    assert words.startswith(f"{signal.Signals(number).name}: leaving as soon as everything")
    assert last == "step 1 was saved"
