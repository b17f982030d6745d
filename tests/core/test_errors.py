"""`CheckpointError`: every fault kept, the first twenty shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from diy_core import CheckpointError


def test_one_fault_is_one_line() -> None:
    for faults in ("is broken", ["is broken"]):
        error = CheckpointError(Path("/model"), faults)
        assert isinstance(error, ValueError)
        assert str(error) == "/model: is broken"
        assert error.faults == ["is broken"]
        assert error.where == Path("/model")


def test_several_faults_are_a_list() -> None:
    error = CheckpointError("params", ["a", "b"])
    assert str(error) == "params: 2 faults\n  - a\n  - b"


@pytest.mark.parametrize(("count", "more"), [(20, None), (21, "and 1 more"), (100, "and 80 more")])
def test_many_faults_are_all_kept_and_twenty_are_shown(count: int, more: str | None) -> None:
    error = CheckpointError("params", [f"fault {i}" for i in range(count)])
    assert len(error.faults) == count
    first, *shown = str(error).splitlines()
    assert first == f"params: {count} faults"
    assert shown == [f"  - fault {i}" for i in range(20)] + ([f"  - {more}"] if more else [])
