"""The command `data`: text, tokenised once for training."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from diy_core.notes import add_strict
from diy_core.system.standard_output import announce


def add_data(commands: Any) -> None:
    """Add the command to the subparsers of a twin."""
    data = commands.add_parser(
        "data",
        help="tokenise text for training",
        description="Tokenise text, JSONL or parquet once, into a directory of token files. A run "
        "that was interrupted goes on where it stopped.",
    )
    data.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="files (also .gz, .zst, .bz2 and .xz), directories, patterns, or builtin:pydoc (the "
        "help texts of Python)",
    )
    data.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    data.add_argument(
        "--tokenizer",
        required=True,
        metavar="DIR",
        help="a Hugging Face directory, or bytes (256 values and a few marks)",
    )
    data.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="the share of the documents that is held out, in DIR/validation, such as 0.01 "
        "(default: none)",
    )
    data.add_argument(
        "--separator",
        metavar="TEXT",
        help="what stands between the documents of a text file; \\n is a line break, so \\n\\n an "
        "empty line (default: each file is one document)",
    )
    data.add_argument(
        "--field",
        metavar="NAME",
        help="the column of JSONL and parquet that is learnt (default: text, messages, "
        "conversations, or prompt and completion, whichever a record holds)",
    )
    data.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that tokenise (default: one for each CPU)",
    )
    data.add_argument("--overwrite", action="store_true", help="replace prepared data at DIR")
    data.add_argument(
        "--json",
        action="store_true",
        help="print one object: what was written, read and passed over (default: lines)",
    )
    add_strict(data, "a tokenizer")


def prepare_data(arguments: argparse.Namespace) -> None:
    """Prepare, and print what was made.

    Raises:
        ValueError: sources, a tokenizer or a place to write that cannot be used.
    """
    from diy_core.data import VALIDATION, TokenData, prepare  # other commands do without
    from diy_core.data.files import counted
    from diy_core.data.report import what_was_read

    data = prepare(
        arguments.sources,
        arguments.out,
        tokenizer=arguments.tokenizer,
        validation=arguments.validation,
        separator=arguments.separator,
        field=arguments.field,
        workers=(os.cpu_count() or 1) if arguments.workers is None else arguments.workers,
        overwrite=arguments.overwrite,
        progress=True,
    )
    assert data.report is not None
    held_out = data.path / VALIDATION
    parts = [data, *([TokenData(held_out)] if held_out.is_dir() else [])]
    if arguments.json:
        names = ("path", "documents", "tokens")
        written = [(str(part.path), len(part), part.tokens.size) for part in parts]
        told = [dict(zip(names, values, strict=True)) for values in written]
        validation = told[1] if told[1:] else None
        announce(json.dumps({**told[0], "validation": validation, "report": data.report}))
        return
    announce(what_was_read(data.report))
    for part in parts:
        documents, tokens = counted(len(part), "document"), counted(part.tokens.size, "token")
        announce(f"{part.path}: {documents}, {tokens}")
