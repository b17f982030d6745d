"""From a config to what does not depend on a framework: the model's config, and batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from diy_core.config import DIYConfig
from diy_core.data import Batches, TokenData
from diy_core.data.files import counted
from diy_core.training.checkpoints.files import whole_checkpoints
from diy_core.training.config import TrainConfig
from diy_core.training.protocols import Batch, Data
from diy_core.training.run.directory import RunDirectory
from diy_core.training.run.model import keep_model, kept_tokenizer
from diy_core.training.start.data import open_data


@dataclasses.dataclass(frozen=True)
class Parts:
    """What both twins begin with.

    Attributes:
        model: the model's config.
        weights: the Hugging Face directory that the first weights come from; None: they are drawn,
            or a checkpoint is about to replace them.
        data: at its beginning.
        validation: of `Pieces`.
        first_weights: what is done for them, in words.
    """

    model: DIYConfig
    weights: Path | None
    data: Data
    validation: Callable[[], Iterable[Batch]] | None
    first_weights: str


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
    if not (going_on and directory.model.is_dir()) or "model" in directory.made_anew:
        keep_model(config, directory.model)
    model = DIYConfig.from_pretrained(directory.model)
    train, validation = open_data(config, directory, going_on and "data" not in directory.made_anew)
    for part in (train, *([validation] if validation else [])):
        part.require(model.vocab_size, kept_tokenizer(directory.model))
    documents, tokens = counted(len(train), "document"), counted(train.tokens.size, "token")
    directory.doing(f"data: {documents}, {tokens}")
    weights = None if going_on or not isinstance(config.model, str) else Path(config.model)
    first = "drawing the weights" if weights is None else f"loading {weights}"
    batches = _batches(config, train)
    fixed = None if validation is None else _batches(config, validation, fixed=True)
    return Parts(
        model=model,
        weights=weights,
        data=cast(Data, iter(batches)),  # a TypedDict is not a Mapping of arrays to a type checker
        validation=None
        if fixed is None
        else lambda: (cast(Batch, fixed[i]) for i in range(len(fixed))),
        first_weights="making place for the weights" if going_on else first,
    )


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
