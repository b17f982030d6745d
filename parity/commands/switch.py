"""`parity switch`: a training run, continued in the other framework."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from parity.commands.checkpoints import JSON


def add_switch_command(commands: Any) -> None:
    """Add the command to the subparsers of `parity`."""
    switch = commands.add_parser(
        "switch",
        help="continue a training run in the other framework",
        description="Make a run directory of diy-jax out of one of diy-torch, or the other way: "
        "weights, moments, counters and the position in the data, to the bit, and the curves so "
        "far. RUN stays as it is; NEW_RUN is written whole or not at all.",
    )
    switch.add_argument("source", metavar="RUN", help="the directory of a run")
    switch.add_argument("destination", metavar="NEW_RUN", help="the directory to write")
    switch.add_argument(
        "--step", type=int, metavar="N", help="the step of the checkpoint (default: the newest)"
    )
    switch.add_argument("--json", metavar="FILE", help=JSON)
    switch.set_defaults(run=_switch, both=True)


def _switch(arguments: argparse.Namespace) -> int:
    from diy_core.training.checkpoints.files import whole_checkpoints
    from diy_core.training.run.directory import RunDirectory
    from diy_core.training.run.resume import next_command
    from parity.convert.switch import switch
    from parity.report import table as report

    new_run = arguments.destination

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    program = switch(arguments.source, new_run, step=arguments.step, report=say)
    with RunDirectory(new_run, say) as directory:
        step = whole_checkpoints(directory.checkpoints)[-1]
        then = next_command(f"{program} train", new_run, step, directory.read_config())
    record = {"path": new_run, "program": program, "step": step, "next": then.splitlines()}
    report.tell(arguments.json, record, f"{new_run} is a run of {program}, at step {step}\n{then}")
    return 0
