"""What `prepare` says of what it read: in `data.json`, in lines for people, and as JSON."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from diy_core.data import DataError, TokenData, prepare
from diy_core.data import sources as cutting
from diy_core.data.counts import Counts
from diy_jax.__main__ import main
from tests.data_files import jsonl, texts

EXPECTED = {
    "files": {".jsonl": 1, ".parquet": 1, ".txt": 2, ".txt.gz": 1},
    "packed": {"count": 1, "names": ["{}/c.txt.gz"]},
    "passed_over": {
        "hidden": {"count": 1, "names": ["{}/.DS_Store"]},
        "of a kind that is not read": {"count": 5, "names": [f"{{}}/{i}.csv" for i in range(5)]},
    },
    "same_content": [],
    "same_name": [],
    "documents": {"completion": 1, "text": 33},
    "empty": 3,
    "without_tokens": 0,
    "marks": 1,
    "columns": {"id": 32, "url": 1},
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    top = tmp_path / "corpus"
    top.mkdir()
    rows: list[Any] = [{"text": f"line {i}", "id": i} for i in range(30)]
    rows += [{"text": " "}, {"prompt": "1 + 1 = ", "completion": "2", "url": "x"}]
    jsonl(top / "a.jsonl", rows)
    table = pyarrow.table({"text": ["row", "\n"], "id": [1, None]})
    pyarrow.parquet.write_table(table, top / "b.parquet")
    (top / "c.txt.gz").write_bytes(gzip.compress("one\n\ufefftwo".encode()))
    (top / "d.txt").write_text(" \n")
    (top / "e.txt").write_text("\ufefflast")
    (top / ".DS_Store").touch()
    for i in range(5):
        (top / f"{i}.csv").touch()
    return top


@pytest.mark.parametrize("workers", [1, 2])
def test_a_field_that_no_record_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 30)
    options: dict[str, Any] = {"tokenizer": "bytes", "field": "body", "workers": workers}
    pairs: list[dict[str, Any]] = [{"prompt": "a", "completion": text} for text in "bcd"]
    (tmp_path / "plain.txt").write_text("one")
    empties: list[dict[str, Any]] = [{}, {"body": None}]
    for empty in empties:  # they would be read without it
        source = jsonl(tmp_path / "pairs.jsonl", [pair | empty for pair in pairs])
        with pytest.raises(DataError, match=r"no record holds .*\(field='body'\): name one that"):
            prepare([source, tmp_path / "plain.txt"], tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
    source = jsonl(tmp_path / "pairs.jsonl", [*pairs, {"body": "last"}])
    assert "last" in texts(prepare(source, tmp_path / "out", **options))[-1]


def test_a_field_without_use_is_said_in_the_words_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.txt").write_text("one")
    argv = ["data", f"{tmp_path}/plain.txt", "--out", f"{tmp_path}/out", "--tokenizer", "bytes"]
    assert main([*argv, "--field", "body"]) == 0
    assert "field 'body' is not used: no source has records\n" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0
    assert "field" not in capsys.readouterr().err
    argv[1] = str(jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "completion": "b"}]))
    assert main([*argv, "--overwrite", "--field", "body"]) == 2
    assert "asked for (--field body): name one that the records" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_the_report_says_what_was_read_and_what_was_not(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 200)
    options: dict[str, Any] = {"tokenizer": "bytes", "validation": 0.1, "workers": workers}
    data = prepare(corpus, tmp_path / "out", **options)
    expected = json.loads(json.dumps(EXPECTED).replace("{}", str(corpus)))
    assert data.report == expected | {"splits": {}, "json_texts": {"count": 0, "names": []}}
    validation = TokenData(tmp_path / "out" / "validation")
    assert validation.report is None
    documents = texts(data) + texts(validation)
    assert len(documents) == 34
    assert "one\ntwo" in documents  # files that were joined have their marks in the middle
    assert "last" in documents


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_that_the_tokenizer_has_no_token_for_are_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    """As one does that knows no bytes and has no token for what it does not know."""
    monkeypatch.setattr(cutting, "SHARD_BYTES", 30)
    model = {"type": "BPE", "vocab": {"h": 0, "e": 1}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    source = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in ("xyz", "he", "?", " ", "z")])
    words = ["data", str(source), "--tokenizer", str(tmp_path), f"--workers={workers}", "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    said = "left out, as the tokenizer has no token for anything in them: 3 documents\n"
    assert said in capsys.readouterr().err
    data = TokenData(tmp_path / "out")
    assert data.report is not None
    assert (data.report["without_tokens"], data.report["empty"]) == (3, 1)
    assert data.tokens[:].tolist() == [0, 1]
    jsonl(source, [{"text": "xyz"}])
    assert main([*words, str(tmp_path / "none")]) == 2
    assert "hold no documents: the tokenizer has no token for anything" in capsys.readouterr().err


def test_the_command_says_it_in_lines_or_as_json(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", str(corpus), "--tokenizer", "bytes", "--workers", "1", "--out"]
    assert main([*words, str(tmp_path / "lines")]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == (
        "read 1 .jsonl, 1 .parquet, 2 .txt, 1 .txt.gz files: 1 completion, 33 texts"
    )
    assert printed.err.splitlines() == [
        f"unpacked and read: {corpus}/c.txt.gz",
        f"passed over, hidden: {corpus}/.DS_Store",
        f"passed over, of a kind that is not read: {corpus}/0.csv, {corpus}/1.csv, {corpus}/2.csv "
        "and 2 more",
        "left out, nothing but white space: 3 documents",
        "passed over, columns (and how many records have them): id (32), url (1)",
        "left out, byte order marks inside of files: 1",
    ]
    out = tmp_path / "json"
    assert main([*words, str(out), "--json", "--validation", "0.1"]) == 0
    told, data = json.loads(capsys.readouterr().out), TokenData(out)
    assert told.pop("report") == data.report
    held_out = told.pop("validation")
    assert told == {"path": str(out), "documents": len(data), "tokens": data.tokens.size}
    assert held_out["path"] == str(out / "validation")
    assert held_out["documents"] + told["documents"] == 34


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', True),
        ('\ufeff\n {"messages": []}\n...', True),
        ('{"text": "a"}', False),  # an example of it, perhaps
        ('{"a": 1}\n{"a": 2}\n', False),
        ("{text: a}\n{text: b}\n", False),
        ("A text\n{}\n", False),
    ],
)
def test_json_lines_that_are_learnt_as_text_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: bool
) -> None:
    (tmp_path / "a.txt").write_text(content)
    data = prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer="bytes", progress=True)
    assert texts(data) == [content.removeprefix("\ufeff")]
    line = (
        "JSON lines, learnt as text with braces and names (call them .jsonl to read records): "
        f"{tmp_path / 'a.txt'}"
    )
    assert (line in capsys.readouterr().err.splitlines()) is said
    assert data.report is not None
    assert data.report["json_texts"]["count"] == said


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00000-of-2.jsonl", "train-00001-of-2.jsonl", "TEST.jsonl"], "test (1), train (2)"),
        (["train/a.jsonl", "dev/a.jsonl", "b.jsonl"], "train (1), validation (1)"),
        (["my_val.jsonl", "test/train.jsonl"], "train (1), validation (1)"),
        (["train/a.jsonl", "train/b.jsonl", "c.jsonl"], None),
        (["trains.jsonl", "contest.jsonl", "values.jsonl"], None),
        (["test.jsonl"], None),
        (["a/test.jsonl", "a/TestSet.jsonl"], None),
        (["train.jsonl", "held_out.jsonl"], "held out (1), train (1)"),
        (["trainset/a.jsonl", "heldout/a.jsonl"], "held out (1), train (1)"),
        (["my-held-out.jsonl", "a.jsonl", "b.jsonl"], "held out (1), others (2)"),
        (["a.jsonl", "holdout_2.jsonl"], "held out (1), others (1)"),
        (["testset.jsonl", "a.jsonl"], "others (1), test (1)"),
        (["a.jsonl", "valid.jsonl", "eval.jsonl"], "others (1), validation (2)"),
        (["train_data.jsonl", "evaluation-split.jsonl"], "train (1), validation (1)"),
        (["devset.jsonl", "traindata.jsonl"], "train (1), validation (1)"),
        (["held.jsonl", "out.jsonl", "withheld_output.jsonl"], None),
    ],
)
def test_splits_that_are_read_as_one_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], splits: str | None
) -> None:
    top = tmp_path / "validation" / "corpus"  # what lies above all of them says nothing
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        jsonl(top / name, [{"text": name}])
    prepare(top, tmp_path / "out", tokenizer="bytes", progress=True)
    line = "several splits, all of them read as one (and their files): "
    assert capsys.readouterr().err.splitlines() == ([] if splits is None else [line + splits])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "größer\n".encode("utf-16"), r"a.txt: looks like UTF-16 \(.* -f UTF-16 -t UTF-8"),
        ("a.jsonl", '{"text": "größer"}\n'.encode("utf-16-le"), "a.jsonl: looks like UTF-16LE"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', r"line 1: byte 13 \(0xe9\).*Latin-1.*'.*café.*iconv"),
        ("a.txt", b"he said \x93no\x94\n", r"byte 8 \(0x93\) is not UTF-8: .*Windows-1252.*CP1252"),
        ("a.txt", b"text\0\0", r"byte 4 is NUL \(0x00\)"),
        ("a.jsonl", b'{"text": "x"}\n\0\0\0', r"line 2: byte 14 is NUL \(0x00\)"),
        (
            "a.jsonl",
            gzip.compress(b"{}", mtime=0),
            "a.jsonl: looks like gzip data: add .gz to its name",
        ),
        ("a.txt", b"\0\x05\x16\x07\0\x02", "looks like a resource fork of macOS: leave it out"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer .*lfs pull"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer .*lfs pull"),
    ],
)
def test_other_encodings_are_named_with_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, tmp_path / "out", tokenizer="bytes")


def test_packed_files_are_counted_whatever_they_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [tmp_path / f"{i}.gz" for i in range(5)]
    for name in names:
        name.write_bytes(gzip.compress(name.name.encode()))
    data = prepare(names, tmp_path / "out", tokenizer="bytes", progress=True)
    assert data.report is not None
    assert data.report["packed"]["count"] == 5
    first = ", ".join(map(str, names[:3]))
    assert f"unpacked and read: {first} and 2 more\n" in capsys.readouterr().err


def test_line_ends_of_windows_separate_records_and_stay_in_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n{"text": "c"}\r\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "d"}\n\xef\xbb\xbf{"text": "e"}\n')
    (tmp_path / "c.txt").write_bytes(b"f\r\ng\r\n")
    data = prepare(tmp_path, tmp_path / "out", tokenizer="bytes")
    assert texts(data) == ["a\r\nb", "c", "d", "e", "f\r\ng\r\n"]


def test_lines_are_numbered_without_reading_the_file_again_for_each_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 100)
    rows: list[Any] = [{"text": f"line {i}"} for i in range(2000)]
    file = jsonl(tmp_path / "a.jsonl", [*rows[:1500], {"no": 1}, *rows])
    read = 0
    count = Path("/proc/self/io")

    def bytes_read() -> int:
        return int(count.read_text().split()[1])

    if count.exists():
        read = bytes_read()
    with pytest.raises(DataError, match=r"a\.jsonl, line 1501: has no text in 'text'"):
        prepare(file, tmp_path / "out", tokenizer="bytes")
    if count.exists():
        assert bytes_read() - read < 20 * file.stat().st_size


def test_files_that_were_unpacked_and_left_beside_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are read, since a name is no proof; the lines say so."""
    top = tmp_path / "corpus"
    (top / "other").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "other/a.txt"):
        (top / name).write_text(name)
    for name in ("a.txt.gz", "other/b.txt.gz"):
        (top / name).write_bytes(gzip.compress(name.encode()))
    data = prepare(top, tmp_path / "out", tokenizer="bytes", progress=True)
    assert len(data) == 5
    assert data.report is not None
    assert data.report["same_name"] == [[f"{top}/a.txt", f"{top}/a.txt.gz"]]
    line = f"the same name, packed and not, all of them read: {top}/a.txt, {top}/a.txt.gz"
    assert line in capsys.readouterr().err


def test_columns_with_ever_new_names_do_not_fill_the_memory() -> None:
    counts = Counts()
    for i in range(3000):
        counts.pass_over_columns(["id", f"column {i}"])
    assert len(counts.columns) == 1000
    assert counts.columns["id"] == 3000


def test_a_name_of_a_column_that_is_no_name_is_cut() -> None:
    counts = Counts()
    counts.pass_over_columns(["x" * 1_000_000, "y" * 100])
    assert counts.columns == {f"{'x' * 100} ...": 1, "y" * 100: 1}


def test_a_column_whose_name_is_not_utf8_is_passed_over_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "\\ud800": 1}\n')
    data = prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bytes")
    assert data.report is not None
    assert data.report["columns"] == {"\\ud800": 1}
