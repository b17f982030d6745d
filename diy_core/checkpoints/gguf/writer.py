"""Writing a GGUF file that llama.cpp runs, in float32, float16 or bfloat16.

Norms and biases are stored in float32, as llama.cpp wants them; the manifest in the file says what
they were. Beside llama.cpp's entries the file carries, under `diy_lm.*`, what those cannot say: the
config in full, the sums, and the tokenizer's files, so that the way back loses nothing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.atomic import atomic_file
from diy_core.checkpoints.dtypes import FLOAT_NAMES, FLOATS, as_bytes
from diy_core.checkpoints.gguf.config import ROPE_FREQS, config_metadata, rope_factors
from diy_core.checkpoints.gguf.names import gguf_name, reorder
from diy_core.checkpoints.gguf.reader import CONFIG_KEY, FILES_KEY, MANIFEST_KEY, GGUFReader
from diy_core.checkpoints.gguf.vocabulary import vocabulary_metadata
from diy_core.checkpoints.hf.directory import CONFIG, with_dtype
from diy_core.checkpoints.hf.safetensors_files import PIECE
from diy_core.checkpoints.hf.side_files import read_side_files
from diy_core.checkpoints.interface import Reader, Stored, Writer
from diy_core.checkpoints.manifest import Entry, Manifest
from diy_core.errors import CheckpointError, naming
from diy_core.system.json_file import write_json
from diy_core.system.outside import open_regular
from diy_core.system.places import place
from diy_core.system.renaming import start_writing_back

_FILE_TYPES = {
    "float32": gguf.LlamaFileType.ALL_F32,
    "float16": gguf.LlamaFileType.MOSTLY_F16,
    "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
}
_NO_SUM = "0" * 64


class GGUFWriter(Writer):
    """A GGUF file, written tensor by tensor.

    Args:
        path: where; ends in `.gguf`.
        source: where config and tokenizer come from.
        layout: every tensor, in the order of writing.
        overwrite: whether an existing GGUF file is replaced.

    Raises:
        CheckpointError: a dtype or a tokenizer that llama.cpp does not run, or a file in the way.
    """

    kind = "gguf"

    def __init__(
        self,
        path: str | Path,
        source: Reader,
        layout: Mapping[str, Stored],
        *,
        overwrite: bool = True,
    ) -> None:
        super().__init__()
        self._path, self._config, self._layout = place(path), source.config, layout
        self._refuse()
        # The sums are not known yet; they have all one length, and are filled in at the end.
        entries = {
            name: Entry(str(tensor.dtype), tensor.shape, _NO_SUM) for name, tensor in layout.items()
        }
        self._manifest = Manifest.of(entries, source.name)
        metadata = self._metadata(source)
        self._temporary = self._stack.enter_context(atomic_file(self._path, overwrite=overwrite))
        try:
            self._begin(metadata)
        except BaseException:
            self._stack.__exit__(*sys.exc_info())  # close() would move the half file into place
            raise

    def _refuse(self) -> None:
        if self._path.is_file():  # what else may be there, `atomic_file` refuses in its own words
            with open_regular(self._path) as stream:
                if stream.read(4) not in (b"GGUF", b""):
                    raise CheckpointError(
                        self._path, "exists and is not a GGUF file: choose another"
                    )
        for name, tensor in self._layout.items():
            if str(tensor.dtype) not in _FILE_TYPES:
                raise CheckpointError(
                    self._path,
                    f"tensor {name} is {tensor.dtype}, and llama.cpp runs float32, float16 and "
                    "bfloat16: choose one of them, such as dtype='float32'",
                )

    def _metadata(self, source: Reader) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder, naming(Path(folder), source.path):
            source.copy_side_files(Path(folder))
            files = read_side_files(Path(folder))
            # Where generation_config.json is silent, it says what ends a text.
            write_json(Path(folder) / CONFIG, self._config.to_dict())
            rows = self._config.vocab_size
            vocabulary = vocabulary_metadata(Path(folder), rows, source.notes)
        dtypes = [str(tensor.dtype) for tensor in self._layout.values()]
        matrices = [str(tensor.dtype) for tensor in self._layout.values() if len(tensor.shape) > 1]
        most = max(sorted(set(matrices)), key=matrices.count)
        config = with_dtype(self._config.to_dict(), sorted(set(dtypes)))
        return {
            "general.file_type": int(_FILE_TYPES[most]),
            **config_metadata(self._config),
            **vocabulary,
            CONFIG_KEY: json.dumps(config),
            FILES_KEY: json.dumps(files),
            MANIFEST_KEY: self._manifest.to_json(),
        }

    def _begin(self, metadata: Mapping[str, Any]) -> None:
        writer = gguf.GGUFWriter(self._temporary, "llama")
        for key, value in metadata.items():
            _refuse_too_large(self._path, key, value)
            add_entry(writer, key, value)
        scaling = self._config.rope_scaling
        factors = None
        if scaling is not None and scaling.rope_type == "llama3":
            factors = rope_factors(self._config)
            writer.add_tensor_info(ROPE_FREQS, factors.shape, factors.dtype, factors.nbytes)
        for name, tensor in self._layout.items():
            form = _form(tensor)
            stored = dataclasses.replace(tensor, dtype=FLOATS[form])
            kind = gguf.GGMLQuantizationType[form]
            writer.add_tensor_info(
                gguf_name(name), stored.shape, np.dtype(np.float32), stored.nbytes, kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        assert writer.fout is not None
        # The manifest is the last entry, so its text ends here.
        self._manifest_at = writer.fout[0].tell() - len(self._manifest.to_json().encode())
        writer.write_ti_data_to_file()
        self._stream: BinaryIO = self._stack.enter_context(writer.fout[0])
        self._alignment = writer.data_alignment
        self._pad()
        if factors is not None:
            self._put(factors)

    def _put(self, array: NDArray[Any]) -> None:
        buffer = as_bytes(array)
        for start in range(0, len(buffer), PIECE):
            self._stream.write(buffer[start : start + PIECE])
        self._pad()

    def _pad(self) -> None:
        self._stream.write(bytes(-self._stream.tell() % self._alignment))

    def prepare(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """The tensor in the type and the order of rows of the file."""
        stored = array.astype(FLOATS[_form(self._layout[name])], copy=False)
        return reorder(name, stored, self._config, to_gguf=True)

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write some prepared tensors, in the order of the layout."""
        for array in arrays.values():
            self._put(array)
            start_writing_back(self._stream.fileno())

    def finish(self, manifest: Manifest) -> GGUFReader:
        """Fill in the sums, and open the file."""
        self._stream.flush()
        # The same manifest with the sums: of the same length.
        text = dataclasses.replace(self._manifest, tensors=manifest.tensors).to_json().encode()
        self._stream.seek(self._manifest_at)
        self._stream.write(text)
        self._stream.close()
        return GGUFReader(self._temporary)


def add_entry(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add one metadata entry, in the type that llama.cpp's own converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:  # an empty array cannot be written: it has no type
        writer.add_array(key, value)


def _refuse_too_large(path: Path, key: str, value: Any) -> None:
    """Raise for a number that llama.cpp's types for it, uint32 and float32, cannot hold."""
    with np.errstate(over="ignore"):
        held = not isinstance(value, float) or np.isfinite(np.float32(value))
    if not held or (isinstance(value, int) and value >= 1 << 32):
        raise CheckpointError(path, f"{key} is {value}, more than a GGUF file can say")


def _form(tensor: Stored) -> str:
    """The type of a tensor in the file; one axis means a norm or a bias."""
    return "F32" if len(tensor.shape) == 1 else FLOAT_NAMES[str(tensor.dtype)]
