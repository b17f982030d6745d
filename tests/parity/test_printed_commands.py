"""Every command that the programs print is one that can be typed: what it promises happens."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

import diy_jax.__main__
import diy_torch.__main__
import parity.__main__
from diy_core.data import prepare
from diy_core.training import loop
from diy_core.training.checkpoints.files import whole_checkpoints
from diy_core.training.start import data as opening_data
from tests.jax_cache import compiled_once
from tests.tiny_checkpoints import CONFIG, put, put_tokenizer, read_config, weights

PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "diy-torch": diy_torch.__main__.main,
    "diy-jax": diy_jax.__main__.main,
    "parity": parity.__main__.main,
}
MODEL = {
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
TEXT = ("--data.train=text.jsonl", "--steps=1", "--sequence-length=16", "--batch-size=1")
# Where a message has a command: behind one of these words, or between backticks.
_LINE = re.compile(r"^(?:to continue|to use the model|then): (.*)$", re.MULTILINE)
_TICKS = re.compile(r"`((?:diy-torch|diy-jax|parity) [^`]*)`")


class Shell:
    """Commands in this process, as a shell in `folder` would run them."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capture = folder, capture

    def __call__(self, *words: str, code: int = 0) -> list[list[str]]:
        """Run a command, which must end so; returns the commands that it printed."""
        with compiled_once():
            found = PROGRAMS[words[0]](list(words[1:]))
        self.said = self.printed()
        assert found == code, self.said
        return [shlex.split(text) for text in _LINE.findall(self.said) + _TICKS.findall(self.said)]

    def printed(self) -> str:
        return "".join(self._capture.readouterr())

    def train(self, program: str, run: str, *more: str, code: int = 0) -> list[list[str]]:
        """Train a tiny model for four steps."""
        words = [program, "train", f"--run-dir={run}", f"--model={json.dumps(MODEL)}"]
        words += ["--data.train=text.jsonl", "--data.tokenizer=bytes", "--data.validation=0"]
        words += ["--steps=4", "--batch-size=1", "--sequence-length=16", "--device=cpu"]
        return self(*words, *more, code=code)

    def steps(self, run: str) -> list[int]:
        return whole_checkpoints(self.folder / run / "checkpoints")


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text('{"text": "the cat sat on the mat"}\n' * 40)
    precision = jax.config.jax_default_matmul_precision
    yield Shell(tmp_path, capsys)
    jax.config.update("jax_default_matmul_precision", precision)


def use(shell: Shell, commands: list[list[str]], program: str, run: str) -> None:
    """What the end of a run printed: its model, and an answer of it."""
    export, generate = commands
    assert [export[0], export[1], export[3]] == [program, "export", "--out"]
    assert (Path(export[2]), Path(export[4])) == (Path(run), Path(f"{run}-model"))
    shell(*export)
    assert (shell.folder / f"{run}-model" / "config.json").is_file()
    assert [*generate[:2], Path(generate[2])] == [program, "generate", Path(f"{run}-model")]
    shell(*generate, "--max-new-tokens", "2")


@pytest.mark.parametrize("program", ["diy-torch", "diy-jax"])
def test_a_run_says_how_it_goes_on_and_what_its_end_is_for(shell: Shell, program: str) -> None:
    name = "-my run"  # a name that a shell would cut, and a parser take for an option
    (go_on,) = shell.train(program, name, "--stop-at=2")
    assert shell.steps(name) == [2]
    assert shell(*go_on) == shell(*go_on)  # the second time it is finished already
    assert shell.steps(name)[-1] == 4
    use(shell, shell(*go_on), program, name)


@pytest.mark.parametrize("program", ["diy-torch", "diy-jax"])
def test_a_run_that_was_interrupted_says_how_it_goes_on(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    rate = loop.learning_rate

    def interrupt(*arguments: Any) -> float:
        signal.raise_signal(signal.SIGTERM)
        return rate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", interrupt)
        (go_on,) = shell.train(program, "run", code=128 + signal.SIGTERM)
    assert shell.steps("run") == [1]
    assert shell(*go_on)[0][:2] == [program, "export"]
    assert shell.steps("run")[-1] == 4


@pytest.mark.parametrize("program", ["diy-torch", "diy-jax"])
@pytest.mark.parametrize("asked", ["diy-torch", "diy-jax"])
def test_a_run_is_found_where_only_its_directory_is_given(
    shell: Shell, program: str, asked: str
) -> None:
    shell.train(program, "-a run", "--stop-at=2")
    with pytest.raises(SystemExit) as left:
        shell(asked, "train", "--run-dir=-a run", "--stop_at", "3", "--device", "cpu")
    said = shell.printed()
    assert left.value.code == 2
    go_on = shlex.split(said.partition("those of the run are in -a run/config.yaml: ")[2])
    assert go_on[0] == program
    shell(*go_on)
    assert shell.steps("-a run")[-1] == 3


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_a_switched_run_goes_on_where_it_stood(shell: Shell, first: str, second: str) -> None:
    shell.train(f"diy-{first}", "run", "--stop-at=2")
    # The other twin names the command that makes a run for it.
    words = [f"diy-{second}", "train", "--config", "run/config.yaml", "--resume", "auto"]
    (switch,) = shell(*words, code=2)
    assert switch == ["parity", "switch", "run", f"run-{second}"]
    (go_on,) = shell(*switch)
    assert shell.steps(switch[-1]) == [2]
    shell(*go_on)
    assert shell.steps(switch[-1])[-1] == 4
    # A run that is finished has nothing to continue: its model is what there is.
    (back, *_) = shell(f"diy-{first}", *go_on[1:], code=2)
    commands = shell(*back)
    use(shell, commands, f"diy-{first}", back[-1])


@pytest.mark.parametrize("program", ["diy-torch", "diy-jax"])
def test_a_run_where_a_model_was_meant_names_the_command_that_makes_one(
    shell: Shell, program: str
) -> None:
    shell.train(program, "run")
    other = "diy-jax" if program == "diy-torch" else "diy-torch"
    for number, words in enumerate(
        (
            [program, "generate", "run", "the"],
            [other, "generate", "run/checkpoints/00000004", "the"],
            [other, "export", "run", "--out", "exported"],
            ["parity", "convert", "run", "converted", "--to", "orbax"],
            ["parity", "check", "run"],
            [program, "train", "--model", "run", *TEXT, "--run-dir=b"],
        )
    ):
        (export,) = shell(*words, code=2)
        assert export[:3] == [program, "export", "run"]
        where = export[export.index("--out") + 1]
        shell(*export)
        assert (shell.folder / where / "config.json").is_file()
        (shell.folder / where).rename(shell.folder / f"done{number}")


@pytest.fixture
def model(shell: Shell) -> str:
    """The name of a Hugging Face directory with a tokenizer."""
    config = dataclasses.replace(CONFIG, vocab_size=300)
    put(shell.folder / "a model", weights(config), config)
    put_tokenizer(shell.folder / "a model")
    return "a model"


def generates(shell: Shell, path: str) -> bool:
    shell("diy-torch", "generate", path, "the", "--max-new-tokens", "2")
    return (shell.folder / path / "config.json").is_file()


def test_a_checkpoint_of_another_kind_is_converted_as_the_message_says(
    shell: Shell, model: str
) -> None:
    shell("parity", "convert", model, "orbax")
    shell("parity", "convert", model, "a.gguf")
    (to_hf,) = shell("diy-torch", "train", "--model=orbax", *TEXT, "--run-dir=b", code=2)
    shell(*[word.replace("DIR", "one") for word in to_hf])
    assert generates(shell, "one")
    (to_hf,) = shell("diy-torch", "train", "--model=a.gguf", *TEXT, "--run-dir=b", code=2)
    shell(*[word.replace("DIR", "two") for word in to_hf])
    assert generates(shell, "two")
    # Nothing in this one says which model it is.
    (shell.folder / "orbax" / "config.json").unlink()
    (named,) = shell("parity", "convert", "orbax", "three", "--to", "hf", code=2)
    shell(*[word.replace("DST", "three").replace("DIR", model) for word in named], "--to", "hf")
    assert generates(shell, "three")


def test_a_head_that_is_not_the_embedding_is_kept_as_the_message_says(
    shell: Shell, model: str
) -> None:
    arrays = weights()
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] + 1
    put(shell.folder / "odd", arrays)
    (untie,) = shell("parity", "convert", "odd", "there", code=2)
    shell(*[word.replace("DIR", "mended") for word in untie])
    assert not read_config(shell.folder / "mended")["tie_word_embeddings"]


def run_in_shell(command: str, folder: Path) -> None:
    subprocess.run(["bash", "-ec", command], cwd=folder, check=True, capture_output=True)


def test_data_that_were_moved_are_linked_as_the_message_says(shell: Shell) -> None:
    prepare("text.jsonl", "prepared data", tokenizer="bytes")
    words = ["--data.train=prepared data", "--data.tokenizer=bytes"]
    (go_on,) = shell.train("diy-torch", "run", *words, "--stop-at=2")
    (shell.folder / "prepared data").rename(shell.folder / "moved")
    assert shell(*go_on, code=2) == []
    (link,) = re.findall(r"ln -s NEW_PLACE .*", shell.said)
    run_in_shell(link.replace("NEW_PLACE", "moved"), shell.folder)
    shell(*go_on)
    assert shell.steps("run")[-1] == 4


@pytest.mark.parametrize("encoding", ["UTF-16", "LATIN1", "CP1252", "UTF-32"])
def test_a_text_is_converted_as_the_message_says(shell: Shell, encoding: str) -> None:
    text = "he said “größer”" if encoding == "CP1252" else "größer"
    (shell.folder / "a.txt").write_text(text, encoding=encoding.replace("LATIN1", "latin-1"))
    data = ["diy-torch", "data", "--tokenizer=bytes", "--workers=1"]
    shell(*data, "a.txt", "--out=out", code=2)
    (convert,) = re.findall(r"iconv -f \S+ -t UTF-8", shell.said)
    run_in_shell(f"{convert} a.txt > b.txt", shell.folder)
    shell(*data, "b.txt", "--out=out")
    assert (shell.folder / "b.txt").read_text().removeprefix("\ufeff") == text


def test_very_large_data_are_verified_as_the_message_says(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("text.jsonl", "prepared data", tokenizer="bytes")
    monkeypatch.setattr(opening_data, "_MOST_VERIFIED", 0)
    shell.train("diy-torch", "run", "--data.train=prepared data", "--steps=1")
    (verify,) = re.findall(r"sha256: (python -c .*) does it", shell.said)
    words = shlex.split(verify)
    assert words[:2] == ["python", "-c"]
    exec(compile(words[2], "printed", "exec"), {})
