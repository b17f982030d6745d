"""The commands on checkpoint files: `parity convert`, `parity inspect`, `parity diff`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from diy_core.notes import add_strict, settle
from parity.commands.progress import amount, bar

if TYPE_CHECKING:
    from diy_core.checkpoints.transfer import Summary

EXIT_DIFFERENT = 1
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SMALLEST = 10**6  # bytes that a number without a unit may mean
_KINDS = ("hf", "orbax", "gguf")
_STEP = "the step of the checkpoint, for a training run (default: the newest)"
JSON = "write a record here; - is stdout, which then has nothing else"


def add_checkpoint_commands(commands: Any) -> None:
    """Add the three commands to the subparsers of `parity`."""
    convert = commands.add_parser(
        "convert",
        help="between Hugging Face directories, Orbax checkpoints and GGUF files",
        description="Convert a checkpoint: Hugging Face directory, Orbax checkpoint or GGUF file, "
        "from any to any, a few tensors at a time. The kind of SRC is recognised. DST is written "
        "whole or not at all, with the SHA-256 of every tensor, and is read back and compared "
        "before it moves into place. Exits with 2 if it cannot be done; DST is then as it was.",
    )
    convert.add_argument("source", metavar="SRC", help="the checkpoint; its kind is recognised")
    convert.add_argument(
        "destination", metavar="DST", help="a directory, or for GGUF a file, to be written"
    )
    convert.add_argument(
        "--to",
        choices=_KINDS,
        help="what DST becomes (default: gguf if its name ends in .gguf, else orbax for a Hugging "
        "Face directory, else hf)",
    )
    convert.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="round all tensors to this dtype (default: keep each as it is; quantised ones "
        "become float32)",
    )
    convert.add_argument(
        "--max-shard-size",
        type=size,
        metavar="SIZE",
        help="largest safetensors file of a Hugging Face directory, as 2GB or 500MB (default: 5GB)",
    )
    convert.add_argument(
        "--overwrite",
        action="store_true",
        help="replace DST, if it is a checkpoint of the kind that is written",
    )
    convert.add_argument(
        "--no-verify",
        action="store_true",
        help="do not read DST back, and do not check SRC against its sums",
    )
    convert.add_argument(
        "--untie",
        action="store_true",
        help="give a model whose output head is tied to its embedding a head of its own: the "
        "lm_head.weight of the file, else a copy of the embedding",
    )
    convert.add_argument("--json", metavar="FILE", help=JSON)
    _add_config(convert)
    add_strict(convert)
    convert.set_defaults(run=_convert)

    inspect = commands.add_parser(
        "inspect",
        help="what a checkpoint is and what is in it",
        description="Say what PATH is (Hugging Face directory, Orbax checkpoint, GGUF file, or a "
        "training run, in which another process may be training), with its config, every tensor "
        "under its names in each world, and totals. Reads no weights. "
        "Exits with 2 if it cannot be read or, with --verify, does not match its checksums; "
        "of a run, the newest checkpoint that can be read is shown first.",
    )
    inspect.add_argument(
        "path", metavar="PATH", help="a checkpoint or a training run; its kind is recognised"
    )
    inspect.add_argument("--step", type=int, metavar="N", help=_STEP)
    inspect.add_argument("--json", metavar="FILE", help=JSON)
    inspect.add_argument(
        "--verify", action="store_true", help="also read all weights and check their sums"
    )
    _add_config(inspect)
    add_strict(inspect)
    inspect.set_defaults(run=_inspect)

    diff = commands.add_parser(
        "diff",
        help="compare two checkpoints of any kinds, or two training runs, tensor by tensor",
        description="Compare two checkpoints of any kinds, tensor by tensor: equal bits, or the "
        "relative L2 distance and the largest difference, worst first; and what of their configs "
        "changes the function. Of two training runs, in either framework, also the moments, the "
        "position and the losses, and where they first part; RUN is its newest checkpoint that "
        "the other has too, RUN/checkpoints/STEP is that one. Exits with 1 if they differ, with 2 "
        "if one cannot be read.",
    )
    diff.add_argument("one", metavar="A", help="a checkpoint or a run; its kind is recognised")
    diff.add_argument("other", metavar="B", help="another, of the same or another kind")
    diff.add_argument("--step", type=int, metavar="N", help=_STEP)
    diff.add_argument("--json", metavar="FILE", help=JSON)
    diff.add_argument(
        "--verify",
        action="store_true",
        help="compare models with their sums too, and read all checkpoints that two runs share",
    )
    _add_config(diff)
    add_strict(diff)
    diff.set_defaults(run=_diff)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        dest="config_directory",  # `config` is a word that errors use of other things
        metavar="DIR",
        help="where an Orbax checkpoint that another program wrote has its config and tokenizer: a "
        "Hugging Face directory of the same model, or a config.json",
    )


def size(text: str) -> int:
    """`2GB` in bytes (decimal units, as on a disk's label).

    Raises:
        argparse.ArgumentTypeError: it is not a size, or zero, or lacks a unit, as it is so small.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    count = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 1 <= count < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 2GB, 500MB or 1000000")
    if text.strip().isdecimal() and count < _SMALLEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} means bytes: did you mean {text.strip()}GB? (if not: {text.strip()}B)"
        )
    return int(count)


def _convert(arguments: argparse.Namespace) -> int:
    from parity.convert.formats import convert
    from parity.report import table as report

    with bar() as progress:
        done = convert(
            arguments.source,
            arguments.destination,
            to=arguments.to,
            dtype=arguments.dtype,
            max_shard_size=arguments.max_shard_size,
            overwrite=arguments.overwrite,
            verify=not arguments.no_verify,
            untie=arguments.untie,
            config=arguments.config_directory,
            strict=arguments.strict,
            progress=progress,
        )
    settle(arguments.source, done.notes)
    destination = arguments.destination
    report.tell(arguments.json, record_of(destination, done), outcome(destination, done))
    return 0


def record_of(destination: object, done: Summary) -> dict[str, Any]:
    """A conversion that was done, for `--json`."""
    return {"path": str(destination), **dataclasses.asdict(done)}


def outcome(destination: object, done: Summary) -> str:
    """A line about a conversion that was done."""
    from parity.convert.formats import KINDS

    checked = "read back and compared" if done.verified else "not read back"
    if done.source_verified:
        checked += ", source checked against its sums"
    return (
        f"{destination}: {KINDS[done.kind]}, {done.tensors} tensors, "
        f"{amount(done.nbytes, done.seconds)}, {checked}"
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from parity.inspect import models as inspection
    from parity.inspect import runs as run_inspection
    from parity.inspect.run_checkpoint import place_of_run
    from parity.report import table as report

    path, options, show = arguments.path, {"verify": arguments.verify}, inspection.show
    with bar() as progress:
        if place_of_run(path) and arguments.config_directory is not None:
            raise ValueError(f"--config is of an Orbax checkpoint, and {path} is a training run")
        if place_of_run(path):
            options["step"], show = arguments.step, run_inspection.show_run
            record = run_inspection.inspect_run(path, **options, progress=progress)
        elif arguments.step is not None:
            raise ValueError(f"--step is of training runs, and {path} is none")
        else:
            record = inspection.inspect(
                path, **options, config=arguments.config_directory, progress=progress
            )
    settle(arguments.path, record["notes"])
    if arguments.json:
        report.write_json(arguments.json, record)
    if arguments.json != "-":
        show(record, Console())
    if record["kind"] == "run" and (error := run_inspection.damage(record)) is not None:
        raise error
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from parity.inspect import diff_report, run_diff, run_report
    from parity.inspect import models as inspection
    from parity.inspect.run_checkpoint import place_of_run
    from parity.report import table as report

    paths, show = (arguments.one, arguments.other), diff_report.show_diff
    with bar() as progress:
        if any(place_of_run(path) for path in paths):
            record = run_diff.diff_runs(
                *paths,
                step=arguments.step,
                verify=arguments.verify,
                config=arguments.config_directory,
                progress=progress,
            )
            show = run_report.show_diff
        elif arguments.step is not None:
            raise ValueError("--step is of training runs: neither A nor B is one")
        else:
            record = inspection.diff(
                *paths, progress, verify=arguments.verify, config=arguments.config_directory
            )
    for side in ("one", "other"):
        settle(record[side]["path"], record[side]["notes"])
    if arguments.json:
        report.write_json(arguments.json, record)
    if arguments.json != "-":
        show(record, Console())
    return 0 if record["equal"] else EXIT_DIFFERENT
