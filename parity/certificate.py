"""The certificate of a check: what was compared, with which weights, where, and every number found.

`docs/checks.md` documents its form.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diy_core.checkpoints.hf_directory import CONFIG, HFReader
from diy_core.checkpoints.manifest import Entry
from diy_core.system.outside import read_bytes
from parity.check import KINDS, Plan, Result
from parity.compare import passed

FORMAT = "diy-lm certificate 1"


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


def make(
    proven: Sequence[Proven],
    command: str,
    environment: Mapping[str, Any],
    divergence: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The certificate of these models as plain values, to be written as JSON.

    Args:
        proven: the models with what was found.
        command: the command line that repeats the check.
        environment: what `parity.environment.describe` says.
        divergence: of a check that failed, the first module at which the twins part: a dict with
            the keys `module_torch`, `module_flax`, `direction`, `error`, `input_error` and
            `suspects`.
    """
    return {
        "format": FORMAT,
        "passed": passed(check for model in proven for check in model.result.checks),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": dict(environment),
        "models": [_model(model) for model in proven],
        "divergence": None if divergence is None else dict(divergence),
    }


def _model(model: Proven) -> dict[str, Any]:
    identity = model.identity
    return {
        "name": model.name,
        "passed": passed(model.result.checks),
        "parameters": identity.parameters,
        "config_sha256": identity.config_sha256,
        "manifest": identity.manifest,
        "tensors": {
            name: {"dtype": entry.dtype, "shape": list(entry.shape), "sha256": entry.sha256}
            for name, entry in identity.tensors.items()
        },
        "plan": dataclasses.asdict(model.plan),
        "not_checked": [kind for kind in KINDS if kind not in model.plan.kinds],
        "checks": [check.record() for check in model.result.checks],
        "curves": [dataclasses.asdict(curve) for curve in model.result.curves],
    }
