"""What is read from sources, and what is refused, with its place."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from diy_core.data import DataError, TokenData, preparation, prepare
from diy_core.data import sources as cutting
from diy_core.data.shard_files import ShardFile
from tests.data_files import files, jsonl, texts, tokenizer
from tests.odd_files import ODD_FILES, put_odd_file

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


def test_each_text_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "z.txt").write_text("last\r\n", newline="")
    (tmp_path / "in" / "a.md").write_text("first 你好")
    (tmp_path / "in" / "b" / "c.txt").write_bytes(b"\xef\xbb\xbfmarked")
    (tmp_path / "in" / "d.txt").write_text(" \n")
    (tmp_path / "in" / "other.csv").write_text("1,2")
    data = prepare(tmp_path / "in", tmp_path / "out", tokenizer="bytes")
    assert texts(data) == ["first 你好", "marked", "last\r\n"]
    pattern = prepare(
        [tmp_path / "in" / "z.txt", f"{tmp_path}/in/**/*.txt", tmp_path / "in" / "other.csv"],
        tmp_path / "pattern",
        tokenizer="bytes",
    )
    assert texts(pattern) == ["last\r\n", "marked", "1,2"]  # each file once


@pytest.mark.parametrize("shard", [4, 7, 16, 1 << 20])
def test_documents_between_separators_whatever_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", shard)
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n\n\n\nthree\n\nünf\n\n  \n\nsix and some more\n\n\n")
    data = prepare(file, tmp_path / "blank", tokenizer="bytes", separator="\n\n")
    assert texts(data) == ["one\ntwo", "three", "ünf", "six and some more"]
    file.write_text("one\n<|x|>\ntwo<|x|><|x|>three")
    data = prepare(file, tmp_path / "named", tokenizer="bytes", separator="<|x|>")
    assert texts(data) == ["one", "two", "three"]


def test_jsonl_and_parquet_hold_a_document_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 64)
    rows = [f"number {i} 🙂\n\n" for i in range(30)]
    lines = jsonl(tmp_path / "a.jsonl", [{"id": i, "text": t} for i, t in enumerate(rows)])
    lines.write_text(lines.read_text() + "\n" + '{"text": ""}')
    table = pyarrow.table({"text": rows, "id": list(range(30))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    for name in ("a.jsonl", "a.parquet"):
        data = prepare(tmp_path / name, tmp_path / "out", tokenizer="bytes", overwrite=True)
        assert texts(data) == rows
    other = jsonl(tmp_path / "b.jsonl", [{"body": "x"}])
    assert texts(prepare(other, tmp_path / "o2", tokenizer="bytes", field="body")) == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: is empty: remove it"),
        ("a.txt", b"good\nb\xe4d", r"a.txt: byte 6 \(0xe4\) is not UTF-8"),
        ("a.txt", b" \n ", "hold no documents"),
        ("a.jsonl", b'{"text": "x"}\n\n{"body": "y"}\n', "line 3: has no text in 'text' .*body"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1: has no text .* text \(int\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: is not JSON"),
        (
            "a.jsonl",
            b'{"text": "x"}\n' + b"[" * 200_000 + b"]" * 200_000,
            "a.jsonl, line 2: is not J",
        ),
        ("a.jsonl", b'{"text": ' + b"[" * 90 + b"]" * 90 + b"}", r"line 1: has no text .*\(list"),
        ("a.jsonl", b"[" * 90 + b"]" * 90, "line 1: is not an object but list"),
        ("a.jsonl", b"[" * 900 + b"]" * 900, "line 1: is nested more than 100 levels deep"),
        ("a.jsonl", b'{"text": "x"}\n{"n": ' + b"1" * 5000 + b"}", "a.jsonl, line 2: is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n["y"]\n', "line 2: is not an object but list"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"line 2: byte 24 \(0xff\) is not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: text must be UTF-8, and holds"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "line 1: a chat needs a tokenizer"),
        ("a.parquet", b"nothing", "a.parquet: is not a parquet file"),
        ("a.json", b"{}", "write one object a line and name it .jsonl"),
        ("a.txt.gz", b"x", "is named .gz and holds no gzip data: take that ending off"),
        ("a.zip", b"PK", r"is an archive \(.zip\): unpack it first"),
        ("a.tar.gz", b"x", r"is an archive \(.tar.gz\): unpack it first"),
        ("a.parquet.gz", b"x", r"is a packed parquet file \(.parquet.gz\): unpack it"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / name, tmp_path / "out", tokenizer="bytes")
    assert not (tmp_path / "out").exists()


def test_a_place_is_counted_from_the_start_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 16)
    content = b"good enough\n\n" * 9
    (tmp_path / "a.txt").write_bytes(content + b"b\xe4d")
    with pytest.raises(DataError, match=rf"byte {len(content) + 1} \(0xe4\) is not UTF-8"):
        prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer="bytes", separator="\n\n")
    columns = {"text": ["x"] * 9 + [None], "instruction": [None] * 9 + ["x"]}
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    with pytest.raises(DataError, match=r"a.parquet, row 10: has no text in 'text'"):
        prepare(tmp_path / "a.parquet", tmp_path / "out", tokenizer="bytes")


def test_a_parquet_without_text_lists_its_columns(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text' and no column 'messages', only body"):
        prepare(tmp_path / "a.parquet", tmp_path / "out", tokenizer="bytes")


def test_all_sources_that_are_wrong_are_listed(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"(?s)2 faults.*a\.txt: is empty.*b\.txt: is empty"):
        prepare(tmp_path, tmp_path / "out", tokenizer="bytes")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"(?s)no file ending in \.txt.*no file at .*x\*"):
        prepare([tmp_path / "none", f"{tmp_path}/x*"], tmp_path / "out", tokenizer="bytes")


def test_an_empty_file_beside_others_is_passed_over(tmp_path: Path) -> None:
    top = tmp_path / "corpus"
    top.mkdir()
    (top / "part-0.jsonl").write_text('{"text": "one"}\n')
    for name in ("part-1.jsonl", "part-2.parquet", "part-3.txt"):
        (top / name).touch()
    (top / "part-4.jsonl.gz").write_bytes(gzip.compress(b""))
    data = prepare(top, tmp_path / "out", tokenizer="bytes")
    assert data.report is not None
    assert len(data) == 1
    assert data.report["passed_over"] == {
        "empty": {
            "count": 4,
            "names": [
                *(f"{top}/part-1.jsonl", f"{top}/part-2.parquet", f"{top}/part-3.txt"),
                f"{top}/part-4.jsonl.gz",
            ],
        }
    }
    with pytest.raises(DataError, match=r"part-1\.jsonl: is empty: remove it"):  # named itself
        prepare([top, top / "part-1.jsonl"], tmp_path / "other", tokenizer="bytes")


def test_the_builtin_corpus_is_english_and_recorded(tmp_path: Path) -> None:
    data = prepare("builtin:pydoc", tmp_path / "out", tokenizer="bytes", validation=0.1)
    held_out = TokenData(tmp_path / "out" / "validation")
    assert len(data) + len(held_out) > 70
    assert len(held_out) == round(0.1 * (len(data) + len(held_out)))
    assert any("statement" in text for text in texts(data))
    (source,) = data.description["sources"]
    assert source["path"] == "builtin:pydoc"
    assert re.fullmatch("[0-9a-f]{64}", source["sha256"])


def test_a_separator_that_is_nowhere_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("a.txt", "1\r\n\r\n2"), ("b.md", "1\n\n2"), ("c.txt", "\n"), ("d", "")):
        (tmp_path / name).write_text(content, newline="")
    jsonl(tmp_path / "e.jsonl", [{"text": "x"}])

    def say(*names: str) -> str:
        sources = [tmp_path / name for name in names]
        options = {"tokenizer": "bytes", "separator": "\n\n", "overwrite": True}
        prepare(sources, tmp_path / "out", progress=True, **options)  # type: ignore[arg-type]
        said = capsys.readouterr().err.splitlines(keepends=True)
        return "".join(line for line in said if line.startswith("separator"))

    assert say("b.md") == say("b.md", "e.jsonl") == ""
    a = tmp_path / "a.txt"
    assert say("b.md", "a.txt", "c.txt", "e.jsonl") == (
        "separator '\\n\\n' does not occur in 2 of the 3 text files, each of which is one "
        f"document: {a}, {tmp_path / 'c.txt'}\n"
    )
    assert say("a.txt", "c.txt") == (
        "separator '\\n\\n' occurs in none of the 2 text files: each is one document\n"
    )
    assert say("a.txt") == f"separator '\\n\\n' does not occur in {a}, which is one document\n"
    assert say("e.jsonl") == "separator '\\n\\n' is not used: no source is a text file\n"


def test_a_separator_is_asked_for_where_a_document_would_not_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 10)
    monkeypatch.setenv("DIY_LIMITS", "document_bytes=30")
    (tmp_path / "a.txt").write_text("one\n\n" * 20)
    for separator in (None, "<|end|>"):
        with pytest.raises(DataError, match="has a document of more than 30 bytes: say what"):
            prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer="bytes", separator=separator)
    prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer="bytes", separator="\n\n")


@pytest.mark.parametrize("kind", ["texts", "chats"])
def test_parquet_and_jsonl_of_the_same_rows_come_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 500)
    chat = [{"role": "user", "content": "the "}, {"role": "assistant", "content": "he"}]
    rows: list[Any] = [{"text": f"he the {i} ü🙂\n\n" * (i % 7 + 1)} for i in range(60)]
    if kind == "chats":
        rows = [{"messages": chat * (i + 1)} for i in range(60)]
    directory = tokenizer(tmp_path / "model")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    sources = jsonl(tmp_path / "a.jsonl", rows), tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sources[1], row_group_size=7)
    one, other = (
        prepare(source, tmp_path / source.suffix, tokenizer=directory, validation=0.2)
        for source in sources
    )
    for part in (".", "validation"):
        told = [json.loads((data.path / part / "data.json").read_text()) for data in (one, other)]
        for one_told in told:
            del one_told["sources"]
            one_told.get("report", {}).pop("files", None)
        assert ("report" in told[0]) == (part == ".")
        assert told[0] == told[1]
        written = [files(data.path / part) for data in (one, other)]
        names = {name for name in written[0] if name.endswith(".bin")}
        assert ("counted.bin" in names) == (kind == "chats")
        assert {n: written[0][n] for n in names} == {n: written[1][n] for n in names}


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".jsonl.gz", ".parquet"])
def test_a_source_that_changes_while_it_is_tokenised_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    # And nothing of what was made of it is kept, should it change back.
    file, other = (tmp_path / f"{name}{ending}" for name in "ab")
    for path, rows in ((file, [{"text": "one"}]), (other, [{"text": "two"}])):
        if ending == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            content = jsonl(tmp_path / "c", rows).read_bytes()
            path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    (tmp_path / "c").unlink(missing_ok=True)
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    usual = ShardFile.save

    def save_and_replace(*arguments: Any) -> None:
        usual(*arguments)
        os.utime(other, ns=times)
        os.replace(other, file)

    monkeypatch.setattr(ShardFile, "save", save_and_replace)
    with pytest.raises(DataError, match=rf"a{ending}: was changed or replaced while it was read"):
        prepare(file, tmp_path / "out", tokenizer="bytes")
    assert [item.name for item in tmp_path.iterdir()] == [f"a{ending}"]


def size_read() -> int:
    """Bytes that this process has read."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("ending", [".jsonl", ".txt", ".jsonl.gz", ".json", ".parquet"])
def test_a_source_is_read_twice_however_many_shards_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 1 << 16)
    rows = [{"text": os.urandom(500).hex()} for _ in range(4000)]  # 4 MB, 60 shards
    file = jsonl(tmp_path / f"a{ending}", rows)
    if ending == ".jsonl.gz":
        file.write_bytes(gzip.compress(file.read_bytes(), 1))
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=20)
    prepare(jsonl(tmp_path / "b.jsonl", rows[:1]), tmp_path / "first", tokenizer="bytes")
    before = size_read()
    prepare(file, tmp_path / "out", tokenizer="bytes", separator="\n")
    read = size_read() - before
    # What was made of it is read once, as shards: it is summed while it is written.
    made = sum(item.stat().st_size for item in (tmp_path / "out").iterdir())
    assert read - made < 2.2 * file.stat().st_size + (1 << 20)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
def test_a_source_that_changes_in_place_is_refused_where_nobody_looks_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    # As where a preparation is killed while another text is there, and goes on with the first.
    file = tmp_path / f"a{ending}"
    contents = []
    for word in ("one", "two"):
        rows = [{"text": f"{word} {i}"} for i in range(40)]
        if ending == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=5)
            contents.append(file.read_bytes())
        else:
            contents.append(jsonl(file, rows).read_bytes())
    file.write_bytes(contents[0])
    monkeypatch.setattr(cutting, "SHARD_BYTES", 64)
    save, saved = ShardFile.save, 0

    def change(*arguments: Any) -> None:
        nonlocal saved
        save(*arguments)
        saved += 1
        if saved == 3:
            file.write_bytes(contents[1])

    monkeypatch.setattr(ShardFile, "save", change)
    monkeypatch.setattr(preparation, "_require_unchanged", lambda *_: pytest.fail("came here"))
    with pytest.raises(DataError, match=rf"a{ending}: was changed or replaced while it was read"):
        prepare(file, tmp_path / "out", tokenizer="bytes", separator="\n")
    assert saved == 3
    monkeypatch.undo()
    monkeypatch.setattr(cutting, "SHARD_BYTES", 64)
    file.write_bytes(contents[0])
    told = texts(prepare(file, tmp_path / "out", tokenizer="bytes", separator="\n"))
    assert len(told) == 40
    assert not [text for text in told if "two" in text]


@pytest.mark.parametrize("kind", sorted(set(ODD_FILES) - {"directory"}))
@pytest.mark.parametrize("ending", [".txt", ".jsonl.gz", ".parquet"])
def test_only_regular_files_are_sources(tmp_path: Path, ending: str, kind: str) -> None:
    put_odd_file(tmp_path / f"a{ending}", kind)
    for named in (tmp_path, tmp_path / f"a{ending}"):
        with pytest.raises(DataError, match=rf"a{ending}|holds no"):
            prepare(named, tmp_path / "out", tokenizer="bytes")


@pytest.mark.parametrize("option", ["separator", "field"])
def test_an_option_that_is_not_utf8_is_named(tmp_path: Path, option: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=f"^{option} must be UTF-8, and holds the byte 0xff"):
        prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer="bytes", **{option: "\udcff"})
