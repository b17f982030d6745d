"""Programs that end before their work does, while their framework still computes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracles import tiny
from tests.tiny_checkpoints import PIECES, put, put_tokenizer, weights

ROOT = Path(__file__).parents[2]
# As what a framework tears down while its threads still compute.
DIES = """
import os, signal, sys
class Dies:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGSEGV):
        kill(pid, number)
sys.torn_down = Dies()
"""
GENERATES = """
import numpy as np
from diy_core.commands.command_line import Commands, build_parser, run
from diy_core.generation import GenerateOutput
def model(prompts, *, on_tokens, **options):
    for token in range(3, 9):
        on_tokens(np.array([token]), np.array([True]))
        if sys.argv[2].endswith("broken"):
            raise ValueError("logits are not finite")
    return GenerateOutput(np.array([[*prompts[0], *range(3, 9)]]), np.array([len(prompts[0]) + 6]))
sys.exit(run(build_parser("diy-torch"), None, lambda: Commands(lambda *options: model, None, None)))
"""
DAMAGED = "diy-torch generate: logits are not finite\n"


def run(code: str, *words: str, unread: bool = False) -> subprocess.CompletedProcess[str]:
    """A process of Python; its standard output may have no reader from the beginning."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, "-c", DIES + code, *words],
            stdout=write if unread else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
    finally:
        os.close(write)


def model(path: Path) -> str:
    config = tiny(vocab_size=len(PIECES) + 1)
    put_tokenizer(put(path, weights(config), config))
    return str(path)


def test_what_a_whole_end_takes_apart_kills_these_processes(tmp_path: Path) -> None:
    """So that those that follow here did not get there."""
    done = run(GENERATES, "generate", model(tmp_path / "model"), "he")
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize(("kind", "code", "said"), [("model", 0, ""), ("broken", 2, DAMAGED)])
def test_generate_leaves_without_taking_anything_apart(
    kind: str, code: int, said: str, tmp_path: Path
) -> None:
    done = run(GENERATES, "generate", model(tmp_path / kind), "he", unread=True)
    if kind == "broken":  # whoever reads gets what there was, once
        done = run(GENERATES, "generate", model(tmp_path / kind), "he")
        assert done.stdout == "!"
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "from diy_core.commands.launch import diy_torch as main",
            ["export", "run", "--out", "out"],
        ),
        (
            "from diy_core.commands.launch import diy_jax as main",
            ["train", "--config", "none.yaml"],
        ),
        ("from parity.__main__ import main", ["inspect", "none"]),
    ],
)
def test_so_does_each_program_with_an_error(program: str, words: list[str]) -> None:
    done = run(f"{program}\nsys.exit(main())", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "does not exist" in done.stderr or "there is no file" in done.stderr
