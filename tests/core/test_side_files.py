"""The files that travel with a model: from a directory to any other form and back."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from diy_core.checkpoints.gguf.conversion import import_gguf
from diy_core.checkpoints.gguf.reader import GGUFReader
from diy_core.checkpoints.gguf.writer import GGUFWriter
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.side_files import (
    copy_side_files,
    left_behind,
    read_side_files,
    side_files,
    write_side_files,
)
from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.checkpoints.transfer import transfer
from diy_core.errors import CheckpointError
from diy_core.text.tokenizer import Tokenizer
from diy_core.training.config import DataConfig, TrainConfig
from diy_core.training.run.directory import RunDirectory
from diy_core.training.run.model import keep_model
from tests.oracles import tiny
from tests.tiny_checkpoints import put, put_tokenizer, snapshot, weights

TEMPLATES = {
    "chat_template.jinja": "default {{ messages[0].content }}",
    "additional_chat_templates/tool_use.jinja": "tool_use {{ messages[0].content }}\r\n",
    "additional_chat_templates/rag.jinja": "rag {{ messages[0].content }} \u4f60",
}
MESSAGES = [{"role": "user", "content": "hi"}]
CONFIG = tiny(vocab_size=264)  # rows for all tokens


def put_templates(path: Path) -> None:
    put_tokenizer(path)
    (path / "additional_chat_templates").mkdir()
    for name, text in TEMPLATES.items():
        (path / name).write_bytes(text.encode())


def templates_in(path: Path) -> dict[str, str]:
    return {name: (path / name).read_bytes().decode() for name in TEMPLATES}


def test_templates_in_a_folder_are_copied_and_nothing_else_of_it(tmp_path: Path) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    source.mkdir()
    to.mkdir()
    put_templates(source)
    (source / "additional_chat_templates/notes.txt").write_text("not a template")
    (source / "additional_chat_templates/folder").mkdir()
    assert sorted(side_files(source)) == sorted(
        [*TEMPLATES, "tokenizer.json", "tokenizer_config.json"]
    )
    copy_side_files(source, to)
    assert snapshot(to) == {name: (source / name).read_bytes() for name in side_files(source)}
    copy_side_files(source, to)  # over what is there


@pytest.mark.parametrize(
    "make",
    [
        lambda file: file.symlink_to("gone"),
        lambda file: file.symlink_to(file.name),
        lambda file: file.mkdir(),
        os.mkfifo,
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        *("chat_template.jinja", "additional_chat_templates/rag.jinja", "chat_template.json"),
        *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("generation_config.json", "tokenizer.json"),
    ],
)
def test_what_cannot_be_read_is_not_taken_for_absent(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    put_tokenizer(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    for read in (Tokenizer.read, side_files):
        with pytest.raises(CheckpointError, match=name):
            read(tmp_path)


def test_texts_are_read_and_written_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "chat_template.jinja").write_bytes(b"\r\n\xff")
    texts = read_side_files(tmp_path)
    write_side_files(tmp_path / "to", texts)
    assert snapshot(tmp_path / "to") == {"chat_template.jinja": b"\r\n\xff"}


@pytest.mark.parametrize(
    "name",
    [
        "../tokenizer.json",
        "/tmp/tokenizer.json",
        "additional_chat_templates/../../a.jinja",
        "additional_chat_templates/a/b.jinja",
        "additional_chat_templates/a\\b.jinja",
        "additional_chat_templates/a.txt",
        "additional_chat_templates",
        "config.json",
        "weights.bin",
    ],
)
def test_a_name_that_is_none_of_ours_is_not_written(tmp_path: Path, name: str) -> None:
    to = tmp_path / "a" / "b"
    to.mkdir(parents=True)
    write_side_files(to, {name: "x"})
    assert snapshot(tmp_path) == {}


def test_what_stays_behind_is_named(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "README.md", ".gitattributes", "a.png"):
        (tmp_path / name).touch()
    put_templates(tmp_path)
    assert left_behind(tmp_path) is None
    (tmp_path / "modeling_a.py").touch()
    (tmp_path / "folder").mkdir()
    assert left_behind(tmp_path) == (
        "not carried along, as no part of the model: folder/, modeling_a.py"
    )
    for i in range(6):
        (tmp_path / f"{i}.json").touch()
    assert str(left_behind(tmp_path)).endswith("0.json, 1.json, 2.json, 3.json, 4.json and 3 more")


def test_a_conversion_notes_what_stays_behind(tmp_path: Path) -> None:
    source = put(tmp_path / "source", weights(CONFIG), CONFIG)
    (source / "preprocessor_config.json").write_text("{}")
    reader = HFReader(source)
    assert reader.notes == []  # of who only loads the model it is not a business
    done = transfer(reader, functools.partial(HFWriter, tmp_path / "to"))
    assert done.notes == ["not carried along, as no part of the model: preprocessor_config.json"]
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json .*strict"):
        transfer(HFReader(source), functools.partial(HFWriter, tmp_path / "b"), strict=True)
    assert not (tmp_path / "b").exists()


def test_named_templates_lie_in_a_gguf_file_as_llama_cpp_has_them(tmp_path: Path) -> None:
    source, file = put(tmp_path / "source", weights(CONFIG), CONFIG), tmp_path / "model.gguf"
    put_templates(source)
    transfer(HFReader(source), functools.partial(GGUFWriter, file))
    fields = gguf.GGUFReader(file).fields
    keys = gguf.Keys.Tokenizer
    assert fields[keys.CHAT_TEMPLATE].contents() == TEMPLATES["chat_template.jinja"]
    assert sorted(fields[keys.CHAT_TEMPLATES].contents()) == ["rag", "tool_use"]
    for name in ("rag", "tool_use"):
        text = TEMPLATES[f"additional_chat_templates/{name}.jinja"].replace("\r\n", "\n")
        assert fields[keys.CHAT_TEMPLATE_N.format(name=name)].contents() == text
    transfer(GGUFReader(file), functools.partial(HFWriter, tmp_path / "back"))
    assert templates_in(tmp_path / "back") == TEMPLATES


@pytest.mark.parametrize("known", [True, False])
def test_the_templates_of_another_programs_file_are_imported(tmp_path: Path, known: bool) -> None:
    """A file as gguf's own writer makes it, without our entries; also without its tokenizer."""
    source, file = put(tmp_path / "source", weights(CONFIG), CONFIG), tmp_path / "ours.gguf"
    put_tokenizer(source)
    transfer(HFReader(source), functools.partial(GGUFWriter, file))
    theirs = tmp_path / "theirs.gguf"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    rewrite(file, theirs, named, known)
    put_templates(put(tmp_path / "back", weights(CONFIG), CONFIG))  # of an older model
    import_gguf(theirs, tmp_path / "back")
    assert not (tmp_path / "back/additional_chat_templates/rag.jinja").exists()
    if known:
        tokenizer = Tokenizer.from_pretrained(tmp_path / "back")
        assert tokenizer.chat_templates == {"default": "d", "tool_use": "t"}
        assert tokenizer.chat(MESSAGES, tools=[]) == "t"
    else:
        found = snapshot(tmp_path / "back")
        assert found["chat_template.jinja"] == b"d"
        assert found["additional_chat_templates/tool_use.jinja"] == b"t"


def rewrite(file: Path, to: Path, templates: list[dict[str, str]], known: bool) -> None:
    reader, writer = gguf.GGUFReader(file), gguf.GGUFWriter(to, "llama")
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "general.", "diy_lm.")):
            continue
        value: Any = field.contents()
        if name == "tokenizer.ggml.pre" and not known:
            value = "of-another-model"
        kind = field.types[0]
        writer.add_key_value(name, value, kind, field.types[-1] if len(field.types) > 1 else None)
    writer.add_chat_template(templates)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_training_run_keeps_named_templates(tmp_path: Path) -> None:
    source = put(tmp_path / "source", weights(CONFIG), CONFIG)
    put_templates(source)
    config = TrainConfig(
        run_dir=str(tmp_path / "run"),
        model=str(source),
        data=DataConfig(train="builtin:pydoc"),
        steps=1,
        batch_size=1,
        sequence_length=8,
    )
    os.mkdir(tmp_path / "run")
    directory = RunDirectory(tmp_path / "run", print)
    keep_model(config, directory.model)
    assert templates_in(directory.model) == TEMPLATES
