"""Ctrl-C and SIGTERM at random moments of every long-running command of all three programs.

python -m tests.torture interrupts --trials 20 --seed 0

A command ends by the signal, or says in one line that it did, or is done. What it writes is whole
or not there, and nothing hidden is beside it but the shards that `data` keeps.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.oracles import tiny
from tests.tiny_checkpoints import put, put_tokenizer, weights
from tests.torture.common import ROOT, Figures

_START = {
    "diy-torch": "from diy_core.commands.launch import diy_torch as main",
    "diy-jax": "from diy_core.commands.launch import diy_jax as main",
    "parity": "from parity.__main__ import main",
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BROKEN = re.compile(r"Traceback|ignored in|Fatal Python|KeyboardInterrupt|terminate called")
_BEGINS = "begins to work"  # what a start prints once Python itself is there
_WHOLE = ("diy_manifest.json", "data.json", "config.yaml")  # written last
_PATIENCE = 120  # seconds
_Found = tuple[int, str]  # exit code and what was said


def run(trials: int, seed: int, folder: Path) -> list[Figures]:
    """Interrupt each command so often.

    Raises:
        AssertionError: one ended otherwise, or left something.
    """
    draw, commands = random.Random(seed), _commands(_sources(folder / "source"))
    return [_often(name, words, trials, draw, folder / "work") for name, words in commands.items()]


def _commands(source: Path) -> dict[str, list[str]]:
    model, text, config = (str(source / name) for name in ("model", "text.txt", "run.yaml"))
    found = {
        "convert": ["parity", "convert", model, "OUT", "--to", "orbax"],
        "check": ["parity", "check", model, "--dtype=float32", "--checks=logits,decode"],
    }
    for program in ("diy-torch", "diy-jax"):
        whole = str(source / program)
        found |= {
            f"{program} generate": [program, "generate", model, "he", "--max-new-tokens=60"],
            f"{program} data": [program, "data", text, "--out=OUT", "--tokenizer=bytes"],
            f"{program} train": [program, "train", "--config", config, "--run-dir=OUT"],
            f"{program} export": [program, "export", whole, "--out=OUT"],
            f"switch of {program}": ["parity", "switch", whole, "OUT"],
        }
    return found


def _sources(source: Path) -> Path:
    """A model, a text, a config, and a short run of each twin."""
    config = tiny(vocab_size=400)
    put_tokenizer(put(source / "model", weights(config), config))
    (source / "text.txt").write_text("he the 20\n" * 100_000)
    values = yaml.safe_load((ROOT / "examples" / "tiny.yaml").read_text())
    values["data"]["train"] = str(source / "text.txt")
    values["data"]["validation"] = 0.0
    values |= {"eval_every": 0, "checkpoint_every": 1, "sequence_length": 32, "batch_size": 2}
    options = source / "run.yaml"
    options.write_text(yaml.safe_dump(values))
    for program in ("diy-torch", "diy-jax"):
        words = ["train", "--config", str(options), "--run-dir", str(source / program)]
        process = _start([program, *words, "--stop-at=2"], source)
        _, said = process.communicate(timeout=_PATIENCE)
        assert process.returncode == 0, said
    return source


def _start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    start = f"import sys; print({_BEGINS!r}, flush=True)\n{_START[words[0]]}\nsys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", start, *(w.replace("OUT", str(folder / "out")) for w in words[1:])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _often(name: str, words: list[str], trials: int, draw: random.Random, folder: Path) -> Figures:
    figures = Figures(f"interrupted: {name}")
    began = time.monotonic()
    code, said = _trial(words, None, 0, folder)
    assert code == 0 or "train" in name, (name, code, said)
    usual = time.monotonic() - began
    for _ in range(trials):
        number, after = draw.choice(_SIGNALS), draw.uniform(0, usual)
        code, said = _trial(words, number, after, folder)
        case = f"{name}, {number.name} after {after:.2f} s: code {code}: {said[-2000:]}"
        known = (0, -number, 128 + number)
        left = _left(folder)
        if code not in known or _BROKEN.search(said) or left:
            figures.faults.append(f"{case} left {left}")
        outcome = {0: "done", -number: "ended by the signal"}.get(code, "undone, and said so")
        figures.outcomes[outcome] += 1
    return figures


def _trial(words: list[str], number: int | None, after: float, folder: Path) -> _Found:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    process = _start(words, folder)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == _BEGINS
    if number is None and "train" in words:
        number, after = signal.SIGTERM, 15.0  # else it goes on for minutes
    if number is not None:
        time.sleep(after)
        process.send_signal(number)
    try:
        _, said = process.communicate(timeout=_PATIENCE)
    finally:
        process.kill()
    return process.returncode, said


def _left(folder: Path) -> list[str]:
    """What is hidden beside the place that was written to, and what of it is not whole."""
    hidden = [name for name in os.listdir(folder) if name not in ("out", ".out.parts")]
    out = folder / "out"
    if (out / "checkpoints").is_dir():
        hidden += [name for name in os.listdir(out / "checkpoints") if not name.isdecimal()]
    elif out.is_dir() and not any((out / n).exists() for n in _WHOLE):
        hidden += ["out, without what is written last"]
    return hidden
