"""Which files of a directory are the model's: links, an index and its shards, and other names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import transformers

from diy_core import CheckpointError
from diy_core.checkpoints.hf.directory import HFReader
from tests.tiny_checkpoints import EMBEDDING, HEAD, NORM, QUERY, Arrays, put, same, weights

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
TABLE = "model.layers.0.self_attn.rotary_emb.inv_freq"


def put_shards(path: Path, store: Path, arrays: Arrays, listed: Arrays | None = None) -> Path:
    """Two shards that lie in `store`, linked to where that is another place."""
    (put(path, {}) / SINGLE).unlink()
    store.mkdir(parents=True, exist_ok=True)
    names = list(arrays)
    place = {name: FILES[i >= len(names) // 2] for i, name in enumerate(names)}
    for file in FILES:
        held = {name: arrays[name] for name in names if place[name] == file}
        safetensors.numpy.save_file(held, store / file)
        if store != path:
            (path / file).symlink_to(store / file)
    weight_map = {name: place.get(name, FILES[0]) for name in listed or arrays}
    index = {"metadata": {}, "weight_map": weight_map}  # transformers wants both
    (path / INDEX).write_text(json.dumps(index))
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(CheckpointError) as refused:
        HFReader(path)
    return refused.value.faults


@pytest.mark.parametrize("place", ["disk", "m/.git/annex/objects", "models--a--b/blobs"])
def test_shards_may_be_links_to_any_place(tmp_path: Path, place: str) -> None:
    reader = HFReader(put_shards(tmp_path / "m", tmp_path / place, weights()))
    assert same(dict(reader.read_all()), weights())
    assert reader.notes == []


def test_a_directory_and_a_single_file_may_be_links(tmp_path: Path) -> None:
    put(tmp_path / "m", weights())
    (tmp_path / "disk").mkdir()
    (tmp_path / "m" / SINGLE).rename(tmp_path / "disk" / "x")
    (tmp_path / "m" / SINGLE).symlink_to("../disk/x")
    (tmp_path / "link").symlink_to("m")
    assert same(dict(HFReader(tmp_path / "link").read_all()), weights())


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    put_shards(tmp_path / "m", tmp_path / "disk", weights())
    (tmp_path / "disk" / FILES[1]).unlink()
    (fault,) = faults(tmp_path / "m")
    assert fault.endswith(
        f"others lies in {FILES[1]}, which is a link to {tmp_path / 'disk' / FILES[1]}, which does "
        "not exist"
    )
    (tmp_path / "m" / INDEX).unlink()
    for name in (INDEX, SINGLE):
        (tmp_path / "m" / name).symlink_to("gone")
        assert faults(tmp_path / "m") == ["is a link to gone, which does not exist"]


def test_tensors_of_a_missing_shard_are_one_fault(tmp_path: Path) -> None:
    path = put_shards(tmp_path, tmp_path, weights())
    (path / FILES[0]).unlink()
    (fault,) = faults(path)
    assert fault.startswith("tensor model.embed_tokens.weight and ")
    assert fault.endswith(f" others lies in {FILES[0]}, which does not exist")


@pytest.mark.parametrize("where", ["shard", "index"])
def test_on_buffers_index_and_shard_may_disagree(tmp_path: Path, where: str) -> None:
    more = weights() | {TABLE: np.ones(2, np.float32)}
    stored, listed = (more, weights()) if where == "shard" else (weights(), more)
    reader = HFReader(put_shards(tmp_path, tmp_path, stored, listed))
    assert same(dict(reader.read_all()), weights())
    assert len(reader.notes) == (where == "shard")


@pytest.mark.parametrize("name", [QUERY, NORM])
def test_a_weight_may_be_missing_in_the_index_and_not_in_the_shards(
    tmp_path: Path, name: str
) -> None:
    less = {n: array for n, array in weights().items() if n != name}
    first, second = faults(put_shards(tmp_path / "a", tmp_path / "a", less, weights()))
    assert first == f"{FILES[0]} does not hold {name}"
    assert second.startswith(f"missing tensor {name} ")
    reader = HFReader(put_shards(tmp_path / "b", tmp_path / "b", weights(), less))
    assert same(dict(reader.read_all()), weights())
    assert reader.notes == [f"the index does not list {name}: read from the shards all the same"]


def test_a_shard_that_the_index_does_not_name_is_one_of_its_set(tmp_path: Path) -> None:
    arrays = weights()
    put_shards(tmp_path, tmp_path, arrays)
    names = list(safetensors.numpy.load_file(tmp_path / FILES[0]))
    index = json.loads((tmp_path / INDEX).read_text())
    for name in names:
        del index["weight_map"][name]
    (tmp_path / INDEX).write_text(json.dumps(index))
    reader = HFReader(tmp_path)
    assert same(dict(reader.read_all()), arrays)
    (note,) = reader.notes
    assert note.startswith("the index does not list ")
    # One of another set is what an older model left there.
    (tmp_path / FILES[0]).rename(tmp_path / "model-00001-of-00009.safetensors")
    assert any(fault.startswith("missing tensor") for fault in faults(tmp_path))


def test_a_tied_head_may_be_in_the_index_alone(tmp_path: Path) -> None:
    both = weights() | {HEAD: weights()[EMBEDDING].copy()}
    reader = HFReader(put_shards(tmp_path, tmp_path, weights(), both))
    assert same(dict(reader.read_all()), weights())
    assert reader.notes == [
        f"the index names what no shard holds and the model does without: {HEAD}"
    ]


@pytest.mark.parametrize("change", ["nothing", "value", "dtype"])
def test_a_tensor_in_two_shards_has_one_value(tmp_path: Path, change: str) -> None:
    arrays = weights()
    put_shards(tmp_path, tmp_path, arrays)
    file = tmp_path / FILES[0]
    copy = arrays[NORM].copy()
    copy[-1] += change == "value"
    copy = copy.astype(np.float64 if change == "dtype" else np.float32)
    safetensors.numpy.save_file(safetensors.numpy.load_file(file) | {NORM: copy}, file)
    if change != "nothing":
        assert faults(tmp_path) == [
            f"tensor {NORM} is in {FILES[0]} and in {FILES[1]}, and they differ: keep the shards "
            "of one model"
        ]
        return
    reader = HFReader(tmp_path)
    assert same(dict(reader.read_all()), arrays)
    assert reader.notes == [f"several shards hold {NORM}, with the same values: read from one"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert np.array_equal(theirs[NORM].numpy(), arrays[NORM])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_model.safetensors", "adapter_model.safetensors, an adapter and no model: merge"),
        ("consolidated.safetensors", "weights under the names of their maker's own code"),
        ("consolidated.00.safetensors", "weights under the names of their maker's own code"),
        ("consolidated-00001-of-00002.safetensors", "weights under the names of their maker's own"),
        (FILES[0], f"{FILES[0]}, shards without their {INDEX}: get it from where they came"),
        ("model.fp16-00001-of-00002.safetensors", f"a variant: rename its index to {INDEX}"),
        ("model.fp16.safetensors", f"a variant: rename it to {SINGLE} if it is the one"),
        (
            "pytorch_model.safetensors",
            f": rename a single file to {SINGLE}",
        ),
    ],
)
def test_files_under_other_names_are_called_what_they_are(
    tmp_path: Path, name: str, words: str
) -> None:
    (put(tmp_path, weights()) / SINGLE).rename(tmp_path / name)
    (fault,) = faults(tmp_path)
    assert fault.startswith(f"has neither {SINGLE} nor {INDEX}, but ")
    assert words in fault


def test_of_many_files_the_first_are_named(tmp_path: Path) -> None:
    (put(tmp_path, weights()) / SINGLE).unlink()
    for i in range(1, 6):
        (tmp_path / f"model-0000{i}-of-00005.safetensors").touch()
    (fault,) = faults(tmp_path)
    assert f"00003-of-00005.safetensors and 2 more, shards without their {INDEX}: " in fault


def put_below(path: Path, folders: tuple[str, str]) -> Path:
    """Two shards that the index names with the folders that they lie in."""
    put_shards(path, path, weights())
    index = json.loads((path / INDEX).read_text())
    for folder, file in zip(folders, FILES, strict=True):
        (path / folder).mkdir(parents=True, exist_ok=True)
        (path / file).rename(path / folder / file)
    places = {file: f"{folder}/{file}" for folder, file in zip(folders, FILES, strict=True)}
    index["weight_map"] = {name: places[file] for name, file in index["weight_map"].items()}
    (path / INDEX).write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("folders", [(".", "./."), ("sub", "sub"), ("./a//b", "c"), ("a.b", ".")])
def test_an_index_may_name_files_in_folders_of_the_directory(
    tmp_path: Path, folders: tuple[str, str]
) -> None:
    reader = HFReader(put_below(tmp_path / "m", folders))
    assert same(dict(reader.read_all()), weights())
    assert reader.notes == []
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    read = {name: tensor.numpy() for name, tensor in loaded.state_dict().items()}
    assert all(np.array_equal(read[name], array) for name, array in weights().items())


def test_files_in_such_a_folder_may_be_links_and_the_folder_may_not(tmp_path: Path) -> None:
    """A hub's cache links files. A name that leads through a link may lead anywhere."""
    path = put_below(tmp_path / "m", ("sub", "sub"))
    (path / "sub").rename(tmp_path / "disk")
    (path / "sub").mkdir()
    for file in FILES:
        (path / "sub" / file).symlink_to(tmp_path / "disk" / file)
    assert same(dict(HFReader(path).read_all()), weights())
    (path / "sub").rename(tmp_path / "elsewhere")
    (path / "sub").symlink_to(tmp_path / "elsewhere")
    assert all("which lies behind a link (sub): put the files there" in f for f in faults(path))


def test_a_file_that_is_not_in_its_folder_is_named_with_it(tmp_path: Path) -> None:
    path = put_below(tmp_path / "m", ("sub", "sub"))
    (path / "sub" / FILES[0]).rename(path / FILES[0])
    (fault,) = faults(path)
    assert fault.endswith(f" others lies in sub/{FILES[0]}, which does not exist")
