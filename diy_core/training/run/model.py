"""The model that a run begins with: its config and its tokenizer, which the run keeps."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.checkpoints.atomic import atomic_directory
from diy_core.checkpoints.hf.directory import CONFIG, require_directory
from diy_core.checkpoints.hf.side_files import copy_side_files, is_side_name
from diy_core.config import DIYConfig
from diy_core.data import require_tokenizer, tokenizer_hash
from diy_core.notes import settle
from diy_core.system.json_file import write_json
from diy_core.system.outside import is_there
from diy_core.text.byte_tokenizer import BYTES, write_byte_tokenizer
from diy_core.text.kept_class import keep_class
from diy_core.training.config import TrainConfig

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def model_config(config: TrainConfig) -> DIYConfig:
    """The config of the model that a run begins with.

    Raises:
        ValueError: no such directory, a config that cannot be honoured, sizes that are not given,
            a name that is nearly one of a field, or fewer positions than `sequence_length`.
    """
    if isinstance(config.model, str):
        require_directory(config.model)
        model = DIYConfig.from_pretrained(config.model)
    else:
        _require_names(config.model)
        try:
            model = DIYConfig.from_dict({"model_type": "llama"} | dict(config.model))
        except ValueError as error:
            raise ValueError(f"model: {error}") from error
    if config.sequence_length > model.max_position_embeddings:
        raise ValueError(
            f"sequence_length ({config.sequence_length}) must not be more than the model's "
            f"max_position_embeddings ({model.max_position_embeddings})"
        )
    return model


def keep_model(config: TrainConfig, where: Path) -> None:
    """Write config and tokenizer into `where`, in the run: their source is needed no more.

    Raises:
        ValueError: of `model_config`.
        CheckpointError: no directory at `data.tokenizer`.
    """
    model, tokenizer = model_config(config), tokenizer_of(config)
    settle(config.model if isinstance(config.model, str) else "model", model.notes)
    with atomic_directory(where, own=_is_own) as folder:
        write_json(folder / CONFIG, model.to_dict())
        if tokenizer == BYTES:
            write_byte_tokenizer(folder)
        elif tokenizer is not None:
            require_tokenizer(tokenizer)
            copy_side_files(Path(tokenizer), folder)
            keep_class(Path(tokenizer), folder)


def _is_own(name: str) -> bool:
    return name == CONFIG or is_side_name(name)


def foreseen(config: TrainConfig) -> dict[str, Any]:
    """What `seal_of` will say of the model and the tokenizer that `keep_model` would write.

    Raises:
        ValueError: of `model_config`.
        CheckpointError: no tokenizer that can be read at `data.tokenizer`.
    """
    tokenizer = tokenizer_of(config)
    return {
        "model": json.loads(json.dumps(model_config(config).to_dict())),
        "tokenizer": None if tokenizer is None else tokenizer_hash(tokenizer),
    }


def origins(config: TrainConfig) -> list[str]:
    """The directories that a run's model and tokenizer come from."""
    tokenizer = tokenizer_of(config)
    return [
        *([config.model] if isinstance(config.model, str) else []),
        *([] if tokenizer in (None, BYTES) else [str(tokenizer)]),
    ]


def tokenizer_of(config: TrainConfig) -> str | None:
    """The directory or `bytes`; None where the config names none."""
    return config.data.tokenizer or (config.model if isinstance(config.model, str) else None)


def kept_tokenizer(where: Path) -> str | None:
    """The `tokenizer_hash` of the tokenizer that a run keeps; None where it has none."""
    return tokenizer_hash(where) if is_there(where / "tokenizer.json") else None


def _require_names(values: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(DIYConfig)]
    for name in values:
        near = difflib.get_close_matches(str(name), known, 1, cutoff=0.8)
        if near and name not in known:
            raise ValueError(f"model.{name} is not known: did you mean model.{near[0]}?")
    if missing := [name for name in _SIZES if name not in values]:
        raise ValueError(f"model needs {', '.join(missing)}, or is a Hugging Face directory")
