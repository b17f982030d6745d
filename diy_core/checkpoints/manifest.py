"""The manifest: the SHA-256 of every tensor of a checkpoint, and where it came from.

Sums are taken over the canonical bytes (the Hugging Face layout, C order, little-endian), so that
the same weights have the same sums in every format. In a directory the manifest is
`diy_manifest.json`; a GGUF file carries it in its metadata.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.checkpoints.dtypes import sha256
from diy_core.errors import CheckpointError
from diy_core.system.limits import how_to_raise, limit
from diy_core.system.outside import is_there, read_bytes
from diy_core.system.parsing import parse_json

MANIFEST = "diy_manifest.json"
# Of the largest Llama it has 0.3 MB; Python needs 20 times the text.
_FORMAT = "diy-lm manifest 1"
_SUM = re.compile("[0-9a-f]{64}")
# What reading a document of another form raises; a size may be infinite.
_UNLIKE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
_PACKAGES = ("diy-lm", "numpy", "jax", "orbax-checkpoint", "torch", "gguf")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a tensor must be: its dtype, its shape in the Hugging Face layout, its sum."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The sums of a checkpoint's tensors by Hugging Face name.

    Attributes:
        tensors: one entry per tensor.
        source: what the checkpoint was written from, for people.
        versions: of this package and of what it wrote with.
    """

    tensors: Mapping[str, Entry]
    source: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Entry], source: str) -> Manifest:
        """A manifest of what is written now, with the versions that write it."""
        return cls(tensors, source, versions())

    def check(self, name: str, array: Any, digest: str | None = None) -> str | None:
        """What is wrong with a tensor, or None.

        Args:
            name: its Hugging Face name.
            array: the tensor; or, beside its `digest`, anything with its dtype and shape.
            digest: its SHA-256, where that is known.
        """
        entry = self.tensors.get(name)
        if entry is None:
            return f"tensor {name} is not in the manifest"
        found = (str(array.dtype), tuple(array.shape))
        if found != (entry.dtype, tuple(entry.shape)):
            return (
                f"tensor {name} is {found[0]} {found[1]}, in the manifest {entry.dtype} "
                f"{tuple(entry.shape)}"
            )
        if (digest or sha256(array)) != entry.sha256:
            return f"tensor {name} does not have the SHA-256 of the manifest: its values changed"
        return None

    def to_json(self) -> str:
        """The text of `diy_manifest.json`."""
        values = {
            "format": _FORMAT,
            "source": self.source,
            "versions": dict(self.versions),
            "tensors": {
                name: {"dtype": e.dtype, "shape": list(e.shape), "sha256": e.sha256}
                for name, e in self.tensors.items()
            },
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: object) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: it is something else.
        """
        if len(text) > (most := limit("header_bytes")):
            how = how_to_raise("header_bytes")
            raise CheckpointError(where, f"has a manifest of more than {most} bytes: {how}")
        values = parse_json(text, where, said="is not a manifest")
        try:
            if values["format"] != _FORMAT:
                raise ValueError(f"the format is {values['format']!r}, expected {_FORMAT!r}")
            tensors = {
                name: Entry(str(e["dtype"]), tuple(int(n) for n in e["shape"]), e["sha256"])
                for name, e in values["tensors"].items()
            }
            if bad := [name for name, e in tensors.items() if not _SUM.fullmatch(e.sha256)]:
                raise ValueError(f"the sum of {bad[0]} is not a SHA-256")
            return cls(tensors, str(values["source"]), dict(values["versions"]))
        except _UNLIKE as error:
            raise CheckpointError(where, f"is not a manifest: {error!r}") from error

    @classmethod
    def of_directory(cls, path: Path) -> Manifest | None:
        """The manifest of a directory, or None where it has none.

        Raises:
            CheckpointError: something of that name that is something else, or cannot be read.
        """
        file = path / MANIFEST
        return cls.from_json(read_bytes(file, "header_bytes"), file) if is_there(file) else None


def versions() -> dict[str, str]:
    """The versions of the installed packages that have a part in a checkpoint."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
