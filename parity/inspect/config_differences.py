"""Where two configs differ: each key that can change the function, once, with both values."""

from __future__ import annotations

from typing import Any

from diy_core.config import DIYConfig
from diy_core.rope_scaling import ROPE_KEYS

# They say how a model was first drawn, or are not compared as keys.
_ASIDE = {"initializer_range", *ROPE_KEYS}


def config_differences(one: DIYConfig, other: DIYConfig) -> dict[str, list[Any]]:
    """`{key: [the one's, the other's]}`, sorted; keys that change nothing are left out.

    A config.json has rotary embedding under three names; it is said once: as `rope_theta`, and as
    `rope_scaling` where one side has none or another kind, else as `rope_scaling.factor` and so on.
    """
    mine, theirs = one.to_dict(), other.to_dict()
    own = (set(mine) - set(one.extra) | set(theirs) - set(other.extra)) - _ASIDE
    pairs = {key: [mine.get(key), theirs.get(key)] for key in sorted(own)}
    pairs["rope_theta"] = [one.rope_theta, other.rope_theta]
    scalings = [c.rope_scaling.to_dict() if c.rope_scaling else {} for c in (one, other)]
    kinds = {scaling.get("rope_type") for scaling in scalings}
    if len(kinds) == 1:
        for key in scalings[0]:
            pairs[f"rope_scaling.{key}"] = [scaling[key] for scaling in scalings]
    else:
        pairs["rope_scaling"] = [scaling or None for scaling in scalings]
    return {key: values for key, values in sorted(pairs.items()) if values[0] != values[1]}
