"""The commands of README and docs are run as they stand there, in order, from one directory.

The real model is a tiny one here; what takes minutes is read by the parser of its command alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import pytest

import diy_jax.__main__
import diy_torch.__main__
import parity.__main__
from diy_core.commands.command_line import build_parser as twin_parser
from diy_core.training.options import parse
from tests.jax_cache import compiled_once
from tests.tiny_checkpoints import CONFIG, put, put_tokenizer, weights

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "diy-torch": diy_torch.__main__.main,
    "diy-jax": diy_jax.__main__.main,
    "parity": parity.__main__.main,
}
MODEL = "models/SmolLM2-135M-Instruct"
# What stands for something of the reader's own.
NAMES = {"DIR": MODEL, "MODEL": MODEL, "OUT": "runs/out"}
# These take minutes, a network or a GPU: their words are parsed, and nothing is run.
PARSED = {("parity", "check"), ("parity", "trace"), ("parity", "faults"), ("parity", "demo")}
# Another thing than a command of these programs: none of them is run here.
OTHERS = {
    "make model",  # a package from PyPI
    "make demo",
    "make test",
    "python benchmarks/training_twins.py --steps 100 --dtype float64",
    "python benchmarks/training_twins.py --steps 200 --dtype float32",
    "python benchmarks/finetune_smollm2.py",
}
# The form of a command, with all that it may be given.
FORMS = {"parity convert SRC DST [--to hf|orbax|gguf] [--dtype float32|bfloat16|float16]"}
_BLOCK = re.compile(r"^    ((?:[A-Z_]+=\S+ )?(?:diy-torch|diy-jax|parity|make|python) .*)$", re.M)
_INLINE = re.compile(r"`((?:diy-torch|diy-jax|parity) \w+ [^`]*)`")
_TWO_KINDS = {"diff": (0, 1)}  # exit codes that say what was found


def lines(page: str) -> list[str]:
    """The commands of the blocks of a page, without their comments."""
    found = [line.partition(" #")[0].rstrip() for line in _BLOCK.findall(PAGES[page])]
    return [re.sub(r" \[\w+\]$", "", line) for line in found if line not in OTHERS | FORMS]


def words_of(line: str) -> tuple[dict[str, str], list[str]]:
    """The variables that are set before a command, and its words."""
    words = shlex.split(line)
    settings = {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        settings[name] = value
    return settings, [NAMES.get(word, word) for word in words]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model under the names of the pages, texts, and a run of 50 steps of each twin."""
    folder = tmp_path_factory.mktemp("reader")
    config = dataclasses.replace(CONFIG, vocab_size=300)
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    for path in (MODEL, "models/smollm2"):
        put(folder / path, weights(config), config)
        put_tokenizer(folder / path, chat_template=template)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "corpus").mkdir()
    for number in range(200):
        (folder / "corpus" / f"{number}.txt").write_text(f"the cat number {number}\n")
    (folder / "text.jsonl").write_text('{"text": "the cat sat on the mat"}\n' * 40)
    tiny = {"vocab_size": 257, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    tiny |= {"num_attention_heads": 2, "max_position_embeddings": 64}
    words = ["train", "--run-dir=runs/tiny", f"--model={json.dumps(tiny)}", "--device=cpu"]
    words += ["--data.train=text.jsonl", "--data.tokenizer=bytes", "--stop-at=50", "--steps=100"]
    words += ["--batch-size=1", "--sequence-length=16", "--checkpoint-every=50"]
    with contextlib.chdir(folder), compiled_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # nothing here outlives the test
        assert diy_jax.__main__.main(words) == 0
        assert parity.__main__.main(["switch", "runs/tiny", "runs/tiny-torch"]) == 0
        shutil.copytree("runs/tiny", "runs/tiny-jax")
    return folder


@pytest.fixture
def reader(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory of somebody who types what a page says."""
    shutil.copytree(prepared, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    precision = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", precision)


def type_in(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command as its page has it, or parse it, where it takes minutes."""
    settings, (program, *words) = words_of(line)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    if words[0] == "train":
        parse(f"{program} train", words[1:])  # with all files that it names
    elif (program, words[0]) in PARSED:
        parity.__main__.build_parser().parse_args(words)
    else:
        if words[0] in ("convert", "switch"):  # another example on the page has made it before
            shutil.rmtree(words[2], ignore_errors=True)
        with compiled_once():
            assert PROGRAMS[program](words) in _TWO_KINDS.get(words[0], (0,)), line


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("page", [page for page in PAGES if lines(page)])
def test_the_commands_of_a_page_run_in_order(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in lines(page):
        try:
            type_in(line, monkeypatch)
        except (SystemExit, ValueError) as error:
            pytest.fail(f"{page}: {line}: {error}")


def test_the_options_within_sentences_are_options() -> None:
    found = [(page, line) for page, text in PAGES.items() for line in _INLINE.findall(text)]
    assert len(found) >= 4
    for page, line in found:
        program, command, *words = shlex.split(line)
        parser = parity.__main__.build_parser() if program == "parity" else twin_parser(program)
        (commands,) = [action for action in parser._actions if action.dest == "command"]
        assert isinstance(commands.choices, dict)
        known = commands.choices[command]._option_string_actions
        unknown = {word for word in words if word.startswith("--")} - set(known)
        assert not unknown, f"{page}: {line}"


def test_every_line_that_is_not_run_is_named_here_and_stands_on_a_page() -> None:
    blocks = [
        line.partition(" #")[0].rstrip() for text in PAGES.values() for line in _BLOCK.findall(text)
    ]
    assert set(blocks) >= OTHERS | FORMS
    assert sum(len(lines(page)) for page in PAGES) >= 25
    for line in OTHERS:
        program, target, *options = line.split()
        if program == "python":
            script = (ROOT / target).read_text()
            assert all(f'"{word}"' in script for word in options if word.startswith("--")), line
