"""Git LFS pointers where a file should be."""

from pathlib import Path

import pytest

from diy_core.checkpoints.gguf.reader import GGUFReader
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.side_files import copy_side_files
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.system.lfs import refuse_lfs_pointer
from diy_core.text.tokenizer import Tokenizer
from tests.core.test_text_sweep import ZOO, write
from tests.tiny_checkpoints import put, weights

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 538090408\n"
)
WORDS = "is a Git LFS pointer to a file of 538,090,408 bytes and not the .* run `git lfs pull`"


def test_a_pointer_is_refused(tmp_path):
    (tmp_path / "x").write_text(POINTER)
    with pytest.raises(CheckpointError, match=WORDS):
        refuse_lfs_pointer(tmp_path / "x")


@pytest.mark.parametrize("folder", ["/annex", "../.git/annex", ".git/annex"])
def test_a_pointer_of_git_annex_is_refused(tmp_path, folder):
    (tmp_path / "x").write_text(f"{folder}/objects/SHA256E-s12345--0a1b.safetensors\n")
    with pytest.raises(CheckpointError, match=r"is a pointer of git-annex .* run `git annex get`"):
        refuse_lfs_pointer(tmp_path / "x")


def test_a_pointer_without_a_size_is_one_too(tmp_path):
    (tmp_path / "x").write_text(POINTER.partition("size")[0])
    with pytest.raises(CheckpointError, match="is a Git LFS pointer to a file and not the file it"):
        refuse_lfs_pointer(tmp_path / "x")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "version 1",
        "{}",
        "/annex/objects",
        "see /annex/objects/a b",
        "version https://git-lfs.github.com",
    ],
)
def test_other_files_are_not(tmp_path, content):
    (tmp_path / "x").write_text(content)
    refuse_lfs_pointer(tmp_path / "x")


def test_what_cannot_be_opened_is_left_to_the_reader(tmp_path):
    refuse_lfs_pointer(tmp_path / "absent")
    refuse_lfs_pointer(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens", "config"]
)
def test_every_file_of_a_tokenizer_is_looked_at(tmp_path, name):
    write(tmp_path, ZOO["four files"])
    (tmp_path / f"{name}.json").write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name}.json: {WORDS}"):
        Tokenizer.from_pretrained(tmp_path)


def shards(path):
    (path / "model.safetensors").rename(path / "a.safetensors")
    return HFReader(path)


OPENERS = {
    "model.safetensors": HFReader,
    "model.safetensors.index.json": shards,
    "config.json": DIYConfig.from_pretrained,
    "tokenizer.model": lambda path: copy_side_files(path, path / "out"),
    "m.gguf": lambda path: GGUFReader(path / "m.gguf"),
}


@pytest.mark.parametrize("name", OPENERS)
def test_every_file_of_a_model_is_looked_at(tmp_path: Path, name: str) -> None:
    put(tmp_path, weights())
    (tmp_path / "out").mkdir()
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=WORDS) as refused:
        OPENERS[name](tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / name}: ")
