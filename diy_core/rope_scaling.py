"""`RopeScaling`, and reading it out of either generation of `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from diy_core.errors import listed
from diy_core.fields import require_float, require_int

ROPE_TYPES = ("default", "linear", "llama3")
ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta")
_ROPE_THETA_ABSENT = 10000.0  # what transformers assumes where a file says nothing
_LLAMA3 = {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
_FIELDS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", *_LLAMA3},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that a model was trained on.

    `linear` divides every frequency by `factor` (position interpolation, arXiv:2306.15595).
    `llama3` divides the low frequencies, keeps the high ones and blends between (Llama 3.1,
    arXiv:2407.21783). Fields that a kind does not use must be None.

    Attributes:
        rope_type: `linear` or `llama3`.
        factor: what frequencies are divided by, above 0; below 1 it moves positions apart.
        low_freq_factor: `llama3`: a frequency that turns less often than this within the original
            context is divided, above 0.
        high_freq_factor: `llama3`: one that turns more often than this is kept, above 0. Where it
            is not greater than `low_freq_factor` nothing is blended, as transformers has it: all
            that turn less often than `low_freq_factor` are divided, all others kept.
        original_max_position_embeddings: `llama3`: that original context in tokens, at least 1.

    Raises:
        ValueError: an unknown `rope_type`, or a field missing, out of range, or without a use.
    """

    rope_type: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in ("linear", "llama3"):
            raise ValueError(
                f"rope_type {self.rope_type!r} is not supported: this reads {listed(ROPE_TYPES)}"
            )
        require_float(self, "factor", positive=True)
        extras = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        if self.rope_type == "linear":
            if used := [name for name in extras if getattr(self, name) is not None]:
                raise ValueError(f"rope_type 'linear' has no use for {', '.join(used)}")
            return
        require_float(self, "low_freq_factor", positive=True)
        require_float(self, "high_freq_factor", positive=True)
        require_int(self, "original_max_position_embeddings")

    def to_dict(self) -> dict[str, Any]:
        """The fields in use, under the names of a `config.json`."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


def read_rope(
    values: Mapping[str, Any], max_position_embeddings: int
) -> tuple[float, RopeScaling | None, list[str]]:
    """`rope_theta`, the scaling, and notes, out of either generation of `config.json`.

    Raises:
        ValueError: an unknown kind, fields without one, or two places of the file that disagree.
    """
    found: dict[str, Any] = {}
    named = False
    for key in ("rope_scaling", "rope_parameters"):
        block = values.get(key)
        if block is None or (key == "rope_scaling" and not block):  # as transformers has it
            continue
        if not isinstance(block, Mapping):
            raise ValueError(f"{key} must be an object or null, got {block!r}")
        block = {name: value for name, value in block.items() if value is not None}
        if not block:
            continue
        legacy = block.pop("type", None)
        named = named or legacy is not None or "rope_type" in block
        rope_type = block.setdefault("rope_type", legacy or "default")
        if legacy is not None and legacy != rope_type:
            raise ValueError(f"{key} has type {legacy!r} and rope_type {rope_type!r}: keep one")
        if values.get("rope_theta") is not None:
            block.setdefault("rope_theta", values["rope_theta"])
        if found and _meant(block) != _meant(found):
            raise ValueError(
                f"rope_scaling {values['rope_scaling']!r} and rope_parameters "
                f"{values['rope_parameters']!r} disagree: keep one of them (transformers takes "
                f"rope_scaling, with a rope_theta of {_meant(found)['rope_theta']})"
            )
        found = block | found
    theta = _one_of(values, found, "rope_theta", _ROPE_THETA_ABSENT)
    if "rope_theta" in values and values["rope_theta"] is None and "rope_theta" not in found:
        raise ValueError("rope_theta must be a finite number, got None")
    found.pop("rope_theta", None)
    if (partial := found.pop("partial_rotary_factor", 1)) != 1:
        raise ValueError(f"partial_rotary_factor {partial!r} is not supported; only 1 is")
    rope_type = found.pop("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        raise ValueError(
            f"rope_type {rope_type!r} is not supported: this reads {listed(ROPE_TYPES)}"
        )
    length = "original_max_position_embeddings"
    if rope_type == "llama3":
        known = _one_of(values, found, length, max_position_embeddings)
        whole = isinstance(known, float) and known.is_integer()
        found[length] = int(known) if whole else known  # transformers only divides by it
    else:
        found.pop(length, None)  # transformers does not read it either
    notes = _drop_unread(found, rope_type, named)
    if rope_type == "default":
        return theta, None, notes
    if "factor" not in found:
        raise ValueError(f"rope_type {rope_type!r} needs a factor")
    scaling = RopeScaling(rope_type=rope_type, **found)
    return theta, scaling, [*notes, *_oddities(scaling)]


def _oddities(scaling: RopeScaling) -> list[str]:
    """What a scaling may hold and hardly ever means, a sentence each."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    notes = []
    if scaling.factor < 1:
        notes.append(
            f"the rope factor {scaling.factor} is less than 1: it moves positions apart, as "
            "transformers has it, where others bring them closer together"
        )
    if low is not None and high is not None and high <= low:
        notes.append(
            f"high_freq_factor ({high}) is not greater than low_freq_factor ({low}): nothing is "
            "blended between them, as transformers has it"
        )
    return notes


def _meant(block: Mapping[str, Any]) -> dict[str, Any]:
    """What a block says, as far as its kind reads it, and what it leaves unsaid."""
    read = {"rope_type", "rope_theta", "partial_rotary_factor"}
    kind = block["rope_type"]
    read |= _FIELDS.get(kind, set(block)) if isinstance(kind, str) else set(block)
    said = {name: value for name, value in block.items() if name in read}
    return {"rope_theta": _ROPE_THETA_ABSENT, "partial_rotary_factor": 1} | said


def _drop_unread(block: dict[str, Any], rope_type: str, named: bool) -> list[str]:
    """Leave only the fields that this kind of scaling reads; a note about the others.

    Raises:
        ValueError: fields of a scaling whose kind is not given, or a block for each kind of layer.
    """
    unread = sorted(set(block) - _FIELDS[rope_type])
    nested = any(isinstance(block[name], Mapping) for name in unread)
    divided = {name: block[name] for name in unread} != {"factor": 1}  # by 1, of whichever kind
    if nested or (unread and not named and divided):
        hint = "" if nested else ": give the rope_type"
        raise ValueError(f"rope_type {rope_type!r} has no field {', '.join(unread)}{hint}")
    for name in unread:
        del block[name]
    return [f"rope_type {rope_type!r} has no use for {_shown(unread)}, left out"] if unread else []


def _one_of(values: Mapping[str, Any], block: Mapping[str, Any], key: str, absent: Any) -> Any:
    """A value that may stand at the top of a file, inside its rope block, or in both alike."""
    top, inside = values.get(key), block.get(key)
    if top is not None and inside is not None and top != inside:
        raise ValueError(f"{key} is {top} and {inside} inside the rope block: keep one of them")
    return next((value for value in (inside, top) if value is not None), absent)


def _shown(names: list[str]) -> str:
    return ", ".join(f"{name!r:.60}" for name in names[:8]) + (" ..." if len(names) > 8 else "")
