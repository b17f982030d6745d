"""A prompt that is not UTF-8 is named as what was given: standard input, or a word."""

from __future__ import annotations

import io
import os
import sys

import pytest

from diy_core.commands.prompt import read_prompt


def given(monkeypatch: pytest.MonkeyPatch, content: bytes) -> str:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    return read_prompt("-")


def test_a_prompt_is_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert given(monkeypatch, "\ufeffgrößer\r\nnext\n".encode()) == "größer\nnext"
    assert given(monkeypatch, b"a\n\n") == given(monkeypatch, b"a\r\n\r\n") == "a\n"
    assert given(monkeypatch, b"a\rb\r") == "a\nb"
    assert given(monkeypatch, b"\n") == ""
    assert given(monkeypatch, b"") == ""
    assert read_prompt("größer\r\n") == "größer\r\n"


def test_what_is_not_utf8_is_named_with_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^standard input: byte 2 \(0xf6\) is not UTF-8: it loo"):
        given(monkeypatch, "größer".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^standard input: .*looks like UTF-16 .*iconv -f UTF-16"):
        given(monkeypatch, "größer".encode("utf-16"))
    with pytest.raises(ValueError, match=r"^PROMPT: byte 2 \(0xf6\) is not UTF-8: it looks like L"):
        read_prompt(os.fsdecode("größer".encode("latin-1")))


def test_a_prompt_that_takes_too_long_to_tokenize_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIY_LIMITS", "prompt_bytes=6")
    assert given(monkeypatch, "größ".encode()) == read_prompt("größ") == "größ"
    said = "is longer than 6 bytes: shorten it, or raise the limit with DIY_LIMITS=prompt_bytes=N"
    with pytest.raises(ValueError, match=f"^standard input {said}"):
        given(monkeypatch, b"1234567")
    with pytest.raises(ValueError, match=f"^PROMPT {said}"):
        read_prompt("größe")


def test_standard_input_without_an_end_is_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/zero", encoding="utf-8") as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        with pytest.raises(ValueError, match="longer than 1,048,576 bytes"):
            read_prompt("-")
