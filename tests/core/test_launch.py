"""Programs whose framework takes seconds to import, and Ctrl-C in them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import diy_jax.__main__
import diy_torch.__main__
from diy_core.ctrl_c import plain_ctrl_c
from tests.oracles import tiny
from tests.tiny_checkpoints import PIECES, put, put_tokenizer, weights

PROGRAMS = {"diy_torch": "torch", "diy_jax": "jax"}


def start(program: str, *words: str, before: str = "") -> subprocess.Popen[str]:
    """The console script, with a line on standard error for each module that was imported."""
    source = f"import sys\n{before}\nfrom diy_core.launch import {program} as p\nsys.exit(p())"
    return subprocess.Popen(
        [sys.executable, "-X", "importtime", "-c", source, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("importing", ["the framework", "jsonargparse"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_before_a_run_begins_ends_at_once_and_in_silence(
    program: str, importing: str, tmp_path: Path
) -> None:
    """While the framework is imported, and later, when the config is about to be read."""
    run = tmp_path / "run"
    process = start(program, "train", "--config", "examples/tiny.yaml", "--run_dir", str(run))
    assert process.stderr is not None
    package = PROGRAMS[program] if importing == "the framework" else importing
    assert any(f" {package}." in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in rest
    assert "KeyboardInterrupt" not in rest
    assert not run.exists()


@pytest.mark.parametrize(("program", "framework"), PROGRAMS.items())
def test_a_program_without_its_framework_says_what_to_install(
    program: str, framework: str, tmp_path: Path
) -> None:
    put_tokenizer(put(tmp_path / "model", weights()))
    name = program.replace("_", "-")
    for words in (["generate", str(tmp_path / "model"), "hi"], ["export", "run", "--out", "out"]):
        process = start(program, *words, before=f"sys.modules[{framework!r}] = None")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2
        expected = f"needs {framework}, which is not installed: pip install 'diy-lm[{framework}]'"
        assert f"{name} {words[0]} {expected}\n" in said


@pytest.mark.parametrize("main", [diy_torch.__main__.main, diy_jax.__main__.main])
def test_what_is_wrong_with_a_prompt_is_told_in_options(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(vocab_size=len(PIECES) + 1, max_position_embeddings=16)
    put_tokenizer(put(tmp_path, weights(config), config))
    for words, expected in (
        (["the", "--max-new-tokens", "15"], "--max-new-tokens (15) make 17, beyond max_position_"),
        (["the", "--max-new-tokens", "15"], ": at most 14 new tokens fit\n"),
        (["the " * 20], "beyond max_position_embeddings (16): shorten the prompt\n"),
        (["the", "--chat"], f"{tmp_path} has no chat template: leave --chat out"),
        (["the", "--chat-template", "rag"], "give --chat too"),
        ([""], "the prompt is empty"),
    ):
        assert main(["generate", str(tmp_path), *words, "--device", "cpu"]) == 2
        assert expected in capsys.readouterr().err
    put_tokenizer(tmp_path, chat_template=[{"name": "rag", "template": "{{ messages }}"}])
    assert main(["generate", str(tmp_path), "the", "--chat"]) == 2
    assert "choose one of 'rag' (--chat-template ...)\n" in capsys.readouterr().err
    answer = ["--chat", "--chat-template", "rag", "--max-new-tokens", "1", "--device", "cpu"]
    assert main(["generate", str(tmp_path), "", *answer]) == 2  # a long prompt, and no other fault
    assert "shorten the prompt" in capsys.readouterr().err


@pytest.mark.parametrize("main", [diy_torch.__main__.main, diy_jax.__main__.main])
def test_ends_that_the_model_cannot_give_are_noted(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(vocab_size=len(PIECES) + 1)
    put(tmp_path, weights(config), config, eos_token_id=[9000, 9001], pad_token_id=-1)
    put_tokenizer(tmp_path, pad_token=None)
    words = ["generate", str(tmp_path), "the", "--max-new-tokens", "3", "--json", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["new_ids"]) == 3
    assert f"note: {tmp_path}: eos_token_id 9000, 9001 was left out" in said.err
    assert f"note: {tmp_path}: pad_token_id is -1" in said.err
    assert main([*words, "--strict"]) == 2
    assert "(refused: strict)" in capsys.readouterr().err


HEAVY = {"numpy", "torch", "jax", "flax", "orbax", "transformers", "rich", "gguf", "tokenizers"}


@pytest.mark.parametrize(
    ("words", "code", "also"),
    [
        (["--help"], 0, ()),
        (["--version"], 0, ()),
        (["generate", "--help"], 0, ()),
        (["data", "--help"], 0, ()),
        (["export", "--help"], 0, ()),
        (["generate", "--caht"], 2, ()),
        (["genrate"], 2, ()),
        (["train", "--help"], 0, ("numpy", "rich", "gguf", "tokenizers")),
        (["train", "--stpes", "3"], 2, ("numpy", "rich", "gguf", "tokenizers")),
        (
            ["train", "--config", "examples/tiny.yaml", "--print-config"],
            0,
            ("numpy", "rich", "tokenizers"),
        ),
    ],
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_needs_no_framework_imports_none(
    program: str, words: list[str], code: int, also: tuple[str, ...]
) -> None:
    """It answers in a tenth of a second, where the framework takes seconds to import."""
    process = start(program, *words)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", said, re.MULTILINE))
    assert "argparse" in imported
    assert imported & (HEAVY - set(also)) == set()


def test_afterwards_ctrl_c_is_pythons_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with plain_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with plain_ctrl_c():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_may_run_a_command() -> None:
    found = []

    def run() -> None:
        with plain_ctrl_c():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
