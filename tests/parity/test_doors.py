"""Every kind of checkpoint at every door: read, or answered with the command that converts it."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import orbax.checkpoint as v0
import pytest

import diy_jax
import diy_torch
from diy_core.checkpoints import transfer
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.opening import tokenizer_of
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten, tensors, unflatten
from diy_core.text.tokenizer import Tokenizer
from diy_torch.tensors import to_numpy
from parity.__main__ import main as parity
from parity.check.identity import identify
from parity.convert.directories import as_directory
from parity.convert.formats import convert, open_checkpoint
from tests.gguf_files import split
from tests.oracles import tiny
from tests.tiny_checkpoints import put, put_tokenizer, same, weights

CONFIG = tiny(vocab_size=270)
TEXT = "the 20 he<tool> cät"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model of each kind, and as another program saves it with Orbax."""
    folder = tmp_path_factory.mktemp("models")
    source = put(folder / "hf", weights(CONFIG), CONFIG)
    put_tokenizer(source)
    convert(source, folder / "orbax")
    convert(source, folder / "m.gguf")
    arrays = weights(CONFIG)
    tree = unflatten({t.flax: t.to_flax(arrays[t.hf]) for t in tensors(CONFIG)})
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "bare", {"params": tree})
    return folder


def run(program: str, *words: str) -> int:
    code: int = importlib.import_module(f"{program}.__main__").main(list(words))
    return code


@pytest.mark.parametrize("program", ["diy_torch", "diy_jax"])
def test_generate_reads_every_kind(models: Path, program: str, capsys: Capture) -> None:
    said = []
    for kind in ("hf", "m.gguf", *(["orbax"] if program == "diy_jax" else [])):
        words = [str(models / kind), TEXT, "--max-new-tokens", "4", "--json", "--device", "cpu"]
        assert run(program, "generate", *words) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert len(said[0]["new_ids"]) == 4
    assert all(one == said[0] for one in said)


@pytest.mark.parametrize("kind", ["hf", "m.gguf", "orbax"])
def test_both_twins_hold_what_is_in_the_file(models: Path, kind: str) -> None:
    expected = weights(CONFIG)
    named = {tensor.hf: tensor for tensor in tensors(CONFIG)}
    _, params = diy_jax.DIYForCausalLM.from_pretrained(models / kind, None)
    flat = flatten(params)
    found = {n: t.to_flax.inverse(diy_jax.tensors.to_numpy(flat[t.flax])) for n, t in named.items()}
    assert same(found, expected)
    if kind == "orbax":
        return
    model = diy_torch.DIYForCausalLM.from_pretrained(models / kind, None)
    state = model.state_dict()
    assert same({n: to_numpy(state[t.torch]) for n, t in named.items()}, expected)


def test_the_torch_twin_names_the_command_for_orbax(models: Path, capsys: Capture) -> None:
    path = models / "orbax"
    command = f"`parity convert {path} DIR --to hf` makes a Hugging Face directory of it"
    with pytest.raises(CheckpointError) as caught:
        diy_torch.DIYForCausalLM.from_pretrained(path)
    assert str(caught.value) == (
        f"{path}: is an Orbax checkpoint, which is not read here: {command}"
    )
    assert run("diy_torch", "generate", str(path), "the") == 2
    assert command in capsys.readouterr().err


def test_what_a_twin_does_not_read_is_said_before_what_it_lacks(
    models: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(models / "orbax", tmp_path / "o")
    (tmp_path / "o" / "tokenizer.json").unlink()
    for program, words in (
        ("diy_torch", "is an Orbax checkpoint, which is not read here: `parity convert "),
        ("diy_jax", "has no tokenizer.json"),
    ):
        assert run(program, "generate", str(tmp_path / "o"), "the") == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "words", "options"),
    [
        ("diy_torch", "is an Orbax checkpoint, which is", "DIR --to hf --config CONFIG_DIR"),
        ("diy_jax", "is an Orbax checkpoint without a config.json", "DST --config DIR"),
    ],
)
def test_orbax_without_a_config_asks_for_one(
    models: Path, program: str, words: str, options: str, capsys: Capture
) -> None:
    assert run(program, "generate", str(models / "bare"), "the") == 2
    said = capsys.readouterr().err
    assert words in said
    assert f"parity convert {models / 'bare'} {options}" in said


def test_convert_inspect_and_diff_take_a_config(
    models: Path, tmp_path: Path, capsys: Capture
) -> None:
    bare, config = str(models / "bare"), ["--config", str(models / "hf")]
    for words in (["convert", bare, str(tmp_path / "x")], ["inspect", bare], ["diff", bare, bare]):
        assert parity(words) == 2
        assert "without a config.json" in capsys.readouterr().err
    assert parity(["convert", bare, str(tmp_path / "x"), *config]) == 0
    assert same(dict(HFReader(tmp_path / "x").read_all(verify=True)), weights(CONFIG))
    assert (tmp_path / "x" / "tokenizer.json").is_file()
    assert parity(["inspect", bare, *config, "--json", "-"]) == 0
    capsys.readouterr()
    for other in ("hf", "m.gguf", "orbax", "bare"):
        assert parity(["diff", bare, str(models / other), *config]) == 0
        assert capsys.readouterr().out.startswith("equal: ")


@pytest.mark.parametrize(
    "words", [["inspect", "hf"], ["convert", "m.gguf", "x"], ["diff", "hf", "hf"]]
)
def test_a_config_for_what_has_one_is_refused(
    models: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(models)
    assert parity([*words, "--config", "hf"]) == 2
    assert "leave --config out" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["m.gguf", "orbax"])
def test_check_and_trace_read_every_kind(models: Path, kind: str, capsys: Capture) -> None:
    path = str(models / kind)
    words = ["--dtype", "float64", "--checks", "logits", "--device", "cpu", "--json", "-"]
    assert parity(["check", path, *words]) == 0
    assert json.loads(capsys.readouterr().out)["checks"]
    with as_directory(path) as directory:
        assert identify(directory).manifest == "agrees"
    words = ["--tokens", "4", "--no-backward", "--device", "cpu"]
    assert parity(["trace", path, str(models / "hf"), *words]) == 0


def test_parts_of_a_split_file_are_one_checkpoint(
    models: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copy(models / "m.gguf", tmp_path / "m.gguf")
    parts = split(tmp_path / "m.gguf", "n.gguf")
    words = ["--json", "-", "--verify"]
    assert parity(["inspect", str(parts[1]), *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["total"]["bytes_on_disk"] == sum(part.stat().st_size for part in parts)
    assert parity(["diff", str(parts[2]), str(models / "hf")]) == 0
    before = [part.read_bytes() for part in parts]
    assert parity(["convert", str(parts[1]), str(parts[0]), "--overwrite"]) == 2
    assert "is the source itself" in capsys.readouterr().err
    assert [part.read_bytes() for part in parts] == before


def test_a_check_does_not_verify_sums_of_its_own(models: Path, tmp_path: Path) -> None:
    convert(models / "hf", tmp_path / "orbax")
    (tmp_path / "orbax" / "diy_manifest.json").unlink()
    with as_directory(tmp_path / "orbax") as directory:
        assert identify(directory).manifest == "none"
        assert same(dict(HFReader(directory).read_all()), weights(CONFIG))
    assert not directory.exists()


# The tokenizer of a GGUF file


def test_the_tokenizer_of_every_kind_is_the_same(models: Path) -> None:
    expected = Tokenizer.from_pretrained(models / "hf")
    for kind in ("hf", "orbax", "m.gguf"):
        found = tokenizer_of(models / kind)
        assert found.encode(TEXT) == expected.encode(TEXT)
        assert found.eos_token_ids == expected.eos_token_ids
        with pytest.raises(ValueError, match=f"{kind} has no chat template"):
            found.encode_chat([{"role": "user", "content": "the"}])


def test_a_file_without_a_tokenizer_says_where_to_put_one(
    models: Path, tmp_path: Path, capsys: Capture
) -> None:
    source = put(tmp_path / "bare", weights(CONFIG), CONFIG)
    convert(source, tmp_path / "bare.gguf")
    assert run("diy_torch", "generate", str(tmp_path / "bare.gguf"), "the") == 2
    assert capsys.readouterr().err == (
        f"diy-torch generate: {tmp_path / 'bare.gguf'}: has no tokenizer; `parity convert "
        f"{tmp_path / 'bare.gguf'} DIR --to hf` makes a directory to put it into\n"
    )


def test_an_error_names_the_source_and_no_temporary_file(
    models: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Single bytes are no tokenizer for GGUF: the file that says so is the user's own."""
    source = put(tmp_path / "bytes", weights(CONFIG), CONFIG)
    state: dict[str, Any] = json.loads((models / "hf" / "tokenizer.json").read_text())
    state["model"]["merges"] = []
    (source / "tokenizer.json").write_text(json.dumps(state))
    assert parity(["convert", str(source), str(tmp_path / "x.gguf")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"parity convert: {source / 'tokenizer.json'}: has no merges")
    assert "each of its tokens is one byte" in said
    assert "convert to hf or orbax instead, or move tokenizer.json out of the directory" in said


def test_a_copy_that_does_not_read_back_is_named_as_it_was_given(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def damaged(reader: Any, *arguments: Any) -> None:
        raise CheckpointError(reader.path, f"{reader.path}/model.safetensors changed")

    monkeypatch.setattr(transfer, "check", damaged)
    with pytest.raises(CheckpointError) as caught:
        convert(models / "m.gguf", "copy", to="hf")
    assert str(caught.value) == "copy: copy/model.safetensors changed"


def test_open_checkpoint_gives_a_config_to_orbax_alone(models: Path) -> None:
    reader = open_checkpoint(models / "bare", config=models / "hf" / "config.json")
    assert reader.kind == "orbax"
    with pytest.raises(CheckpointError, match="is a GGUF file, which has a config of its own"):
        open_checkpoint(models / "m.gguf", config=models / "hf")
