"""Checkpoints, weights in memory and states of optimizers, between the formats and the twins."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.convert.formats import KINDS, convert, open_checkpoint

__all__ = ["KINDS", "convert", "open_checkpoint"]


def __getattr__(name: str) -> Any:
    """What `parity.convert.formats` has, loaded when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from parity.convert import formats

    return getattr(formats, name)
