"""Where the logs of two training runs part: `metrics.jsonl` and `evaluations.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from diy_core.training.log.json_lines import parse_line, read_lines

LOGS = ("metrics.jsonl", "evaluations.jsonl")
# What the framework computes (a perplexity follows from its loss). All else in a line follows from
# the config and the data.
COMPUTED = {"loss", "grad_norm", "perplexity"}
_EPSILONS = 4  # of the dtype, which rounding alone may come to: the floor of parity check too


def read_log(file: Path, damaged: list[int]) -> Iterator[dict[str, Any]]:
    """The lines of a log, in the order of their steps; a last one that is being written is none.

    Args:
        file: may be absent, which is empty.
        damaged: is given the numbers of the lines that cannot be read.
    """
    for number, line in enumerate(read_lines(file), 1):
        row = parse_line(line, file.name, foreign=True)
        if row is not None:
            yield row
        elif line.endswith(b"\n"):
            damaged.append(number)


def compare_logs(one: Path, other: Path, dtype: str | None) -> dict[str, Any]:
    """What differs between two logs, over the steps that both have.

    Args:
        one: a file.
        other: another; in both, steps rise.
        dtype: in which the models compute; None: rounding is not asked about.

    Returns:
        `compared`: how many steps, and `range`, the first and the last of them. `alone`: how many
        only one of them has. `first`: the first
        that differs, None if none does: `step`, its `tokens`, and in `values` both values of each
        key that differs, with `relative`, their difference by A's. `loss`: the first step whose
        loss differs, likewise. `largest`: of the loss, `step` and `relative`. `rounding`: whether
        rounding in `dtype` explains `first`. `damaged`: the numbers of lines that cannot be read.
    """
    damaged: tuple[list[int], list[int]] = ([], [])
    compared, bounds, alone = 0, [0, 0], {"A": 0, "B": 0}
    first: dict[str, Any] | None = None
    loss: dict[str, Any] | None = None
    largest: dict[str, Any] = {"step": None, "relative": 0.0}
    for a, b in _joined(read_log(one, damaged[0]), read_log(other, damaged[1])):
        if a is None or b is None:
            alone["A" if b is None else "B"] += 1
            continue
        step = a["step"]
        compared, bounds = compared + 1, [bounds[0] if compared else step, step]
        values = {
            key: {"A": a.get(key), "B": b.get(key), "relative": _relative(a.get(key), b.get(key))}
            for key in (a | b)
            if not _same(a.get(key), b.get(key))
        }
        if values and first is None:
            first = {"step": step, "tokens": max(int(a.get("tokens") or 1), 1), "values": values}
        if "loss" in values and loss is None:
            loss = {"step": step, **values["loss"]}
        apart = values.get("loss", {}).get("relative") or 0.0
        if apart > largest["relative"]:
            largest = {"step": step, "relative": apart}
    return {
        "compared": compared,
        "range": bounds if compared else None,
        "alone": alone,
        "first": first,
        "loss": loss,
        "largest": largest,
        "rounding": _rounding(first, dtype) if first and dtype else None,
        "damaged": {"A": damaged[0], "B": damaged[1]},
    }


def _joined(
    one: Iterator[dict[str, Any]], other: Iterator[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """The lines of each step; None where one of them has none."""
    a, b = next(one, None), next(other, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a["step"] < b["step"]):
            yield a, None
            a = next(one, None)
        elif a is None or b["step"] < a["step"]:
            yield None, b
            b = next(other, None)
        else:
            yield a, b
            a, b = next(one, None), next(other, None)


def _same(one: Any, other: Any) -> bool:
    """Equal; what is not a number (NaN) equals itself here, and no other value."""
    return one == other or (one != one and other != other)


def _relative(one: Any, other: Any) -> float | None:
    """The difference of two numbers by the first; None where one is not a finite number."""
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in (one, other)):
        return None
    if not (math.isfinite(one) and math.isfinite(other)):
        return None
    return abs(other - one) / abs(one) if one else math.inf


def _rounding(first: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Whether rounding alone explains the first step that differs, where weights still agree.

    Losses and norms are kept in float32 at least, and are means over tokens, whose roundings in a
    narrower dtype average out.
    """
    finest = "float64" if dtype == "float64" else "float32"
    fine, coarse = (float(ml_dtypes.finfo(np.dtype(name)).eps) for name in (finest, dtype))
    bound = _EPSILONS * max(fine, coarse / math.sqrt(first["tokens"]))
    values = {key: value for key, value in first["values"].items() if key != "perplexity"}
    explains = set(values) <= COMPUTED and all(
        value["relative"] is not None and value["relative"] <= bound for value in values.values()
    )
    return {"dtype": dtype, "bound": bound, "explains": explains}
