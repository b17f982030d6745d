"""The interchange: a Hugging Face directory, read lazily and strictly (`hf_writer` writes it).

    config.json  model.safetensors (or shards and model.safetensors.index.json)
    tokenizer.json  tokenizer_config.json  generation_config.json

Nothing here unpickles: a directory that has only `.bin` or `.pt` weights is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.buffers import is_buffer
from diy_core.checkpoints.atomic import refuse_left_aside
from diy_core.checkpoints.dtypes import FLOATS, not_finite, same_bits, same_values
from diy_core.checkpoints.hf.dropped_buffers import notes_on_dropped
from diy_core.checkpoints.hf.safetensors_directory import find_tensors, listed
from diy_core.checkpoints.hf.safetensors_files import pieces_of, read_slot, sum_of_slot
from diy_core.checkpoints.hf.side_files import copy_side_files, left_behind
from diy_core.checkpoints.interface import Reader, Stored
from diy_core.checkpoints.kinds import refuse_gguf_file, refuse_others, refuse_quantised
from diy_core.checkpoints.manifest import Manifest
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import TIED_EMBEDDING, TIED_HEAD, tensors
from diy_core.stored_names import read_names
from diy_core.system.outside import names_in
from diy_core.system.shell import command
from diy_core.text.tokenizer_files import read_json

CONFIG = "config.json"
_OF_MODELS = {"model_type", "architectures", "hidden_size", "vocab_size"}  # in any config.json
_MARKS = re.compile(r"diy_manifest\.json|state|.*\.(safetensors|bin|pt|pth|gguf)(\.index\.json)?")


class HFReader(Reader):
    """The tensors of a Hugging Face directory.

    Opening it checks the files against the config: every tensor exactly once, of the right shape,
    of a float dtype.

    Args:
        path: the directory.
        untie: give a tied model a head of its own: that of the file, else the embedding.

    Raises:
        ValueError: a `config.json` that cannot be honoured.
        CheckpointError: all faults of the tensor files at once.
    """

    kind = "hf"
    sums_in_place = True

    def __init__(self, path: str | Path, *, untie: bool = False) -> None:
        path = Path(path)
        require_directory(path)
        with self.sources.recording():
            config = DIYConfig.from_pretrained(path)
            found = find_tensors(path, is_buffer)
            slots = found.slots
            shapes = {name: slot.shape for name, slot in slots.items()}
            reading = read_names(shapes, config, lambda name: pieces_of(slots[name]))
        if untie and TIED_HEAD in reading.names:
            config = dataclasses.replace(config, tie_word_embeddings=False)
        self._names = reading.names
        self._slots = {name: found.slots[stored] for name, stored in reading.names.items()}
        if faults := reading.faults + self._no_floats():
            refuse_quantised(path, found.slots)
            missing = [f"{file} does not hold {name}" for name, file in found.absent.items()]
            raise CheckpointError(path, missing + faults)
        stored = {
            tensor.hf: Stored(
                tensor.shape, FLOATS[self._slots[tensor.hf].dtype], self._slots[tensor.hf].dtype
            )
            for tensor in tensors(config)
        }
        super().__init__(path, config, stored)
        self.notes += [*found.notes, *reading.notes]
        if found.absent:
            named = listed(list(found.absent))
            self.notes.append(
                f"the index names what no shard holds and the model does without: {named}"
            )
        with self.sources.recording():
            self.notes += notes_on_dropped(
                reading.buffers, shapes, config, lambda name: pieces_of(slots[name])
            )
        if untie:
            self.untie()

    def called(self, name: str) -> str:
        """The tensor's name in the file."""
        return self._names.get(self._copies.get(name, name), name)

    def _no_floats(self) -> list[str]:
        return [
            f"tensor {self._names[name]} has dtype {slot.dtype}, expected one of "
            f"{', '.join(FLOATS)}"
            for name, slot in self._slots.items()
            if slot.dtype not in FLOATS
        ]

    def _find_manifest(self) -> Manifest | None:
        return Manifest.of_directory(self.path)

    def _read(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        arrays = {name: read_slot(self._slots[name]) for name in names}
        tied = self.config.tie_word_embeddings and TIED_HEAD in self._slots
        if tied and TIED_EMBEDDING in arrays:
            self._check_head(arrays[TIED_EMBEDDING])
        return arrays

    def _sum_of(self, name: str) -> str | None:
        return sum_of_slot(self._slots[name])

    def _check_head(self, embedding: NDArray[Any]) -> None:
        head = read_slot(self._slots[TIED_HEAD])
        if count := not_finite(head):
            raise CheckpointError(
                self.path, f"tensor {TIED_HEAD} has {count} values that are not finite"
            )
        if not same_bits(head, embedding) and not same_values(head, embedding):
            untie = command("parity", "convert", self.path, "DIR", "--to", "hf", "--untie")
            raise CheckpointError(
                self.path,
                f"config.json says tie_word_embeddings: true, but {TIED_HEAD} differs from "
                f"{TIED_EMBEDDING}: `{untie}` keeps the head that is in the file, and "
                "so does false in the config",
            )
        other = "" if head.dtype == embedding.dtype else f" (as {head.dtype})"
        note = (
            f"{TIED_HEAD}{other} was dropped: it equals the embedding, to which the config ties it"
        )
        if note not in self.notes:
            self.notes.append(note)

    def _copy_side_files(self, to: Path) -> None:
        """What is left behind is noted."""
        copy_side_files(self.path, to)
        note = left_behind(self.path)
        if note is not None and note not in self.notes:
            self.notes.append(note)


def require_directory(path: str | Path) -> None:
    """Raise where `path` is not a directory that holds a model.

    Raises:
        CheckpointError: it is a file, it does not exist, or it is of another kind.
    """
    path = Path(path)
    refuse_left_aside(path)
    refuse_gguf_file(path)
    if not path.is_dir():
        raise CheckpointError(
            path,
            "is not a directory: give a local Hugging Face directory (names of a model hub are not "
            "downloaded)",
        )
    refuse_others(path)


def refuse_foreign_directory(path: Path, marker: str) -> None:
    """Raise where `path` has content but no `marker`: it is not ours to replace.

    Raises:
        CheckpointError: the directory holds something else.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise CheckpointError(
            path, f"exists, is not empty and has no {marker}: choose another place, or remove it"
        )


def refuse_foreign_config(path: Path) -> None:
    """Raise where a directory has the `config.json` of something else, which would be replaced.

    Weights or a manifest beside it tell that it is a model's, also where it is damaged.

    Raises:
        CheckpointError: it has no weights, and its `config.json` describes no model.
    """
    if not path.is_dir() or any(_MARKS.fullmatch(name) for name in names_in(path)):
        return
    try:
        said = read_json(path / CONFIG)  # empty where it is not there
        is_foreign = bool(said) and not _OF_MODELS & said.keys()
    except CheckpointError:  # whatever it is, it cannot be told to be a model's
        is_foreign = True
    if is_foreign:
        raise CheckpointError(
            path / CONFIG,
            "would be replaced, but no model lies beside it and it describes none: choose another "
            "place, or move it elsewhere",
        )


def with_dtype(values: dict[str, Any], dtypes: list[str]) -> dict[str, Any]:
    """The content of a config.json that names the dtype, for transformers 5 and for 4."""
    others = {key: value for key, value in values.items() if key not in ("dtype", "torch_dtype")}
    if len(dtypes) == 1:
        others |= {"dtype": dtypes[0], "torch_dtype": dtypes[0]}
    return others
