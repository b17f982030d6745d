"""What is not a UTF-8 is refused with its place and, where that can be seen, with what it is."""

from __future__ import annotations

import gzip
import io
import pickle
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet
import pytest
import safetensors.numpy

from diy_core.system.utf8 import NotUTF8, as_utf8, decode, recognise, writable

TEXT = 'Ein Text, der "größer" ist.\n' * 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("marked", [True, False])
def test_wide_encodings_are_named(encoding: str, marked: bool) -> None:
    content = TEXT.encode(encoding)
    if marked and encoding[-1] == "e":
        content = "\ufeff".encode(encoding) + content
    marked = marked or encoding[-1] != "e"
    name = encoding[:6].upper() if marked else encoding.upper().replace("-LE", "LE")
    name = name.replace("-BE", "BE")
    seen = recognise(content)
    assert seen is not None
    assert seen.startswith(name + " (")
    assert seen.endswith(f"convert it with iconv -f {name} -t UTF-8")
    assert content.decode(name) == ("\ufeff" + TEXT if name[-1] == "E" and marked else TEXT)


def test_other_files_are_named_and_text_is_not() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    for content, named in (
        (gzip.compress(b"x", mtime=0), "gzip data: add .gz"),
        (b"BZh91AY&SY\x00", "bzip2 data: add .bz2"),
        (pointer, "a Git LFS pointer and not the file itself: fetch it with git lfs pull"),
        (b"PK\x03\x04..", "a zip archive: unpack it"),
        (b"/annex/objects/MD5E-s3--0a.jsonl\n", "a pointer of git-annex and not the file itself"),
    ):
        assert (recognise(content) or "").startswith(named)
    for text in ("BZh is a word", "{}", "", "你好" * 50, "\ufeffmarked", "version 1"):
        assert recognise(text.encode()) is None
    for word in ("PAR1", "ARROW1", "FEA1", "ORC", "GGUF", "GIF89a", "ID3", "RIFF"):
        assert recognise(f'{word} {{"may be": "a word"}} ftyp WAVE\n'.encode()) is None


def test_files_that_libraries_write_are_named(tmp_path: Path) -> None:
    table, file = pa.table({"text": ["a", "b"]}), tmp_path / "file"
    stream, members = io.BytesIO(), io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    with tarfile.open(fileobj=members, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    database = sqlite3.connect(file)
    database.execute("create table a(b)")
    database.commit()
    database.close()
    written: dict[bytes, str] = {
        stream.getvalue(): "an Arrow stream: save it as parquet or JSON lines first",
        members.getvalue(): "a tar archive: unpack it first",
        file.read_bytes(): "an SQLite database: save it as parquet",
        pickle.dumps({"a": 1}): "a Python pickle: write its texts",
        safetensors.numpy.save({"a": np.ones(3)}): "safetensors: that is a model and no text",
    }
    for write, what in (
        (pa.parquet.write_table, "parquet: add .parquet to its name"),
        (pa.feather.write_feather, "an Arrow file: save it as"),
        (pa.orc.write_table, "an ORC file: save it as"),
        (lambda _, to: np.save(to, np.ones(3)), "a numpy array: write its texts"),
    ):
        target = tmp_path / f"{what[:5].strip()}.npy"
        write(table, target)
        written[target.read_bytes()] = what
    for content, what in written.items():
        assert (recognise(content) or "").startswith(what)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"GGUF\x03\0\0\0", "a GGUF file: that is a model"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"Obj\x01\x04", "an Avro file"),
        (b"\x04\x22\x4d\x18", "LZ4 data"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
        (b"{\\rtf1\\ansi text}", "an RTF document"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document"),
        (b"\xff\xd8\xff\xe0", "a picture"),
        (b"GIF89a\x01\0", "a picture"),
        (b"RIFF\x24\0\0\0WEBP", "a picture"),
        (b"RIFF\x24\0\0\0WAVE", "a sound recording"),
        (b"ID3\x04\0", "a sound recording"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"\x7fELF\x02", "a program"),
    ],
)
def test_binary_files_are_named_by_how_they_begin(head: bytes, what: str) -> None:
    assert (recognise(head) or "").startswith(what)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("naïve café".encode("latin-1"), r"byte 102 \(0xef\) is not UTF-8: it looks like Latin-1 "),
        ("naïve café".encode("latin-1"), "If 'naïve café' reads right, .* iconv -f LATIN1 -t"),
        (
            "he said “no”".encode("cp1252"),
            r"byte 108 \(0x93\).*Windows-1252.*'he said “no”' .*1252",
        ),
        (
            "ü".encode()[:1],
            r"byte 100 \(0xc3\) is not UTF-8: the text ends in the middle of a char",
        ),
        (b"\x00\x01\xff\x02", r"byte 102 \(0xff\) is not UTF-8: this is not text, or damaged"),
        ("ü good\0".encode(), r"byte 107 is NUL \(0x00\)"),
    ],
)
def test_a_byte_that_is_not_text_is_named_with_its_place(content: bytes, message: str) -> None:
    with pytest.raises(NotUTF8, match=message):
        decode(content, offset=100)


def test_a_whole_text_in_another_encoding_is_named() -> None:
    with pytest.raises(NotUTF8, match=r"byte 0 \(0xff\) is not UTF-8: the text looks like UTF-16 "):
        decode(TEXT.encode("utf-16"))
    assert decode("ü\r\n\ufeff".encode()) == "ü\r\n\ufeff"


def test_a_string_that_is_not_utf8_is_refused_by_what_it_holds() -> None:
    assert as_utf8("text", "größer") == "größer".encode()
    for text, holds in (
        ("a\ud83d", r"\ud83d, half of a character"),
        ("a\udcff", "the byte 0xff of another encoding"),
    ):
        with pytest.raises(NotUTF8) as error:
            as_utf8("separator", text)
        assert str(error.value) == f"separator must be UTF-8, and holds {holds}: remove it"
        assert writable(text) == f"a\\u{ord(text[1]):04x}"
