"""The interchange: a Hugging Face directory, read lazily and strictly, written atomically.

    config.json  model.safetensors (or shards and model.safetensors.index.json)
    tokenizer.json  tokenizer_config.json  generation_config.json

Nothing here unpickles: a directory that has only `.bin` or `.pt` weights is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.files import atomic_directory, recover
from diy_core.mapping import DROPPED, TIED_EMBEDDING, TIED_HEAD, match, tensors
from diy_core.tensor_files import SINGLE, open_tensors, tensor_files

CONFIG = "config.json"
# Carried along unread from one directory to the next.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "LICENSE",
)
# What a new model replaces in an older one's directory; all else there is kept.
_REPLACED = re.compile(
    r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)
_ORBAX = "state"  # the folder by which an Orbax checkpoint is known; it has a config.json too
FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class HFDirectory:
    """The tensors of a Hugging Face directory, by name, each read when it is asked for.

    Opening it checks the files against the config: every tensor exactly once, of the right shape,
    of a float dtype. Values are checked as they are read.

    Raises:
        ValueError: a `config.json` that cannot be honoured.
        CheckpointError: all faults of the tensor files at once.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        require_directory(self.path)
        self.config = DIYConfig.from_pretrained(self.path)
        self._files = tensor_files(self.path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for name, file in self._files.items():
            with open_tensors(file) as opened:
                view = opened.get_slice(name)
                self.shapes[name], self.dtypes[name] = tuple(view.get_shape()), view.get_dtype()
        faults = self._faults()
        if faults:
            raise CheckpointError(self.path, faults)

    def _faults(self) -> list[str]:
        layers = self.config.num_hidden_layers
        if layers > len(self.shapes):  # and the table of all their names could fill the memory
            return [
                f"config.json says num_hidden_layers: {layers}, with {len(self.shapes)} tensors"
            ]
        wanted = {tensor.hf: tensor.shape for tensor in tensors(self.config)}
        kept = {name: shape for name, shape in self.shapes.items() if not DROPPED.fullmatch(name)}
        if self.config.tie_word_embeddings and TIED_HEAD in kept:
            wanted[TIED_HEAD] = wanted[TIED_EMBEDDING]
        faults = match(kept, wanted)
        if not self.config.tie_word_embeddings and TIED_HEAD not in kept:
            faults.append(
                f"config.json says (or means) tie_word_embeddings: false, and there is no "
                f"{TIED_HEAD}; set it to true if the head is the embedding"
            )
        faults += [
            f"tensor {name} has dtype {self.dtypes[name]}, expected one of {', '.join(FLOATS)}"
            for name in kept
            if self.dtypes[name] not in FLOATS
        ]
        return faults

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, in the dtype of the file.

        Raises:
            CheckpointError: a value that is not finite.
        """
        with open_tensors(self._files[name]) as opened:
            array: NDArray[Any] = opened.get_tensor(name)
        finite = np.isfinite(array)
        if not finite.all():
            count, first = int((~finite).sum()), np.argwhere(~finite)[0].tolist()
            raise CheckpointError(
                self.path, f"tensor {name} has {count} values that are not finite, first at {first}"
            )
        return array

    def read_all(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Every tensor of the model, in the order of the forward pass.

        Raises:
            CheckpointError: a value that is not finite, or a config that ties the head to the
                embedding while the file holds another head.
        """
        for tensor in tensors(self.config):
            array = self.read(tensor.hf)
            if tensor.hf == TIED_EMBEDDING and self.config.tie_word_embeddings:
                self._check_tied_head(array)
            yield tensor.hf, array

    def _check_tied_head(self, embedding: NDArray[Any]) -> None:
        if TIED_HEAD not in self._files:
            return
        head = self.read(TIED_HEAD)
        if head.dtype != embedding.dtype or not np.array_equal(head, embedding):
            raise CheckpointError(
                self.path,
                f"config.json says tie_word_embeddings: true, but {TIED_HEAD} differs from "
                f"{TIED_EMBEDDING}: set it to false to use the head that is in the file",
            )

    def copy_side_files(self, to: Path) -> None:
        """Copy tokenizer, generation config and the like."""
        copy_side_files(self.path, to)


def require_directory(path: str | Path) -> None:
    """Raise where `path` is no directory, after restoring what a killed write left aside.

    Raises:
        CheckpointError: it is a file, or it does not exist.
    """
    path = Path(path)
    if not path.is_dir():
        recover(path)
    if not path.is_dir():
        raise CheckpointError(
            path,
            "is not a directory: give a local Hugging Face directory (names of a model hub are not "
            "downloaded)",
        )


def copy_side_files(source: Path, to: Path) -> None:
    """Copy the files that travel with a model and are neither its config nor its weights."""
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, to / name)


def write_hf_directory(
    path: str | Path,
    config: DIYConfig,
    arrays: Iterable[tuple[str, NDArray[Any]]],
    write_more: Callable[[Path], None] | None = None,
    drop: Collection[str] = (),
) -> None:
    """Write config and tensors as a Hugging Face directory, whole or not at all.

    Args:
        path: where; the weights and the config of an existing model directory are replaced, and
            everything else in it is kept.
        config: goes to `config.json`, with the dtype of the tensors.
        arrays: (Hugging Face name, array in the torch layout), each tensor of the config once.
        write_more: called with the directory before it moves into place, for further files.
        drop: files of an existing directory that are not kept.

    Raises:
        CheckpointError: a tensor missing, extra, given twice, misshapen or not finite; or `path` is
            a directory that holds something other than a model.
    """
    path = Path(path)
    recover(path)
    refuse_foreign_directory(path, CONFIG)
    if (path / _ORBAX).is_dir():
        raise CheckpointError(
            path, f"has {_ORBAX}/, as an Orbax checkpoint has: choose another place"
        )
    weights: dict[str, NDArray[Any]] = {}
    faults = []
    for name, array in arrays:
        if name in weights:
            faults.append(f"tensor {name} is given twice")
        weights[name] = np.ascontiguousarray(array)
    faults += match(
        {name: array.shape for name, array in weights.items()},
        {tensor.hf: tensor.shape for tensor in tensors(config)},
    )
    floats = {str(dtype) for dtype in FLOATS.values()}
    faults += [
        f"tensor {name} holds values that are not finite"
        for name, array in weights.items()
        if str(array.dtype) in floats and not np.isfinite(array).all()
    ]
    dtypes = sorted({str(array.dtype) for array in weights.values()})
    faults += [f"dtype {dtype} is no float" for dtype in dtypes if dtype not in floats]
    if faults:
        raise CheckpointError(path, faults)
    with atomic_directory(path) as temporary:
        save_file(weights, temporary / SINGLE, metadata={"format": "pt"})
        (temporary / SINGLE).chmod(0o666 & ~_umask())  # safetensors gives it to the owner alone
        write_json(temporary / CONFIG, with_dtype(config.to_dict(), dtypes))
        if write_more is not None:
            write_more(temporary)
        if path.is_dir():
            _keep_the_rest(path, temporary, drop)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _keep_the_rest(old: Path, new: Path, drop: Collection[str]) -> None:
    """Link what the new directory lacks and does not replace; links, so that nothing is copied."""
    for item in old.iterdir():
        if _REPLACED.fullmatch(item.name) or item.name in drop or (new / item.name).exists():
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.copytree(item, new / item.name, symlinks=True, copy_function=_link)
        else:
            _link(item, new / item.name)


def _link(source: str | Path, to: str | Path) -> None:
    try:
        os.link(source, to, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, to, follow_symlinks=False)


def refuse_foreign_directory(path: Path, marker: str) -> None:
    """Raise where `path` has content but no `marker`: it is not ours to replace.

    Raises:
        CheckpointError: the directory holds something else.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise CheckpointError(
            path, f"exists, is not empty and has no {marker}: choose another place, or remove it"
        )


def with_dtype(values: dict[str, Any], dtypes: list[str]) -> dict[str, Any]:
    """The content of a config.json that names the dtype, for transformers 5 and for 4."""
    if len(dtypes) == 1:
        values |= {"dtype": dtypes[0], "torch_dtype": dtypes[0]}
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as readable JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
