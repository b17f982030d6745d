"""The ids that end a generation: those that no model can give are left out, with a note."""

import pytest
from transformers import AutoTokenizer

from diy_core.errors import CheckpointError
from diy_core.notes import CheckpointNote
from diy_core.text.tokenizer import Tokenizer
from tests.core.test_text_sweep import ZOO, write

FILES = ZOO["words of gpt-2"]
ROWS = 400
CONFIG = {"model_type": "llama", "vocab_size": ROWS}


def read(folder, **files):
    return Tokenizer.read(write(folder, FILES | files))


@pytest.mark.parametrize("file", ["config", "generation_config"])
def test_minus_one_is_no_pad_token(tmp_path, file):
    found = read(tmp_path, **{file: {"pad_token_id": -1, "eos_token_id": 2}})
    assert (found.pad_token_id, found.eos_token_ids) == (None, [2])
    assert found.notes == ["pad_token_id is -1, which is not a token: it was left out"]
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id is None


def test_minus_one_is_no_end_token(tmp_path):
    found = read(tmp_path, generation_config={"eos_token_id": [-1, 2]})
    assert found.eos_token_ids == [2]
    assert found.notes == ["eos_token_id is -1, which is not a token: it was left out"]


@pytest.mark.parametrize("eos", [ROWS, [2, ROWS, ROWS + 5]])
def test_ends_beyond_the_vocabulary(tmp_path, eos):
    found = read(tmp_path, config=CONFIG, generation_config={"eos_token_id": eos})
    assert found.eos_token_ids == ([2] if isinstance(eos, list) else [])
    [note] = found.notes
    assert note.startswith("eos_token_id 400")
    assert note.endswith(f"beyond the vocabulary of {ROWS} and can never be generated")


def test_rows_of_the_model_count_and_not_those_of_the_tokenizer(tmp_path):
    config = CONFIG | {"vocab_size": ROWS + 8, "eos_token_id": ROWS + 7}
    found = read(tmp_path, config=config)
    assert (found.eos_token_ids, found.notes) == ([ROWS + 7], [])


def test_the_pad_token_of_the_tokenizer_wins_over_an_id(tmp_path):
    settings = {k: v for k, v in FILES["tokenizer_config"].items() if k != "pad_token"}
    config = CONFIG | {"pad_token_id": 3}
    assert read(tmp_path, tokenizer_config=settings, config=config).pad_token_id == 3
    named = settings | {"pad_token": "e"}
    found = read(tmp_path, tokenizer_config=named, config=config)
    assert found.pad_token_id == found.backend.token_to_id("e") != 3


def test_a_pad_token_without_a_row(tmp_path):
    settings = FILES["tokenizer_config"] | {"pad_token": "<pad>"}
    found = read(tmp_path, tokenizer_config=settings, config=CONFIG)
    assert found.pad_token_id is None
    assert any(note.startswith(f"pad_token_id {ROWS} was left out") for note in found.notes)
    ids, mask = found.batch(["the", "the fox"])
    assert ids.max() < ROWS
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_notes_are_warnings_or_with_strict_an_error(tmp_path):
    write(tmp_path, FILES | {"config": {"pad_token_id": -1}})
    with pytest.warns(CheckpointNote, match=rf"{tmp_path}: pad_token_id is -1"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"pad_token_id is -1.*\(refused: strict\)"):
        Tokenizer.from_pretrained(tmp_path, strict=True)
