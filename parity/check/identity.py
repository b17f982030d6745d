"""Which model was checked: its config, and the sums of its tensors."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from diy_core.checkpoints.hf.directory import CONFIG, HFReader
from diy_core.checkpoints.manifest import Entry
from diy_core.system.outside import read_bytes
from parity.check.model import Plan, Result


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which model it was.

    Attributes:
        config_sha256: of the bytes of `config.json`.
        tensors: dtype, shape and SHA-256 of every tensor by Hugging Face name, as in the manifest.
        manifest: whether these sums are those of the manifest beside the weights: `agrees`,
            `differs`, or `none` where there is no manifest.
        parameters: their number.
    """

    config_sha256: str
    tensors: Mapping[str, Entry]
    manifest: str
    parameters: int


@dataclasses.dataclass(frozen=True)
class Proven:
    """One model of a check and what was found."""

    name: str
    identity: Identity
    plan: Plan
    result: Result


def identify(path: str | Path) -> Identity:
    """Take the sums of a Hugging Face directory.

    Raises:
        CheckpointError: it cannot be read.
    """
    reader = HFReader(path)
    entries = {
        name: Entry(str(stored.dtype), stored.shape, reader.sum_of(name) or "")
        for name, stored in reader.stored.items()
    }
    manifest = reader.manifest
    with reader.sources.recording():
        config = read_bytes(Path(path) / CONFIG)
    reader.sources.require_unchanged()
    agrees = manifest is not None and all(
        manifest.tensors.get(name) == entry for name, entry in entries.items()
    )
    return Identity(
        hashlib.sha256(config).hexdigest(),
        entries,
        "none" if manifest is None else "agrees" if agrees else "differs",
        sum(math.prod(stored.shape) for stored in reader.stored.values()),
    )
