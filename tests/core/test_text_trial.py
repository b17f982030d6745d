"""A tokenizer that asks for too much is refused before it is used; honest ones are not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

from diy_core.errors import CheckpointError
from diy_core.text import trial
from diy_core.text.tokenizer import Tokenizer
from tests.tiny_checkpoints import build_tokenizer, put_tokenizer

SLOW = "(?:.|.){20}(?!)"  # tries a million ways at each character, and finds none


def _replace(content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": "e"}, "content": content}


GROWING = [_replace("e" * 10)] * 30


def _put(folder: Path, **steps: Any) -> Path:
    put_tokenizer(folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | steps))
    return folder


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": SLOW}, "content": "x"}},
            r"takes more than 1 s of a processor: .* DIY_LIMITS=tokenizer_seconds=N",
        ),
        (
            {"normalizer": {"type": "Sequence", "normalizers": GROWING}},
            r"takes more than 256 MB of memory: .* DIY_LIMITS=tokenizer_bytes=N",
        ),
        (
            {"normalizer": _replace("e" * 10_000)},
            r"writes more than 262144 characters: .* DIY_LIMITS=tokenizer_output=N",
        ),
        (
            {"decoder": _replace("e" * 10_000)},
            r"writes more than 262144 characters: .* DIY_LIMITS=tokenizer_output=N",
        ),
    ],
)
def test_what_asks_for_too_much_is_refused(
    steps: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIY_LIMITS", "tokenizer_seconds=1")
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: tried on a .* it {said}"):
        Tokenizer.from_pretrained(_put(tmp_path, **steps))


def test_added_tokens_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library normalises each of them as it reads them."""
    monkeypatch.setenv("DIY_LIMITS", "tokenizer_seconds=1")
    put_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())
    # What it looks for is not in the text that is tried.
    pattern = {"Regex": "(?:q|q){20}(?!)"}
    whole["normalizer"] = {"type": "Replace", "pattern": pattern, "content": "x"}
    token = whole["added_tokens"][-1] | {"normalized": True, "content": "q" * 200}
    whole["added_tokens"].append(token | {"id": token["id"] + 1})
    file.write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match="takes more than 1 s of a processor"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_limit_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIY_LIMITS", "tokenizer_output=9000000")
    _put(tmp_path, normalizer=_replace("e" * 1000))
    assert len(Tokenizer.from_pretrained(tmp_path).encode("e")) > 400


def test_what_fails_in_the_trial_is_said_by_what_is_asked(tmp_path: Path) -> None:
    """The library gives a match up after ten million steps, with a panic."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    _put(tmp_path, pre_tokenizer=split | {"invert": False})
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer.encode("he")) == "he"
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"cannot encode this text: .*retry-limit"):
        tokenizer.encode("a" * 60 + "!")
    assert time.monotonic() - start < 10


def test_what_has_no_patterns_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(state: str) -> None:
        raise AssertionError(state)

    monkeypatch.setattr(trial, "_try", unexpected)
    put_tokenizer(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).encode("he")
    put_tokenizer(tmp_path, build_tokenizer(pre_tokenizers.Split(Regex(r"\s"), "isolated")))
    with pytest.raises(CheckpointError, match=r"AssertionError|pattern"):
        Tokenizer.from_pretrained(tmp_path)


def test_one_tokenizer_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(trial._TRIALS, "call", lambda name, state: calls.append(state))
    backend = build_tokenizer(pre_tokenizers.Split(Regex("[a-f]{3,9}"), "isolated"))
    backend.normalizer = normalizers.NFC()
    put_tokenizer(tmp_path, backend)
    for _ in range(3):
        Tokenizer.from_pretrained(tmp_path)
    assert len(calls) == 1
