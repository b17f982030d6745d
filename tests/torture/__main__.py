"""The long runs that try to break checkpoints and training: `make torture`, or parts of it.

python -m tests.torture [kills] [disks] [sources] [headers] [bits] [runs] [healthy] [writers]
                        [records] [hostile] [interrupts] [--trials N] [--seed N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from tests.torture import (
    bits,
    disks,
    headers,
    healthy,
    hostile,
    interrupts,
    kills,
    records,
    runs,
    sources,
    writers,
)
from tests.torture.common import Figures
from tests.torture.forks import ForkServer


def _kills(trials: int, seed: int, folder: Path) -> list[Figures]:
    with ForkServer() as server:
        return kills.run(trials, seed, folder, server)


def _writers(trials: int, seed: int, folder: Path) -> list[Figures]:
    with ForkServer() as server:
        return writers.run(trials, seed, folder, server)


def _disks(trials: int, seed: int, folder: Path) -> list[Figures]:
    for part in ("limits", "mounts"):
        (folder / part).mkdir()
    with ForkServer() as server:
        found = disks.run_limits(trials, seed, folder / "limits", server)
    try:
        prefix = disks.name_space()
    except PermissionError as error:
        return [*found, Figures("disk full, read-only", note=f"NOT RUN: {error}")]
    with ForkServer(prefix) as server:
        return found + disks.run_mounts(trials, seed, folder / "mounts", server)


def _sources(trials: int, seed: int, folder: Path) -> list[Figures]:
    with ForkServer() as server:
        return sources.run(trials, seed, folder, server)


def _bits(trials: int, seed: int, folder: Path) -> list[Figures]:
    for part in ("formats", "messages"):
        (folder / part).mkdir()
    found = bits.run(trials, seed, folder / "formats")
    with ForkServer() as server:
        return found + bits.run_messages(trials // 5, seed, folder / "messages", server)


# Each part with its number of trials: of kills and disks per kind and mode, of bits per format, of
# training runs per twin, of healthy models per scale, of writers per kind and mode, of
# interrupts per command, of damaged values of a run beside its lines, of damaged files in all.
PARTS: dict[str, tuple[Callable[[int, int, Path], list[Figures]], int]] = {
    "kills": (_kills, 200),
    "disks": (_disks, 100),
    "sources": (_sources, 50),
    "headers": (headers.run, 10_000),
    "bits": (_bits, 100),
    "runs": (runs.run, 20),
    "healthy": (healthy.run, 200),
    "writers": (_writers, 200),
    "interrupts": (interrupts.run, 20),
    "records": (records.run, 400),
    "hostile": (hostile.run, 3000),
}


def main() -> int:
    """Run the parts, and print a table of each; 1 if one of them found a fault."""
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--trials", type=int, help="of each part, instead of its usual number")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part is called {sorted(unknown)[0]}; choose of {', '.join(PARTS)}")
    console, failed = Console(), []
    for name in arguments.parts or PARTS:
        run, usual = PARTS[name]
        trials, start = arguments.trials or usual, time.monotonic()
        console.print(f"{name}: {trials} trials, seed {arguments.seed} ...")
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = run(trials, arguments.seed, Path(folder))
            except AssertionError:
                traceback.print_exc()
                failed.append(name)
                continue
        _show(found, f"{name}, in {time.monotonic() - start:.0f} s", console)
        faults = [fault for one in found for fault in one.faults]
        for fault in faults:
            console.print(fault, markup=False, highlight=False, soft_wrap=True)
        if faults:
            console.print(f"{len(faults)} cases of {name} fall short")
            failed.append(name)
    console.print(f"FAILED: {', '.join(failed)}" if failed else "Nothing broke.")
    return 1 if failed else 0


def _show(found: list[Figures], title: str, console: Console) -> None:
    table = Table("what", "trials", "outcomes", "longest", "memory", "note", title=title)
    for one in found:
        outcomes = "\n".join(f"{count} {name}" for name, count in one.outcomes.most_common())
        longest = "" if one.seconds is None else f"{one.seconds:.3f} s"
        memory = "" if one.nbytes is None else decimal(one.nbytes)
        table.add_row(one.name, f"{one.trials:,}", outcomes, longest, memory, one.note)
    console.print(table)
    if not any(one.tenths for one in found):
        return
    table = Table("what", "outcome", *"123456789", "10", title="by tenths of the time")
    for one in found:
        for outcome, counts in sorted(one.tenths.items()):
            table.add_row(one.name, outcome, *map(str, counts))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
