"""What the run of a twin must do, whichever twin it is."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.training_run import FORMS
from diy_core.errors import CheckpointError
from diy_core.training.checkpoints.store import CheckpointStore
from diy_core.training.config import DataConfig, OptimizerConfig
from diy_core.training.export import export
from diy_core.training.start.begin import Assemble
from diy_core.training.start.data import open_data
from tests.training_runs import (
    STEPS,
    Runs,
    arguments,
    evaluations,
    losses,
    rows,
    same_bits,
    start,
    wait_for,
    write_text,
)


class Twin:
    """A test class of a twin says which one it is."""

    package: str
    assemble: Assemble
    store: type[CheckpointStore]

    @staticmethod
    def precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
        """A context in which the framework has this dtype."""
        return contextlib.nullcontext()

    @classmethod
    def make(cls, folder: Path, device: str = "cpu") -> Runs:
        return Runs(cls.assemble, cls.store, folder, device, cls.precision)

    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls, tmp_path_factory: pytest.TempPathFactory) -> Runs:
        """Runs in one folder, of which `whole` is there."""
        runs = cls.make(tmp_path_factory.mktemp("runs"))
        assert runs.train("whole") == 0
        return runs


class RunTests(Twin):
    """Runs in this process."""

    def test_a_run_learns_and_evaluates(self, runs: Runs) -> None:
        curve = losses(runs.folder / "whole")
        assert len(curve) == STEPS
        assert curve[-1] < curve[0] - 0.3
        evaluated = evaluations(runs.folder / "whole")
        assert [row["step"] for row in evaluated] == [0, 8, 16, STEPS]
        assert (
            evaluated[3]["loss"]
            < evaluated[2]["loss"]
            < evaluated[1]["loss"]
            < evaluated[0]["loss"]
        )
        assert runs.steps("whole") == [6, 12, 18, STEPS]  # which is the best
        assert runs.position("whole")["step"] == STEPS

    def test_stopping_anywhere_and_going_on_gives_the_same_bits(self, runs: Runs) -> None:
        stop = random.Random(int(time.time())).randint(1, STEPS - 1)
        print(f"stopped at {stop}")
        assert runs.train("stopped", stop_at=stop) == 0
        assert runs.steps("stopped")[-1] == stop
        assert runs.train("stopped", resume=True) == 0
        assert same_bits(runs.state("stopped"), runs.state("whole"))
        assert runs.position("stopped") == runs.position("whole")
        for file in ("metrics.jsonl", "evaluations.jsonl"):
            one, other = (runs.folder / name / file for name in ("stopped", "whole"))
            assert one.read_bytes() == other.read_bytes()

    def test_the_state_of_each_step_differs(self, runs: Runs) -> None:
        one, other = runs.state("whole", 6), runs.state("whole", 12)
        assert all(one[name].tobytes() != other[name].tobytes() for name in one)

    def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(self, runs: Runs) -> None:
        wild = OptimizerConfig(learning_rate=1e200, clip_norm=0.0, schedule="constant")
        for stop in (1, 3):
            changes = {"eval_every": 0, "optimizer": wild, "checkpoint_every": 1}
            runs.train("wild", stop_at=stop, resume=stop == 3, **changes)
        position = runs.position("wild", 3)
        assert position["skipped_steps"] == position["skipped_in_a_row"] == 2
        assert same_bits(runs.state("wild", 3), runs.state("wild", 1))

    def test_a_batch_of_prompts_changes_nothing_and_the_run_goes_on(
        self, runs: Runs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Prompts longer than rows: of seven batches at most two hold an answer."""
        text = tmp_path / "long.jsonl"
        record = {"prompt": "the cat sat on " * 21, "completion": "mats"}
        text.write_text(f"{json.dumps(record)}\n{json.dumps(record | {'completion': 'rats'})}\n")
        changes: dict[str, Any] = {"steps": 7, "max_skipped_steps": 2, "eval_every": 0}
        changes |= {"checkpoint_every": 1, "keep_last": 7}
        data = DataConfig(train=str(text), tokenizer="bytes")
        assert runs.train("prompts", data=data, **changes) == 0
        found = rows(runs.folder / "prompts")
        empty = [row["step"] for row in found if row["tokens"] == 0]
        assert len(empty) >= 5
        for row in found:
            nothing = row["step"] in empty
            assert (row["loss"] is None) == (row["grad_norm"] is None) == row["skipped"] == nothing
        for step in empty[1:]:
            assert same_bits(runs.state("prompts", step - 1), runs.state("prompts", step))
        assert runs.position("prompts", 7)["tokens"] == 2 * len("mats") + 2
        said = capfd.readouterr().err
        assert f"no token was counted in {len(empty)} of 7 steps" in said
        assert "not finite" not in said

    def test_a_run_from_a_directory_goes_on_without_it(self, tmp_path: Path, runs: Runs) -> None:
        """In float32, from a model and a text that are gone when it goes on."""
        model, own = tmp_path / "model", self.make(tmp_path)
        export(runs.store, runs.folder / "whole", 6, model)

        def train(name: str, stop: int | None, resume: bool = False) -> None:
            config = own.config(name, dtype="float32", stop_at=stop, steps=8)
            object.__setattr__(config, "model", str(model))
            assert own.train_config(config, resume=resume) == 0

        train("whole", None)
        train("run", 5)
        shutil.rmtree(model)
        own.text.unlink()
        train("run", None, resume=True)
        assert same_bits(own.state("run", 8), own.state("whole", 8))
        first = rows(own.folder / "run")[0]["loss"]
        assert abs(first - losses(runs.folder / "whole")[6]) < 0.3 * first  # trained weights
        assert own.state("run", 8)["model/model.norm.weight"].dtype == np.float32

    def test_an_export_is_the_checkpoint_of_the_step(self, runs: Runs) -> None:
        out = runs.folder / "out"
        for step in (6, None):
            said = export(runs.store, runs.folder / "whole", step, out, overwrite=True)
            assert f"of step {step or STEPS}, read back" in said
            state = runs.state("whole", step or STEPS)
            for name, array in HFReader(out).read_all(verify=True):
                assert array.tobytes() == state[f"model/{name}"].tobytes()
        assert json.loads((out / "config.json").read_text())["dtype"] == "float64"
        with pytest.raises(CheckpointError, match="exists already"):
            export(runs.store, runs.folder / "whole", None, out)
        for inside in (".", "model", "../whole/x"):
            with pytest.raises(ValueError, match="lies inside the run"):
                export(runs.store, runs.folder / "whole", None, runs.folder / "whole" / inside)
        with pytest.raises(CheckpointError, match="no checkpoint of step 7, only of 6, 12, "):
            export(runs.store, runs.folder / "whole", 7, runs.folder / "other")
        with pytest.raises(
            CheckpointError, match="does not exist: give the directory of a training run"
        ):
            export(runs.store, runs.folder / "nowhere", None, runs.folder / "other")
        with pytest.raises(CheckpointError, match=r"is a model \(Hugging Face d.*not a training"):
            export(runs.store, out, None, runs.folder / "other")
        assert not (runs.folder / "other").exists()
        stop = mock.patch("diy_core.training.export.transfer", side_effect=KeyboardInterrupt)
        with stop, pytest.raises(KeyboardInterrupt):
            export(runs.store, runs.folder / "whole", None, runs.folder / "other" / "out")
        assert not (runs.folder / "other").exists()

    def test_another_config_is_refused_with_both_values(self, runs: Runs) -> None:
        for changes, words in (
            ({"seed": 4}, "seed: 3, now 4"),
            ({"model": {"vocab_size": 300}}, "model.vocab_size: 257, now 300"),
            ({"batch_size": 8}, "batch_size: 4, now 8"),
        ):
            with pytest.raises(ValueError, match=words):
                runs.train("whole", resume=True, **changes)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="holds a run: --resume auto"):
            runs.train("whole")

    def test_another_text_under_the_same_name_is_refused(self, runs: Runs, tmp_path: Path) -> None:
        shutil.copytree(runs.folder / "whole", tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "data")
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{STEPS:08d}")
        text, before = runs.text, runs.text.read_text()
        write_text(text, seed=1)
        try:
            config = runs.config("whole", run_dir=str(tmp_path / "run"))
            with pytest.raises(ValueError, match=r"the tokens of the training data \(SHA"):
                runs.train_config(config, resume=True)
        finally:
            text.write_text(before)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"model": {"vocab_size": 100}}, "model's vocab_size is 100: prepare the"),
            ({"model": {"hiden_size": 8}}, "hiden_size is not known: did you mean model.hidden_"),
            ({"model": {"num_attention_heads": 3}}, "num_attention_heads"),
            ({"sequence_length": 65}, r"sequence_length \(65\) must not be more than the model's"),
            ({"data": DataConfig(train="no.txt", tokenizer="bytes")}, "no.txt"),
            ({"data": DataConfig(train="no.txt")}, "data.tokenizer must be given"),
            ({"data": DataConfig(train="no.txt", tokenizer="nowhere")}, "nowhere"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, runs: Runs, tmp_path: Path, changes: dict[str, object], words: str
    ) -> None:
        own = self.make(tmp_path)
        with pytest.raises(ValueError, match=words):
            own.train("run", **changes)  # type: ignore[arg-type]
        assert not own.steps("run")

    def test_a_start_that_failed_leaves_nothing_that_the_next_would_use(
        self, runs: Runs, tmp_path: Path
    ) -> None:
        own = self.make(tmp_path)
        two = DataConfig(train=str(own.text), validation=str(own.text), tokenizer="bytes")
        with pytest.raises(ValueError, match="vocab_size is 100"):
            own.train("run", model={"vocab_size": 100}, data=two)
        assert (tmp_path / "run" / "validation").is_dir()
        write_text(own.text, seed=1)
        assert own.train("run", stop_at=1) == 0
        assert own.train("fresh", stop_at=1) == 0
        for name in ("model/config.json", "data/tokens.bin"):
            one, other = (tmp_path / run / name for run in ("run", "fresh"))
            assert one.read_bytes() == other.read_bytes()
        assert not (tmp_path / "run" / "validation").exists()

    def test_a_model_that_is_replaced_while_data_are_prepared_is_refused(
        self, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The config would be that of one model, and the weights those of another."""
        own, model = self.make(tmp_path), tmp_path / "model"
        export(self.store, runs.folder / "whole", None, model)
        config = dataclasses.replace(own.config("run", stop_at=1), model=str(model))

        def replaced(*given: Any) -> Any:
            opened = open_data(*given)
            (model / "new").write_bytes((model / "config.json").read_bytes())
            (model / "new").replace(model / "config.json")
            return opened

        with monkeypatch.context() as patch:
            patch.setattr("diy_core.training.start.parts.open_data", replaced)
            with pytest.raises(CheckpointError, match="was changed or replaced while it was read"):
                own.train_config(config)
        assert not own.steps("run")
        assert own.train_config(config) == 0

    def test_an_unknown_device_is_refused(self, runs: Runs, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="--device nonsense"):
            self.make(tmp_path, "nonsense").train("run")


class ProcessTests(Twin):
    """The same as a command, in processes that are killed."""

    def test_killed_at_any_moment_it_goes_on_to_the_same_bits(self, runs: Runs) -> None:
        long = {"steps": 60, "checkpoint_every": 3, "dtype": "float32", "eval_every": 10}
        runs.train("long", **long)  # type: ignore[arg-type]
        words = [*arguments(runs.config("run", **long)), "--resume=auto"]
        metrics, rng = runs.folder / "run" / "metrics.jsonl", random.Random(int(time.time()))
        for target in (4, 30):
            process = start(self.package, words)
            wait_for(process, metrics, target)
            delay = rng.uniform(0, 0.1)
            time.sleep(delay)
            process.kill()
            process.communicate()
            print(f"killed {delay:.4f} s after step {target}")
            assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
        process = start(self.package, words)
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
        assert "continuing from step" in said
        assert same_bits(runs.state("run", 60), runs.state("long", 60))
        assert metrics.read_bytes() == (runs.folder / "long" / "metrics.jsonl").read_bytes()
        assert runs.steps("run") == runs.steps("long")
        names = {item.name for item in (runs.folder / "run" / "checkpoints").iterdir()}
        assert all(name.isdecimal() for name in names), names

    def test_sigterm_saves_and_leaves_with_143(self, runs: Runs) -> None:
        words = arguments(runs.config("term", steps=10_000, checkpoint_every=10_000, eval_every=0))
        metrics = runs.folder / "term" / "metrics.jsonl"
        process = start(self.package, words)
        wait_for(process, metrics, 3)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 143, said
        last = rows(runs.folder / "term")[-1]["step"]
        assert runs.steps("term") == [last]
        assert runs.position("term", last)["step"] == last

    def test_the_commands_refuse_in_one_line_with_exit_code_2(self, runs: Runs) -> None:
        for words, message in (
            (arguments(runs.config("bad", model={"vocab_size": 100})), "model's vocab_size is 100"),
            (["export", str(runs.folder / "bad"), "--out", "x"], "has saved no checkpoint yet"),
        ):
            process = start(self.package, words)
            said, _ = process.communicate(timeout=100)
            assert process.returncode == 2, said
            assert message in said
            assert "Traceback" not in said

    def test_export_is_a_command(self, runs: Runs) -> None:
        out = runs.folder / "exported"
        words = ["export", str(runs.folder / "whole"), "--step", "6", "--out", str(out)]
        process = start(self.package, words)
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 0, said
        state = runs.state("whole", 6)
        for name, array in HFReader(out).read_all(verify=True):
            assert array.tobytes() == state[f"model/{name}"].tobytes()

    def test_what_was_trained_on_bytes_can_be_asked(
        self, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = runs.folder / "asked"
        export(runs.store, runs.folder / "whole", None, out)
        main = importlib.import_module(f"{self.package}.__main__").main
        capsys.readouterr()
        words = ["generate", str(out), "the cät", "--max-new-tokens", "4", "--json"]
        assert main([*words, "--device", "cpu"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["prompt_ids"] == list("the cät".encode())
        assert said["text"] == bytes(i for i in said["new_ids"] if i < 256).decode(errors="replace")

    def test_a_run_where_a_model_is_meant_is_answered_with_its_export(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main = importlib.import_module(f"{self.package}.__main__").main
        monkeypatch.chdir(runs.folder)
        capsys.readouterr()
        for path, step in (
            ("whole", ""),
            ("whole/model", ""),
            ("whole/checkpoints", ""),
            ("whole/checkpoints/00000012", " --step 12"),
        ):
            assert main(["generate", path, "the"]) == 2
            program = FORMS[runs.store.form]
            assert capsys.readouterr().err == (
                f"{program} generate: {path}: is a training run and not a model: "
                f"`{program} export whole{step} --out DIR` makes one of it\n"
            )
