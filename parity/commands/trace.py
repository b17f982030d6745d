"""The commands that look for culprits: `parity trace` and `parity faults`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from diy_core.notes import add_strict
from diy_core.system.arguments import did_you_mean
from diy_core.system.requirements import require
from parity.commands.progress import spinner
from parity.faults.listed import LISTED, Listed

if TYPE_CHECKING:
    from rich.console import Console

    from parity.faults.run import Outcome

EXIT_FOUND = 1
_JSON = "write a record here; - is stdout, which then has nothing else"


def add_trace_commands(
    commands: Any, add_device: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add the two commands to the subparsers of `parity`."""
    trace = commands.add_parser(
        "trace",
        help="find the first module where two models diverge",
        description="Run the PyTorch twin on ONE and the Flax twin on OTHER (the same, unless it "
        "is given) with the same tokens, compare the inputs and outputs of every module and all "
        "gradients, and name the first module that differs by itself, with what may be wrong with "
        "it. For models of your own: parity.trace in Python. Exits with 1 if there is such a "
        "module, with 2 if a model cannot be loaded.",
    )
    trace.add_argument("one", metavar="ONE", help="a checkpoint; its kind is recognised")
    trace.add_argument("other", metavar="OTHER", nargs="?", help="another, of any kind")
    trace.add_argument(
        "--dtype",
        choices=("float64", "float32", "bfloat16"),
        default="float64",
        help="of weights and computation (default: float64, where no rounding hides a fault)",
    )
    trace.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="the length of the prompt, in tokens (default: 64, or all that the model takes)",
    )
    trace.add_argument("--no-backward", action="store_true", help="leave gradients out")
    trace.add_argument("--jit", action="store_true", help="run the Flax twin compiled")
    trace.add_argument("--all", action="store_true", help="show every module, not the culprit only")
    trace.add_argument("--json", metavar="FILE", help=_JSON)
    add_device(trace)
    add_strict(trace)
    trace.set_defaults(run=_trace, both=True)

    faults = commands.add_parser(
        "faults",
        help="plant known port bugs and see what the tracer says of them",
        description="Test the tests: put each port bug of the catalogue into the Flax twin of a "
        "small random model, trace it, and say whether the bug was detected, localised to its "
        "module, and named. Exits with 1 if one was not detected.",
    )
    faults.add_argument("names", metavar="NAME", nargs="*", help="only these (default: all)")
    faults.add_argument(
        "--list", action="store_true", help="list the catalogue and stop; needs no framework"
    )
    faults.add_argument("--json", metavar="FILE", help=_JSON)
    add_device(faults)
    faults.set_defaults(run=_faults)  # the list needs neither framework


def _trace(arguments: argparse.Namespace) -> int:
    from diy_core.checkpoints.kinds import kind_of

    if arguments.tokens is not None and arguments.tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {arguments.tokens}")
    for path in (arguments.one, arguments.other or arguments.one):
        kind_of(path)  # what is not a checkpoint is said before the frameworks are imported
    from rich.console import Console

    from parity.environment import choose_device
    from parity.report import table as report
    from parity.twin_tracer import trace_twins

    with spinner() as progress:
        progress("tracing")
        result = trace_twins(
            arguments.one,
            arguments.other or arguments.one,
            choose_device(arguments.device),
            dtype=arguments.dtype,
            tokens=arguments.tokens,
            backward=not arguments.no_backward,
            jit=arguments.jit,
        )
    if arguments.json:
        report.write_json(arguments.json, result.to_dict())
    if arguments.json != "-":
        result.print(Console(), calls=arguments.all)
    return 0 if result.equal else EXIT_FOUND


def _faults(arguments: argparse.Namespace) -> int:
    if unknown := [name for name in arguments.names if name not in LISTED]:
        near = did_you_mean(unknown[0], LISTED) or "; `parity faults --list` shows all"
        raise ValueError(f"no fault is called {unknown[0]!r}{near}")
    if arguments.list:
        _list([LISTED[name] for name in arguments.names or LISTED], arguments.json)
        return 0
    require("parity faults", "torch", "jax", extra="all")
    from rich.console import Console

    from parity.environment import choose_device
    from parity.faults.catalogue import CATALOGUE
    from parity.faults.run import run_faults
    from parity.report import table as report

    catalogue = {fault.name: fault for fault in CATALOGUE}
    chosen = [catalogue[name] for name in arguments.names or catalogue]
    with spinner() as progress:
        outcomes = run_faults(chosen, choose_device(arguments.device), progress)
    if arguments.json:
        report.write_json(arguments.json, _record(outcomes))
    if arguments.json != "-":
        _show(outcomes, Console())
    return 0 if all(outcome.detected for outcome in outcomes) else EXIT_FOUND


def _list(faults: Iterable[Listed], file: str | None) -> None:
    """Print the catalogue as a table, and write it to a file; `-` is standard output alone."""
    from rich.console import Console
    from rich.table import Table

    from parity.report import table as report

    if file:
        report.write_json(file, {"catalogue": [fault._asdict() for fault in faults]})
    if file == "-":
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "what is wrong", "where"):
        table.add_column(column, overflow="fold")
    for fault in faults:
        table.add_row(*fault)
    Console().print(table)


def _show(outcomes: list[Outcome], console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("fault", no_wrap=True)
    for column in ("detected", "localised", "named"):
        table.add_column(column, no_wrap=True)
    table.add_column("what was said", overflow="fold")
    for outcome in outcomes:
        found = outcome.divergence
        said = "" if found is None else (str(found.suspects[0]) if found.suspects else found.where)
        marks = [
            "[green]yes[/]" if done else "[red]no[/]"
            for done in (outcome.detected, outcome.localised, outcome.named)
        ]
        table.add_row(outcome.fault.name, *marks, said)
    console.print(table)
    counts = _counts(outcomes)
    console.print(
        f"{counts['faults']} faults: {counts['detected']} detected, {counts['localised']} "
        f"localised, {counts['named']} named",
        highlight=False,
    )


def _counts(outcomes: list[Outcome]) -> dict[str, int]:
    return {
        "faults": len(outcomes),
        "detected": sum(outcome.detected for outcome in outcomes),
        "localised": sum(outcome.localised for outcome in outcomes),
        "named": sum(outcome.named for outcome in outcomes),
    }


def _record(outcomes: list[Outcome]) -> dict[str, Any]:
    return _counts(outcomes) | {
        "outcomes": [
            {
                "fault": outcome.fault.name,
                "sentence": outcome.fault.sentence,
                "module": outcome.fault.module,
                "detected": outcome.detected,
                "localised": outcome.localised,
                "named": outcome.named,
                "divergence": outcome.divergence and outcome.divergence.to_dict(),
            }
            for outcome in outcomes
        ]
    }
