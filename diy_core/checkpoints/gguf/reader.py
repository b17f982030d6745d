"""Reading llama.cpp's files: a GGUF file of the architecture `llama` as a checkpoint.

Quantised tensors are dequantised: the result is the function that the file describes, not the model
that it was made from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import FLOATS, as_bytes, dtype_of, same_bits
from diy_core.checkpoints.gguf.chat_templates import templates_of
from diy_core.checkpoints.gguf.config import read_config
from diy_core.checkpoints.gguf.file import ROPE_FREQS, shape_of
from diy_core.checkpoints.gguf.names import gguf_name, reorder
from diy_core.checkpoints.gguf.parts import open_parts
from diy_core.checkpoints.gguf.rules import UnknownTokenizer
from diy_core.checkpoints.gguf.special_tokens import SpecialTokens
from diy_core.checkpoints.gguf.tokenizer import GGUFTokenizer
from diy_core.checkpoints.hf.safetensors_files import read_into
from diy_core.checkpoints.hf.side_files import write_side_files
from diy_core.checkpoints.interface import Reader, Stored
from diy_core.checkpoints.manifest import Manifest
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import match, tensors
from diy_core.rope_scaling import RopeScaling
from diy_core.system.parsing import parse_json
from diy_core.system.translated import translated, words_of
from diy_core.text.chat.templates import write_chat_templates

# Entries of our own, which other programs pass over.
CONFIG_KEY, MANIFEST_KEY, FILES_KEY = "diy_lm.config", "diy_lm.manifest", "diy_lm.files"
_NO_VOCABULARY = ("no_vocab", "none")  # tokenizer.ggml.model of a file without a tokenizer
_NARROW = ("float16", "bfloat16")
_PIECE = 1 << 22  # elements that are dequantised at a time


class GGUFReader(Reader):
    """The tensors of a GGUF file.

    Args:
        path: a little-endian GGUF file of the architecture `llama`, without experts; of one that
            was split, any part.
        untie: give a tied model a head of its own, equal to the embedding.

    Raises:
        CheckpointError: the file is cut short or damaged, is of another kind, lacks a tensor or
            has one too many, or asks for something that this model does not do.
    """

    kind = "gguf"

    def __init__(self, path: str | Path, *, untie: bool = False) -> None:
        path = Path(path)
        notes: list[str] = []
        with translated(path, partial(_fault, "is not a readable GGUF file"), may_panic=True):
            with self.sources.recording():
                parts = open_parts(path)
            self._files_of_parts, self._places = parts.files, parts.places
            self._tensors, self._metadata = parts.tensors, parts.metadata
            config = _config(self._metadata, self._tensors, notes)
            self._files = _files(self._metadata)
            self._templates = templates_of(self._metadata)
            self._special = SpecialTokens(self._metadata, _ids(self._metadata, config))
            notes += self._special.notes
            with translated(path, partial(_fault, "its tokens and merges make no tokenizer")):
                self._tokenizer = self._find_tokenizer(config, notes)
            if CONFIG_KEY not in self._metadata:
                config = dataclasses.replace(config, extra=self._special.in_config())
        shapes = {n: shape_of(tensor) for n, tensor in self._tensors.items() if n != ROPE_FREQS}
        wanted = {gguf_name(tensor.hf): tensor.shape for tensor in tensors(config)}
        if faults := match(shapes, wanted):
            raise CheckpointError(path, faults)
        super().__init__(path, config, self._stored(config))
        self.notes += notes
        self._narrow()
        if untie:
            self.untie()

    def _find_tokenizer(self, config: DIYConfig, notes: list[str]) -> GGUFTokenizer | None:
        """The tokenizer rebuilt; None, and a note, where that cannot be done for certain."""
        if self._metadata.get("tokenizer.ggml.model") in _NO_VOCABULARY:
            return None
        length, rows = config.max_position_embeddings, config.vocab_size
        rebuilt = "tokenizer.json" not in self._files
        try:
            tokenizer = GGUFTokenizer(self._metadata, rows, length)
        except UnknownTokenizer as error:
            if rebuilt:
                notes.append(
                    f"the tokenizer was left out: {error}. Take tokenizer.json and "
                    "tokenizer_config.json from the model that the file was made from"
                )
            return None
        if rebuilt and (count := len(tokenizer.tokens)) < rows:
            notes.append(
                f"the tokenizer has {count} tokens and the model a vocabulary of {rows}: the ids "
                f"from {count} on stand for no text"
            )
        return tokenizer

    @property
    def files(self) -> Sequence[Path]:
        """The file, or all of its parts."""
        return self._files_of_parts

    def called(self, name: str) -> str:
        """The tensor's name in the file."""
        return gguf_name(name)

    def _stored(self, config: DIYConfig) -> dict[str, Stored]:
        forms = {t.hf: self._tensors[gguf_name(t.hf)].tensor_type.name for t in tensors(config)}
        return {
            tensor.hf: Stored(
                tensor.shape, FLOATS.get(forms[tensor.hf], FLOATS["F32"]), forms[tensor.hf]
            )
            for tensor in tensors(config)
        }

    def _find_manifest(self) -> Manifest | None:
        text = self._metadata.get(MANIFEST_KEY)
        manifest = None if text is None else Manifest.from_json(str(text), self.path)
        if manifest and not all(self._fits(name, manifest) for name in self.stored):
            self.notes.append(
                "the sums in the file are of other weights (from before a quantisation?) and were "
                "not used"
            )
            return None
        return manifest

    def _fits(self, name: str, manifest: Manifest) -> bool:
        entry, tensor = manifest.tensors.get(name), self._tensors[gguf_name(name)]
        form = tensor.tensor_type.name
        if entry is None or form not in FLOATS:
            return False
        if str(FLOATS[form]) == entry.dtype:
            return True
        if form != "F32" or len(entry.shape) > 1 or entry.dtype not in _NARROW:
            return False
        wide = _dequantised(self._places[tensor.name], tensor)
        with np.errstate(over="ignore"):
            return same_bits(wide.astype(dtype_of(entry.dtype)).astype(np.float32), wide)

    def _narrow(self) -> None:
        """What is stored wider than it was, as llama.cpp wants its norms, gets its dtype back."""
        if self.manifest is not None:
            self.stored = {
                name: dataclasses.replace(tensor, dtype=dtype_of(self.manifest.tensors[name].dtype))
                for name, tensor in self.stored.items()
            }

    def _read(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        faults, arrays = [], {}
        for name in names:
            tensor = self._tensors[gguf_name(name)]
            try:
                array = _dequantised(self._places[tensor.name], tensor)
            except _Unreadable as error:
                faults += error.faults
                continue
            narrow = array.astype(self.stored[name].dtype, copy=False)
            arrays[name] = reorder(name, narrow, self.config, to_gguf=False)
        if faults:
            raise CheckpointError(self.path, faults)
        return arrays

    def _copy_side_files(self, to: Path) -> None:
        """The tokenizer's files as they were where the file carries them, else rebuilt."""
        if "tokenizer.json" not in self._files:
            self._special.write(to)
            if self._tokenizer is not None:
                self._tokenizer.write(to)
            else:
                write_chat_templates(to, self._templates)
        write_side_files(to, self._files)


def _config(metadata: Mapping[str, Any], found: Mapping[str, Any], notes: list[str]) -> DIYConfig:
    """The config of the `llama.*` entries; in full, where the file carries ours and they agree."""
    if CONFIG_KEY not in metadata:
        return read_config(metadata, found)
    ours = DIYConfig.from_dict(_object(metadata, CONFIG_KEY))
    theirs = read_config(metadata, found, ours.rope_scaling)
    values = dataclasses.asdict(ours)
    if ours.rope_scaling == RopeScaling(rope_type="linear", factor=1.0):
        values["rope_scaling"] = None  # which is the same, and what the entries say
    same = all(
        _single(value) == _single(values[field])
        for field, value in dataclasses.asdict(theirs).items()
        if field not in ("extra", "initializer_range")
    )
    if same:
        return ours
    notes.append(f"the llama.* entries were changed after {CONFIG_KEY} was written: they count")
    return theirs


def _ids(metadata: Mapping[str, Any], config: DIYConfig) -> int:
    """How many ids both the model and its tokenizer have."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    return min(config.vocab_size, len(tokens)) if isinstance(tokens, list) else config.vocab_size


def _files(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The text of every side file that the file carries, by name."""
    files = _object(metadata, FILES_KEY) if FILES_KEY in metadata else {}
    if not all(isinstance(text, str) for text in files.values()):
        raise ValueError(f"{FILES_KEY} must hold texts")
    return files


def _object(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A metadata entry of our own, which is an object in JSON."""
    text = metadata[key]
    try:
        values = parse_json(text, key, halves=True) if isinstance(text, str) else None
    except CheckpointError as error:
        raise ValueError(str(error)) from error  # an error of the file, which the caller names
    if not isinstance(values, dict):
        raise ValueError(f"{key} is not a JSON object")
    return values


def _single(value: Any) -> Any:
    """Floats as GGUF holds them, in single precision."""
    if isinstance(value, dict):
        return {key: _single(item) for key, item in value.items()}
    return float(np.float32(value)) if isinstance(value, float) else value


def _fault(what: str, error: BaseException) -> str:
    """What is said of an error of a file's metadata: ours, which are about values, say it all."""
    ours = isinstance(error, ValueError | NotImplementedError)
    return str(error) if ours else f"{what}: {words_of(error)}"


class _Unreadable(CheckpointError):
    """The bytes of a tensor are not what its type says."""


def _dequantised(path: Path, tensor: Any) -> NDArray[Any]:
    """A tensor in the dtype of the file, or in float32 where it is quantised.

    Some rows at a time: dequantising makes several copies.
    """
    shape, form = shape_of(tensor), tensor.tensor_type
    if form.name in FLOATS:
        array = np.empty(shape, FLOATS[form.name])
        read_into(path, int(tensor.data_offset), as_bytes(array))
        return array
    result = np.empty(shape, np.float32)
    rows = result.reshape(-1, shape[-1])
    row_bytes = int(tensor.n_bytes) // len(rows)
    step = max(1, _PIECE // shape[-1])
    what = f"tensor {tensor.name} cannot be dequantised"
    with (
        translated(path, what, raises=_Unreadable),
        np.errstate(all="ignore"),
    ):  # what is not finite is reported by the reader
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            raw = np.empty((len(part), row_bytes), np.uint8)
            read_into(path, int(tensor.data_offset) + start * row_bytes, as_bytes(raw))
            part[:] = gguf.dequantize(raw, form)
    return result
