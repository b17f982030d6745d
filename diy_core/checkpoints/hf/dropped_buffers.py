"""What is left out of a checkpoint: counted, and compared with what the config gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from diy_core.buffers import Buffers, Pieces, Shapes
from diy_core.config import DIYConfig
from diy_core.rope import inverse_frequencies

# How far a table may be off by the rounding of its dtype, and of a computation in float32.
_TOLERANCES = {"float64": 1e-5, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
_SMALLEST_F16 = 6e-8  # below it everything is zero


def notes_on_dropped(
    buffers: Buffers, shapes: Shapes, config: DIYConfig, values: Pieces
) -> list[str]:
    """A note on each kind of buffer that is dropped.

    Args:
        buffers: which they are.
        shapes: of all that was found.
        config: which they follow from.
        values: of a tensor.

    Raises:
        CheckpointError: a table cannot be read.
    """
    notes = []
    if count := len(buffers.rotary):
        one = count == 1
        note = (
            f"{count} rotary table{' was' if one else 's were'} dropped: "
            f"{'it follows' if one else 'they follow'} from the config"
        )
        tables = [name for name in buffers.rotary if name.endswith("inv_freq") and name in shapes]
        if other := next((n for n in tables if not _agrees(shapes[n], config, values, n)), None):
            note += f", which gives other frequencies than {other} (is its rope right?)"
        notes.append(note)
    if names := buffers.masks:
        one = len(names) == 1
        notes.append(
            f"{len(names)} mask{'' if one else 's'} or positions {'was' if one else 'were'} "
            f"dropped, such as {min(names)}: attention is causal"
        )
    if names := buffers.scales:
        were = "1 scale was" if len(names) == 1 else f"{len(names)} scales were"
        notes.append(f"{were} dropped, such as {min(names)}: no weight here is quantised")
    if buffers.biases:
        notes.append(note_on_biases(buffers.biases))
    return notes


def note_on_biases(names: Sequence[str]) -> str:
    """A note on biases of zeros that are dropped, one or more."""
    were = "1 bias was" if len(names) == 1 else f"{len(names)} biases were"
    return (
        f"{were} dropped, such as {min(names)}: the config has no such bias, and zeros add nothing"
    )


def _agrees(shape: tuple[int, ...], config: DIYConfig, values: Pieces, name: str) -> bool:
    """True for the frequencies of the config, stretched or (as old files have them) not."""
    if tuple(shape) != (config.head_size // 2,):
        return False
    table = np.concatenate(list(values(name)))
    tolerance = _TOLERANCES.get(str(table.dtype))
    plain = dataclasses.replace(config, rope_scaling=None)
    return tolerance is not None and any(
        np.allclose(
            table.astype(np.float64), inverse_frequencies(one), rtol=tolerance, atol=_SMALLEST_F16
        )
        for one in (config, plain)
    )
