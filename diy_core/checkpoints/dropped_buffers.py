"""Buffers in a file that follow from the config: counted, and compared with what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from diy_core.checkpoints.dtypes import FLOATS
from diy_core.checkpoints.safetensors_files import Slot, read_slot
from diy_core.config import DIYConfig
from diy_core.rope import inverse_frequencies
from diy_core.stored_names import Reading

# How far a table may be off by the rounding of its dtype, and of a computation in float32.
_TOLERANCES = {"F64": 1e-5, "F32": 1e-5, "F16": 2e-3, "BF16": 1e-2}
_SMALLEST_F16 = 6e-8  # below it everything is zero


def notes_on_dropped(reading: Reading, slots: Mapping[str, Slot], config: DIYConfig) -> list[str]:
    """A note on each kind of buffer that is dropped.

    Args:
        reading: says which they are.
        slots: where each lies.
        config: which they follow from.

    Raises:
        CheckpointError: a table cannot be read.
    """
    notes = []
    if count := len(reading.rotary):
        one = count == 1
        note = (
            f"{count} rotary table{' was' if one else 's were'} dropped: "
            f"{'it follows' if one else 'they follow'} from the config"
        )
        tables = [name for name in reading.rotary if name.endswith("inv_freq") and name in slots]
        if other := next((n for n in tables if not _agrees(slots[n], config)), None):
            note += f", which gives other frequencies than {other} (is its rope right?)"
        notes.append(note)
    if count := len(reading.masks):
        one = count == 1
        notes.append(
            f"{count} mask{'' if one else 's'} or positions {'was' if one else 'were'} dropped, "
            f"such as {min(reading.masks)}: attention is causal"
        )
    return notes


def _agrees(slot: Slot, config: DIYConfig) -> bool:
    """True for the frequencies of the config, stretched or (as old files have them) not."""
    if slot.dtype not in FLOATS or slot.shape != (config.head_size // 2,):
        return False
    table = read_slot(slot).astype(np.float64)
    plain = dataclasses.replace(config, rope_scaling=None)
    tolerance = _TOLERANCES[slot.dtype]
    return any(
        np.allclose(table, inverse_frequencies(one), rtol=tolerance, atol=_SMALLEST_F16)
        for one in (config, plain)
    )
