"""Errors of libraries become errors of files, and reports of panics are not shown."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import tokenizers

from diy_core.errors import CheckpointError
from diy_core.system.translated import translated
from diy_core.text.tokenizer import Tokenizer
from tests.tiny_checkpoints import put_tokenizer

# What panics, in the `tokenizers` library of today.
PANICS = {"type": "FixedLength", "length": 0}


def _panicking() -> tokenizers.Tokenizer:
    state = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    return tokenizers.Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": PANICS}))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Exception("bare"), "f: is odd: bare"),
        (KeyError("k"), r"f: is odd: KeyError\('k'\)"),
        (RecursionError("deep"), "f: is odd: it is nested too deeply"),
        (MemoryError(), "f: is odd: it needs more memory than there is"),
        (OverflowError("large"), "f: is odd: large"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), "f: is odd: 'utf-8' codec"),
        (AssertionError(), "f: is odd: AssertionError"),
        (ValueError("x" * 10_000), r"f: is odd: x{1900,2000}x* \.\.\.$"),
        (CheckpointError("g", "is another"), "^g: is another$"),
    ],
)
def test_any_error_names_the_file(error: Exception, said: str) -> None:
    with pytest.raises(CheckpointError, match=said), translated("f", "is odd"):
        raise error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_program_passes_through(kind: type[BaseException]) -> None:
    with pytest.raises(kind), translated("f", "is odd", may_panic=True):
        raise kind


def test_a_panic_is_an_error_without_a_report(capfd: pytest.CaptureFixture[str]) -> None:
    backend = _panicking()
    with (
        pytest.raises(CheckpointError, match="f: is odd: "),
        translated("f", "is odd", may_panic=True),
    ):
        backend.encode("ab")
    assert capfd.readouterr().err == ""
    with pytest.raises(CheckpointError), translated("f", "is odd"):
        backend.encode("ab")
    assert "panicked" in capfd.readouterr().err  # so the library does report, if it is let


def test_what_others_write_meanwhile_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with translated("f", "is odd", may_panic=True):
            os.write(2, b"one ")
            with translated("f", "is odd", may_panic=True):  # inside of another
                os.write(2, b"two ")
    with pytest.raises(CheckpointError), translated("f", "is odd", may_panic=True):
        int(f"three {os.write(2, b'three ')}")
    assert capfd.readouterr().err == "one two one two three "


def test_threads_do_not_lose_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        for _ in range(200):
            with translated("f", "is odd", may_panic=True):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"there")
    assert capfd.readouterr().err == "there"


def test_a_tokenizer_that_panics_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    file.write_text(json.dumps(whole | {"normalizer": charsmap}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is not a readable tokenizer: "):
        Tokenizer.from_pretrained(tmp_path)
    file.write_text(json.dumps(whole | {"pre_tokenizer": PANICS}))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="the tokenizer cannot encode this text: "):
        tokenizer.encode("ab")
    assert capfd.readouterr().err == ""
