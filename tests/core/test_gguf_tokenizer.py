"""Tokenizers out of GGUF files, against llama.cpp's own rules and against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import SentencePieceBPETokenizer, pre_tokenizers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from diy_core.checkpoints.gguf.special_tokens import SpecialTokens
from diy_core.checkpoints.gguf.tokenizer import GGUFTokenizer
from diy_core.text.tokenizer import Tokenizer

BYTES = [f"<0x{value:02X}>" for value in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
TEXTS = [
    "the quick brown fox",
    " the  quick",
    "the</s><s> quick<tool>fox<tool> the",
    "the<unk> fox",
    "line\n\n\ttab\r\n",
    "你好 🙂 é é ½²",
    "foxes' dog2024, the\u2581fox",
    "   ",
    "",
]


def entries(**values: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def trained() -> dict[str, Any]:
    """A vocabulary as SentencePiece makes it: the earlier a token was merged, the higher it is."""
    trainer = SentencePieceBPETokenizer()
    words = "the quick brown fox jumps over the lazy dog and the other foxes thereof 2024 "
    trainer.train_from_iterator([words * 3], vocab_size=110, min_frequency=1, show_progress=False)
    state = json.loads(trainer.to_str())["model"]
    made = ["".join(merge) for merge in state["merges"]]
    letters = [token for token in state["vocab"] if len(token) == 1]
    plain = [*dict.fromkeys(made), *letters]
    tokens = [*SPECIAL, *BYTES, *plain, "<tool>"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(plain), 4]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(plain))] + [-1000.0]
    return {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds}


def rebuilt(directory: Path, values: dict[str, Any]) -> Tokenizer:
    metadata = entries(**values)
    tokenizer = GGUFTokenizer(metadata, len(values["tokens"]), 128)
    directory.mkdir(exist_ok=True)
    tokenizer.write(directory)
    SpecialTokens(metadata, len(values["tokens"])).write(directory)
    return Tokenizer.from_pretrained(directory)


def by_llama_cpp(text: str, values: dict[str, Any], prefix: bool = True) -> list[int]:
    """`llm_tokenizer_spm` of src/llama-vocab.cpp: the best pair first, of equals the leftmost."""
    ids = {token: i for i, token in enumerate(values["tokens"])}
    marked = [
        token for token, kind in zip(ids, values["token_type"], strict=True) if kind in (2, 3, 4)
    ]
    found: list[int] = []
    while text:
        starts = [(text.find(token), token) for token in marked if token in text]
        start, token = min(starts, default=(len(text), ""))
        if start:
            words = ((" " if prefix else "") + text[:start]).replace(" ", "\u2581")
            found += joined(list(words), ids, values["scores"])
        found += [ids[token]] if token else []
        text = text[start + len(token) :]
    return found


def joined(symbols: list[str], ids: dict[str, int], scores: list[float]) -> list[int]:
    while True:
        pairs = [
            (scores[ids[whole]], -i)
            for i in range(len(symbols) - 1)
            if (whole := symbols[i] + symbols[i + 1]) in ids
        ]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [
        token
        for symbol in symbols
        for token in (
            [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        )
    ]


@pytest.mark.parametrize("prefix", [None, True, False])
def test_sentencepiece_is_that_of_llama_cpp_and_of_transformers(
    tmp_path: Path, prefix: bool | None
) -> None:
    values = trained() | {"add_space_prefix": prefix}
    ours = rebuilt(tmp_path / "m", values)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    for text in TEXTS:
        found = ours.encode(text)
        assert found == [1, *by_llama_cpp(text, values, prefix is not False)], text
        assert found == theirs(text)["input_ids"], text
        plain = ours.encode(text, add_special_tokens=False)
        assert ours.decode(plain) == theirs.decode(plain, skip_special_tokens=True), text
    assert ours.decode(ours.encode("the quick\n🙂 fox")) == "the quick\n🙂 fox"
    assert ours.eos_token_ids == [2]
    assert ours.special_tokens["unk_token"] == "<unk>"


def test_merges_are_those_of_transformers_converter(tmp_path: Path) -> None:
    values = trained()
    rebuilt(tmp_path / "m", values)
    state = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    ids = {token: i for i, token in enumerate(values["tokens"])}
    theirs = generate_merges(ids, dict(zip(values["tokens"], values["scores"], strict=True)))
    assert [tuple(merge) for merge in state["model"]["merges"]] == theirs
    assert len(theirs) > 40
    assert state["model"]["byte_fallback"]
    assert state["model"]["fuse_unk"]


@pytest.mark.parametrize(("flag", "around"), [("bos", ([], [])), ("eos", ([1], [2]))])
def test_what_stands_around_a_text_of_sentencepiece(
    tmp_path: Path, flag: str, around: tuple[list[int], list[int]]
) -> None:
    values = trained() | {f"add_{flag}_token": flag == "eos"}
    first, last = around
    expected = [*first, *by_llama_cpp("the fox", values), *last]
    assert rebuilt(tmp_path / "m", values).encode("the fox") == expected


def test_the_file_may_name_other_special_tokens(tmp_path: Path) -> None:
    values = trained() | {"bos_token_id": 2, "eos_token_id": 1, "padding_token_id": 0}
    ours = rebuilt(tmp_path / "m", values)
    assert ours.encode("the")[0] == 2
    assert (ours.bos_token_id, ours.eos_token_ids, ours.pad_token_id) == (2, [1], 0)


def with_equal_scores() -> dict[str, Any]:
    values = trained()
    values["scores"] = [*values["scores"][:259], *[0.0] * (len(values["scores"]) - 259)]
    return values


def without_a_byte() -> dict[str, Any]:
    values = trained()
    values["tokens"] = ["<other>" if token == "<0x0A>" else token for token in values["tokens"]]
    return values


def with_a_long_token() -> dict[str, Any]:
    values = trained()
    return values | {"tokens": [*values["tokens"][:-1], "x" * 1025]}


def with_a_score_that_is_no_number() -> dict[str, Any]:
    values = trained()
    return values | {"scores": [*values["scores"][:-1], float("nan")]}


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "another model": (trained() | {"model": "bert"}, "tokenizer.ggml.model 'bert', is not one"),
    "equal scores": (with_equal_scores(), "have the same score"),
    "no byte": (without_a_byte(), "no token for some bytes, as <0x0A>"),
    "no number": (with_a_score_that_is_no_number(), "its scores are not all numbers"),
    "a long token": (with_a_long_token(), "it has a token of 1025 characters"),
    "no scores": (trained() | {"scores": None}, "the file has no tokenizer.ggml.scores"),
    "no types": (trained() | {"token_type": None}, "the file has no tokenizer.ggml.token_type"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_a_file_leaves_open_is_not_guessed(kind: str) -> None:
    values, words = UNKNOWN[kind]
    with pytest.raises(ValueError, match=words):
        GGUFTokenizer(entries(**values), len(values["tokens"]), 128)


def test_scores_that_do_not_fit_are_refused() -> None:
    values = trained()
    with pytest.raises(ValueError, match=r"258 scores for \d+ tokens"):
        GGUFTokenizer(entries(**values | {"scores": [0.0] * 258}), len(values["tokens"]), 128)


# Words: by hand from the expressions in llama.cpp's source, and where llama.cpp's tests have them.
WORDS = {
    "llama3": (
        "I'LL don't 12345 x+=y\n\n  z",
        ["I", "'LL", "Ġdon", "'t", "Ġ", "123", "45", "Ġx", "+=", "y", "ĊĊ", "Ġ", "Ġz"],
    ),
    "smaug-bpe": ("a1234'S", ["a", "123", "4", "'S"]),
    "dbrx": ("a1234'S", ["a", "123", "4", "'S"]),
    "phi-2": ("a1234's  b", ["a", "1234", "'s", "Ġ", "Ġb"]),
    "refact": ("a12 3", ["a", "1", "2", "Ġ", "3"]),
    "tekken": ("aBcDEf 12 it's/\n x", ["a", "Bc", "DEf", "Ġ", "1", "2", "Ġit", "'s", "/Ċ", "Ġx"]),
    "gpt-4o": ("aBc 1234 it's don't/\n", ["a", "Bc", "Ġ", "123", "4", "Ġit's", "Ġdon't", "/Ċ"]),
    "deepseek-coder": ("ab, 12\n 你好c", ["ab", ",", "Ġ", "1", "2", "Ċ", "Ġ", "ä½łå¥½", "c"]),
}


@pytest.mark.parametrize("pre", WORDS)
def test_words_under_each_name(pre: str) -> None:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>"]
    types = [1] * 256 + [3]
    values = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": []}
    backend = GGUFTokenizer(entries(**values, bos_token_id=256), 257, 128).backend
    text, words = WORDS[pre]
    assert [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == words
    begins = pre in ("llama3", "tekken")
    assert backend.model.ignore_merges is begins
    assert (backend.encode("a").ids[0] == 256) is begins
