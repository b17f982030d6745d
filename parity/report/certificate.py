"""The certificate of a check: what was compared, with which weights, where, and every number found.

`docs/checks.md` documents its form.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from parity.check.compare import passed
from parity.check.identity import Proven
from parity.check.model import KINDS

FORMAT = "diy-lm certificate 1"


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
