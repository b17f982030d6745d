"""From a config to what does not depend on a framework: the model's config, and batches."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

from diy_core.checkpoints.atomic import atomic_directory
from diy_core.checkpoints.hf_directory import CONFIG, copy_side_files, require_directory, write_json
from diy_core.config import DIYConfig
from diy_core.data import BYTES, VALIDATION, Batches, TokenData, prepare
from diy_core.data import tokenizer_hash as hash_of
from diy_core.data.files import DESCRIPTION, DataError
from diy_core.data.sources import SOURCES, find, with_escapes
from diy_core.standard_error import complain
from diy_core.training.config import TrainConfig
from diy_core.training.interfaces import Batch, Data
from diy_core.training.run_directory import RunDirectory, whole_checkpoints

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_MOST_VERIFIED = 10 * 10**9  # bytes of data that are read at every start: ten seconds or twenty


@dataclasses.dataclass(frozen=True)
class Parts:
    """What both twins begin with.

    Attributes:
        model: the model's config.
        weights: the Hugging Face directory that the first weights come from; None: they are drawn,
            or a checkpoint is about to replace them.
        data: at its beginning.
        validation: of `Pieces`.
    """

    model: DIYConfig
    weights: Path | None
    data: Data
    validation: Callable[[], Iterable[Batch]] | None


def assemble_parts(config: TrainConfig, directory: RunDirectory) -> Parts:
    """Read the model's config, and prepare and open the data.

    A run keeps the model's config and tokenizer, and a text as tokens. What it goes on with are
    these, whatever has become of the directories that they came from. Data that were prepared
    before stay where they are: the run needs them there. All are compared with their sha256.

    Args:
        config: of the run.
        directory: entered and begun.

    Raises:
        ValueError: a model or data that cannot be used, or that do not belong together.
        OSError: a file cannot be read or written.
    """
    going_on = bool(whole_checkpoints(directory.checkpoints))
    if not going_on:
        _clear(directory)
    if not (going_on and directory.model.is_dir()):
        _keep_model(config, directory)
    model = DIYConfig.from_pretrained(directory.model)
    if config.sequence_length > model.max_position_embeddings:
        raise ValueError(
            f"sequence_length ({config.sequence_length}) must not be more than the model's "
            f"max_position_embeddings ({model.max_position_embeddings})"
        )
    train, validation = _open_data(config, directory, going_on)
    for part in (train, *([validation] if validation else [])):
        part.require(model.vocab_size, _tokenizer_hash(config, directory))
    batches = _batches(config, train)
    fixed = None if validation is None else _batches(config, validation, fixed=True)
    return Parts(
        model=model,
        weights=None if going_on or not isinstance(config.model, str) else Path(config.model),
        data=cast(Data, iter(batches)),  # a TypedDict is no Mapping of arrays to a type checker
        validation=None
        if fixed is None
        else lambda: (cast(Batch, fixed[i]) for i in range(len(fixed))),
    )


def model_config(config: TrainConfig) -> DIYConfig:
    """The config of the model that a run begins with.

    Raises:
        ValueError: no such directory, a config that cannot be honoured, sizes that are not given,
            or a name that is nearly one of a field.
    """
    if isinstance(config.model, str):
        require_directory(config.model)
        return DIYConfig.from_pretrained(config.model)
    known = [field.name for field in dataclasses.fields(DIYConfig)]
    for name in config.model:
        near = difflib.get_close_matches(str(name), known, 1, cutoff=0.8)
        if near and name not in known:
            raise ValueError(f"model.{name} is not known: did you mean model.{near[0]}?")
    if missing := [name for name in _SIZES if name not in config.model]:
        raise ValueError(f"model needs {', '.join(missing)}, or is a Hugging Face directory")
    return DIYConfig.from_dict({"model_type": "llama"} | dict(config.model))


def _clear(directory: RunDirectory) -> None:
    """Remove what an earlier start left that came to no checkpoint: another text, perhaps.

    What it tokenised of a text is beside `data`, and saves the work where the text is the same.
    """
    for folder in (directory.data, directory.validation):
        shutil.rmtree(folder, ignore_errors=True)


def _keep_model(config: TrainConfig, directory: RunDirectory) -> None:
    model, tokenizer = model_config(config), _tokenizer(config)
    with atomic_directory(directory.model) as folder:
        write_json(folder / CONFIG, model.to_dict())
        if tokenizer is not None and tokenizer != BYTES:
            require_directory(tokenizer)
            copy_side_files(Path(tokenizer), folder)


def _tokenizer(config: TrainConfig) -> str | None:
    """The directory or `bytes`; None where the config names none."""
    return config.data.tokenizer or (config.model if isinstance(config.model, str) else None)


def _tokenizer_hash(config: TrainConfig, directory: RunDirectory) -> str | None:
    if _tokenizer(config) == BYTES:
        return BYTES
    kept = (directory.model / "tokenizer.json").is_file()
    return hash_of(directory.model) if kept else None


def _open_data(
    config: TrainConfig, directory: RunDirectory, going_on: bool
) -> tuple[TokenData, TokenData | None]:
    """Training data and validation data, prepared where the config names a source."""
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
    return train, _verified(TokenData(train.path / VALIDATION))


def _open(config: TrainConfig, source: str, out: Path, share: float, going_on: bool) -> TokenData:
    if _is_prepared(source):
        return _verified(TokenData(source))
    if going_on and (out / DESCRIPTION).is_file():
        return _verified(TokenData(out))
    if going_on:
        find(source)  # what is gone is more important than how it would be tokenised
    tokenizer = _tokenizer(config)
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
                f"ln -s NEW_PLACE {shlex.quote(source)}"
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
    for name, value, default in (("separator", separator, None), ("field", data.field, "text")):
        if value != default:
            listed = " and ".join(sources)
            was = "were" if sources[1:] else "was"
            complain(f"data.{name} {value!r} is not used: {listed} {was} prepared before")


def _verified(data: TokenData) -> TokenData:
    """The data, if they are still what was prepared. Of very large ones a line says how to see."""
    if data.nbytes > _MOST_VERIFIED:
        program = (
            f"from diy_core.data import TokenData; TokenData({json.dumps(str(data.path))}).verify()"
        )
        complain(
            f"{data.path}: its {data.nbytes / 1e9:.1f} GB were not compared with their sha256: "
            f"python -c {shlex.quote(program)} does it"
        )
        return data
    data.verify()
    return data


def _batches(config: TrainConfig, data: TokenData, fixed: bool = False) -> Batches:
    """Batches of the run; fixed: those of an evaluation, in passes of the same size."""
    passes = config.accumulation_steps
    return Batches(
        data,
        batch_size=config.batch_size // passes if fixed else config.batch_size,
        sequence_length=config.sequence_length,
        seed=None if fixed else config.seed,
        accumulation_steps=1 if fixed else passes,
        packing=config.data.packing,
        threads=0 if fixed else config.data.workers,
    )
