"""GGUF files as other programs write them, by the gguf library."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from diy_core.checkpoints.gguf.writer import add_entry


def split(whole: Path, name: str, tensors: int = 8) -> list[Path]:
    """The file again, in parts of some tensors each, by the gguf library."""
    source = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(whole.with_name(name), "llama", split_max_tensors=tensors)
    for key, field in source.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            add_entry(writer, key, field.contents())
    for tensor in source.tensors:
        kind = gguf.GGMLQuantizationType(tensor.tensor_type)
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(whole.parent.glob(f"{Path(name).stem}-*"))
