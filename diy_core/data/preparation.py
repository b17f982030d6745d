"""Tokenise once: sources to a directory of token files.

The work is cut into shards, each tokenised by whichever process is free and kept beside the output.
A run that was killed or interrupted goes on with the shards that are missing; the output appears
whole at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import tokenizers
from rich.console import Console
from rich.progress import Progress

from diy_core.checkpoints.atomic import atomic_directory, recover
from diy_core.data.counts import Counts
from diy_core.data.documents import Documents
from diy_core.data.encoding import Encoder
from diy_core.data.files import DESCRIPTION, FORMAT, DataError, data_errors, is_own
from diy_core.data.finding import survey
from diy_core.data.merge import merge
from diy_core.data.parts import begin_or_go_on, parts_of, remove_parts
from diy_core.data.report import report, require_field, what_was_not
from diy_core.data.shard_files import MORE_ROOM, shard_files
from diy_core.data.shards import Reading, tokenise
from diy_core.data.sources import Part, Source, plan, unused, with_escapes
from diy_core.data.token_data import TokenData
from diy_core.data.workers import tokenise_all
from diy_core.system.disk import room_for
from diy_core.system.places import made_directory, place
from diy_core.system.sources import Sources
from diy_core.system.standard_error import complain, standard_error
from diy_core.system.utf8 import as_utf8

_SHARDS = 5  # of what shards hold: counts up where the same sources make other ones


def prepare(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path,
    validation: float = 0.0,
    separator: str | None = None,
    field: str | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> TokenData:
    r"""Tokenise sources into a directory that `TokenData` opens.

    The output depends on the sources, the tokenizer and the options, to the byte; not on `workers`.
    Documents that hold nothing but white space are left out.

    Args:
        sources: files, directories (what ends in .txt, .md, .jsonl, .json or .parquet
            below them; all but .parquet also with .gz, .zst, .bz2 or .xz behind it), patterns (`**`
            too), or `builtin:pydoc`, the help texts of Python. A text file is one document. A line
            of a JSONL file and a row of a parquet file is one: a text, a chat, or a prompt with its
            completion (`diy_core.data.records`).
        out: the directory to write. The shards are kept in `.OUT.parts` beside it meanwhile.
        tokenizer: a Hugging Face directory, or "bytes" (ids 0 to 255, and 256 ends a document).
        validation: share of the documents that goes to `out/validation`, at least one. They are
            those whose tokens have the smallest hashes, so equal documents stay together and the
            order does not matter.
        separator: what stands between the documents of a text file; `\n`, `\r` and `\t` are
            understood, as one types them in a shell.
        field: the column of JSONL and parquet that is learnt; None: text, messages, conversations,
            or prompt and completion, whichever a record holds.
        workers: processes. They are spawned: a script that asks for more than one needs
            `if __name__ == "__main__":`.
        overwrite: replace prepared data at `out`.
        progress: say on standard error what goes on: a bar on a terminal, what a separator did not
            separate, what was passed over and why, what Ctrl-C leads to.

    Raises:
        DataError: a source that is missing or empty, or cannot be read, with its place; a source or
            the tokenizer changes meanwhile; no documents; `out` exists, may not be written, or
            another process prepares it.
        CheckpointError: no readable tokenizer.
        ValueError: an option out of range.
        DiskFull: there is no room for the shards, or for what is made of them.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share from 0 up to 1, got {validation}")
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    if separator == "":
        raise ValueError(
            "separator must not be empty: leave it out to make each text file one document"
        )
    for name, value in (("separator", separator), ("field", field)):
        as_utf8(name, value or "")
    separator = None if separator is None else with_escapes(separator)
    say = complain if progress else _say_nothing
    out = Path(os.path.realpath(place(out, "out")))
    _check_target(out, overwrite)
    opened = Sources()
    with opened.recording():  # hashed later, and read again by each worker
        encoder = Encoder(tokenizer)
    found = survey(sources)
    with opened.recording():
        work = plan(found, separator, field)
    files, shards = work.sources, work.shards
    if separator and (said := unused(work, separator)):
        say(said)
    reading = Reading(separator, field)
    with _beside(out) as folder:
        settings = _settings(encoder, reading, files)
        begin_or_go_on(folder, settings)
        made = shard_files(folder, settings, shards)
        todo = {i: (file, shards[i]) for i, file in enumerate(made) if not file.is_whole()}
        with _bar(shards, todo, progress) as done:
            if workers == 1 or len(todo) < 2:
                reader = Documents(separator, field, encoder.template_names)
                for i, (file, parts) in todo.items():
                    file.save(tokenise(parts, encoder, reader))
                    done(i)
            else:
                tokenise_all(todo, tokenizer, reading, workers, done, say)
        _require_unchanged(opened, folder)
        counts = Counts()
        for file in made:
            counts.add(file.load("report").counts)
        if field is not None and (said := require_field(field, counts)):
            say(said)
        told = report(found, files, counts, work.json_texts)
        with (
            room_for(out, sum(file.path.stat().st_size for file in made), MORE_ROOM),
            atomic_directory(out, overwrite=overwrite, own=is_own) as temporary,
        ):
            merge(
                made,
                temporary,
                validation,
                {
                    "tokenizer": encoder.hash,
                    "vocab_size": encoder.vocab_size,
                    "end_token_ids": encoder.end_token_ids,
                    "sources": [dataclasses.asdict(file) for file in files],
                },
                told,
            )
        remove_parts(folder)
    for line in what_was_not(told):
        say(line)
    return TokenData(out)


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """The folder of the shards; the directory that holds it and `out` is made."""
    with contextlib.ExitStack() as stack:
        with data_errors():
            stack.enter_context(made_directory(out.parent))
            folder = stack.enter_context(parts_of(out))
        yield folder


@contextlib.contextmanager
def _bar(
    shards: list[list[Part]], todo: Collection[int], shown: bool
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; it is told the number of each shard that is made."""
    console = Console(file=standard_error())
    sizes = [sum(part.size for part in shard) for shard in shards]
    there = sum(size for i, size in enumerate(sizes) if i not in todo)
    with Progress(console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("tokenising", total=sum(sizes), completed=there)
        yield lambda i: bar.advance(task, sizes[i])


def _require_unchanged(opened: Sources, folder: Path) -> None:
    """Raise, and keep no shard, if a source or the tokenizer has changed since it was read."""
    try:
        with data_errors():
            opened.require_unchanged()
    except DataError:
        remove_parts(folder)
        raise


def _say_nothing(text: str) -> None:
    pass


def _check_target(out: Path, overwrite: bool) -> None:
    recover(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(out, "exists and is not a directory: choose another place")
    if any(out.iterdir()) and not (out / DESCRIPTION).is_file():
        raise DataError(
            out,
            f"is not replaced: it has no {DESCRIPTION}, so it is not prepared data: choose another "
            "place",
        )
    if not overwrite:
        raise DataError(out, "exists already: overwrite=True replaces it")


def _settings(encoder: Encoder, reading: Reading, files: Sequence[Source]) -> str:
    """All that decides about a shard's bytes."""
    settings = {
        "format": FORMAT,
        "shards": _SHARDS,
        "tokenizers": tokenizers.__version__,
        "tokenizer": encoder.hash,
        "vocab_size": encoder.vocab_size,
        "end_token_ids": encoder.end_token_ids,
        "chat_templates": encoder.chat_templates,
        "special_tokens": encoder.special_tokens,
        "reading": dataclasses.asdict(reading),
        "sources": [dataclasses.asdict(file) for file in files],
    }
    return json.dumps(settings, indent=1)
