"""Every kind of file, damaged, given to every command and every door in Python that reads it.

    python -m tests.torture hostile --trials 3000 --seed 0

A case is one file, damaged or made something that is not a file, and one command. It ends well
or is refused: no traceback, an exit code of the command's own, a readable message, at most SECONDS
and NBYTES more than the intact file takes. Cases run in a worker process one after the
other, which is started again where one of them kills it; all that fall short are told at the end.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diy_core.errors import CheckpointError
from tests.torture.common import ROOT, Figures, snapshot
from tests.torture.headers import status
from tests.torture.hostile_files import (
    DOORS,
    TARGETS,
    Reading,
    Target,
    copied,
    files_of,
    make,
    program,
)
from tests.torture.sources import ODD, put_odd

# Three times the largest tensor is less than that: the models have 40 KB.
SECONDS, NBYTES, CHARACTERS = 10.0, 300 << 20, 50_000
_HANGS = 120  # seconds, after which a case is killed
_ROOM = 4 << 30  # bytes that a case may take before the system refuses more
_ODD_SHARE, _WHOLE_SHARE = 0.12, 0.2
_SHOWN = 3000  # characters of what a case that falls short printed


def run(trials: int, seed: int, folder: Path) -> list[Figures]:
    """So many cases, over all targets.

    Cases that fall short are in `faults`; each names what reproduces it.
    """
    whole = folder / "whole"
    whole.mkdir()
    figures = {name: Figures(name, seconds=0.0, nbytes=0) for name in TARGETS}
    longest = dict.fromkeys(TARGETS, 0)
    trial = -1  # makes what is whole
    while trial < trials:
        trial = _work(whole, seed, trial, trials, figures, longest)
    for name, one in figures.items():
        one.note = f"longest message {longest[name]} characters"
    return list(figures.values())


def _work(
    whole: Path,
    seed: int,
    first: int,
    trials: int,
    figures: dict[str, Figures],
    longest: dict[str, int],
) -> int:
    """Have a worker do cases, to the end or until one kills it; the case to go on with."""
    log = whole.with_name("worker.log")
    arguments = [str(whole), str(seed), str(first), str(trials)]
    command = [sys.executable, "-m", "tests.torture.hostile", *arguments]
    case: dict[str, Any] = {}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
        ) as worker,
    ):
        assert worker.stdout is not None
        for line in worker.stdout:
            case |= json.loads(line)
            if "outcome" not in case:
                continue
            one = figures[case["target"]]
            one.outcomes[case["outcome"]] += 1
            one.seconds = max(one.seconds or 0.0, case["seconds"])
            one.nbytes = max(one.nbytes or 0, case["nbytes"])
            longest[case["target"]] = max(longest[case["target"]], case["characters"])
            if case["fault"]:
                one.faults.append(f"{_name(seed, case['trial'])}, {case['what']}: {case['fault']}")
            case = {"trial": case["trial"] + 1}
    if not worker.returncode:
        return trials
    if worker.returncode == 1 or "target" not in case:  # it was none of the cases
        said = log.read_text() + whole.with_name("said").read_text()
        raise AssertionError(f"the worker ended with {worker.returncode}: {said[-5000:]}")
    how = (
        "it hung" if worker.returncode == -signal.SIGALRM else f"it ended with {worker.returncode}"
    )
    one = figures[case["target"]]
    one.outcomes["killed"] += 1
    one.faults.append(f"{_name(seed, case['trial'])}, {case['what']}: {how}")
    return int(case["trial"]) + 1


def _name(seed: int, trial: int) -> str:
    return f"hostile seed {seed}, trial {trial}"


# In the worker.


def _serve(whole: Path, seed: int, first: int, trials: int) -> None:
    report = os.fdopen(os.dup(1), "w")
    said = Said(whole.with_name("said"))
    os.chdir(whole)  # what configs name is relative to it
    logging.disable()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills, also where no Python runs
    if first < 0:
        make(whole)
    before = snapshot(whole)
    worker = _Worker(whole, said)
    for trial in range(max(first, 0), trials):
        case = Case(_name(seed, trial))
        print(json.dumps({"trial": trial, "target": case.name, "what": case.what}), file=report)
        report.flush()
        print(json.dumps(worker.done(case)), file=report, flush=True)
    assert snapshot(whole) == before, "a case changed what it was not given"


class Case:
    """What is damaged, how, and what reads it; all drawn from one name."""

    def __init__(self, name: str) -> None:
        self.draw = random.Random(name)
        self.name = self.draw.choice(sorted(TARGETS))
        self.target: Target = TARGETS[self.name]
        weights = [one.weight for one in self.target.readings]
        (self.reading,) = self.draw.choices(self.target.readings, weights)
        self.odd = self.draw.choice(ODD) if self.draw.random() < _ODD_SHARE else None
        self.what = f"{self.odd or 'damaged'} {self.name}, {self.reading}"

    def damage(self, path: Path) -> None:
        """Damage a file of the thing at `path`; what is not a file may be in place of all of it."""
        file = self.draw.choice(files_of(path, self.target.pattern))
        if self.odd and path.is_dir() and self.draw.random() < _WHOLE_SHARE:
            shutil.rmtree(path)
            path.touch()
            file = path
        if self.odd:
            put_odd(file, self.odd)
        else:
            file.write_bytes(self.target.damage(self.draw, file.read_bytes()))


class Said:
    """All that this process and its libraries print, in a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        for descriptor in (1, 2):
            os.dup2(self._file.fileno(), descriptor)

    def taken(self) -> str:
        """What was printed since it was asked before."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._file.seek(0)
        text = self._file.read().decode(errors="replace")
        self._file.seek(0)
        self._file.truncate()
        return text


class _Worker:
    """Does cases, measures and judges them."""

    def __init__(self, whole: Path, said: Said) -> None:
        self.whole, self.said = whole, said
        self.out = whole.with_name("out")
        self.libc = ctypes.CDLL(None)
        self.usual: dict[tuple[str, Reading], tuple[float, int]] = {}

    def done(self, case: Case) -> dict[str, Any]:
        """Do a case."""
        usual_seconds, usual_nbytes = self._usually(case)
        thing = self._put(case.target)
        case.damage(thing)
        code, seconds, nbytes = self._measured(case.reading, thing)
        text, fault = self.said.taken(), None
        over = max(0, nbytes - usual_nbytes)
        if "Traceback (most" in text or "panicked at" in text:
            fault = "a traceback"
        elif code not in case.reading.codes:
            fault = f"exit code {code}"
        elif code == 2 and not text.strip():
            fault = "refused without a word"
        elif seconds > SECONDS + (usual_seconds if code != 2 else 0.0):
            fault = f"it took {seconds:.1f} s"
        elif code == 2 and over > NBYTES:
            fault = f"it took {over >> 20} MB"
        elif len(text) > CHARACTERS:
            fault = f"it printed {len(text)} characters"
        return {
            "outcome": "falls short" if fault else "refused" if code == 2 else "read",
            "fault": fault and f"{fault}: ... {text[-_SHOWN:]}",
            "characters": len(text),
            "seconds": seconds,
            "nbytes": over if code == 2 else 0,
        }

    def _usually(self, case: Case) -> tuple[float, int]:
        """What the reading takes of an intact thing, which must end well."""
        key = (case.target.thing, case.reading)
        if key not in self.usual:
            for _ in range(2):  # what is imported or compiled once is not in the second
                thing = self._put(case.target)
                code, seconds, nbytes = self._measured(case.reading, thing)
                text = self.said.taken()
                assert code == 0, f"{case.reading} of {thing.name}, intact: {code}, {text}"
            self.usual[key] = seconds, nbytes
        return self.usual[key]

    def _put(self, target: Target) -> Path:
        for path in (self.out, self.out.with_name("out.gguf")):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        thing = self.whole.with_name(target.thing)
        copied(self.whole / target.thing, thing)
        return thing

    def _measured(self, reading: Reading, thing: Path) -> tuple[int, float, int]:
        """The exit code, seconds, and bytes of memory beyond what was held before."""
        places = {"IT": thing, "OUT": self.out, "OUT.gguf": self.out.with_name("out.gguf")}
        places |= {"IT/config.yaml": thing / "config.yaml", "/WHOLE": self.whole / thing.name}
        words = [
            str(places.get(w, self.whole / w[1:] if w[:1] == "/" else w)) for w in reading.words
        ]
        self.libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before = status("VmRSS")
        most = status("VmData") + _ROOM
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
        signal.alarm(_HANGS)
        start = time.perf_counter()
        code = _code(reading, words)
        seconds = time.perf_counter() - start
        signal.alarm(0)
        return code, seconds, max(0, status("VmHWM") - before)


def _code(reading: Reading, words: list[str]) -> int:
    """The exit code of a command; of a door, that which a command would have."""
    act: Callable[..., Any]
    door = DOORS.get(reading.program)
    act = (lambda: door(*words)) if door else (lambda: program(reading.program)(words))
    try:
        return act() or 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        named = isinstance(error, ValueError) and words[0] in str(error)
        if door and (isinstance(error, CheckpointError | OSError) or named):
            print(error)
            return 2
        traceback.print_exc()
        return 70


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
