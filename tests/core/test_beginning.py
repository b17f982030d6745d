"""Signals in the first tenths of a second of a program, among its imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diy_core.commands.beginning import end_by_signals, is_program

ROOT = Path(__file__).parents[2]

# Sends a signal to its own process where a module is about to be imported.
HOOK = """
import os, sys
class Sends:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["SENT_AT"]:
            os.kill(os.getpid(), int(os.environ["SENT"]))
sys.meta_path.insert(0, Sends())
"""
SCRIPTS = {  # as pip writes them
    "diy-torch": "from diy_core.commands.launch import diy_torch as main",
    "diy-jax": "from diy_core.commands.launch import diy_jax as main",
    "parity": "from parity.__main__ import main",
}
MODULES = {"diy_torch": "torch", "diy_jax": "jax", "parity": "parity.commands.checkpoints"}
CHILD = """
import multiprocessing, signal, sys
def handler(queue):
    import diy_core
    queue.put(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=handler, args=(queue,))
    child.start()
    print(queue.get(timeout=60))
    child.join()
"""


def run(
    folder: Path, words: list[str], at: str = "", number: signal.Signals = signal.SIGINT
) -> subprocess.CompletedProcess[str]:
    """Python, which gets a signal where it is about to import a module."""
    (folder / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(folder), str(ROOT)])
    more = {"PYTHONPATH": path, "SENT_AT": at, "SENT": str(int(number))}
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=120,
    )


def script(folder: Path, name: str, source: str) -> Path:
    (folder / name).write_text(f"import sys\n{source}\nsys.exit(main())\n")
    return folder / name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", ["diy_core.config", "diy_core.system.arguments"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_console_script_ends_by_the_signal_and_in_silence(
    name: str, at: str, number: signal.Signals, tmp_path: Path
) -> None:
    words = [str(script(tmp_path, name, SCRIPTS[name])), "--help"]
    done = run(tmp_path, words, at, number)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_ends_by_the_signal_and_in_silence(name: str, tmp_path: Path) -> None:
    """A framework is imported before its commands are, as its package is."""
    for words in (["-m", name], [f"-m{name}"], ["-m", f"{name}.__main__"]):
        for at in ("diy_core.config", MODULES[name]):
            done = run(tmp_path, [*words, "--help"], at)
            assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_programs_of_others_keep_their_signals(tmp_path: Path) -> None:
    """And so do processes that a program starts, which have its arguments."""
    said = "import signal, diy_core\nprint(signal.getsignal(signal.SIGINT).__name__)"
    other = script(tmp_path, "train.py", f"{said}\nmain = int")
    for words in ([str(other), "parity"], ["-c", said, "parity"], ["-m", "train", "parity"]):
        done = run(tmp_path, words)
        assert (done.returncode, done.stdout) == (0, "default_int_handler\n"), done.stderr
    (tmp_path / "parity").write_text(CHILD)
    done = run(tmp_path, [str(tmp_path / "parity")])
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert not is_program()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_what_somebody_else_does_about_ctrl_c_stays(handler: signal.Handlers) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        end_by_signals()
        assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_by_signals()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
