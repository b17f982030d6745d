"""Who calls a function is told of arguments, and who gives a command of options."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from diy_core.data import prepare
from diy_core.training.export import export
from diy_torch.training_store import TrainingStore
from parity.__main__ import main as parity
from parity.convert.formats import convert
from parity.inspect import models as inspection
from parity.inspect.run_checkpoint import place_of_run
from parity.inspect.run_diff import diff_runs
from tests.tiny_checkpoints import put, put_tokenizer, weights
from tests.written_runs import state, write_run

Capture = pytest.CaptureFixture[str]
STEP = "run/checkpoints/00000004"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    put_tokenizer(put(folder / "hf", weights()))
    write_run(folder / "run", "torch", {4: state()})
    (folder / "t").mkdir()
    put_tokenizer(folder / "t")
    (folder / "one.txt").write_text("all of it is one document")
    return folder


def diff() -> object:
    return inspection.diff("hf", "hf", lambda *_: None, config="hf")


@pytest.mark.parametrize(
    ("call", "words", "said", "shown"),
    [
        (
            lambda: convert("hf", "x", config="hf"),
            "convert hf x --config hf",
            "is a Hugging Face directory, which has a config of its own: leave config out",
            "a config of its own: leave --config out",
        ),
        (
            diff,
            "diff hf hf --config hf",
            "both have a config of their own: leave config out",
            "both have a config of their own: leave --config out",
        ),
        (
            lambda: diff_runs("run", "run", config="hf"),
            "diff run run --config hf",
            "both are training runs, which have configs of their own: leave config out",
            "leave --config out",
        ),
        (
            lambda: place_of_run(STEP, 5),
            f"inspect {STEP} --step 5",
            "is the checkpoint of step 4: leave step out",
            "is the checkpoint of step 4: leave --step out",
        ),
        (
            lambda: convert("hf", ""),
            "convert hf ''",
            "destination is empty: give a path",
            "argument DST: is empty: give a value",
        ),
        (
            lambda: export(TrainingStore, "run", None, "run/x"),
            "torch export run --out run/x",
            "out (run/x) lies inside the run run",
            "--out (run/x) lies inside the run run",
        ),
        (
            lambda: export(TrainingStore, STEP, None, "x"),
            f"torch export {STEP} --out x",
            "give run and step=4",
            "give run and --step 4",
        ),
        (
            lambda: prepare(["one.txt"], "out", tokenizer="t", validation=0.5),
            "torch data one.txt --out out --tokenizer t --workers 1 --validation 0.5",
            "documents of a text file (separator=TEXT), more documents",
            "documents of a text file (--separator TEXT), more documents",
        ),
    ],
)
def test_each_caller_reads_its_own_words(
    place: Path,
    call: Callable[[], object],
    words: str,
    said: str,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(ValueError) as raised:
        call()
    assert said in str(raised.value)
    assert " --" not in str(raised.value)
    capsys.readouterr()
    arguments = [word.strip("'") for word in words.split()]
    if arguments[0] == "torch":
        main = importlib.import_module("diy_torch.__main__").main
        assert main(arguments[1:]) == 2
    elif "" in arguments:  # which the parser refuses by itself
        with pytest.raises(SystemExit):
            parity(arguments)
    else:
        assert parity(arguments) == 2
    assert shown in capsys.readouterr().err
