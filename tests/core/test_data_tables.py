"""Parquet files that unfold to more than they look like are refused, and large ones read."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from diy_core.data import DataError, prepare

MOST = 300 << 10  # kilobytes more than a small file takes


def write(path: Path, table: pyarrow.Table, **options: object) -> Path:
    pyarrow.parquet.write_table(table, path, compression="zstd", **options)
    return path


def one_text_many_times(path: Path) -> Path:
    indices = pyarrow.array(np.zeros(1000, np.int32))
    texts = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["x" * (16 << 20)]))
    return write(path, pyarrow.table({"text": texts}))


def a_list_of_nulls(path: Path) -> Path:
    count = 40_000_000
    nulls = pyarrow.ListArray.from_arrays(
        pyarrow.array([0, count], pyarrow.int32()), pyarrow.nulls(count, pyarrow.string())
    )
    return write(path, pyarrow.table({"messages": nulls}))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what is allocated")
@pytest.mark.parametrize("bomb", [one_text_many_times, a_list_of_nulls])
def test_what_unfolds_to_more_than_memory_is_refused(tmp_path: Path, bomb: object) -> None:
    assert callable(bomb)
    small = write(tmp_path / "small.parquet", pyarrow.table({"text": ["a"]}))
    file = bomb(tmp_path / "a.parquet")
    assert file.stat().st_size < 1 << 16
    program = (
        "import resource, sys\n"
        "from diy_core.data import prepare\n"
        "try: prepare(sys.argv[1], sys.argv[2], tokenizer='bytes')\n"
        "except ValueError as error: print(error, file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, end='')\n"
    )
    taken, said = zip(
        *(
            (int(done.stdout), done.stderr)
            for name in (small, file)
            for done in [
                subprocess.run(
                    [sys.executable, "-c", program, name, tmp_path / f"{name.stem}.out"],
                    capture_output=True,
                    text=True,
                    check=True,
                    cwd=Path(__file__).parents[2],
                )
            ]
        ),
        strict=True,
    )
    assert not said[0]
    assert f"{file}: needs more than" in said[1]
    assert "of memory for row 1 and those behind it: if you trust the file, DIY_LIMITS" in said[1]
    assert taken[1] < taken[0] + MOST


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what is allocated")
def test_the_bound_is_taken_off_again(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    file = one_text_many_times(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="needs more than"):
        prepare(file, tmp_path / "out", tokenizer="bytes")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_description_may_not_be_longer_than_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pyarrow.table({"text": ["a", "b"] * 100})
    file = write(tmp_path / "a.parquet", table, row_group_size=1)
    monkeypatch.setenv("DIY_LIMITS", "parquet_footer=10000")
    with pytest.raises(
        DataError, match=r"a description .* of more than 10000 bytes: write it with"
    ):
        prepare(file, tmp_path / "out", tokenizer="bytes")
    monkeypatch.delenv("DIY_LIMITS")
    assert len(prepare(file, tmp_path / "out", tokenizer="bytes")) == 200


def test_rows_are_read_in_order_whatever_they_take_together(tmp_path: Path) -> None:
    texts = [chr(97 + i % 26) * (1 << 20) if i % 3 else str(i) for i in range(24)]
    file = write(tmp_path / "a.parquet", pyarrow.table({"text": texts}), row_group_size=20)
    data = prepare(file, tmp_path / "out", tokenizer="bytes")
    assert [bytes(data[i][:-1].astype(np.uint8)).decode() for i in range(24)] == texts
