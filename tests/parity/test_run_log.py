"""Where two logs part."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.inspect.run_log import compare_logs, read_log
from tests.written_runs import line


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def compared(folder: Path, one: Any, other: Any, dtype: str | None = "float32") -> dict[str, Any]:
    return compare_logs(write(folder / "one", *one), write(folder / "other", *other), dtype)


def test_equal_logs_have_no_first_difference(tmp_path: Path) -> None:
    found = compared(tmp_path, map(line, range(1, 4)), map(line, range(1, 6)))
    assert found == {
        "compared": 3,
        "range": [1, 3],
        "alone": {"A": 0, "B": 2},
        "first": None,
        "loss": None,
        "largest": {"step": None, "relative": 0.0},
        "rounding": None,
        "damaged": {"A": [], "B": []},
    }


def test_the_first_difference_and_the_largest(tmp_path: Path) -> None:
    one = [line(step) for step in range(1, 6)]
    other = [line(1), line(2, grad_norm=1.5), line(3, 2.1), line(4, 1.0), line(5, 2.2)]
    found = compared(tmp_path, one, other)
    assert found["first"] == {
        "step": 2,
        "tokens": 100,
        "values": {"grad_norm": {"A": 1.0, "B": 1.5, "relative": 0.5}},
    }
    assert found["loss"] == {"step": 3, "A": 2.0, "B": 2.1, "relative": pytest.approx(0.05)}
    assert found["largest"] == {"step": 4, "relative": 0.5}


def test_steps_are_joined_by_their_number(tmp_path: Path) -> None:
    found = compared(tmp_path, map(line, (0, 2, 3, 7)), map(line, (0, 1, 3, 5, 7, 9)))
    assert (found["compared"], found["range"], found["first"]) == (3, [0, 7], None)
    assert found["alone"] == {"A": 1, "B": 3}
    assert compared(tmp_path, [line(1)], [line(2)])["range"] is None


@pytest.mark.parametrize(
    ("dtype", "change", "explained"),
    [
        ("float32", {"loss": 2.0 * (1 + 3e-7)}, True),
        ("float32", {"loss": 2.0 * (1 + 1e-6)}, False),
        ("float32", {"loss": 2.0, "grad_norm": 1 + 3e-7}, True),
        ("float32", {"loss": 2.0, "grad_norm": 1.001}, False),
        ("float64", {"loss": 2.0 * (1 + 6e-16)}, True),
        ("float64", {"loss": 2.0 * (1 + 3e-7)}, False),
        # The mean over 100 tokens has a tenth of the rounding of one.
        ("bfloat16", {"loss": 2.0 * (1 + 3e-3)}, True),
        ("bfloat16", {"loss": 2.0 * (1 + 4e-3)}, False),
        # No rounding makes another number of tokens, or a loss that is not finite.
        ("bfloat16", {"loss": 2.0, "tokens": 99}, False),
        ("bfloat16", {"loss": None}, False),
        ("float32", {"loss": 2.0, "learning_rate": np.nextafter(1e-3, 1)}, False),
    ],
)
def test_rounding_explains_a_first_difference_or_not(
    tmp_path: Path, dtype: str, change: dict[str, Any], explained: bool
) -> None:
    found = compared(tmp_path, [line(1)], [line(1) | change], dtype)
    assert found["rounding"]["explains"] is explained
    assert compared(tmp_path, [line(1)], [line(1) | change], None)["rounding"] is None


def test_a_perplexity_is_judged_by_its_loss(tmp_path: Path) -> None:
    """A loss of 20 that is 1e-7 off, which is 2e-6 in its exponential."""
    loss, other = 20.0, 20.000002
    one = {"step": 0, "loss": loss, "perplexity": math.exp(loss), "tokens": 9}
    found = compared(tmp_path, [one], [one | {"loss": other, "perplexity": math.exp(other)}])
    assert found["first"]["values"]["perplexity"]["relative"] > found["rounding"]["bound"]
    assert found["rounding"]["explains"] is True


def test_values_that_are_no_numbers_have_no_distance(tmp_path: Path) -> None:
    found = compared(tmp_path, [line(1, None), line(2, None)], [line(1, None), line(2)])
    assert found["loss"] == {"step": 2, "A": None, "B": 2.0, "relative": None}
    assert found["largest"]["step"] is None
    found = compared(tmp_path, [line(1, 0.0)], [line(1)])
    assert found["largest"] == {"step": 1, "relative": math.inf}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_the_same_in_both_or_has_no_distance(
    tmp_path: Path, value: float
) -> None:
    assert compared(tmp_path, [line(1, value)], [line(1, value)])["first"] is None
    for one, other in ((value, 2.0), (2.0, value), (value, None)):
        found = compared(tmp_path, [line(1, one)], [line(1, other)])
        assert found["first"]["values"]["loss"]["relative"] is None
        assert found["largest"]["step"] is None
        assert found["rounding"]["explains"] is False


def test_what_one_line_alone_has_counts(tmp_path: Path) -> None:
    more = line(1) | {"z_loss": 0.5}
    for one, other, values in (
        (line(1), more, {"A": None, "B": 0.5}),
        (more, line(1), {"A": 0.5, "B": None}),
    ):
        found = compared(tmp_path, [one], [other])
        assert found["first"]["values"] == {"z_loss": values | {"relative": None}}
        assert found["rounding"]["explains"] is False
    found = compared(tmp_path, [line(1)], [line(1, skipped=True)])
    assert found["first"]["values"]["skipped"] == {"A": False, "B": True, "relative": None}


@pytest.mark.parametrize("tokens", [{"tokens": 0}, {"tokens": None}, {}])
def test_a_step_without_tokens_is_a_mean_over_one(tmp_path: Path, tokens: dict[str, Any]) -> None:
    one = {"step": 0, "loss": 2.0} | tokens
    found = compared(tmp_path, [one], [one | {"loss": 2.01}], "bfloat16")
    assert found["first"]["tokens"] == 1
    assert found["rounding"] == {"dtype": "bfloat16", "bound": 4 * 2.0**-7, "explains": True}


def test_damaged_lines_are_numbered_and_the_rest_is_compared(tmp_path: Path) -> None:
    one, other = (write(tmp_path / n, *map(line, range(1, 6))) for n in ("one", "other"))
    lines = one.read_bytes().splitlines(keepends=True)
    one.write_bytes(b"".join([lines[0], b'{"step": 2, "lo\n', *lines[2:], lines[0][:9]]))
    found = compare_logs(one, other, "float32")
    assert found["compared"] == 4
    assert found["damaged"] == {"A": [2], "B": []}  # the last is being written


def test_an_absent_log_is_empty(tmp_path: Path) -> None:
    assert list(read_log(tmp_path / "none", [])) == []
    assert compare_logs(tmp_path / "none", tmp_path / "nor", "float32")["compared"] == 0
