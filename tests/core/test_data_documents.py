"""What lines and rows become documents, and what is said of those that cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from diy_core.data import DataError, prepare
from diy_core.data.documents import advice_on_line
from tests.data_files import texts


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(source: Path, **options: Any) -> list[str]:
    return texts(prepare(source, source.parent / "out", tokenizer="bytes", **options))


def refused(source: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(source, **options)
    return str(error.value)


@pytest.mark.parametrize(
    "line", ['{"text": "a", "text": "b"}', '{"text": "a", "n": [{"m": 1, "m": 1}]}']
)
def test_an_object_has_each_name_once(tmp_path: Path, line: str) -> None:
    said = refused(put(tmp_path / "a.jsonl", '{"text": "b"}\n' + line))
    assert "a.jsonl, line 2: has the name " in said
    assert said.endswith(" twice in one object: keep one of them")


def test_a_table_has_each_column_once(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet").endswith(
        "a.parquet: has two columns 'text': keep one of them"
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_record_without_a_value_is_empty(tmp_path: Path, kind: str) -> None:
    rows = [{"text": "a", "id": 1}, {"text": None, "id": 2}, {"text": "b", "id": 3}]
    file = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        put(file, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    data = prepare(file, tmp_path / "out", tokenizer="bytes")
    assert texts(data) == ["a", "b"]
    assert data.report is not None
    assert (data.report["empty"], data.report["documents"]) == (1, {"text": 2})
    assert texts(prepare(file, tmp_path / "named", tokenizer="bytes", field="text")) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "x"}, "has no text in 'text' and no list in 'messages', but id (str)"),
        ({"text": None, "instruction": "a", "output": "b"}, "holds Alpaca's instruction"),
        ({"text": None, "chosen": "a", "rejected": "b"}, "holds preferences (rejected)"),
        ({"text": None, "prompt": "a"}, "but prompt (str)"),
    ],
)
def test_a_record_that_means_something_else_is_not_empty(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    assert words in refused(put(tmp_path / "a.jsonl", json.dumps(row)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '[{"text": "a"}]',
            "is not an object but list: it looks like a list. jq -c '.[]' makes lines",
        ),
        ('[\n{"text": "a"}\n]', "it looks like a list. jq -c '.[]' makes lines of it"),
        ('{\n "text": "a"\n}', "an object over several lines. jq -c . makes lines of such"),
        ('{"text": "a"}\r{"text": "b"}\r', "its lines end in CR alone. tr '\\r' '\\n' makes lines"),
        ('{"text": "a"},\n{"text": "b"}', "commas stand between the lines. sed 's/,$//' takes"),
        ('{"text": "a"} {"text": "b"}', "several objects in a line. jq -c . puts each on its own"),
        ("<!doctype html><html></html>", "a page in place of the file. Download it again"),
        ('{"text": "a', "each line of a .jsonl file is one object"),
        ('"a"', "is not an object but str: a"),
    ],
)
def test_lines_that_are_not_an_object_are_called_what_they_look_like(
    tmp_path: Path, content: str, words: str
) -> None:
    assert words in refused(put(tmp_path / "a.jsonl", content))


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a\0b"},
        {"text": "a", "\0": 1},
        {"messages": [{"role": "user", "content": "a\0"}]},
        {"text": "a", "meta": {"notes": [["\0"]]}},
    ],
)
def test_a_nul_is_refused_however_json_writes_it(tmp_path: Path, row: dict[str, Any]) -> None:
    content = f"{json.dumps({'text': 'c'})}\n{json.dumps(row)}"
    said = refused(put(tmp_path / "a.jsonl", content))
    assert "a.jsonl, line 2: holds a NUL (\\u0000 in JSON), which no text holds" in said
    content = content.replace("\\u0000", "\0")
    said = refused(put(tmp_path / "a.jsonl", content))
    assert f"a.jsonl, line 2: byte {content.index(chr(0))} is NUL" in said


@pytest.mark.parametrize(
    "row", [{"text": "a\0b"}, {"messages": [{"role": "user", "content": "\0"}]}]
)
def test_a_nul_in_a_row_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert "a.parquet, row 1: holds a NUL" in refused(tmp_path / "a.parquet")


def test_a_nul_that_is_spelled_out_is_a_text(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", json.dumps({"text": "a\\u0000b"}))
    assert texts(prepare(file, tmp_path / "out", tokenizer="bytes")) == ["a\\u0000b"]


def test_of_a_line_like_nothing_known_nothing_is_said() -> None:
    assert advice_on_line('{"text": "a"}') is None


def test_lines_in_another_encoding_are_not_one_value(tmp_path: Path) -> None:
    put(tmp_path / "a.json", '{"text": "é"}\n{"text": "é"}\n'.encode("latin-1"))
    put(tmp_path / "b.jsonl", '{"text": "b"}\n')
    said = refused(tmp_path)
    assert "a.json, line 1: byte 10 (0xe9) is not UTF-8: it looks like Latin-1" in said
