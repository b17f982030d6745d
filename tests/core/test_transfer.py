"""From one checkpoint to another: what is summed, rounded, refused, read back and reported."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from diy_core import CheckpointError
from diy_core.checkpoints import transfer as module
from diy_core.checkpoints.gguf.reader import GGUFReader
from diy_core.checkpoints.gguf.writer import GGUFWriter
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.checkpoints.interface import Reader, Stored, groups
from diy_core.checkpoints.manifest import Manifest
from diy_core.checkpoints.transfer import Summary, transfer
from tests.tiny_checkpoints import (
    DTYPES,
    EMBEDDING,
    HEAD,
    MANIFEST,
    NORM,
    QUERY,
    UNTIED,
    UP,
    Arrays,
    change_one_value,
    put,
    read,
    read_config,
    same,
    snapshot,
    sums,
    sums_of,
    weights,
)

WRITERS: dict[str, Any] = {"hf": HFWriter, "gguf": GGUFWriter}
READERS: dict[str, Any] = {"hf": HFReader, "gguf": GGUFReader}


def write(source: Path, to: Path, kind: str = "hf", **options: Any) -> Summary:
    return transfer(HFReader(source), functools.partial(WRITERS[kind], to), **options)


NO_TOKENIZER = "has no tokenizer.json, so the GGUF file has no tokenizer to run text with"


def mixed() -> Arrays:
    arrays = weights()
    for name, dtype in ((QUERY, "bfloat16"), (NORM, "float16"), (UP, "float16")):
        arrays[name] = arrays[name].astype(DTYPES[dtype])
    return arrays


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_cast_unless_it_is_asked_for(tmp_path: Path, kind: str) -> None:
    source = put(tmp_path / "model", mixed(), torch_dtype="float32")
    done = write(source, tmp_path / "out", kind)
    notes = [NO_TOKENIZER] if kind == "gguf" else []
    assert (done.kind, done.tensors, done.notes) == (kind, 20, notes)
    assert done.nbytes == sum(array.nbytes for array in mixed().values())
    assert done.verified
    assert not done.source_verified
    assert done.seconds > 0
    assert sums_of(tmp_path / "out") == sums(mixed())
    found = READERS[kind](tmp_path / "out")
    assert same(dict(found.read_all(verify=True)), mixed())
    # A config cannot name one dtype where there are three.
    assert not {"dtype", "torch_dtype"} & found.config.to_dict().keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", WRITERS)
def test_all_tensors_are_rounded_as_torch_rounds(tmp_path: Path, kind: str, dtype: str) -> None:
    source = put(tmp_path / "model", weights(dtype="float64"))
    write(source, tmp_path / "out", kind, dtype=DTYPES[dtype])
    found = dict(READERS[kind](tmp_path / "out").read_all(verify=True))
    for name, array in weights(dtype="float64").items():
        expected = torch.from_numpy(array).to(getattr(torch, dtype))
        assert str(found[name].dtype) == dtype
        assert np.array_equal(found[name].astype(np.float64), expected.double().numpy())
    assert READERS[kind](tmp_path / "out").config.extra["torch_dtype"] == dtype
    assert READERS[kind](tmp_path / "out").config.extra["dtype"] == dtype


@pytest.mark.parametrize(("dtype", "large"), [("float16", 65536.0), ("bfloat16", 3.4e38)])
def test_every_tensor_with_values_too_large_is_named(
    tmp_path: Path, dtype: str, large: float
) -> None:
    arrays = weights()
    arrays[QUERY][0, :2], arrays[NORM][3] = -large, large
    source = put(tmp_path / "model", arrays)
    with pytest.raises(CheckpointError) as error:
        write(source, tmp_path / "out", dtype=DTYPES[dtype])
    for fault, (name, count) in zip(error.value.faults, {QUERY: 2, NORM: 1}.items(), strict=True):
        assert f"tensor {name} has {count} values too large for {dtype}" in fault
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", WRITERS)
def test_values_that_are_not_finite_are_all_named(tmp_path: Path, kind: str, value: float) -> None:
    arrays = weights()
    arrays[QUERY][1, 2] = arrays[NORM][0] = value
    source = put(tmp_path / "model", arrays)
    with pytest.raises(CheckpointError) as error:
        write(source, tmp_path / "out", kind)
    assert [fault.split(" has ")[0] for fault in error.value.faults] == [
        f"tensor {QUERY}",
        f"tensor {NORM}",
    ]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("limit", [1, 1000, 1024, 3000, 1 << 30])
def test_groups_are_as_large_as_they_may_be(limit: int) -> None:
    stored = {name: Stored(a.shape, a.dtype) for name, a in weights().items()}
    found = list(groups(stored, limit))
    assert [name for group in found for name in group] == list(stored)
    sizes = [sum(stored[name].nbytes for name in group) for group in found]
    for group, size, following in zip(found, sizes, [*found[1:], []], strict=True):
        assert size <= limit or len(group) == 1
        assert not following or size + stored[following[0]].nbytes > limit
    assert all(found)


def small_groups(monkeypatch: pytest.MonkeyPatch, size: int, ahead: int) -> None:
    for reader_or_writer in (HFReader, GGUFReader, HFWriter, GGUFWriter):
        monkeypatch.setattr(reader_or_writer, "group", size)
    monkeypatch.setattr(module, "_READ_AHEAD", ahead)


@pytest.mark.parametrize("ahead", [0, 1000, 1 << 30])
@pytest.mark.parametrize("size", [1, 2000])
@pytest.mark.parametrize("kind", WRITERS)
def test_groups_of_any_size_make_the_same_checkpoint(
    tmp_path: Path, kind: str, size: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put(tmp_path / "model", mixed())
    write(source, tmp_path / "whole", kind)
    whole = snapshot(tmp_path / "whole") if kind == "hf" else (tmp_path / "whole").read_bytes()
    small_groups(monkeypatch, size, ahead)
    write(source, tmp_path / "parts", kind)
    parts = snapshot(tmp_path / "parts") if kind == "hf" else (tmp_path / "parts").read_bytes()
    assert parts == whole


def test_faults_of_all_groups_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch, 1, 1 << 30)
    arrays = weights()
    arrays[QUERY][0, 0] = arrays[UP][0, 0] = np.nan
    arrays[NORM][0] = 1e6
    with pytest.raises(CheckpointError) as error:
        write(put(tmp_path / "model", arrays), tmp_path / "out", dtype=DTYPES["float16"])
    assert [fault.split()[1] for fault in error.value.faults] == [QUERY, UP, NORM]


@pytest.mark.parametrize("verify", [True, False])
def test_progress_rises_to_the_whole(tmp_path: Path, verify: bool) -> None:
    seen: dict[str, list[int]] = {}
    total = sum(array.nbytes for array in weights(dtype="float16").values())

    def progress(what: str, done: int, of: int) -> None:
        assert of == total
        seen.setdefault(what, []).append(done)

    source = put(tmp_path / "model", weights())
    write(source, tmp_path / "out", dtype=DTYPES["float16"], verify=verify, progress=progress)
    assert list(seen) == (["writing", "verifying"] if verify else ["writing"])
    for values in seen.values():
        assert values == sorted(set(values))
        assert (values[0], values[-1], len(values)) == (0, total, 21)


# The source against its own sums.


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A directory with a manifest."""
    write(put(tmp_path / "plain", weights()), tmp_path / "known")
    return tmp_path / "known"


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_a_source_that_changed_is_refused_unless_nobody_verifies(
    tmp_path: Path, known: Path, dtype: str | None
) -> None:
    kind = DTYPES[dtype] if dtype else None
    assert write(known, tmp_path / "first", dtype=kind).source_verified
    change_one_value(known, QUERY)
    change_one_value(known, NORM)
    with pytest.raises(CheckpointError) as error:
        write(known, tmp_path / "second", dtype=kind)
    assert error.value.faults == [
        f"tensor {name} does not have the SHA-256 of the manifest: its values changed"
        for name in (QUERY, NORM)
    ]
    assert not (tmp_path / "second").exists()
    done = write(known, tmp_path / "third", dtype=kind, verify=False)
    assert not done.verified
    assert not done.source_verified
    assert sums_of(tmp_path / "third") == sums(read(tmp_path / "third"))


def test_a_source_with_other_tensors_than_its_manifest_is_refused(
    tmp_path: Path, known: Path
) -> None:
    put(known, weights(UNTIED), UNTIED)
    with pytest.raises(CheckpointError, match=r"manifest is of other weights: see tensor lm_head"):
        write(known, tmp_path / "out")
    assert write(known, tmp_path / "out", verify=False).tensors == 21


def test_a_damaged_manifest_is_refused(tmp_path: Path, known: Path) -> None:
    (known / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match=r"diy_manifest\.json: is not a manifest"):
        write(known, tmp_path / "out")
    write(known, tmp_path / "out", verify=False)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_tied_model_with_sums_can_be_given_a_head(tmp_path: Path, known: Path, kind: str) -> None:
    done = transfer(HFReader(known, untie=True), functools.partial(WRITERS[kind], tmp_path / "out"))
    assert done.source_verified
    expected = weights() | {HEAD: weights()[EMBEDDING]}
    assert sums_of(tmp_path / "out") == sums(expected)
    found = READERS[kind](tmp_path / "out")
    assert not found.config.tie_word_embeddings
    assert same(dict(found.read_all()), expected)


def test_the_manifest_names_the_folder_that_it_was_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one that the program runs in, and one whose name is not text."""
    for name, called in (("model", "model"), (os.fsdecode(b"m\xff"), "m?")):
        monkeypatch.chdir(put(tmp_path / name, weights()))
        write(Path(), tmp_path / "out")
        manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
        assert manifest["source"] == f"hf {called}"


# What stands on the disk against what was written.


def damaging(writer: type, damage: Callable[[Path], None]) -> Any:
    """The writer, with a disk that changes something before it is read back."""

    class Damaged(writer):  # type: ignore[misc]
        def finish(self, manifest: Manifest) -> Reader:
            super().finish(manifest)
            damage(self._temporary)
            reader: Reader = READERS[self.kind](self._temporary)
            return reader

    return Damaged


def flip_in_gguf(path: Path) -> None:
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.attn_q.weight")
    content = bytearray(path.read_bytes())
    content[int(tensor.data_offset) + 5] ^= 16
    path.write_bytes(content)


DAMAGE = {"hf": lambda path: change_one_value(path, QUERY), "gguf": flip_in_gguf}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_lies_is_found_out(tmp_path: Path, kind: str, old: bool) -> None:
    source = put(tmp_path / "model", weights())
    if old:
        write(put(tmp_path / "other", weights(seed=1)), tmp_path / "out", kind)
    before = snapshot(tmp_path)
    liar = functools.partial(damaging(WRITERS[kind], DAMAGE[kind]), tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"tensor {QUERY} does not have the SHA-256"):
        transfer(HFReader(source), liar)
    assert snapshot(tmp_path) == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    transfer(HFReader(source), liar, verify=False)


def test_a_write_that_goes_wrong_in_the_system_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = os.pwrite

    def pwrite(file: int, data: Any, at: int) -> int:
        if bytes(data) == weights()[UP].tobytes():
            data = bytes(data[:-1]) + b"\0"
        return usual(file, data, at)

    source = put(tmp_path / "model", weights())
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(CheckpointError, match=f"tensor {UP} does not have the SHA-256"):
        write(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["model"]


def test_a_tensor_that_is_not_there_any_more_is_found_out(tmp_path: Path) -> None:
    def forget_the_head(path: Path) -> None:
        arrays = read(path)
        del arrays[HEAD]
        values = read_config(path) | {"tie_word_embeddings": True}
        put(path, arrays)
        (path / "config.json").write_text(json.dumps(values))

    source = put(tmp_path / "model", weights(UNTIED), UNTIED)
    liar = functools.partial(damaging(HFWriter, forget_the_head), tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"tensor {HEAD} is missing"):
        transfer(HFReader(source), liar)


def test_the_sum_is_of_what_was_read_and_not_of_what_was_written(tmp_path: Path) -> None:
    """A writer that reorders wrongly must not be believed."""

    class Wrong(GGUFWriter):
        def prepare(self, name: str, array: Any) -> Any:
            return super().prepare(name, array)[::-1] if name == QUERY else array

    with pytest.raises(CheckpointError, match=f"tensor {QUERY} does not have the SHA-256"):
        transfer(
            HFReader(put(tmp_path / "model", weights())),
            functools.partial(Wrong, tmp_path / "out.gguf"),
        )
    digest = hashlib.sha256(weights()[QUERY].tobytes()).hexdigest()
    write(tmp_path / "model", tmp_path / "out.gguf", "gguf")
    assert sums_of(tmp_path / "out.gguf")[QUERY] == digest
