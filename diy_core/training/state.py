"""The one logical state that both twins' training checkpoints hold.

model/NAME, mean/NAME, square/NAME    arrays under Hugging Face names, in the Hugging Face layout:
                                      weights, and AdamW's means of gradients and of squares
position                              `Position`, as JSON
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import tensors

KINDS = ("model", "mean", "square")
SUMS = ("tokenizer", "data", "validation")  # of what a checkpoint was made with, by SHA-256
_MOST = 1 << 63


def state_shapes(config: DIYConfig) -> dict[str, tuple[int, ...]]:
    """The names of all arrays of a state, `KIND/NAME`, with their shapes in the HF layout."""
    listed = list(tensors(config))
    return {f"{kind}/{tensor.hf}": tuple(tensor.shape) for kind in KINDS for tensor in listed}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: everything that a checkpoint holds besides arrays.

    Attributes:
        seed: of the run.
        step: steps taken, skipped ones among them; also the number of the next, counted from 0.
        tokens: that were counted in the loss of the steps that were not skipped.
        skipped_steps: of all steps, those that changed nothing.
        skipped_in_a_row: the last so many steps were not finite; one in which no token counted
            neither adds to them nor ends them.
        data: the position in the data, JSON of the data's own making; None: at its beginning.
        made_with: the seal of `diy_core.training.run.seal`; None in earlier checkpoints.
    """

    seed: int
    step: int = 0
    tokens: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    data: Any = None
    made_with: Mapping[str, Any] | None = None

    @property
    def updates(self) -> int:
        """How often the optimizer moved the weights: the t of AdamW's bias correction."""
        return self.step - self.skipped_steps

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any, where: object) -> Position:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: not what `to_json` writes; it names `where`.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping) or set(values) | {"made_with"} != names:
            raise CheckpointError(where, f"holds no position of a run, but {values!r:.200}")
        if faults := [
            f"{name} must be an integer of at least 0, less than 2**63, got {values[name]!r:.50}"
            for name in sorted(names - {"data", "made_with"})
            if isinstance(values[name], bool)
            or not isinstance(values[name], int)
            or not 0 <= values[name] < _MOST
        ]:
            raise CheckpointError(where, faults)
        position = cls(**values)
        _require_seal(position.made_with, where)
        if not position.skipped_in_a_row <= position.skipped_steps <= position.step:
            raise CheckpointError(
                where,
                f"of {position.step} steps it says that {position.skipped_steps} were skipped, "
                f"{position.skipped_in_a_row} of them in a row at the end",
            )
        return position


def _require_seal(values: Any, where: object) -> None:
    """Raise for what does not have the form that `diy_core.training.run.seal` says."""
    if values is None:
        return
    if (
        not isinstance(values, Mapping)
        or not all(isinstance(values.get(part), Mapping) for part in ("config", "model"))
        or not all(isinstance(values.get(name, 0), str | None) for name in SUMS)
        or not isinstance(values.get("changes"), list)
    ):
        raise CheckpointError(where, f"does not say what it was made with: {values!r:.200}")
