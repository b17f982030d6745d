"""`CheckpointError`: every fault kept, the first twenty shown."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from diy_core import CheckpointError
from diy_core.data import DataError
from diy_core.errors import naming


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


def test_a_temporary_place_is_called_what_it_stands_for() -> None:
    temporary, given = Path("/tmp/.m.tmp-0"), Path("my/model")
    with pytest.raises(CheckpointError) as caught, naming(temporary, given):
        raise CheckpointError(temporary / "config.json", ["has no size", f"see {temporary}/b"])
    assert str(caught.value.where) == "my/model/config.json"
    assert caught.value.faults == ["has no size", "see my/model/b"]
    assert str(caught.value).splitlines()[0] == "my/model/config.json: 2 faults"
    with pytest.raises(ValueError, match=r"^my/model is odd$"), naming(temporary, given):
        raise ValueError(f"{temporary} is odd")
    with pytest.raises(OSError, match="full") as failed, naming(temporary, given):
        raise OSError(28, "full", str(temporary / "a"), None, str(temporary))
    assert (failed.value.filename, failed.value.filename2) == ("my/model/a", "my/model")
    with pytest.raises(CheckpointError) as other, naming(temporary, given):
        raise CheckpointError(Path("/elsewhere"), "is broken")
    assert other.value.where == Path("/elsewhere")


@pytest.mark.parametrize("kind", [CheckpointError, DataError])
def test_an_error_comes_whole_from_another_process(kind: type[CheckpointError]) -> None:
    error = kind(Path("/model"), [f"fault {i}" for i in range(30)])
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.where, copy.faults, str(copy)) == (error.where, error.faults, str(error))
