"""What the command lines of the two twins share: `diy-torch generate`, `diy-jax data`, ..."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from diy_core.commands.beginning import end_by_signals
from diy_core.commands.ctrl_c import plain_ctrl_c
from diy_core.commands.data import add_data, prepare_data
from diy_core.commands.generate import Load, add_generate, generate
from diy_core.errors import CheckpointError
from diy_core.notes import notes_of_command
from diy_core.system.arguments import (
    EXIT_BAD_INPUT,
    ArgumentParser,
    Version,
    in_shell_words,
)
from diy_core.system.disk import described
from diy_core.system.memory import LESS, too_little
from diy_core.system.requirements import missing
from diy_core.system.standard_error import complain
from diy_core.system.standard_output import announce, escape_what_cannot_be_shown, outlive_reader
from diy_core.system.stopping import Stop, end_early, leave

if TYPE_CHECKING:
    from diy_core.training.start.begin import Assemble
    from diy_core.training.start.restore import Verify


@dataclasses.dataclass(frozen=True)
class Commands:
    """What a twin puts behind its command line.

    Attributes:
        load: a model to generate with.
        trainer: what `diy_core.training` drives.
        export: (run directory, step or None, output, overwrite) -> a line about what was written.
    """

    load: Load
    trainer: Callable[[], tuple[Assemble, Verify]]
    export: Callable[[str, int | None, str, bool], str]


# What the help of each program says: the framework, its devices, the packages of `--version`.
_TWINS = {
    "diy-torch": ("PyTorch", "cpu, gpu, cuda:1, ...", ("torch",)),
    "diy-jax": ("JAX/Flax", "cpu, gpu, tpu", ("jax", "flax")),
}
# The kinds of checkpoints that each generates from.
_READS = {"diy-torch": ("hf", "gguf"), "diy-jax": ("hf", "gguf", "orbax")}


def build_parser(program: str) -> ArgumentParser:
    """The parser of `diy-torch` or `diy-jax`."""
    framework, devices, packages = _TWINS[program]
    parser = ArgumentParser(
        prog=program, description=f"The {framework} twin of one Llama-style language model."
    )
    parser.add_argument("--version", action=Version, const=packages)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_generate(commands, devices)
    add_data(commands)
    # It has a parser of its own.
    commands.add_parser(
        "train",
        help="train a model, from scratch or from a Hugging Face directory",
        add_help=False,
    )
    _add_export(commands)
    return parser


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="a checkpoint of a training run as a Hugging Face directory",
        description="Write the weights of a checkpoint of a training run as a Hugging Face "
        "directory, with config.json and the tokenizer of the run.",
    )
    export.add_argument("run", metavar="RUN", help="the directory of the run")
    export.add_argument(
        "--step", type=int, metavar="N", help="the step of the checkpoint (default: the newest)"
    )
    export.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    export.add_argument("--overwrite", action="store_true", help="replace a model at DIR")


def run(parser: ArgumentParser, argv: Sequence[str] | None, load: Callable[[], Commands]) -> int:
    """Run one command; errors of the input are one message and exit code 2.

    Args:
        parser: of the twin.
        argv: what follows the program's name; None: of this process.
        load: imports the twin; called by commands that need it, once their options were read.
    """
    escape_what_cannot_be_shown()
    for_good = argv is None
    if for_good:
        end_by_signals()
        outlive_reader()
    words = list(sys.argv[1:] if argv is None else argv)
    training = words[:1] == ["train"]
    arguments = parser.parse_args(words[:1] if training else words)
    what = f"{parser.prog} {arguments.command}"
    try:
        if training:
            with plain_ctrl_c():  # until the run answers signals: there is nothing to save yet
                from diy_core.training import command  # it needs the `train` extra

                code = command.run_late(what, words[1:], lambda: load().trainer())
            return code if code == 0 else end_early(code, for_good=for_good)
        strict = getattr(arguments, "strict", False)
        with Stop(for_good=for_good), notes_of_command(strict=strict):
            if arguments.command == "data":
                prepare_data(arguments)
            elif arguments.command == "export":
                step, out = arguments.step, arguments.out
                announce(load().export(arguments.run, step, out, arguments.overwrite))
            else:
                reads = _READS[parser.prog]
                generate(arguments, lambda *options: load().load(*options), reads)
    except (CheckpointError, ValueError) as error:
        complain(f"{what}: {in_shell_words(str(error), parser, arguments.command)}")
        return end_early(EXIT_BAD_INPUT, for_good=for_good)
    except MemoryError as error:
        complain(f"{what}: {too_little(error, LESS)}")
        return end_early(EXIT_BAD_INPUT, for_good=for_good)
    except OSError as error:
        complain(f"{what}: {described(error)}")
        return end_early(EXIT_BAD_INPUT, for_good=for_good)
    except ModuleNotFoundError as error:
        complain(missing(what, error))
        return end_early(EXIT_BAD_INPUT, for_good=for_good)
    except KeyboardInterrupt as error:
        return leave(what, error, for_good=for_good, echo="\n")
    except SystemExit as end:
        if not training:  # whose parser has printed what it was asked for
            end_early(int(end.code or 0), for_good=for_good)
        raise
    return 0
