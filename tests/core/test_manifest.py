"""The manifest: sums by hashlib, and what is said where they are missing, damaged or others."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from diy_core import CheckpointError
from diy_core.checkpoints import manifest as module
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.writer import write_hf_directory
from diy_core.checkpoints.manifest import Entry, Manifest
from tests.odd_files import ODD_FILES, put_odd_file
from tests.tiny_checkpoints import (
    CONFIG,
    DTYPES,
    MANIFEST,
    NORM,
    QUERY,
    UNTIED,
    change_one_value,
    put,
    sums,
    weights,
)

SUM = "0123456789abcdef" * 4
DOCUMENT: dict[str, Any] = {
    "format": "diy-lm manifest 1",
    "source": "hf Modell ä",
    "versions": {"numpy": "2.0"},
    "tensors": {"w": {"dtype": "bfloat16", "shape": [2, 3], "sha256": SUM}},
}


def test_a_manifest_is_read_as_it_was_written() -> None:
    found = Manifest.from_json(json.dumps(DOCUMENT), "here")
    entry = Entry("bfloat16", (2, 3), SUM)
    assert found == Manifest({"w": entry}, "hf Modell ä", {"numpy": "2.0"})
    assert json.loads(found.to_json()) == DOCUMENT
    assert "ä" in found.to_json()
    assert Manifest.from_json(found.to_json().encode(), "here") == found


def test_it_says_what_wrote_it() -> None:
    found = Manifest.of({}, "hf model").versions
    assert found["python"] == platform.python_version()
    for name in ("diy-lm", "numpy", "torch", "jax", "gguf", "orbax-checkpoint"):
        assert found[name] == importlib.metadata.version(name)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("no-package-of-this-name", "numpy"))
    assert Manifest.of({}, "hf model").versions.keys() == {"python", "numpy"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sums_of_a_directory_are_those_of_hashlib(tmp_path: Path, dtype: str) -> None:
    arrays = weights(UNTIED, dtype)
    transposed = {name: np.asfortranarray(array) for name, array in arrays.items()}
    write_hf_directory(tmp_path / "model", UNTIED, transposed.items())
    document = json.loads((tmp_path / "model" / MANIFEST).read_text())
    assert document["source"] == "memory model"
    assert {n: e["sha256"] for n, e in document["tensors"].items()} == sums(arrays)
    assert all(
        entry["dtype"] == dtype and entry["shape"] == list(arrays[name].shape)
        for name, entry in document["tensors"].items()
    )
    assert HFReader(tmp_path / "model").sum_of(QUERY) == sums(arrays)[QUERY]


def test_each_difference_has_its_words() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    known = Manifest({"w": Entry("float32", (2, 3), sums({"w": array})["w"])})
    assert known.check("w", array) is None
    assert known.check("w", array + 1, sums({"w": array})["w"]) is None  # the sum is given
    assert known.check("v", array) == "tensor v is not in the manifest"
    assert known.check("w", array.T) == (
        "tensor w is float32 (3, 2), in the manifest float32 (2, 3)"
    )
    assert known.check("w", array.astype(np.float16)) == (
        "tensor w is float16 (2, 3), in the manifest float32 (2, 3)"
    )
    for changed in (known.check("w", -array), known.check("w", array, SUM)):
        assert changed == ("tensor w does not have the SHA-256 of the manifest: its values changed")


def entry(**values: Any) -> dict[str, Any]:
    return DOCUMENT | {"tensors": {"w": DOCUMENT["tensors"]["w"] | values}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "[" * 100_000,
        b"\xff\xfe",
        {},
        DOCUMENT | {"format": "diy-lm manifest 2"},
        DOCUMENT | {"tensors": []},
        DOCUMENT | {"tensors": {"w": 3}},
        DOCUMENT | {"tensors": {"w": {"dtype": "float32", "shape": [2]}}},
        DOCUMENT | {"versions": 3},
        {key: value for key, value in DOCUMENT.items() if key != "source"},
        entry(sha256=SUM[:-1]),
        entry(sha256=SUM.upper()),
        entry(sha256=SUM + "0"),
        entry(sha256=5),
        entry(shape=3),
        entry(shape=["x"]),
        entry(shape=[float("inf")]),
    ],
    ids=range(20),
)
def test_something_else_is_no_manifest(tmp_path: Path, content: Any) -> None:
    put(tmp_path, weights())
    text = json.dumps(content) if isinstance(content, dict) else content
    (tmp_path / MANIFEST).write_bytes(text.encode() if isinstance(text, str) else text)
    directory = HFReader(tmp_path)
    assert set(dict(directory.read_all())) == set(weights())  # which nobody asked to verify
    with pytest.raises(CheckpointError, match=r"diy_manifest\.json: is not a manifest: "):
        dict(directory.read_all(verify=True))


def test_a_manifest_of_any_length_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(DOCUMENT)
    (tmp_path / MANIFEST).write_text(text)
    monkeypatch.setenv("DIY_LIMITS", f"header_bytes={len(text)}")
    assert Manifest.of_directory(tmp_path) is not None
    (tmp_path / MANIFEST).write_text(text + " ")
    with pytest.raises(CheckpointError, match=f"is longer than {len(text)} bytes"):
        Manifest.of_directory(tmp_path)


def test_a_directory_may_have_none(tmp_path: Path) -> None:
    assert Manifest.of_directory(put(tmp_path, weights())) is None
    with pytest.raises(
        CheckpointError,
        match="has no manifest to verify against: `parity convert` and save_pretrained write one",
    ):
        dict(HFReader(tmp_path).read_all(verify=True))


@pytest.mark.parametrize("kind", ODD_FILES)
def test_one_that_cannot_be_read_is_not_none(tmp_path: Path, kind: str) -> None:
    reader = HFReader(put(tmp_path, weights()))
    put_odd_file(tmp_path / MANIFEST, kind)
    with pytest.raises(CheckpointError, match=f"{MANIFEST}: {ODD_FILES[kind]}"):
        _ = reader.manifest


def test_an_untouched_directory_is_verified_and_a_changed_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_hf_directory(path, CONFIG, weights().items())
    assert set(dict(HFReader(path).read_all(verify=True))) == set(weights())
    change_one_value(path, QUERY)
    dict(HFReader(path).read_all())
    with pytest.raises(CheckpointError, match=f"model: tensor {QUERY} does not have the SHA-256"):
        dict(HFReader(path).read_all(verify=True))


def test_another_dtype_of_the_same_values_is_another_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_hf_directory(path, CONFIG, weights().items())
    wide = weights() | {NORM: weights()[NORM].astype(np.float64)}
    safetensors.numpy.save_file(wide, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{NORM} is float64 \(16,\), in the manifest float"):
        dict(HFReader(path).read_all(verify=True))


@pytest.mark.parametrize("more", ["in the manifest", "in the file"])
def test_a_manifest_of_other_tensors_is_refused(tmp_path: Path, more: str) -> None:
    path = tmp_path / "model"
    one, other = (UNTIED, CONFIG) if more == "in the manifest" else (CONFIG, UNTIED)
    write_hf_directory(path, one, weights(one).items())
    put(path, weights(other), other)
    with pytest.raises(
        CheckpointError, match=r"the manifest is of other weights: see tensor lm_head\.weight"
    ):
        dict(HFReader(path).read_all(verify=True))
