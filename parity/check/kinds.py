"""The kinds of check and their dtypes; the command line reads them before any framework."""

from __future__ import annotations

from collections.abc import Sequence

from diy_core.errors import listed
from diy_core.system.arguments import did_you_mean

DTYPES = ("float64", "float32", "bfloat16")
# In which dtypes each kind of check is made.
KINDS: dict[str, tuple[str, ...]] = {
    "logits": DTYPES,
    "blocks": DTYPES,
    "gradients": DTYPES,
    "decode": DTYPES,
    "chunked": ("float64",),
    "ragged": ("float64",),
    "kept": ("float64",),
    "packed": ("float64",),
    "context": ("float64",),
    "rotations": DTYPES,
    "embeddings": ("float64",),
    "cache-gradients": ("float64",),
    "step": ("float64",),
    "optimizer": ("float64",),
    "training": ("float64", "float32"),
}


def chosen_kinds(text: str | None) -> tuple[str, ...]:
    """The kinds of check of `logits,training`; all of them where none are chosen.

    Raises:
        ValueError: it is a list of nothing.
    """
    if text is None:
        return tuple(KINDS)
    if not (names := tuple(name.strip() for name in text.split(",") if name.strip())):
        raise ValueError(f"--checks names none, got {text!r}; choose some of {listed(KINDS)}")
    return names


def require_supported(dtypes: Sequence[str], kinds: Sequence[str]) -> None:
    """Raise where a choice of dtypes and kinds of check is not to be had.

    Raises:
        ValueError: an unknown dtype or kind, or a choice of both that leaves nothing to check.
    """
    for what, names, known in (("dtype", dtypes, DTYPES), ("check", kinds, tuple(KINDS))):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"{what} {unknown[0]!r} is not supported; choose one of {listed(known)}"
                f"{did_you_mean(unknown[0], known)}"
            )
    if not any(dtype in KINDS[kind] for kind in kinds for dtype in dtypes):
        where = [f"{kind} in {', '.join(KINDS[kind])}" for kind in kinds]
        raise ValueError(
            f"nothing to check in {', '.join(dtypes) or 'no dtype'}: there is "
            f"{'; '.join(where) or 'no kind of check'}"
        )
