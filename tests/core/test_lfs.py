"""Git LFS pointers where a file should be."""

import pytest

from diy_core.errors import CheckpointError
from diy_core.lfs import refuse_lfs_pointer
from diy_core.tokenizer import Tokenizer
from tests.core.test_text_sweep import ZOO, write

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 538090408\n"
)
WORDS = "is a Git LFS pointer to a file .* run `git lfs pull`"


def test_a_pointer_is_refused(tmp_path):
    (tmp_path / "x").write_text(POINTER)
    with pytest.raises(CheckpointError, match=WORDS):
        refuse_lfs_pointer(tmp_path / "x")


@pytest.mark.parametrize("content", ["", "version 1", "{}", "version https://git-lfs.github.com"])
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
