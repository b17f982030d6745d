"""Records in JSON that are too large, too deep, or say a thing twice."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from diy_core.data import DataError, prepare
from diy_core.data.json_values import Refused, Values, parse


def refuse(tmp_path: Path, content: str, said: str, name: str = "a.jsonl") -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        prepare(tmp_path / name, tmp_path / "out", tokenizer="bytes")


@pytest.mark.parametrize("inner", ["[]", "{}", "1", '"a"', '{"a":1}'])
def test_items_are_counted(tmp_path: Path, inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIY_LIMITS", "record_items=1000")
    line = '{"text": [' + ",".join([inner] * 1001) + "]}\n"
    refuse(tmp_path, '{"text": "x"}\n' + line, "line 2: has more than 1000 items: if you trust")
    refuse(tmp_path, line, "has more than 1000 items: if you trust", "a.json")


def test_what_is_in_texts_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIY_LIMITS", "record_items=100")
    values = Values()
    for text in (",[{" * 200, '\\",[' * 200, "\\" * 399 + '",,,' * 99):
        assert values.read(json.dumps({"text": text})) == {"text": text}
    with pytest.raises(Refused):
        values.read(json.dumps([",[{" * 200] * 101))


@pytest.mark.parametrize("depth", [99, 100, 500, 900, 100_000])
def test_depth_is_bounded(tmp_path: Path, depth: int) -> None:
    line = '{"text": "x", "other": ' + "[" * depth + "]" * depth + "}\n"
    if depth < 100:
        (tmp_path / "a.jsonl").write_text(line)
        assert len(prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bytes")) == 1
    else:
        refuse(tmp_path, line, "line 1: is n(ested more than 100 levels deep|ot JSON)")


def test_texts_in_json_are_bounded_too() -> None:
    assert parse('[{"name": "f"}]') == [{"name": "f"}]
    for text, said in (("[" * 500 + "]" * 500, "is nested more"), ("[", "is not JSON: Expecting")):
        with pytest.raises(ValueError, match=f"^{said}"):
            parse(text)


def test_a_name_that_stands_twice_is_found_in_linear_time() -> None:
    names = [f'"k{i}":1' for i in range(100_000)]
    begun = time.process_time()
    with pytest.raises(Refused, match="has the name 'k99999' twice"):
        Values().read("{" + ",".join([*names, '"k99999":2']) + "}")
    assert time.process_time() - begun < 5  # to compare each with each takes minutes


def test_a_line_that_is_too_long_is_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIY_LIMITS", "record_bytes=1000")
    line = json.dumps({"text": "x" * (5 << 20)})
    said = r"has a line of more than 1000 bytes \(line 3\): write it as several, or, if you trust"
    for end in ("", "\n", '\n{"text": "x"}\n'):
        refuse(tmp_path, f'{{"text": "x"}}\n\n{line}{end}', said)
    refuse(tmp_path, line, "has a line of more than 1000 bytes: if you trust", "a.json")
