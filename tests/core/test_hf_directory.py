"""Hugging Face directories: read strictly, written whole, and understood by transformers."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import logging
import os
import random
import re
import resource
import shlex
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from diy_core import CheckpointError, DIYConfig, RopeScaling
from diy_core.checkpoints.atomic import recover
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.side_files import copy_side_files
from diy_core.checkpoints.hf.writer import HFWriter, write_hf_directory
from diy_core.checkpoints.kinds import kind_of
from diy_core.checkpoints.transfer import transfer
from diy_core.first_weights import first_weights
from tests.killed_writers import kill_between_moves
from tests.odd_files import ODD_FILES, put_odd_file

Arrays = dict[str, np.ndarray]
CONFIG = DIYConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    initializer_range=0.5,
)
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
MANIFEST = "diy_manifest.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FREQUENCIES = np.array([1.0, 0.01], np.float32)  # of heads of four channels


def weights(config: DIYConfig = CONFIG, seed: int = 0) -> Arrays:
    return {tensor.hf: array for tensor, array in first_weights(config, seed)}


def put(path: Path, arrays: Arrays, config: DIYConfig = CONFIG) -> Path:
    """A directory made without our writer."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    safetensors.numpy.save_file(arrays, path / SINGLE)
    return path


def put_shards(path: Path, arrays: Arrays, weight_map: dict[str, Any] | None = None) -> Path:
    """The same in two shards, with an index."""
    put(path, {})
    (path / SINGLE).unlink()
    names = list(arrays)
    halves = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, held in halves.items():
        safetensors.numpy.save_file({name: arrays[name] for name in held}, path / file)
    true_map = {name: file for file, held in halves.items() for name in held}
    put_index(path, {"weight_map": true_map if weight_map is None else true_map | weight_map})
    return path


def put_index(path: Path, content: Any) -> None:
    (path / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))


def same(one: Arrays, other: Arrays) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def faults(path: Path) -> list[str]:
    with pytest.raises(CheckpointError) as error:
        dict(HFReader(path).read_all())
    assert isinstance(error.value, ValueError)
    return error.value.faults


# Reading what is right.


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_a_single_file_is_read_bit_for_bit(tmp_path: Path, config: DIYConfig, dtype: Any) -> None:
    arrays = {name: array.astype(dtype) for name, array in weights(config).items()}
    directory = HFReader(put(tmp_path / "model", arrays, config))
    assert dataclasses.replace(directory.config, extra={}) == config
    assert same(dict(directory.read_all()), arrays)
    assert same({QUERY: directory.read(QUERY)}, {QUERY: arrays[QUERY]})
    assert directory.stored[QUERY].shape == (8, 8)


def test_shards_are_read_in_the_order_of_the_model(tmp_path: Path) -> None:
    arrays = weights()
    backwards = dict(reversed(arrays.items()))
    assert same(dict(HFReader(put_shards(tmp_path, backwards)).read_all()), arrays)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_size", ["1GB", "1KB"])
def test_what_transformers_writes_is_read(tmp_path: Path, tied: bool, max_shard_size: str) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied, attention_bias=True)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config.to_dict()))
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / INDEX).exists() == (max_shard_size == "1KB")
    directory = HFReader(tmp_path)
    assert dataclasses.replace(directory.config, extra={}) == config
    state = theirs.state_dict()
    found = dict(directory.read_all())
    assert found.keys() == state.keys() - ({HEAD} if tied else set())
    assert all(np.array_equal(array, state[name].numpy()) for name, array in found.items())


def test_a_tied_head_that_is_the_embedding_is_accepted_and_left_out(tmp_path: Path) -> None:
    arrays = weights()
    put(tmp_path, arrays | {HEAD: arrays[EMBEDDING].copy()})
    assert same(dict(HFReader(tmp_path).read_all()), arrays)


def test_rotary_tables_of_old_files_are_dropped(tmp_path: Path) -> None:
    arrays = weights()
    tables = {
        name: np.ones(2, np.float32)
        for name in ("model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq")
    }
    assert same(dict(HFReader(put(tmp_path, arrays | tables)).read_all()), arrays)


def test_files_that_are_links_inside_a_hub_cache_are_read(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot_path, blobs = repository / "snapshots" / "0123", repository / "blobs"
    snapshot_path.mkdir(parents=True)
    blobs.mkdir()
    for file in put_shards(tmp_path / "model", weights()).iterdir():
        file.rename(blobs / f"sha-{file.name}")
        (snapshot_path / file.name).symlink_to(f"../../blobs/sha-{file.name}")
    assert same(dict(HFReader(snapshot_path).read_all()), weights())


@pytest.mark.parametrize("ask", [HFReader, kind_of])
def test_of_a_model_that_a_killed_write_left_aside_it_is_said_where_it_is(
    tmp_path: Path, ask: Callable[[Path], Any]
) -> None:
    path = put(tmp_path / "model", weights())
    old = kill_between_moves(path)
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=f"whole in {old}, and the next write to .* moves it"):
        ask(path)
    assert snapshot(tmp_path) == before
    assert same(dict(HFReader(old).read_all()), weights())
    recover(path)  # what the next write does first
    assert same(dict(HFReader(path).read_all()), weights())


# Reading what is wrong.


def test_all_faults_are_collected_at_once(tmp_path: Path) -> None:
    arrays = weights()
    del arrays[NORM]
    arrays[QUERY] = arrays[QUERY][:4]
    arrays["model.layers.0.mlp.up_proj.weight"] = np.ones((12, 8), np.int8)
    arrays["model.layers.2.mlp.up_proj.weight"] = np.ones((12, 8), np.float32)
    assert faults(put(tmp_path, arrays)) == [
        "missing tensor model.norm.weight (8,)",
        "unexpected tensor model.layers.2.mlp.up_proj.weight (12, 8)",
        f"tensor {QUERY} has shape (4, 8), expected (8, 8)",
        "tensor model.layers.0.mlp.up_proj.weight has dtype I8, expected one of F64, F32, F16, "
        "BF16",
    ]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.int8, "I8"),
        (np.int64, "I64"),
        (np.bool_, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_a_dtype_that_is_no_float_is_refused(tmp_path: Path, dtype: Any, name: str) -> None:
    tensors = {key: torch.from_numpy(array) for key, array in weights().items()}
    kind = dtype if isinstance(dtype, torch.dtype) else torch.from_numpy(np.ones(1, dtype)).dtype
    tensors[QUERY] = tensors[QUERY].to(kind)
    put(tmp_path, {})
    safetensors.torch.save_file(tensors, tmp_path / SINGLE)
    assert faults(tmp_path) == [
        f"tensor {QUERY} has dtype {name}, expected one of F64, F32, F16, BF16"
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float, dtype: Any) -> None:
    arrays = {name: array.astype(dtype) for name, array in weights().items()}
    arrays[QUERY][3, 5] = arrays[QUERY][4, 0] = value
    directory = HFReader(put(tmp_path, arrays))
    message = f"tensor {QUERY} has 2 values that are not finite, first at \\[3, 5\\]"
    for read in (lambda: directory.read(QUERY), lambda: dict(directory.read_all())):
        with pytest.raises(CheckpointError, match=message):
            read()
    directory.read(NORM)


@pytest.mark.parametrize("change", ["value", "nan"])
def test_a_tied_head_that_differs_is_refused(tmp_path: Path, change: str) -> None:
    arrays = weights()
    arrays[HEAD] = arrays[EMBEDDING].copy()
    arrays[HEAD][7, 3] = np.nextafter(arrays[HEAD][7, 3], 9) if change == "value" else np.nan
    (fault,) = faults(put(tmp_path, arrays))
    wanted = (
        "lm_head.weight has 1 values" if change == "nan" else f"{HEAD} differs from {EMBEDDING}"
    )
    assert wanted in fault


def test_a_tied_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    arrays = weights()
    arrays[HEAD] = arrays[EMBEDDING][:-1].copy()
    assert faults(put(tmp_path, arrays)) == [f"tensor {HEAD} has shape (19, 8), expected (20, 8)"]


def test_an_untied_config_needs_a_head(tmp_path: Path) -> None:
    missing, hint = faults(put(tmp_path, weights(CONFIG), UNTIED))
    assert missing == f"missing tensor {HEAD} (20, 8)"
    assert "tie_word_embeddings: false" in hint
    assert "set it to true if the head is the embedding" in hint


def test_a_file_that_says_nothing_about_tying_is_untied(tmp_path: Path) -> None:
    values = put(tmp_path, weights()) / "config.json"
    values.write_text(
        json.dumps({k: v for k, v in CONFIG.to_dict().items() if k not in ("tie_word_embeddings",)})
    )
    assert f"missing tensor {HEAD} (20, 8)" in faults(tmp_path)


@pytest.mark.parametrize("layers", [3, 10**12])
def test_a_config_with_more_layers_than_the_file_is_refused(tmp_path: Path, layers: int) -> None:
    put(tmp_path, weights())
    values = CONFIG.to_dict() | {"num_hidden_layers": layers}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = faults(tmp_path)
    assert ("missing tensor model.layers.2.input_layernorm.weight (8,)" in found) == (layers == 3)
    assert any(f"num_hidden_layers: {layers}" in fault for fault in found) == (layers != 3)


def raw(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
OTHER = '{"dtype":"F32","shape":[1],"data_offsets":[4,8]}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\0" * 8,
        b"garbage, and no header at all",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        raw(b"[]"),
        raw(b"{" * 1000),
        raw(b'{"x":' * 200_000),
        raw(b'\xff\xfe{"x": 1}'),
        raw(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"\0" * 4),
        raw(b'{"x":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        raw(b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"\0" * 4),
        raw(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 3),
        raw(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 5),
    ],
    ids=range(15),
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    for make, file in ((put, SINGLE), (put_shards, "a.safetensors")):
        path = make(tmp_path / file, weights())
        (path / file).write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
            HFReader(path)


def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    file = put(tmp_path, weights()) / SINGLE
    whole = file.read_bytes()
    for size in (0, 4, 8, 9, 200, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: is not a readable"):
            HFReader(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointError, match=f"{SINGLE}: cannot be read: it is a directory"):
        HFReader(tmp_path)


def test_a_name_that_stands_twice_in_a_header_is_refused(tmp_path: Path) -> None:
    header = f'{{"a":{ONE},"b":{OTHER},"a":{ONE}}}'.encode()
    put(tmp_path, {})
    (tmp_path / SINGLE).write_bytes(raw(header, b"\0" * 8))
    assert faults(tmp_path) == ["a stands there twice"]


def test_a_name_that_stands_twice_in_an_index_is_refused(tmp_path: Path) -> None:
    put_shards(tmp_path, weights())
    whole = (tmp_path / INDEX).read_text()
    entry = f'"{NORM}": "b.safetensors"'
    assert entry in whole
    put_index(tmp_path, whole.replace(entry, f'{entry}, "{NORM}": "a.safetensors"'))
    assert faults(tmp_path) == [f"{NORM} stands there twice"]


def test_many_names_that_stand_twice_are_found_without_waiting(tmp_path: Path) -> None:
    put(tmp_path, {})
    count = 20_000
    entries = [
        f'"t{i}":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * i},{4 * i + 4}]}}'
        for i in range(count)
    ]
    header = f"{{{','.join([*entries, entries[1], entries[2]])}}}".encode()
    (tmp_path / SINGLE).write_bytes(raw(header, b"\0" * 4 * count))
    assert faults(tmp_path) == ["t1 stands there twice", "t2 stands there twice"]


@pytest.mark.parametrize(
    "file",
    [
        "../other/model.safetensors",
        "{path}/a.safetensors",
        "sub/../a.safetensors",
        "./../model/a.safetensors",
        "sub\\a.safetensors",
        "..\\model\\a.safetensors",
        "C:a.safetensors",
        "a.safetensors/",
        "..",
        "",
        "a.safetensors\0",
        "a.bin",
        3,
        None,
        ["a.safetensors"],
    ],
    ids=range(15),
)
def test_an_index_that_names_no_file_of_the_directory_is_refused(tmp_path: Path, file: Any) -> None:
    put(tmp_path / "other", weights())
    path = put_shards(tmp_path / "model", weights())
    (path / "sub").mkdir()
    shutil.copy(path / "a.safetensors", path / "sub")
    file = file.format(path=path) if isinstance(file, str) else file
    weight_map = json.loads((path / INDEX).read_text())["weight_map"]
    put_index(path, {"weight_map": weight_map | {QUERY: file}})
    assert f"tensor {QUERY} lies in {file!r}, which is not a file of this directory" in faults(path)


@pytest.mark.parametrize(
    "file",
    ["gone.safetensors", "x" * 5000 + ".safetensors"],
    ids=["gone", "too long"],
)
def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path, file: str) -> None:
    put_shards(tmp_path, weights(), {NORM: file})
    assert faults(tmp_path) == [f"tensor {NORM} lies in {file}, which does not exist"]


def test_an_index_that_names_half_a_character_is_refused(tmp_path: Path) -> None:
    put_shards(tmp_path, weights(), {NORM: "\ud800.safetensors"})
    with pytest.raises(CheckpointError, match=r"index\.json: holds the escape \\ud800"):
        HFReader(tmp_path)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_an_index_that_names_something_else_than_a_file_says_so(tmp_path: Path, kind: str) -> None:
    put_shards(tmp_path, weights(), {NORM: "d.safetensors"})
    put_odd_file(tmp_path / "d.safetensors", kind)
    (found,) = faults(tmp_path)
    assert re.fullmatch(f"tensor {NORM} lies in d.safetensors, which {ODD_FILES[kind]}", found)


def test_a_link_in_a_circle_is_a_missing_file(tmp_path: Path) -> None:
    put_shards(tmp_path, weights(), {NORM: "loop.safetensors"})
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (found,) = faults(tmp_path)
    assert found.startswith(f"tensor {NORM} lies in loop.safetensors, which is a link to loop.saf")
    assert found.endswith("which leads in a circle")


def test_what_an_index_says_otherwise_than_its_shards_is_noted(tmp_path: Path) -> None:
    put_shards(tmp_path, weights(), {NORM: "a.safetensors", "ghost": "a.safetensors"})
    reader = HFReader(tmp_path)
    assert same(dict(reader.read_all()), weights())
    assert reader.notes == [
        f"the index has {NORM} in another shard: read from where it lies",
        "the index names what no shard holds and the model does without: ghost",
    ]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        '{"weight_map": null}',
        '{"weight_map": []}',
        "[" * 100_000,
        '{"weight_map": ' + "9" * 5000 + "}",
        '{"weight_map": {"a": "b"}, "weight_map": {}}',
    ],
    ids=range(11),
)
def test_an_invalid_index_is_refused(tmp_path: Path, content: str) -> None:
    put_shards(tmp_path, weights())
    put_index(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"index\.json: "):
        HFReader(tmp_path)


def test_an_index_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    put_shards(tmp_path, weights())
    (tmp_path / INDEX).write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"index\.json: is not valid JSON"):
        HFReader(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / INDEX).mkdir()
    with pytest.raises(CheckpointError, match=f"{INDEX}: cannot be read: it is a directory"):
        HFReader(tmp_path)


def test_an_empty_index_holds_no_tensor(tmp_path: Path) -> None:
    put_shards(tmp_path, weights())
    put_index(tmp_path, {"weight_map": {}})
    assert faults(tmp_path) == ["config.json says num_hidden_layers: 2, with 0 tensors"]


def test_of_a_single_file_and_an_index_the_file_counts_as_in_transformers(tmp_path: Path) -> None:
    put_shards(tmp_path, weights())
    put(tmp_path, weights(seed=1))
    directory = HFReader(tmp_path)
    assert same(dict(directory.read_all()), weights(seed=1))
    assert directory.notes == [f"{INDEX} was passed over: {SINGLE} is there too"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert np.array_equal(theirs[QUERY].numpy(), weights(seed=1)[QUERY])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "m.ckpt", "w.pkl"])
def test_a_pickle_is_never_read(tmp_path: Path, name: str) -> None:
    (put(tmp_path, {}) / SINGLE).unlink()
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    (fault,) = faults(tmp_path)
    assert fault.startswith(f"has only pickled weights ({name})")
    assert "convert them to safetensors first" in fault


def test_a_directory_without_weights_or_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone: is not a directory"):
        HFReader(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="is not a directory"):
        HFReader(tmp_path / "gone" / "deeper")
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        HFReader(tmp_path)
    (put(tmp_path, {}) / SINGLE).unlink()
    assert faults(tmp_path) == [f"has neither {SINGLE} nor {INDEX}"]
    with pytest.raises(CheckpointError, match=r"config\.json: is not a directory"):
        HFReader(tmp_path / "config.json")


def mutations(generator: random.Random, whole: bytes, count: int) -> Iterator[bytes]:
    """Bytes flipped, cut, doubled, moved, and numbers or words replaced by extreme ones."""
    extreme = [b"-1", b"1e999", b"9" * 400, b"null", b"{}", b"[]", b'"\\u0000"', b"NaN", b'"../x"']
    for _ in range(count):
        data, at = bytearray(whole), generator.randrange(len(whole))
        end = min(len(whole), at + generator.randint(1, 40))
        match generator.randrange(5):
            case 0:
                data[at] = generator.randrange(256)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end]
            case 3:
                data[at:end] = generator.choice(extreme)
            case 4:
                text = whole.decode("latin-1").split(",")
                text[generator.randrange(len(text))] = generator.choice(text)
                data = bytearray(",".join(text).encode("latin-1"))
        yield bytes(data)


@pytest.mark.parametrize(("file", "count"), [(SINGLE, 150), (INDEX, 100), ("config.json", 100)])
def test_damaged_bytes_never_raise_anything_but_value_errors(
    tmp_path: Path, file: str, count: int
) -> None:
    path = (put_shards if file == INDEX else put)(tmp_path / "model", weights())
    whole = (path / file).read_bytes()
    size = len(whole)
    if file == SINGLE:
        size = struct.unpack("<Q", whole[:8])[0]
        whole, data = whole[8 : 8 + size], whole[8 + size :]
    refused = []
    for mutated in mutations(random.Random(0), whole, count):
        (path / file).write_bytes(raw(mutated, data) if file == SINGLE else mutated)
        try:
            dict(HFReader(path).read_all())
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 0.6 * count
    assert all(str(tmp_path) in message for message in refused)


# Writing.


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_what_is_written_is_read_back_and_names_its_dtype(
    tmp_path: Path, config: DIYConfig, dtype: str
) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    arrays = {name: array.astype(kind) for name, array in weights(config).items()}
    path = tmp_path / "model"
    write_hf_directory(path, config, reversed(arrays.items()))
    directory = HFReader(str(path))
    assert same(dict(directory.read_all()), arrays)
    assert dataclasses.replace(directory.config, extra={}) == config
    assert sorted(os.listdir(path)) == ["config.json", MANIFEST, SINGLE]
    values = json.loads((path / "config.json").read_text())
    assert values["dtype"] == values["torch_dtype"] == dtype
    with safetensors.safe_open(path / SINGLE, framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}  # transformers 4 asks for it
    assert os.listdir(tmp_path) == ["model"]


def test_the_order_in_which_arrays_come_changes_no_byte(tmp_path: Path) -> None:
    arrays = list(weights().items())
    for name, ordered in (("one", arrays), ("other", arrays[::-1])):
        (tmp_path / name).mkdir()
        write_hf_directory(tmp_path / name / "model", CONFIG, ordered)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "other")


def test_arrays_that_are_views_are_written_as_they_look(tmp_path: Path) -> None:
    arrays = {name: np.asfortranarray(array) for name, array in weights().items()}
    write_hf_directory(tmp_path / "model", CONFIG, arrays.items())
    assert same(dict(HFReader(tmp_path / "model").read_all()), weights())


def test_mixed_dtypes_are_kept_and_the_config_names_none(tmp_path: Path) -> None:
    arrays = weights()
    arrays[NORM] = arrays[NORM].astype(np.float16)
    write_hf_directory(tmp_path / "model", CONFIG, arrays.items())
    directory = HFReader(tmp_path / "model")
    assert same(dict(directory.read_all()), arrays)
    assert not {"dtype", "torch_dtype"} & directory.config.extra.keys()


LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def load_by_transformers(path: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """The model, after a look at everything that transformers might complain about."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING):
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True
            )
    finally:
        logger.removeHandler(caplog.handler)
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert not any(info.values()), info
    assert [record.getMessage() for record in caplog.records] == []
    return model


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_word_embeddings": False},
        {"attention_bias": True, "mlp_bias": True, "rope_theta": 500.0, "rms_norm_eps": 1e-3},
        {"rope_scaling": LLAMA3},
        {"rope_scaling": RopeScaling(rope_type="linear", factor=3.0)},
    ],
)
def test_transformers_loads_what_is_written_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    config = dataclasses.replace(CONFIG, **change)
    arrays = weights(config)
    write_hf_directory(tmp_path / "model", config, arrays.items())
    model = load_by_transformers(tmp_path / "model", caplog)
    state = model.state_dict()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in arrays.items())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == config.tie_word_embeddings
    assert model.model.norm.variance_epsilon == config.rms_norm_eps
    assert model.dtype == torch.float32


def write_shards(
    path: Path, arrays: Arrays, max_shard_size: int, config: DIYConfig = CONFIG
) -> Path:
    transfer(
        HFReader(put(path.with_name("source"), arrays, config)),
        functools.partial(HFWriter, path, max_shard_size=max_shard_size),
    )
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_shards_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tied: bool
) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    arrays = weights(config)
    path = write_shards(tmp_path / "model", arrays, 2000, config)
    files = sorted(file.name for file in path.glob("*.safetensors"))
    assert files == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    sizes = [(path / file).stat().st_size for file in files]
    # None could hold the next one's tensors too; what headers take is not known to the byte.
    assert all(one + other > 1500 for one, other in itertools.pairwise(sizes))
    index = json.loads((path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    found: Arrays = {}
    for file in files:
        held = safetensors.numpy.load_file(path / file)
        assert (path / file).stat().st_size <= 2000
        assert {name for name, where in index["weight_map"].items() if where == file} == set(held)
        found |= held
    assert same({name: found[name] for name in arrays}, arrays)
    assert found.keys() == arrays.keys()
    state = load_by_transformers(path, caplog).state_dict()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in arrays.items())
    assert same(dict(HFReader(path).read_all(verify=True)), arrays)


def test_another_number_of_shards_leaves_none_of_the_old_ones(tmp_path: Path) -> None:
    for limit in (1000, 2000, 10**9, 1000):
        path = write_shards(tmp_path / "model", weights(), limit)
        several = len(list(path.glob("*.safetensors"))) > 1
        assert several == (path / INDEX).exists() == (limit < 10**9)
        assert same(dict(HFReader(path).read_all()), weights())


def test_what_was_left_out_is_noted(tmp_path: Path) -> None:
    arrays = weights()
    extra = {HEAD: arrays[EMBEDDING].copy(), "model.rotary_emb.inv_freq": FREQUENCIES}
    directory = HFReader(put(tmp_path, arrays | extra))
    dict(directory.read_all())
    dict(directory.read_all())
    assert directory.notes == [
        "1 rotary table was dropped: it follows from the config",
        "lm_head.weight was dropped: it equals the embedding, to which the config ties it",
    ]
    assert HFReader(put(tmp_path, arrays)).notes == []


@pytest.mark.parametrize("head", ["of the file", "none", "its own already"])
def test_a_model_can_be_untied(tmp_path: Path, head: str) -> None:
    config = UNTIED if head == "its own already" else CONFIG
    arrays = weights(config)
    if head == "of the file":
        arrays[HEAD] = arrays[EMBEDDING] + 1
    put(tmp_path, arrays, config)
    directory = HFReader(tmp_path, untie=True)
    assert not directory.config.tie_word_embeddings
    assert directory.notes == []
    found = dict(directory.read_all())
    assert list(found)[-1] == HEAD
    assert same(found, arrays | {HEAD: arrays.get(HEAD, arrays[EMBEDDING])})
    assert directory.sum_of(HEAD) == hashlib.sha256(found[HEAD].tobytes()).hexdigest()


def test_a_head_that_differs_says_how_to_keep_it(tmp_path: Path) -> None:
    arrays = weights()
    (fault,) = faults(put(tmp_path, arrays | {HEAD: arrays[EMBEDDING] + 1}))
    command = shlex.join(["parity", "convert", str(tmp_path), "DIR", "--to", "hf", "--untie"])
    assert f"`{command}` keeps the head that is in the file" in fault


@pytest.mark.parametrize("writer", ["safetensors", "transformers"])
def test_weights_that_another_program_saved_over_ours_do_not_fit_the_sums(
    tmp_path: Path, writer: str
) -> None:
    path = tmp_path / "model"
    write_hf_directory(path, CONFIG, weights().items())
    if writer == "safetensors":
        safetensors.numpy.save_file(weights(seed=1), path / SINGLE)
    else:
        theirs = transformers.LlamaForCausalLM.from_pretrained(path)
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(1)
        theirs.save_pretrained(path)
    assert len(dict(HFReader(path).read_all())) == 20
    with pytest.raises(CheckpointError, match=f"tensor {EMBEDDING} does not have the SHA-256"):
        dict(HFReader(path).read_all(verify=True))


def bad_writes() -> dict[str, tuple[list[tuple[str, np.ndarray]], list[str]]]:
    good = weights()
    nan = good[QUERY].copy()
    nan[0, 0] = np.nan
    listed = list(good.items())
    norm = good[NORM]
    return {
        "missing": (listed[:-1], [f"missing tensor {NORM} (8,)"]),
        "extra": ([*listed, ("x", norm)], ["unexpected tensor x (8,)"]),
        "twice": ([*listed, (NORM, norm)], [f"tensor {NORM} is given twice"]),
        "tied head": ([*listed, (HEAD, good[EMBEDDING])], [f"unexpected tensor {HEAD} (20, 8)"]),
        "shape": (
            list((good | {NORM: norm[:-1]}).items()),
            [f"tensor {NORM} has shape (7,), expected (8,)"],
        ),
        "nan": (list((good | {QUERY: nan}).items()), [f"tensor {QUERY} has 1 values that are"]),
        "int": (
            list((good | {NORM: norm.astype(int)}).items()),
            [f"tensor {NORM} is int64, and weights are floats: dequantise"],
        ),
        "object": (
            list((good | {NORM: norm.astype(object)}).items()),
            [f"tensor {NORM} is object, and weights are floats"],
        ),
        "several": (
            list((good | {QUERY: nan, "x": norm, NORM: norm.astype(np.int8)}).items()),
            ["unexpected tensor x", f"tensor {NORM} is int8, and weights are floats"],
        ),
    }


@pytest.mark.parametrize("kind", bad_writes())
def test_a_failing_write_changes_nothing(tmp_path: Path, kind: str) -> None:
    arrays, wanted = bad_writes()[kind]
    write_hf_directory(tmp_path / "old", CONFIG, weights(seed=1).items())
    before = snapshot(tmp_path)
    for name in ("old", "new"):
        with pytest.raises(CheckpointError) as error:
            write_hf_directory(tmp_path / name, CONFIG, arrays)
        found = error.value.faults
        assert len(found) == len(wanted)
        assert all(f.startswith(w) for f, w in zip(found, wanted, strict=True)), found
    assert snapshot(tmp_path) == before
    assert os.listdir(tmp_path) == ["old"]


def test_a_file_that_may_not_grow_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_hf_directory(path, CONFIG, weights().items())
    before = snapshot(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_hf_directory(path, CONFIG, weights(seed=1).items())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert snapshot(tmp_path) == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("content", ["notes.txt", "state/data"])
def test_a_directory_that_holds_something_else_is_not_replaced(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "mine"
    (path / content).parent.mkdir(parents=True)
    (path / content).write_text("mine")
    with pytest.raises(CheckpointError, match=r"has no config\.json: choose another place"):
        write_hf_directory(path, CONFIG, weights().items())
    assert snapshot(tmp_path) == {f"mine/{content}": b"mine"}


def test_something_else_that_a_killed_write_left_aside_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    kill_between_moves(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"has no config\.json: choose another place"):
        write_hf_directory(tmp_path / "mine", CONFIG, weights().items())
    assert snapshot(tmp_path) == {"mine/notes.txt": b"mine"}


def test_a_model_is_not_replaced_unless_that_is_allowed(tmp_path: Path) -> None:
    source = put(tmp_path / "source", weights())
    put(tmp_path / "model", weights(seed=1))
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="exists already: overwrite=True"):
        transfer(HFReader(source), functools.partial(HFWriter, tmp_path / "model", overwrite=False))
    assert snapshot(tmp_path) == before


def test_an_orbax_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "data").write_text("weights")
    (tmp_path / "config.json").write_text("{}")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="state/, as an Orbax checkpoint has"):
        write_hf_directory(tmp_path, CONFIG, weights().items())
    assert snapshot(tmp_path) == before


def test_an_empty_directory_and_an_older_model_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for seed in (0, 1):
        write_hf_directory(tmp_path / "model", CONFIG, weights(seed=seed).items())
        assert same(dict(HFReader(tmp_path / "model").read_all()), weights(seed=seed))


def test_all_but_weights_and_config_survives_a_replacement(tmp_path: Path) -> None:
    path = put_shards(tmp_path / "model", weights())
    for old, new in (("a", "model-00001-of-00002"), ("b", "model-00002-of-00002")):
        (path / f"{old}.safetensors").rename(path / f"{new}.safetensors")
        put_index(path, (path / INDEX).read_text().replace(f'"{old}.', f'"{new}.'))
    assert same(dict(HFReader(path).read_all()), weights())
    (path / "runs" / "deep").mkdir(parents=True)
    others = {"tokenizer.json": b"{}", "README.md": b"# mine", "runs/deep/log": b"1\n"}
    for name, content in others.items():
        (path / name).write_bytes(content)
    (path / "link").symlink_to("nowhere")

    def write_more(temporary: Path) -> None:
        (temporary / "tokenizer.json").write_bytes(b'{"new": 1}')

    write_hf_directory(path, CONFIG, weights(seed=1).items(), write_more)
    assert same(dict(HFReader(path).read_all()), weights(seed=1))
    found = snapshot(path)
    assert found.keys() == others.keys() | {"config.json", MANIFEST, SINGLE}
    assert (path / "link").is_symlink()
    assert {name: found[name] for name in others} == others | {"tokenizer.json": b'{"new": 1}'}


@pytest.mark.parametrize("hard", [True, False])
def test_links_and_folders_survive_as_what_they_are(
    tmp_path: Path, hard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a copy of what is in them, where the file system has hard links."""

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    path = put(tmp_path / "model", weights())
    (path / "runs" / "deep").mkdir(parents=True)
    files = [path / "README.md", path / "runs" / "log"]
    for file in files:
        file.write_text(file.name)
    links = {
        "all": "runs",
        "last": "runs/log",
        "runs/newest": "log",
        "runs/first": "deep",
        "runs/gone": "nowhere",
    }
    for name, target in links.items():
        (path / name).symlink_to(target)
    before = [file.stat().st_ino for file in files]
    if not hard:
        monkeypatch.setattr(os, "link", refuse)
    write_hf_directory(path, CONFIG, weights(seed=1).items())
    assert [file.read_text() for file in files] == ["README.md", "log"]
    assert ([file.stat().st_ino for file in files] == before) == hard
    assert {name: os.readlink(path / name) for name in links} == links


SIDE_FILES = [
    "LICENSE",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
]


def test_side_files_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    source, to = put(tmp_path / "source", weights()), tmp_path / "to"
    to.mkdir()
    for name in (*SIDE_FILES, "README.md"):
        (source / name).write_text(name)
    HFReader(source).copy_side_files(to)
    assert sorted(os.listdir(to)) == SIDE_FILES
    assert all((to / name).read_text() == name for name in SIDE_FILES)
    copy_side_files(tmp_path / "gone", to)


def test_a_folder_called_as_a_side_file_stays_where_it_is(tmp_path: Path) -> None:
    source, to = put(tmp_path / "source", weights()), tmp_path / "to"
    to.mkdir()
    (source / "LICENSE").mkdir()
    HFReader(source).copy_side_files(to)
    assert os.listdir(to) == []


def test_weights_can_be_read_by_whoever_can_read_the_config(tmp_path: Path) -> None:
    config = DIYConfig(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    write_hf_directory(tmp_path / "m", config, ((t.hf, a) for t, a in first_weights(config, 0)))
    names = ("config.json", MANIFEST, SINGLE)
    modes = {(tmp_path / "m" / name).stat().st_mode for name in names}
    assert len(modes) == 1
