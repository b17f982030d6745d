"""Ctrl-C, SIGTERM and SIGHUP while a command works."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diy_core.checkpoints.atomic import atomic_directory
from diy_core.commands.ctrl_c import plain_ctrl_c
from diy_core.system.stopping import STOPPING, Stop, Stopped, leave, uninterrupted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers are what they were, whatever happened."""
    before = [signal.getsignal(number) for number in STOPPING]
    yield
    assert [signal.getsignal(number) for number in STOPPING] == before


def stopped_in(work: Callable[[], object]) -> Stopped:
    """What ends work in which a signal arrives."""

    def run() -> None:
        with Stop():
            work()

    with pytest.raises(Stopped) as caught:
        run()
    return caught.value


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_raised_and_what_was_begun_is_gone(
    number: signal.Signals, tmp_path: Path
) -> None:
    def write() -> None:
        with atomic_directory(tmp_path / "out") as new:
            (new / "half").write_text("x")
            signal.raise_signal(number)

    assert stopped_in(write).number == number
    assert os.listdir(tmp_path) == []


def test_what_a_library_made_of_it_is_still_a_signal() -> None:
    def compute() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("step failed") from None

    error = stopped_in(compute)
    assert (error.number, str(error.__cause__)) == (signal.SIGTERM, "step failed")


def test_a_library_that_goes_on_is_left_at_the_end() -> None:
    def compute() -> None:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)

    assert stopped_in(compute).number == signal.SIGINT


def test_the_second_signal_leaves_the_clean_up_alone() -> None:
    done = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for number in STOPPING:  # as `timeout` does, or somebody who is in a hurry
                signal.raise_signal(number)
            done.append(True)

    assert stopped_in(work).number == signal.SIGTERM
    assert done


def test_a_step_that_must_not_be_interrupted_ends_first() -> None:
    ended = []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                ended.append("inner")
            ended.append("outer")
        ended.append("after")

    stopped_in(work)
    assert ended == ["inner", "outer"]


def test_one_that_is_lost_in_a_finalizer_comes_again() -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)

    def work() -> None:
        Finalized()
        gc.collect()
        for _ in range(1000):
            time.sleep(0.01)
        pytest.fail("it was lost")

    assert stopped_in(work).number == signal.SIGINT


def test_an_import_ends_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = """
import signal, time
signal.raise_signal(signal.SIGTERM)
for _ in range(10):
    time.sleep(0.01)
whole = True
"""
    (tmp_path / "interrupted_module.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        importlib.import_module("interrupted_module")
        for _ in range(1000):
            time.sleep(0.01)
        pytest.fail("it was lost")

    try:
        assert stopped_in(work).number == signal.SIGTERM
        assert sys.modules["interrupted_module"].whole
    finally:
        sys.modules.pop("interrupted_module", None)


def test_another_hook_hears_of_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finalized:
        def __del__(self) -> None:
            raise ValueError("of somebody else")

    heard: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: heard.append(found.exc_type))
    with Stop():
        Finalized()
        gc.collect()
    assert heard == [ValueError]


def test_a_hook_that_is_set_inside_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's own, which holds back what its threads report after an error."""
    heard: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: heard.append(str(found.exc_value)))

    class Finalized:
        def __init__(self, text: str) -> None:
            self.text = text

        def __del__(self) -> None:
            raise ValueError(self.text)

    def quiet(found: Any, usual: Any) -> None:
        if str(found.exc_value) != "nobody waits":
            usual(found)

    with Stop():
        usual = sys.unraisablehook
        sys.unraisablehook = lambda found: quiet(found, usual)
    for text in ("nobody waits", "another"):
        Finalized(text)
        gc.collect()
    assert heard == ["another"]


def test_without_a_signal_nothing_is_raised_and_ignored_ones_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_imports_inside_are_ended_by_the_system() -> None:
    with Stop():
        ours = [signal.getsignal(number) for number in STOPPING]
        with plain_ctrl_c():
            assert {signal.getsignal(number) for number in STOPPING} == {signal.SIG_DFL}
        assert [signal.getsignal(number) for number in STOPPING] == ours


def test_another_thread_has_no_handlers() -> None:
    failed = []

    def work() -> None:
        try:
            with Stop(), uninterrupted():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "\nx: interrupted\n"),
        (Stopped(signal.SIGINT), 130, "\nx: interrupted\n"),
        (Stopped(signal.SIGTERM), 143, "x: interrupted by SIGTERM\n"),
        (Stopped(signal.SIGHUP), 129, "x: interrupted by SIGHUP\n"),
    ],
)
def test_it_says_by_what_it_was_interrupted(
    error: KeyboardInterrupt, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave("x", error, for_good=False, echo="\n") == code
    assert capsys.readouterr().err == said


CHILD = """
import os, signal, sys, threading, time
from pathlib import Path
from diy_core.checkpoints.atomic import atomic_directory
from diy_core.system.stopping import Stop, leave

class Dies:  # as what a framework tears down while its threads still compute
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGSEGV):
        kill(pid, number)

def work():
    for _ in range(6000):  # one long sleep would not see a signal that comes just before it
        time.sleep(0.01)
    os._exit(0)

try:
    with Stop(for_good=True), atomic_directory(Path(sys.argv[1])) as new:
        sys.torn_down = Dies()
        (new / "half").write_text("x")
        ready, started = os.pipe()
        if os.fork() == 0:
            os.write(started, b"x")  # Python forgets what arrives while it forks
            work()
        os.read(ready, 1)
        print("writing", flush=True)
        work()
except KeyboardInterrupt as error:
    leave("program", error, for_good=True)
"""


@pytest.mark.parametrize("number", STOPPING)
def test_a_process_leaves_without_taking_anything_apart(
    number: signal.Signals, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "writing\n"
            os.killpg(process.pid, number)  # the child that it forked is none of its own any more
            _, said = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert (process.returncode, said) == (128 + number, f"program: interrupted{by}\n")
    assert os.listdir(tmp_path) == []
