"""Every kind of checkpoint is recognised by names alone, and refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diy_core import CheckpointError
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.kinds import kind_of, lacks_config, refuse_kind, require_name
from diy_core.data import prepare
from diy_core.data.encoding import require_tokenizer
from tests.tiny_checkpoints import UP, same, weights
from tests.tiny_checkpoints import put as put_model


def put(path: Path, *names: str) -> Path:
    """A directory with empty files of these names."""
    path.mkdir()
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("")
    return path


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("hf", ["config.json", "model.safetensors"]),
        ("hf", ["config.json", "model.safetensors.index.json"]),
        ("hf", ["config.json", "model.safetensors.index.json", "pytorch_model.bin"]),
        ("hf", ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"]),
        ("hf", ["config.json", "model.safetensors", "adapter_config.json"]),
        ("hf", ["config.json"]),  # the reader says what it lacks
        ("hf", ["model.safetensors"]),
        ("orbax", ["config.json", "state/_METADATA"]),
        ("orbax", ["_METADATA", "manifest.ocdbt"]),
        ("orbax", ["_CHECKPOINT_METADATA", "default/_METADATA"]),
        ("orbax", ["100/default/_METADATA", "200/default/_METADATA"]),
        ("orbax", ["config.json", "step_7/manifest.ocdbt"]),
    ],
)
def test_a_directory_is_recognised(tmp_path: Path, kind: str, names: list[str]) -> None:
    assert kind_of(put(tmp_path / "m", *names)) == kind


def test_a_file_is_gguf_unless_its_name_says_otherwise(tmp_path: Path) -> None:
    for name in ("m.gguf", "m"):
        (tmp_path / name).write_text("")
        assert kind_of(tmp_path / name) == "gguf"


REFUSED = {
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], "m: is a PEFT adapter"),
    "adapter with a config": (
        ["config.json", "adapter_config.json", "adapter_model.bin"],
        r"merge_and_unload\(\)",
    ),
    "pickle": (
        ["config.json", "pytorch_model.bin"],
        r"has only pickled weights \(pytorch_model\.bin\), which can run any code",
    ),
    "Meta's": (["params.json", "consolidated.00.pth"], r"pickled weights \(consolidated\.00\.pth"),
    "flax": (["config.json", "flax_model.msgpack"], r"flax_model\.msgpack: holds Flax weights"),
    "tensorflow": (["config.json", "tf_model.h5"], "from_tf=True"),
    "onnx": (["config.json", "model.onnx"], "holds an ONNX graph"),
    "gguf": (["config.json", "b.Q4.gguf", "a.Q8.gguf"], r"give one of them, as .*m/a\.Q8\.gguf"),
    "text": (["README.md"], "is neither a Hugging Face directory"),
    "nothing": ([], "is neither a Hugging Face directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_directory_of_another_kind_says_what_it_is(tmp_path: Path, case: str) -> None:
    names, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=words):
        kind_of(put(tmp_path / "m", *names))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.safetensors", "give the directory"),
        ("config.json", "give the directory"),
        ("model.pt", "is a file of pickled weights"),
        ("consolidated.00.pth", "is a file of pickled weights"),
        ("last.ckpt", "is a file of pickled weights"),
        ("params.pkl", "is a file of pickled weights"),
        ("pytorch_model.bin", "is a file of pickled weights"),
        ("flax_model.msgpack", "Flax weights"),
        ("weights.npz", "holds numpy arrays"),
    ],
)
def test_a_file_of_another_kind_says_what_it_is(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(CheckpointError, match=words):
        kind_of(tmp_path / name)


def test_prepared_tokens_are_no_pickles(tmp_path: Path) -> None:
    made = prepare("builtin:pydoc", tmp_path / "tokens", tokenizer="bytes", validation=0.1).path
    for folder in (made, made / "validation"):
        for opens in (kind_of, HFReader):
            with pytest.raises(CheckpointError, match="is prepared token data, to train on"):
                opens(folder)
        for file in ("tokens.bin", "documents.bin", "data.json"):
            with pytest.raises(CheckpointError, match=f"{file}: is one file of prepared"):
                kind_of(folder / file)


def test_a_bin_file_is_a_pickle_by_its_name_or_by_how_it_begins(tmp_path: Path) -> None:
    folder = put(tmp_path / "m", "weights.bin")
    file = folder / "weights.bin"
    for content in (b"PK\3\4...", b"\x80\x02..."):
        file.write_bytes(content)
        for path, words in ((folder, "has only pickled weights"), (file, "is a file of pickled")):
            with pytest.raises(CheckpointError, match=words):
                kind_of(path)
    file.write_bytes(b"firmware")
    with pytest.raises(CheckpointError, match="is neither a Hugging Face directory"):
        kind_of(folder)
    assert kind_of(file) == "gguf"  # whose reader says how it begins


def test_what_lies_one_level_below_is_named(tmp_path: Path) -> None:
    put(tmp_path / "notes", "a.txt")
    with pytest.raises(CheckpointError, match=r"nor a training run$"):
        kind_of(tmp_path)
    put(tmp_path / "b", "config.yaml", "checkpoints/1/state.safetensors", "model/config.json")
    with pytest.raises(CheckpointError, match=rf"but {tmp_path}/b is a training run: give that$"):
        kind_of(tmp_path)
    put(tmp_path / "c", "config.json", "model.safetensors")
    put(tmp_path / "d", "config.json", "state/_METADATA")
    put(tmp_path / "damaged", "pytorch_model.bin")
    words = "b is a training run, .*/c is a Hugging Face directory, .*/d is an Orbax checkpoint: "
    with pytest.raises(CheckpointError, match=rf"{words}give one of them$"):
        kind_of(tmp_path)
    put(tmp_path / "e", "config.json", "model.safetensors")
    with pytest.raises(CheckpointError, match="checkpoint, and 1 more: give one of them"):
        kind_of(tmp_path)


def test_a_cache_of_the_hub_names_its_snapshots(tmp_path: Path) -> None:
    put(tmp_path / "models--a--b", "blobs/1", "refs/main")
    put(tmp_path / "models--a--b" / "snapshots", "0123/config.json", "0123/model.safetensors")
    with pytest.raises(CheckpointError, match="snapshots/0123 is a Hugging Face directory: give"):
        kind_of(tmp_path / "models--a--b")


def test_a_link_that_leads_nowhere_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to("blobs/7")
    with pytest.raises(
        CheckpointError, match=r"m\.gguf: is a link to blobs/7, which cannot be rea"
    ):
        kind_of(tmp_path / "m.gguf")


def test_what_lies_below_is_found_among_many_files_and_beside_what_a_run_keeps(
    tmp_path: Path,
) -> None:
    put(tmp_path / "many", "m/config.json", *(f"{i}.log" for i in range(120)))
    with pytest.raises(CheckpointError, match=r"many/m is a Hugging Face directory: give that$"):
        kind_of(tmp_path / "many")
    put(tmp_path / "run", "config.yaml", "checkpoints/1/x", "model/config.json", "logs/a/x")
    with pytest.raises(CheckpointError, match=r"logs: .* nor a training run$"):
        kind_of(tmp_path / "run" / "logs")


def test_a_directory_may_be_called_as_a_gguf_file(tmp_path: Path) -> None:
    reader = HFReader(put_model(tmp_path / "m.gguf", weights()))
    assert same(dict(reader.read_all()), weights())


def test_a_new_checkpoint_is_not_called_as_a_file_of_another_kind(tmp_path: Path) -> None:
    for name in ("m.safetensors", "m.json", "m.bin", "m.pkl", "m.h5", "m.npz"):
        words = rf"{name}: is named as a {Path(name).suffix} file, and becomes "
        directory, file = "a Hugging Face directory: give the name", "a GGUF file: end its name"
        with pytest.raises(CheckpointError, match=words + directory):
            require_name(tmp_path / name, "hf")
        with pytest.raises(CheckpointError, match=words + file):
            require_name(tmp_path / name, "gguf")
        (tmp_path / name).mkdir()
        require_name(tmp_path / name, "hf")  # which it is
        with pytest.raises(CheckpointError, match=words + file):
            require_name(tmp_path / name, "gguf")
    require_name(tmp_path / "m.v2", "hf")


def test_what_does_not_exist_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="names of a model hub are not downloaded"):
        kind_of(tmp_path / "meta-llama" / "Llama-3.2-1B")


def test_a_part_of_a_checkpoint_names_the_whole(tmp_path: Path) -> None:
    whole = put(tmp_path / "m", "config.json", "state/_METADATA")
    with pytest.raises(CheckpointError, match=f"is a part of the Orbax checkpoint {whole}: give"):
        kind_of(whole / "state")


def test_a_kind_that_is_not_read_has_a_command(tmp_path: Path) -> None:
    whole = put(tmp_path / "my model", "config.json", "state/_METADATA")
    refuse_kind(whole, "orbax", ["hf", "orbax"])
    command = f"`parity convert '{whole}' DIR --to hf` makes a Hugging Face directory"
    with pytest.raises(CheckpointError, match=f"is an Orbax checkpoint, .*{command}"):
        refuse_kind(whole, "orbax", ["hf", "gguf"])
    with pytest.raises(CheckpointError, match="is a GGUF file, which is not read here"):
        refuse_kind(tmp_path / "m.gguf", "gguf", ["hf"])


def test_a_checkpoint_without_a_config_is_asked_for_one(tmp_path: Path) -> None:
    bare = put(tmp_path / "bare", "_METADATA")
    assert lacks_config(bare)
    with pytest.raises(CheckpointError, match="--to hf --config CONFIG_DIR` makes"):
        refuse_kind(bare, "orbax", ["hf"])
    assert not lacks_config(put(tmp_path / "steps", "config.json", "100/default/_METADATA"))
    assert not lacks_config(tmp_path / "steps" / "100")
    assert not lacks_config(put(tmp_path / "hf", "config.json"))


def test_the_reader_of_directories_knows_the_others(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is an Orbax checkpoint, which is not read here"):
        HFReader(put(tmp_path / "orbax", "config.json", "state/_METADATA"))
    with pytest.raises(CheckpointError, match="is a PEFT adapter"):
        HFReader(put(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors"))
    with pytest.raises(CheckpointError, match="holds GGUF files: give one of them"):
        HFReader(put(tmp_path / "gguf", "config.json", "m.gguf"))


@pytest.mark.parametrize("opens", [HFReader, require_tokenizer])
def test_a_gguf_file_where_a_directory_is_meant_has_a_command(
    tmp_path: Path, opens: Callable[[Path], Any]
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"`parity convert .*m\.gguf DIR --to hf` makes a"):
        opens(tmp_path / "m.gguf")


QUANTISED = {
    "qweight": ("GPTQ and AWQ", ("qweight", "qzeros", "scales", "g_idx")),
    "absmax": ("bitsandbytes", ("weight", "weight.absmax", "weight.quant_map")),
    "SCB": ("bitsandbytes", ("weight", "SCB")),
    "weight.quant_state.bitsandbytes__nf4": (
        "bitsandbytes",
        ("weight", "weight.quant_state.bitsandbytes__nf4"),
    ),
    "weight_packed": ("compressed-tensors", ("weight_packed", "weight_scale", "weight_shape")),
    "weight_scale": ("FP8 checkpoints", ("weight", "weight_scale")),
    "weight_scale_inv": ("FP8 checkpoints", ("weight", "weight_scale_inv")),
    "scales": ("MLX", ("weight", "scales", "biases")),
    "W_q": ("HQQ checkpoints", ("W_q", "scale", "zero", "group_size", "nbits", "axis")),
    "weight._data": ("quanto checkpoints", ("weight._data", "weight._scale", "input_scale")),
    "weight._data._data": (
        "quanto checkpoints",
        ("weight._data._data", "weight._scale", "weight._shift"),
    ),
    "weight_scales": ("EETQ checkpoints", ("weight", "weight_scales")),
    "q_weight": ("EXL2 checkpoints", ("q_weight", "q_scale", "q_invperm", "q_groups")),
    "trellis": ("EXL3 checkpoints", ("trellis", "suh", "svh")),
    "codebooks": ("AQLM checkpoints", ("codes", "codebooks", "scales")),
    "_weight_qdata": ("torchao checkpoints", ("_weight_qdata", "_weight_scale")),
    "tables2": ("HIGGS checkpoints", ("weight", "scales", "tables", "tables2")),
    "B": ("Marlin checkpoints", ("B", "s", "workspace")),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_called_so(tmp_path: Path, kind: str) -> None:
    by, parts = QUANTISED[kind]
    arrays = weights()
    plain = arrays.pop(UP)
    arrays |= {f"{UP.removesuffix('weight')}{part}": plain.astype(np.int8) for part in parts}
    words = rf"holds quantised weights \({UP.removesuffix('weight')}.*{kind}, as {by} have it\)"
    with pytest.raises(CheckpointError, match=words):
        HFReader(put_model(tmp_path / "m", arrays))
