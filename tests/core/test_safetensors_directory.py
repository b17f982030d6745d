"""Which files of a directory are the model's: links, an index and its shards, and other names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from diy_core import CheckpointError
from diy_core.checkpoints.hf_directory import HFReader
from tests.tiny_checkpoints import NORM, QUERY, Arrays, put, same, weights

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
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
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
    (tmp_path / "m" / SINGLE).symlink_to("gone")
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
def test_on_weights_they_may_not(tmp_path: Path, name: str) -> None:
    less = {n: array for n, array in weights().items() if n != name}
    assert faults(put_shards(tmp_path / "a", tmp_path / "a", less, weights())) == [
        f"{FILES[0]} does not hold {name}"
    ]
    (fault,) = faults(put_shards(tmp_path / "b", tmp_path / "b", weights(), less))
    assert fault.endswith(f"holds {name}, not in the index")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_model.safetensors", "adapter_model.safetensors, an adapter and no model: merge"),
        ("consolidated.safetensors", "weights under the names of their maker's own code"),
        ("consolidated.00.safetensors", "weights under the names of their maker's own code"),
        (FILES[0], f"{FILES[0]}, shards without their {INDEX}: get it from where they came"),
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
