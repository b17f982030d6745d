"""What a run makes of the data that its config names, before the first step and when it goes on."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diy_core.data import DataError, TokenData, prepare, tokenizer_hash
from diy_core.training.config import DataConfig
from diy_core.training.run.directory import RunDirectory
from diy_core.training.run.model import keep_model, kept_tokenizer
from diy_core.training.start import data as opening_data
from diy_core.training.start.parts import Parts, assemble_parts
from diy_torch.__main__ import main
from tests.core.tokenizer_zoo import zoo
from tests.data_files import files, jsonl
from tests.training_runs import run_config


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    rows = [{"text": f"document number {i} " * (i % 5 + 1)} for i in range(40)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    return prepare(source, tmp_path / "data", tokenizer="bytes", validation=0.2).path


def start(folder: Path, *, step: int = 0, **data: Any) -> Parts:
    """What a run begins with; with a step it goes on from a checkpoint of it."""
    values = {"tokenizer": "bytes", "validation": 0.2} | data
    values["train"] = str(values["train"])
    config = run_config(folder / "run", folder / "a.jsonl", data=DataConfig(**values))
    with RunDirectory(folder / "run", lambda text: None) as directory:
        directory.begin(config, resume=True)
        if step:
            (directory.checkpoints / f"{step:08d}").mkdir(exist_ok=True)
        return assemble_parts(config, directory)


def overwrite_a_byte(file: Path) -> tuple[str, str]:
    """Returns the sha256 before and after."""
    content = bytearray(file.read_bytes())
    before = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return before, hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("part", [".", "validation"])
@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin"])
def test_prepared_data_of_which_a_byte_changed_are_refused(
    tmp_path: Path, prepared: Path, step: int, part: str, name: str
) -> None:
    start(tmp_path, train=prepared)
    if name == "documents.bin":  # the ends still rise
        content = bytearray((prepared / part / name).read_bytes())
        before = hashlib.sha256(content).hexdigest()
        content[0] -= 1
        (prepared / part / name).write_bytes(content)
        after = hashlib.sha256(content).hexdigest()
    else:
        before, after = overwrite_a_byte(prepared / part / name)
    words = rf"{name} has sha256 {after}, data\.json says {before}\. Copy or prepare the data again"
    with pytest.raises(DataError, match=f"^{re.escape(str(prepared / part))}: {words}"):
        start(tmp_path, step=step, train=prepared)


def test_changed_tokens_that_a_run_kept_are_refused(tmp_path: Path, prepared: Path) -> None:
    start(tmp_path, train=tmp_path / "a.jsonl")
    start(tmp_path, step=3, train=tmp_path / "a.jsonl")
    before, after = overwrite_a_byte(tmp_path / "run" / "data" / "tokens.bin")
    with pytest.raises(DataError, match=rf"has sha256 {after}, data\.json says {before}"):
        start(tmp_path, step=3, train=tmp_path / "a.jsonl")


def test_data_too_large_to_be_compared_at_every_start_are_named(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    start(tmp_path, train=prepared)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(opening_data, "_MOST_VERIFIED", TokenData(prepared / "validation").nbytes)
    start(tmp_path, train=prepared)
    (said,) = capsys.readouterr().err.splitlines()  # the validation data are just small enough
    assert f"{prepared}: its 0.0 GB were not compared with their sha256: " in said
    command = shlex.split(said.partition("sha256: ")[2].removesuffix(" does it"))
    assert subprocess.run([sys.executable, *command[1:]], check=False).returncode == 0
    overwrite_a_byte(prepared / "tokens.bin")
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert "tokens.bin has sha256" in done.stderr


def test_a_separator_means_the_same_in_train_as_in_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one and more\n\ntwo\tand more\n\nthree and more")
    for number, separator in enumerate((r"\n\n", "\n\n", r"\t")):
        folder, out = tmp_path / str(number), tmp_path / f"out{number}"
        folder.mkdir()
        start(folder, train=tmp_path / "a.txt", validation=0.0, separator=separator)
        words = ["data", str(tmp_path / "a.txt"), "--out", str(out), "--tokenizer", "bytes"]
        assert main([*words, "--separator", separator, "--workers", "1"]) == 0
        assert len(TokenData(out)) == (2 if separator == r"\t" else 3)
        assert files(folder / "run" / "data") == files(out)
    assert capsys.readouterr().err == ""


def test_options_of_reading_are_not_used_for_prepared_data_and_a_line_says_so(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path, train=prepared, separator="\n\n", field="body")
    assert capsys.readouterr().err.splitlines() == [
        rf"data.separator '\n\n' is not used: {prepared} was prepared before",
        f"data.field 'body' is not used: {prepared} was prepared before",
    ]
    (tmp_path / "b.txt").write_text("one text\n\nand another")
    text = str(tmp_path / "b.txt")
    start(tmp_path / "other", train=prepared, validation=text, separator="\n\n")
    assert capsys.readouterr().err == ""  # it is for the other


def test_another_share_than_that_of_prepared_data_is_not_used_and_a_line_says_so(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path, train=prepared)  # with the share that they were prepared with
    assert capsys.readouterr().err == ""
    parts = start(tmp_path, train=prepared, validation=0.5)
    assert parts.validation is not None
    held_out = len(TokenData(prepared / "validation"))
    assert capsys.readouterr().err == (
        f"data.validation 0.5 is not used: {prepared} was prepared before, with {held_out} of 40 "
        "documents for validation\n"
    )
    start(tmp_path / "text", train=tmp_path / "a.jsonl", validation=0.5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", ["train", "validation"])
def test_a_source_that_does_not_exist_is_named_with_its_option(
    tmp_path: Path, prepared: Path, option: str
) -> None:
    data: dict[str, Any] = {"train": prepared, option: str(tmp_path / "no.txt")}
    with pytest.raises(DataError, match=rf"^data\.{option}: no file at {tmp_path}/no\.txt$"):
        start(tmp_path, **data)


@pytest.mark.parametrize("option", ["train", "validation"])
def test_prepared_data_that_were_moved_are_asked_for_and_a_link_will_do(
    tmp_path: Path, prepared: Path, option: str
) -> None:
    data: dict[str, Any] = {"train": prepared, "tokenizer": None}
    if option == "validation":
        data["validation"] = str(prepared / "validation")
    start(tmp_path, **data)
    old, new = Path(data[option]), tmp_path / "moved"
    old.rename(new)
    words = (
        rf"^data\.{option}: no file at {old}\. The run needs the data that it began with: move "
        rf"them back, or make a link: ln -s NEW_PLACE {old}$"
    )
    with pytest.raises(DataError, match=words):
        start(tmp_path, step=3, **data)
    old.symlink_to(new)
    start(tmp_path, step=3, **data)


@pytest.mark.parametrize("name", ["model_type qwen2, None", "model_type granite, GPT2Tokenizer"])
def test_a_run_keeps_a_tokenizer_that_its_own_config_would_make_another(
    tmp_path: Path, name: str
) -> None:
    for stem, content in zoo()[name].items():
        (tmp_path / f"{stem}.json").write_text(json.dumps(content))
    data = DataConfig(train=str(tmp_path / "a.jsonl"), tokenizer=str(tmp_path))
    config = run_config(tmp_path / "run", tmp_path / "a.jsonl", data=data)
    with RunDirectory(tmp_path / "run", lambda text: None) as directory:
        directory.begin(config, resume=True)
        keep_model(config, directory.model)
        assert kept_tokenizer(directory.model) == tokenizer_hash(tmp_path)
