"""Packed files: read as what they hold, whatever the shards, or refused with what is wrong."""

from __future__ import annotations

import bz2
import errno
import gzip
import importlib
import io
import itertools
import json
import lzma
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diy_core.data import DataError, preparation, prepare
from diy_core.data import contents as reading
from diy_core.data import sources as cutting
from diy_core.data.contents import Contents, blocks
from diy_core.data.shard_files import ShardFile
from tests.data_files import files, jsonl, texts

zstd: Any = importlib.import_module("backports.zstd")
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zstd.compress(
        content, options={zstd.CompressionParameter.checksum_flag: 1}
    ),
}
BLOCK = 4096
EVERY = pytest.mark.parametrize("ending", PACKERS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", BLOCK)


def noise(size: int) -> bytes:
    return np.random.default_rng(0).bytes(size)


@EVERY
def test_packed_files_come_to_the_bytes_of_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 700)
    rows = [{"text": f"document {i} 🙂\r\n" * (i % 5 + 1)} for i in range(90)]
    plain = jsonl(tmp_path / "00.jsonl", rows[:30]), jsonl(tmp_path / "01.jsonl", rows[30:])
    (tmp_path / "02.txt").write_text("\n\n".join(row["text"] for row in rows))
    expected = prepare(
        [*plain, tmp_path / "02.txt"], tmp_path / "expected", tokenizer="bytes", separator="\n\n"
    )
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "00.jsonl").write_bytes(plain[0].read_bytes())
    for name in ("01.jsonl", "02.txt"):
        content = (tmp_path / name).read_bytes()
        half = len(content) // 2  # as `cat` joins packed files
        packed = PACKERS[ending](content[:half]) + PACKERS[ending](content[half:])
        (mixed / f"{name}{ending}").write_bytes(packed)
    for workers in (1, 2):
        data = prepare(
            mixed, tmp_path / f"{workers}", tokenizer="bytes", separator="\n\n", workers=workers
        )
        assert texts(data) == texts(expected)
        assert files(data.path)["tokens.bin"] == files(expected.path)["tokens.bin"]
    assert data.report is not None
    assert data.report["files"] == {".jsonl": 1, f".jsonl{ending}": 1, f".txt{ending}": 1}


@EVERY
def test_a_packed_file_goes_on_with_the_shards_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 100)
    content = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(60)).encode()
    source, out = tmp_path / f"a.jsonl{ending}", tmp_path / "out"
    source.write_bytes(PACKERS[ending](content))
    expected = prepare(source, tmp_path / "expected", tokenizer="bytes")
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("diy_core.data.preparation.merge", full)
        with pytest.raises(OSError, match="No space left"):
            prepare(source, out, tokenizer="bytes")
    shards = sorted((tmp_path / ".out.parts").glob("*.npz"))
    kept = {shard: shard.stat().st_mtime_ns for shard in shards[1::3]}
    assert len(kept) > 3
    for shard in set(shards) - set(kept):
        shard.unlink()
    made: list[Path] = []
    save = ShardFile.save
    monkeypatch.setattr(
        ShardFile, "save", lambda file, shard: (made.append(file.path), save(file, shard))
    )
    data = prepare(source, out, tokenizer="bytes")
    assert set(made) == set(shards) - set(kept)
    assert files(data.path) == files(expected.path)


@pytest.mark.parametrize(("ending", "workers"), [(".zst", 1), (".gz", 2), (".bz2", 3)])
def test_a_packed_file_is_unpacked_twice_however_many_workers_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, workers: int
) -> None:
    # Once to be cut, and once for all workers: none of them finds it, as its folder is renamed
    # as soon as it is open for the second time.
    monkeypatch.setattr(cutting, "SHARD_BYTES", 2000)
    content = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(900)).encode()
    folder, away = tmp_path / "there", tmp_path / "away"
    folder.mkdir()
    source = folder / f"a.jsonl{ending}"
    source.write_bytes(PACKERS[ending](content))
    opened: list[str] = []

    def blocks_of(path: str, *digest: Any) -> Iterator[bytes]:
        opened.append(path)
        stream = blocks(path, *digest)
        if len(opened) > 1:
            yield next(stream)
            folder.rename(away)
        yield from stream

    def require_unchanged(*arguments: Any) -> None:
        away.rename(folder)
        compare(*arguments)

    compare = preparation._require_unchanged
    for module in (reading, cutting):
        monkeypatch.setattr(module, "blocks", blocks_of)
    monkeypatch.setattr(preparation, "_require_unchanged", require_unchanged)
    data = prepare(source, tmp_path / "out", tokenizer="bytes", workers=workers)
    assert opened == [str(source)] * 2
    assert texts(data) == [f"document {i}" for i in range(900)]


def test_of_faults_in_a_packed_file_the_first_is_told_by_several_workers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 100)
    lines = ['{"text": }', *(json.dumps({"text": f"document {i}"}) for i in range(60))]
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress("\n".join(lines).encode()))
    plan = preparation.plan

    def plan_and_change(*arguments: Any) -> Any:
        made = plan(*arguments)
        source.write_bytes(gzip.compress("\n".join([*lines[:20], "{}"]).encode()))
        return made

    monkeypatch.setattr(preparation, "plan", plan_and_change)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz, line 1: is not JSON"):
        prepare(source, tmp_path / "out", tokenizer="bytes", workers=2)
    source.write_bytes(gzip.compress("\n".join(lines[1:]).encode()))
    lines[0] = lines[1]
    with pytest.raises(DataError, match=r"a.jsonl.gz: was changed or replaced while it was read"):
        prepare(source, tmp_path / "out", tokenizer="bytes", workers=2)


@EVERY
def test_packed_files_that_cannot_be_read_are_refused(tmp_path: Path, ending: str) -> None:
    pack = PACKERS[ending]
    whole = pack(noise(3 * BLOCK))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    file = tmp_path / f"a.jsonl{ending}"
    for content, message in (
        (whole[:-9], "is cut off: its .* data have no end"),
        (whole[: len(whole) // 2], "is cut off"),
        (whole + pack(b"more")[:-9], "is cut off"),
        (bytes(flipped), "is damaged: its .* data cannot be unpacked"),
        (whole + b"something else", "is damaged"),
        (b'{"text": "plain"}\n', f"is named {ending} and holds no .* data: take that ending off"),
        (b"\xff\xfea\0b\0", f"is named {ending} and .* it looks like UTF-16"),
        (pack(b""), "is empty when it is unpacked"),
        (pack("größer".encode("utf-16")), "looks like UTF-16 .*iconv -f UTF-16 -t UTF-8"),
        (pack(pack(b"twice")), "looks like .* data: add"),
        (b"", "is empty: remove it"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.jsonl\{ending}: {message}"):
            prepare(file, tmp_path / "out", tokenizer="bytes")


@EVERY
def test_streams_may_be_filled_up_with_zeros(tmp_path: Path, ending: str) -> None:
    content = noise(1000)
    file = tmp_path / f"a{ending}"
    file.write_bytes(PACKERS[ending](content) + b"\0" * 512 + PACKERS[ending](content))
    assert b"".join(blocks(str(file))) == content * 2
    if ending == ".zst":  # frames that hold no data, as pzstd writes them
        skipped = struct.pack("<II", 0x184D2A50, 4) + b"abcd"
        file.write_bytes(skipped + PACKERS[ending](content) + skipped)
        assert b"".join(blocks(str(file))) == content


def test_a_window_as_wide_as_zstd_makes_it_is_read(tmp_path: Path) -> None:
    content = b"a text"
    window = bytes([(28 - 10) << 3])  # log2 of its bytes: more than zstd's own limit of 27
    block = (len(content) << 3 | 1).to_bytes(3, "little") + content
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + window + block)
    assert b"".join(blocks(str(tmp_path / "a.txt.zst"))) == content


def test_a_skippable_frame_in_front_is_skipped(tmp_path: Path) -> None:
    """As pzstd writes it."""
    path = tmp_path / "a.txt.zst"
    whole = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + bytes(4) + PACKERS[".zst"](b"a text")
    path.write_bytes(whole)
    assert b"".join(blocks(str(path))) == b"a text"
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match="is cut off: its zstd data have no end"):
        list(blocks(str(path)))


@EVERY
def test_what_the_disk_cannot_give_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if content := super().read(size):
                return content
            raise OSError(errno.EIO, "Input/output error")

    half = PACKERS[ending](noise(1000))[:500]
    monkeypatch.setattr(reading, "open_regular", lambda *_: Broken(half))
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        list(blocks(str(tmp_path / f"a.txt{ending}")))


@EVERY
def test_stretches_are_read_in_one_pass_and_going_back_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    content, file = noise(3 * BLOCK + 5), tmp_path / f"a{ending}"
    file.write_bytes(PACKERS[ending](content))
    opened: list[str] = []
    monkeypatch.setattr(reading, "blocks", lambda path: opened.append(path) or blocks(path))
    contents = Contents()
    stops = [0, 10, 11, BLOCK, 2 * BLOCK + 3, len(content)]
    for start, stop in itertools.pairwise(stops):
        part = content[start:stop]
        assert contents.read(str(file), start, stop, sha256(part).hexdigest()) == part
    assert len(opened) == 1
    assert contents.read(str(file), 5, 9, sha256(content[5:9]).hexdigest()) == content[5:9]
    assert len(opened) == 2
    for stop, told in ((len(content) + 1, content[5:] + b"x"), (9, content[5:8] + b"x")):
        with pytest.raises(DataError, match="was changed or replaced while it was read"):
            contents.read(str(file), 5, stop, sha256(told).hexdigest())


@EVERY
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_a_document_that_unpacks_without_end_is_refused_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, kind: str
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", BLOCK)
    most = 2 * BLOCK
    monkeypatch.setenv("DIY_LIMITS", f"document_bytes={most},record_bytes={most}")
    file = tmp_path / f"a{kind}{ending}"
    file.write_bytes(PACKERS[ending](b"x" * (16 << 20)))
    assert file.stat().st_size < 1 << 15
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"of more than 8192 bytes, unpacked( \(line 1\))?: (say|write)"
        ):
            prepare(file, tmp_path / "out", tokenizer="bytes", separator="<|end|>")
        assert tracemalloc.get_traced_memory()[1] < 12 << 20  # 8 of them are the table of xz
    finally:
        tracemalloc.stop()


def test_a_file_that_is_not_a_regular_one_or_may_not_be_read_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    for source, message in (
        (tmp_path / "a.jsonl", "is not a regular file, and is read more than once: write it to a"),
        ("-", r"standard input \(-\) is not read, .*write it to a file"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(source, tmp_path / "out", tokenizer="bytes")
