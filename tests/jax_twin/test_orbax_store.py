"""The Orbax checkpoint: read by Orbax alone, in chunks, verified; foreign trees are refused."""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from orbax.checkpoint import v1 as ocp

import diy_jax
from diy_core.checkpoints.atomic import recover
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.checkpoints.orbax.layout import is_whole
from diy_core.checkpoints.transfer import transfer
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten, tensors
from diy_jax import orbax_files
from diy_jax.orbax_files import without_reports
from diy_jax.orbax_store import OrbaxReader, OrbaxWriter, load_params
from tests.killed_writers import kill_between_moves
from tests.oracles import tiny
from tests.tiny_checkpoints import (
    CONFIG,
    DTYPES,
    EMBEDDING,
    HEAD,
    MANIFEST,
    NORM,
    UNTIED,
    UP,
    Arrays,
    put,
    read,
    read_config,
    same,
    snapshot,
    sums,
    sums_of,
    weights,
)


def write(source: Path, to: Path, **options: Any) -> Path:
    transfer(HFReader(source), functools.partial(OrbaxWriter, to), **options)
    return to


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(put(tmp_path / "model", weights()), tmp_path / "store")


def flax_tree(arrays: Arrays, config: Any = CONFIG) -> dict[tuple[str, ...], np.ndarray]:
    """The layout of the Flax twin: kernels (in, out)."""
    return {
        tensor.flax: arrays[tensor.hf].T if tensor.flax[-1] == "kernel" else arrays[tensor.hf]
        for tensor in tensors(config)
    }


def same_tree(found: Any, expected: dict[tuple[str, ...], np.ndarray]) -> bool:
    flat = {path: np.asarray(leaf) for path, leaf in flatten(found).items()}
    return same(
        {"/".join(path): np.ascontiguousarray(leaf) for path, leaf in flat.items()},
        {"/".join(path): np.ascontiguousarray(leaf) for path, leaf in expected.items()},
    )


@pytest.mark.parametrize("chunk", [64, 1000, 16 << 20])
def test_plain_orbax_reads_arrays_in_chunks_of_any_size(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orbax_files, "_CHUNK", chunk)
    config = tiny(hidden_size=24, intermediate_size=36, head_dim=10)
    arrays = weights(config)
    path = write(put(tmp_path / "model", arrays, config), tmp_path / "store")
    stored = _chunks(path / "state")[("model", "layers_1", "feedforward", "up_proj", "kernel")]
    assert np.prod(stored) * 4 <= chunk
    assert (tuple(stored) == (24, 36)) == (chunk > 24 * 36 * 4)
    expected = flax_tree(arrays, config)
    assert same_tree(ocp.load(path), expected)
    assert same_tree(orbax.checkpoint.PyTreeCheckpointer().restore(path / "state"), expected)
    assert same(dict(OrbaxReader(path).read_all(verify=True)), arrays)


def _chunks(state: Path) -> dict[tuple[str, ...], Any]:
    """The shape of the chunks on the disk, by Orbax v0's metadata."""
    tree = orbax.checkpoint.PyTreeCheckpointHandler().metadata(state).tree
    return {path: leaf.storage.chunk_shape for path, leaf in flatten(tree).items()}


@pytest.mark.parametrize("size", [1, 3000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed"])
def test_groups_of_any_size_make_the_same_tree(
    tmp_path: Path, dtype: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = weights(UNTIED, "float32" if dtype == "mixed" else dtype)
    if dtype == "mixed":
        arrays[UP], arrays[NORM] = (arrays[n].astype(DTYPES["float16"]) for n in (UP, NORM))
    monkeypatch.setattr(OrbaxWriter, "group", size)
    monkeypatch.setattr(HFReader, "group", size)
    monkeypatch.setattr(OrbaxReader, "group", size)
    path = write(put(tmp_path / "model", arrays, UNTIED), tmp_path / "store")
    assert same_tree(ocp.load(path), flax_tree(arrays, UNTIED))
    assert same(dict(OrbaxReader(path).read_all()), arrays)
    assert sums_of(path) == sums(arrays)
    named = read_config(path).get("dtype")
    assert named == (None if dtype == "mixed" else dtype)


def test_only_what_belongs_to_it_lies_in_the_directory(store: Path) -> None:
    assert os.listdir(store.parent) in (["model", "store"], ["store", "model"])
    assert {"state", "config.json", MANIFEST} <= set(os.listdir(store))
    assert not [name for name in os.listdir(store) if name.startswith((".", "orbax-", "tmp"))]
    assert is_whole(store)
    assert not is_whole(store.parent / "model")
    assert not is_whole(store / "state")


def test_a_path_may_be_relative(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    write(Path("model"), Path("again"))
    assert same(dict(OrbaxReader("again").read_all(verify=True)), weights())
    assert same_tree(load_params("again")[1], flax_tree(weights()))


def test_values_are_stored_as_they_are_and_not_compressed(tmp_path: Path) -> None:
    arrays = {name: np.ones_like(array) for name, array in weights().items()}
    path = write(put(tmp_path / "model", arrays), tmp_path / "store")
    stored = sum(len(content) for content in snapshot(path / "state").values())
    assert stored > sum(array.nbytes for array in arrays.values())


def test_the_files_beside_the_weights_travel_along(tmp_path: Path) -> None:
    source = put(tmp_path / "model", weights())
    files = {"tokenizer.json": b"{ }\r\n", "LICENSE": b"free", "README.md": b"which stays"}
    for name, content in files.items():
        (source / name).write_bytes(content)
    path = write(source, tmp_path / "store")
    transfer(OrbaxReader(path), functools.partial(HFWriter, tmp_path / "back"))
    del files["README.md"]
    for folder in (path, tmp_path / "back"):
        found = snapshot(folder)
        assert {name: found[name] for name in files} == files
        assert "README.md" not in found


def test_a_write_leaves_the_reports_of_the_program_on(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("absl")
    monkeypatch.setattr(logger, "filters", [])
    hooks = sys.unraisablehook, sys.excepthook
    write(store.parent / "model", store)
    load_params(store)
    assert logger.filters == []
    assert (sys.unraisablehook, sys.excepthook) == hooks


def test_threads_that_go_on_after_an_error_report_nothing_but_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: shown.append(str(error)))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])
    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [])
    with pytest.raises(ValueError, match="damaged"), without_reports():
        raise ValueError("damaged")
    for text in ("Event loop is closed", "another"):
        sys.excepthook(RuntimeError, RuntimeError(text), None)
    assert shown == ["another"]


# Loading.


@pytest.mark.parametrize("verify", [False, True])
def test_params_are_those_of_the_twin(store: Path, verify: bool) -> None:
    config, params = load_params(store, verify=verify)
    model, expected = diy_jax.DIYForCausalLM.from_pretrained(store.parent / "model")
    assert {path: np.asarray(leaf).tobytes() for path, leaf in flatten(params).items()} == {
        path: np.asarray(leaf).tobytes() for path, leaf in flatten(expected).items()
    }
    assert config.num_hidden_layers == model.config.num_hidden_layers
    _, narrow = load_params(store, jnp.bfloat16, verify=verify)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype("bfloat16")}


def change(store: Path, name: str, by: float) -> None:
    """Other weights in the same place, by Orbax alone."""
    tree: Any = flax_tree(weights())
    path = next(t.flax for t in tensors(CONFIG) if t.hf == name)
    tree[path] = tree[path] + np.float32(by)
    put_tree(store, tree)


def put_tree(store: Path, tree: dict[tuple[str, ...], Any]) -> None:
    nested: dict[str, Any] = {}
    for path, leaf in tree.items():
        node = nested
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.ascontiguousarray(leaf)
    shutil.rmtree(store / "state")
    orbax.checkpoint.PyTreeCheckpointer().save(store / "state", nested)


def test_a_changed_value_is_named(store: Path) -> None:
    change(store, UP, 0.0)
    load_params(store, verify=True)
    change(store, UP, 1.0)
    load_params(store)
    with pytest.raises(CheckpointError, match=f"tensor {UP} does not have the SHA-256"):
        load_params(store, verify=True)


def test_without_a_manifest_there_is_nothing_to_verify(store: Path) -> None:
    (store / MANIFEST).unlink()
    load_params(store)
    with pytest.raises(CheckpointError, match="`parity convert` and save_pretrained write one"):
        load_params(store, verify=True)


def test_a_value_that_is_not_finite_is_named_as_in_the_tree(store: Path) -> None:
    change(store, NORM, np.inf)
    with pytest.raises(
        CheckpointError, match=r"tensor model/norm/scale has 16 values that are not finite"
    ):
        load_params(store)


def test_it_can_be_untied(store: Path) -> None:
    reader = OrbaxReader(store, untie=True)
    assert not reader.config.tie_word_embeddings
    found = dict(reader.read_all(verify=True))
    assert same(found, weights() | {HEAD: weights()[EMBEDDING]})
    transfer(reader, functools.partial(HFWriter, store.parent / "untied"))
    assert same(read(store.parent / "untied"), found)


def test_of_a_store_that_a_killed_write_left_aside_it_is_said_where_it_is(store: Path) -> None:
    old = kill_between_moves(store)
    with pytest.raises(CheckpointError, match=f"whole in {old}, and the next write to .* moves it"):
        OrbaxReader(store)
    assert same(dict(OrbaxReader(old).read_all(verify=True)), weights())
    recover(store)  # what the next write does first
    assert same(dict(OrbaxReader(store).read_all(verify=True)), weights())


# What is refused.


def test_a_name_that_orbax_does_not_take_is_refused(store: Path) -> None:
    path = store.parent / os.fsdecode(b"mod\xe8le")
    for call in (lambda: OrbaxReader(path), lambda: write(store.parent / "model", path)):
        with pytest.raises(CheckpointError, match="is not UTF-8 as a name"):
            call()


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen", "no float"])
def test_params_of_another_model_are_refused(store: Path, fault: str) -> None:
    tree: Any = flax_tree(weights())
    name = ("model", "norm", "scale")
    words = {
        "missing": r"missing tensor model/norm/scale \(16,\)",
        "extra": r"unexpected tensor lm_head/kernel \(16, 23\)",
        "misshapen": r"model/norm/scale has shape \(17,\), expected \(16,\)",
        "no float": "parameter model/norm/scale is int32, and weights are floats",
    }
    if fault == "missing":
        del tree[name]
    elif fault == "extra":
        tree[("lm_head", "kernel")] = np.ones((16, 23), np.float32)
    else:
        tree[name] = np.ones(17, np.float32) if fault == "misshapen" else np.ones(16, np.int32)
    put_tree(store, tree)
    with pytest.raises(CheckpointError, match=words[fault]):
        OrbaxReader(store)


def test_a_config_of_more_layers_than_there_are_parameters_is_refused(store: Path) -> None:
    values = read_config(store) | {"num_hidden_layers": 9999}
    (store / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="says num_hidden_layers: 9999, with 20 param"):
        OrbaxReader(store)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", r"without a config\.json, .*`parity convert .*store DST --config DIR`"),
        ("state", "is not an Orbax checkpoint: no arrays of Orbax lie in it"),
    ],
)
def test_a_directory_that_lacks_a_part_is_refused(store: Path, file: str, words: str) -> None:
    (shutil.rmtree if file == "state" else os.remove)(store / file)
    with pytest.raises(CheckpointError, match=words):
        OrbaxReader(store)


def test_a_tree_that_orbax_does_not_know_is_refused(store: Path) -> None:
    shutil.rmtree(store / "state")
    (store / "state").mkdir()
    with pytest.raises(CheckpointError, match="Orbax"):
        OrbaxReader(store)


@pytest.mark.parametrize(
    "file", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt"]
)
def test_metadata_of_any_length_are_not_read(
    store: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [store / "_CHECKPOINT_METADATA", *(store / "state").iterdir()]
    limit = max(path.stat().st_size for path in files if path.is_file())
    monkeypatch.setenv("DIY_LIMITS", f"header_bytes={limit}")
    OrbaxReader(store)
    os.truncate(store / file, limit + 1)
    with pytest.raises(CheckpointError, match=f"{file}: is longer than {limit} bytes"):
        OrbaxReader(store)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_metadata_that_tell_nothing_are_refused(store: Path, text: str) -> None:
    (store / "state" / "_METADATA").write_text(text)
    with pytest.raises(
        CheckpointError, match="store: Orbax cannot read it: it finds no params: a file"
    ):
        OrbaxReader(store)


def test_values_that_are_cut_short_are_refused(store: Path) -> None:
    file = max((store / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"store: Orbax cannot read it: \S"):
        load_params(store)


@pytest.mark.parametrize("name", ["thesis.txt", "model.safetensors", "opt_state"])
def test_a_directory_that_holds_more_is_not_replaced(store: Path, name: str) -> None:
    (store / name).write_text("mine")
    before = snapshot(store)
    with pytest.raises(CheckpointError, match=f"holds {name}, which is not part of an Orbax"):
        write(store.parent / "model", store)
    assert snapshot(store) == before


def test_a_directory_that_a_killed_write_left_aside_is_not_replaced_either(store: Path) -> None:
    (store / "thesis.txt").write_text("mine")
    before = snapshot(store)
    kill_between_moves(store)
    with pytest.raises(CheckpointError, match=r"holds thesis\.txt, which is not part of an Orbax"):
        write(store.parent / "model", store)
    assert snapshot(store) == before


def test_an_older_checkpoint_is_replaced(store: Path) -> None:
    write(put(store.parent / "new", weights(seed=1)), store)
    assert same(dict(OrbaxReader(store).read_all(verify=True)), weights(seed=1))
    with pytest.raises(CheckpointError, match="exists already: overwrite=True"):
        transfer(
            HFReader(store.parent / "new"), functools.partial(OrbaxWriter, store, overwrite=False)
        )


def test_a_write_that_fails_leaves_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a file beside it, and the program's reports as they were before."""

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    before = snapshot(store.parent)
    hook, filters = sys.unraisablehook, list(logging.getLogger("absl").filters)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.partial, "finalize", fail)
        with pytest.raises(OSError, match="No space left"):
            write(store.parent / "model", store)
    assert snapshot(store.parent) == before
    assert not [name for name in os.listdir(store.parent) if name.startswith(".")]
    sys.unraisablehook = hook
    logging.getLogger("absl").filters[:] = filters
    write(store.parent / "model", store)


def test_a_file_that_may_not_grow_is_named_in_the_words_of_the_system(store: Path) -> None:
    before = snapshot(store.parent)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write(store.parent / "model", store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.filename == str(store)
    assert snapshot(store.parent) == before
