"""Parquet files that unfold to more than they look like are refused, and large ones read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from diy_core.data import DataError, prepare
from diy_core.data.table_process import borrowed
from diy_core.data.tables import Tables

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
        "from diy_core.data.table_process import _stop_all\n"
        "_stop_all()  # only children that ended are counted\n"
        "both = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN\n"
        "print(sum(resource.getrusage(who).ru_maxrss for who in both), end='')\n"
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
def test_what_needs_more_can_be_given_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = pyarrow.array(np.zeros(6, np.int32))
    texts = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["x" * (4 << 20)]))
    file = write(tmp_path / "a.parquet", pyarrow.table({"text": texts}))
    monkeypatch.setenv("DIY_LIMITS", "parquet_bytes=10000000")
    with pytest.raises(DataError, match=r"needs more than 1000.* bytes of memory for row 1 and"):
        prepare(file, tmp_path / "out", tokenizer="bytes")
    monkeypatch.setenv("DIY_LIMITS", "parquet_bytes=100000000")
    data = prepare(file, tmp_path / "out", tokenizer="bytes")
    assert [len(data[i]) for i in range(6)] == [(4 << 20) + 1] * 6


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what is allocated")
@pytest.mark.parametrize("most", [1, 100_000, 1_000_000, 3_000_000])
def test_no_limit_is_too_low_for_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    file = one_text_many_times(tmp_path / "a.parquet")
    monkeypatch.setenv("DIY_LIMITS", f"parquet_bytes={most}")
    with pytest.raises(DataError, match=r"needs more than .* bytes of memory for"):
        prepare(file, tmp_path / "out", tokenizer="bytes")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGSEGV, "has a damaged row group, 1: the process that read it ended with SIGSEGV"),
        (signal.SIGABRT, "needs more than [0-9]+ bytes of memory for row group 1: if you trust"),
    ],
)
def test_what_ends_the_library_is_an_error_of_the_file(
    tmp_path: Path, number: int, says: str
) -> None:
    file = str(write(tmp_path / "a.parquet", pyarrow.table({"text": ["a"]})))
    process = borrowed()
    process.give_back()  # so it is the next that is taken
    tables = Tables()
    tables.open(file)
    os.kill(process.pid, number)
    with pytest.raises(DataError, match=says):
        list(tables.rows(file, 0, ["text"], 1))
    tables.open(file)
    assert list(tables.rows(file, 0, ["text"], 1)) == [{"text": "a"}]


def test_a_process_that_ended_while_nobody_used_it_is_no_error(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", pyarrow.table({"text": ["a"]}))
    process = borrowed()
    process.give_back()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert len(prepare(file, tmp_path / "out", tokenizer="bytes")) == 1


def test_a_text_of_a_row_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", pyarrow.table({"text": ["a" * 999, "ä" * 501]}))
    monkeypatch.setenv("DIY_LIMITS", "document_bytes=1000")
    with pytest.raises(DataError, match="row 2: has a text of more than 1000 bytes: write it as"):
        prepare(file, tmp_path / "out", tokenizer="bytes")
    monkeypatch.setenv("DIY_LIMITS", "document_bytes=1002")
    assert len(prepare(file, tmp_path / "out", tokenizer="bytes")) == 2


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


def test_a_table_without_columns_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", pyarrow.table({}))
    with pytest.raises(DataError, match=r"a.parquet: has no columns: write it again"):
        prepare(file, tmp_path / "out", tokenizer="bytes")
