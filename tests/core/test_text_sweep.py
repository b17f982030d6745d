"""Every tokenizer of the zoo on every text: ids and text equal to `transformers.AutoTokenizer`."""

import json

import pytest
from transformers import AutoTokenizer, logging

from diy_core.text.tokenizer import Tokenizer
from tests.core.tokenizer_kinds import TEXTS
from tests.core.tokenizer_zoo import zoo

ZOO = zoo()


def write(folder, files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_the_zoo_is_large():
    assert len(ZOO) >= 60
    assert len(set(TEXTS)) >= 40


@pytest.mark.filterwarnings("ignore::diy_core.notes.CheckpointNote")
@pytest.mark.parametrize("name", ZOO)
def test_equals_transformers(tmp_path, name):
    logging.set_verbosity_error()
    write(tmp_path, ZOO[name])
    ours, theirs = Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocab_size == len(theirs)
    for added in (True, False):
        expected = [theirs(text, add_special_tokens=added)["input_ids"] for text in TEXTS]
        assert [ours.encode(text, added) for text in TEXTS] == expected
    for skip in (True, False):
        texts = [theirs.decode(ids, skip_special_tokens=skip) for ids in expected]
        assert [ours.decode(ids, skip) for ids in expected] == texts
    for ids, text in zip(expected, texts, strict=True):
        stream = ours.stream(skip_special_tokens=False)
        assert "".join([*map(stream.push, ids), stream.finish()]) == text


def test_the_zoo_tells_tokenizers_apart(tmp_path):
    """Were all kinds the same tokenizer, the sweep would prove nothing."""
    seen = set()
    for number, name in enumerate(ZOO):
        folder = tmp_path / str(number)
        folder.mkdir()
        ours = Tokenizer.read(write(folder, ZOO[name]))
        seen.add(str([ours.encode(text) for text in TEXTS]))
    assert len(seen) >= 50  # flags without effect leave some alike
