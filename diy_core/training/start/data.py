"""The data of a run: opened where they were prepared before, else prepared in its directory."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from diy_core.checkpoints.atomic import remove_directory
from diy_core.data import VALIDATION, TokenData, prepare
from diy_core.data.files import DESCRIPTION, DataError, counted, is_own
from diy_core.data.sources import SOURCES, find, with_escapes
from diy_core.system.shell import command
from diy_core.system.snapshots import snapshot
from diy_core.system.standard_error import complain
from diy_core.training.config import TrainConfig
from diy_core.training.run.directory import RunDirectory
from diy_core.training.run.model import tokenizer_of

_MOST_VERIFIED = 10 * 10**9  # bytes of data that are read at every start: ten seconds or twenty


def open_data(
    config: TrainConfig, directory: RunDirectory, going_on: bool
) -> tuple[TokenData, TokenData | None]:
    """Training data and validation data, prepared where the config names a source.

    Args:
        config: of the run.
        directory: of the run; what is prepared goes there.
        going_on: the run has a checkpoint; False: what an earlier start prepared is removed, as it
            came to none: another text, perhaps. What it tokenised is beside, and saves the work
            where the text is the same.

    Raises:
        DataError: sources or prepared data that cannot be used.
        ValueError: a text, and no tokenizer.
        DiskFull: there is no room for the tokens.
    """
    if not going_on:
        for folder in (directory.data, directory.validation):
            if folder.is_dir() and all(map(is_own, snapshot(folder))):
                remove_directory(folder)
    _name_unused(config)
    share = 0.0 if isinstance(config.data.validation, str) else config.data.validation
    with _naming("data.train", config.data.train, going_on):
        train = _open(config, config.data.train, directory.data, share, going_on)
    if isinstance(config.data.validation, str):
        source = config.data.validation
        with _naming("data.validation", source, going_on):
            return train, _open(config, source, directory.validation, 0.0, going_on)
    if not share:
        return train, None
    if not (train.path / VALIDATION).is_dir():
        raise DataError(
            train.path,
            "was prepared without validation documents: prepare it with --validation, or set "
            "data.validation to 0 or to other data",
        )
    validation = _verified(TokenData(train.path / VALIDATION))
    if _is_prepared(config.data.train):
        _name_other_share(share, train, validation)
    return train, validation


def _open(config: TrainConfig, source: str, out: Path, share: float, going_on: bool) -> TokenData:
    if _is_prepared(source):
        return _verified(TokenData(source))
    if going_on and (out / DESCRIPTION).is_file():
        return _verified(TokenData(out))
    if going_on:
        find(source)  # what is gone is more important than how it would be tokenised
    tokenizer = tokenizer_of(config)
    if tokenizer is None:
        raise ValueError(
            "data.tokenizer must be given for a model that starts from scratch: bytes, or a "
            "Hugging Face directory"
        )
    return prepare(
        source,
        out,
        tokenizer=tokenizer,
        validation=share,
        separator=config.data.separator,
        field=config.data.field,
        workers=os.cpu_count() or 1,
        overwrite=True,
        progress=True,
    )


@contextlib.contextmanager
def _naming(option: str, source: str, going_on: bool) -> Iterator[None]:
    """Errors of the sources say which option named them, and what a run that goes on needs."""
    try:
        yield
    except DataError as error:
        if error.where != SOURCES:
            raise
        *faults, last = error.faults
        if going_on and not Path(source).exists():
            last += (
                ". The run needs the data that it began with: move them back, or make a link: "
                f"{command('ln', '-s', 'NEW_PLACE', Path(source))}"
            )
        raise DataError(option, [*faults, last]) from error


def _is_prepared(source: str) -> bool:
    return (Path(source) / DESCRIPTION).is_file()


def _name_unused(config: TrainConfig) -> None:
    """Say which options of reading a text are without effect, as all data were prepared before."""
    data = config.data
    sources = [data.train, *([data.validation] if isinstance(data.validation, str) else [])]
    if not all(map(_is_prepared, sources)):
        return
    separator = None if data.separator is None else with_escapes(data.separator)
    for name, value in (("separator", separator), ("field", data.field)):
        if value is not None:
            listed = " and ".join(sources)
            was = "were" if sources[1:] else "was"
            complain(f"data.{name} {value!r} is not used: {listed} {was} prepared before")


def _name_other_share(share: float, train: TokenData, validation: TokenData) -> None:
    """Say that a share is not taken anew of data that were prepared with another."""
    held_out, documents = len(validation), len(train) + len(validation)
    if held_out != max(1, round(share * documents)):
        complain(
            f"data.validation {share} is not used: {train.path} was prepared before, with "
            f"{held_out:,} of {counted(documents, 'document')} for validation"
        )


def _verified(data: TokenData) -> TokenData:
    """The data, if they are still what was prepared. Of very large ones a line says how to see."""
    if data.nbytes > _MOST_VERIFIED:
        program = (
            f"from diy_core.data import TokenData; TokenData({json.dumps(str(data.path))}).verify()"
        )
        complain(
            f"{data.path}: its {data.nbytes / 1e9:.1f} GB were not compared with their sha256: "
            f"{command('python', '-c', program)} does it"
        )
        return data
    data.verify()
    return data
