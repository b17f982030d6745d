"""Programs of others in a process with limits, and that this one goes on whatever they do."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diy_core.system.confined import Confined, ConfinedError

PROGRAM = """
import os, signal, time
def double(value): return value * 2
def named(): return ["a", {"b": None}]
def odd(): return "\\ud800"
def fail(): raise KeyError("x" * 10**6)
def endless():
    while True: pass
def inside_of_c(): return 10**10**9
def memory(n): return len("x" * n)
def crash(): os.kill(os.getpid(), signal.SIGSEGV)
def leave(): raise SystemExit
def deep(): return deep()
def process(): return os.getpid()
"""
RAISED = "DIY_LIMITS=template_seconds=1,template_bytes=300000000,template_output=100000"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Confined]:
    monkeypatch.setenv(*RAISED.split("=", 1))
    (tmp_path / "program.py").write_text(PROGRAM)
    confined = Confined(tmp_path / "program.py", "template")
    yield confined
    confined.close()


def test_values_come_and_go(program: Confined) -> None:
    assert program.call("double", "é\ud800") == "é\ud800é\ud800"
    assert program.call("double", (1, 2)) == [1, 2, 1, 2]  # as JSON has it
    assert program.call("named") == ["a", {"b": None}]
    assert program.call("odd") == "\ud800"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("endless", (), "takes more than 1 s of a processor: .*DIY_LIMITS=template_seconds=N"),
        ("inside_of_c", (), "takes more than (1 s of a|286 MB)"),
        ("memory", (1 << 29,), "takes more than 286 MB of memory: .*DIY_LIMITS=template_bytes=N"),
        ("double", ("x" * 60_000,), "writes more than 100000 characters: .*template_output=N"),
        ("crash", (), r"ended the process that ran it \(exit code -11\)"),
        ("leave", (), r"ended the process that ran it \(exit code 0\)"),
    ],
)
def test_what_does_too_much_is_ended(
    program: Confined, name: str, arguments: tuple[object, ...], said: str
) -> None:
    begin = time.process_time()
    with pytest.raises(ConfinedError, match=said) as caught:
        program.call(name, *arguments)
    assert caught.value.kinds == ()
    assert time.process_time() - begin < 1  # it was not this process that worked
    assert program.call("double", 2) == 4  # the next call is as good as the first


def test_an_error_is_named(program: Confined) -> None:
    with pytest.raises(ConfinedError) as caught:
        program.call("fail")
    assert caught.value.kinds[:2] == ("KeyError", "LookupError")
    assert len(str(caught.value)) == 5000
    with pytest.raises(ConfinedError, match="recursion"):
        program.call("deep")
    assert program.call("double", 2) == 4


def test_an_interrupt_does_not_mix_up_the_answers(program: Confined) -> None:
    assert program.call("double", 1) == 2
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        program.call("endless")
    assert program.call("double", 3) == 6


def test_threads_take_turns(program: Confined) -> None:
    found: dict[int, object] = {}

    def ask(i: int) -> None:
        for _ in range(50):
            found[i] = program.call("double", i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: 2 * i for i in range(4)}


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_has_a_process_of_its_own(program: Confined) -> None:
    ours = program.call("process")
    child = os.fork()
    if child == 0:
        theirs = program.call("process")
        program.close()
        os._exit(0 if theirs != ours and program.call("double", 4) == 8 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert program.call("process") == ours


def test_it_ends_with_its_owner(program: Confined) -> None:
    process = int(program.call("process"))
    program.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
