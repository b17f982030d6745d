"""Each invariant of a checkpoint, broken, at every door: refused by name, or read with a note.

The doors are the readers of all formats, both twins, the conversions in memory and on disk, and all
that takes a checkpoint of a training run: `export`, `switch`, `inspect`, `diff` and going on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
import pytest
import safetensors.numpy
import torch

import diy_jax
import diy_torch
from diy_core.checkpoints.gguf.writer import add_entry
from diy_core.checkpoints.invariants import INVARIANTS
from diy_core.checkpoints.training_run import checkpoint_path
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import tensors, unflatten
from diy_core.notes import CheckpointNote
from diy_core.training.export import export
from parity import to_flax, to_torch
from parity.convert.formats import convert, open_checkpoint
from parity.convert.switch import switch
from parity.inspect.run_diff import diff_runs
from parity.inspect.runs import inspect_run
from tests.oracles import tiny
from tests.tiny_checkpoints import (
    EMBEDDING,
    HEAD,
    MANIFEST,
    QUERY,
    UP,
    Arrays,
    put,
    read,
    same,
    sums,
    weights,
)
from tests.written_runs import STORES, add_checkpoint, state, write_run

TIED = tiny(num_hidden_layers=2)
UNTIED = tiny(num_hidden_layers=2, tie_word_embeddings=False)
OTHER = "model.layers.0.self_attn.more.weight"
BIAS = "model.layers.0.mlp.up_proj.bias"


def changed(config: DIYConfig, change: Callable[[Arrays], Any]) -> tuple[DIYConfig, Arrays]:
    arrays = weights(config)
    change(arrays)
    return config, arrays


def not_finite(arrays: Arrays) -> None:
    arrays[UP][3, 1] = np.inf


def with_a_bias(arrays: Arrays) -> None:
    arrays[BIAS] = np.ones(len(arrays[UP]), np.float32)


BROKEN: dict[str, tuple[DIYConfig, Arrays]] = {
    "every tensor is there": changed(TIED, lambda a: a.pop(QUERY)),
    "no other tensor is there": changed(TIED, lambda a: a.update({OTHER: a[QUERY]})),
    "shapes are those of the config": changed(TIED, lambda a: a.update({UP: a[UP][1:]})),
    "weights are floats": changed(TIED, lambda a: a.update({UP: a[UP].astype(np.int32)})),
    "values are finite": changed(TIED, not_finite),
    "a tied head is the embedding": changed(TIED, lambda a: a.update({HEAD: a[EMBEDDING] + 1})),
    "an untied head is there": changed(UNTIED, lambda a: a.pop(HEAD)),
    "what is left out has no effect": changed(
        TIED, lambda a: a.update({BIAS: np.ones(len(a[UP]), "f4")})
    ),
}
# What a refusal has to name: the tensor (each format has its own name for it), or the setting.
NAMED = {
    "every tensor is there": ("q_proj", "attn_q"),
    "no other tensor is there": ("more",),
    "shapes are those of the config": ("up_proj", "ffn_up"),
    "weights are floats": ("up_proj", "ffn_up"),
    "values are finite": ("up_proj", "ffn_up"),
    "a tied head is the embedding": ("lm_head",),
    "an untied head is there": ("lm_head", "output.weight"),
    "what is left out has no effect": ("up_proj/bias", "up_proj.bias", "ffn_up.bias"),
}


def in_torch(config: DIYConfig, arrays: Arrays) -> dict[str, torch.Tensor]:
    """A `state_dict` with these tensors, whatever they are."""
    names = {tensor.hf: tensor.torch for tensor in tensors(config)}
    names[BIAS] = "model.layers.0.feedforward.up_proj.bias"
    names[OTHER] = "model.layers.0.attention.more.weight"
    found = {names.get(n, n): torch.from_numpy(np.array(a)) for n, a in arrays.items()}
    if config.tie_word_embeddings:
        found.setdefault(HEAD, found["model.embed_tokens.weight"])
    return found


def in_flax(config: DIYConfig, arrays: Arrays) -> dict[str, Any]:
    rows = {tensor.hf: tensor for tensor in tensors(config)}
    flat = {}
    for name, array in arrays.items():
        path = tuple(name.replace("layers.", "layers_").removesuffix(".weight").split("."))
        if name in (BIAS, HEAD, OTHER):
            path = ("model", "layers_0", "feedforward", "up_proj", "bias") if name == BIAS else path
            leaf = "" if name == BIAS else "kernel"
            flat[path + ((leaf,) if leaf else ())] = array if array.ndim == 1 else array.T
        else:
            flat[rows[name].flax] = rows[name].to_flax(array)
    return unflatten({path: jnp.asarray(array) for path, array in flat.items()})


def hf(folder: Path, config: DIYConfig, arrays: Arrays) -> Path:
    return put(folder / "hf", arrays, config)


def orbax(folder: Path, config: DIYConfig, arrays: Arrays) -> Path:
    """As another program saves it, with a config beside it."""
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "orbax", {"params": in_flax(config, arrays)})
    (folder / "orbax" / "config.json").write_text(json.dumps(config.to_dict()))
    return folder / "orbax"


def gguf_file(folder: Path, config: DIYConfig, arrays: Arrays) -> Path:
    """Our own file of a whole model, its tensors then written by the gguf library."""
    whole = put(folder / "whole", weights(config), config)
    convert(whole, folder / "whole.gguf")
    source = gguf.GGUFReader(folder / "whole.gguf")
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    for key, field in source.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "diy_lm.manifest"):
            add_entry(writer, key, field.contents())
    short = {"self_attn.q_proj": "attn_q", "mlp.up_proj": "ffn_up", "self_attn.more": "attn_more"}
    whole_arrays = weights(config)
    stored = {tensor.name: np.array(tensor.data) for tensor in source.tensors}
    ours = {n.replace("model.layers.", "blk."): n for n in {*arrays, *whole_arrays}}
    for ours_name, name in ours.items():
        called = ours_name
        for long, other in short.items():
            called = called.replace(long, other)
        called = {EMBEDDING: "token_embd.weight", HEAD: "output.weight"}.get(name, called)
        if name not in arrays:
            stored.pop(called)
        elif name not in whole_arrays or not same({"": arrays[name]}, {"": whole_arrays[name]}):
            stored[called] = arrays[name]
    for called, array in stored.items():
        writer.add_tensor(called, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


FORMATS = {"hf": hf, "orbax": orbax, "gguf": gguf_file}


def read_whole(path: Path) -> None:
    list(open_checkpoint(path).read_all())


def to_each_format(path: Path) -> None:
    """Every conversion is refused for the same reason, and leaves nothing behind."""
    said = set()
    for target in ("hf", "orbax", "gguf"):
        copy = path.parent / f"copy-{target}{'.gguf' if target == 'gguf' else ''}"
        with pytest.raises(CheckpointError) as caught:
            convert(path, copy, to=target)
        said.add(str(caught.value).partition(": ")[2])
        assert not copy.exists()
    raise CheckpointError(path, sorted(said))


ON_DISK: dict[str, Callable[[Path], Any]] = {
    "the reader": read_whole,
    "the JAX twin": diy_jax.DIYForCausalLM.from_pretrained,
    "convert": to_each_format,
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("invariant", BROKEN)
def test_a_broken_file_is_refused_at_each_door(kind: str, invariant: str, tmp_path: Path) -> None:
    path = FORMATS[kind](tmp_path, *BROKEN[invariant])
    doors = dict(ON_DISK)
    if kind != "orbax":
        doors["the PyTorch twin"] = diy_torch.DIYForCausalLM.from_pretrained
    for door, enter in doors.items():
        if kind == "gguf" and invariant in (
            "a tied head is the embedding",
            "an untied head is there",
        ):
            continue  # it ties by having no head: neither can be written
        with pytest.raises(CheckpointError) as caught:
            enter(path)
        assert any(name in str(caught.value) for name in NAMED[invariant]), (door, caught.value)


def training_run(folder: Path, twin: str, config: DIYConfig, arrays: Arrays) -> Path:
    """A run with a checkpoint whose weights are these: its files fit one another, and its sums."""
    run = write_run(folder / "run", twin, {}, config=config)
    path = add_checkpoint(run, twin, 3, state(config=config))
    moments = {n: a for n, a in state(config=config).items() if not n.startswith("model/")}
    arrays = {f"model/{name}": array for name, array in arrays.items()} | moments
    if twin == "torch":
        safetensors.numpy.save_file(arrays, path / "state.safetensors")
    else:
        shutil.rmtree(path / "orbax")
        tree: dict[str, Any] = {}
        for name, array in arrays.items():
            kind, _, hf_name = name.partition("/")
            tree.setdefault(kind, {})[hf_name] = array
        with v0.StandardCheckpointer() as checkpointer:
            checkpointer.save(path / "orbax", tree)
    manifest = json.loads((path / MANIFEST).read_text())
    digests = sums(arrays)
    manifest["tensors"] = {
        name: {"dtype": str(a.dtype), "shape": list(a.shape), "sha256": digests[name]}
        for name, a in arrays.items()
    }
    (path / MANIFEST).write_text(json.dumps(manifest))
    return run


def of_runs(twin: str) -> dict[str, Callable[[Path], Any]]:
    """Doors that take a training run of a twin."""
    store = STORES[twin]

    def verify(run: Path) -> None:
        """What going on does before it takes a checkpoint."""
        store.verify(checkpoint_path(run / "checkpoints", 3), run / "model")

    return {
        "export": lambda run: export(store, run, None, run.parent / "out"),
        "switch": lambda run: switch(run, run.parent / "out"),
        "inspect": lambda run: inspect_run(run, verify=True, progress=lambda *_: None),
        "diff": lambda run: diff_runs(run, run, verify=True),
        "resume": verify,
    }


@pytest.mark.parametrize("twin", STORES)
@pytest.mark.parametrize("invariant", BROKEN)
def test_a_broken_training_run_is_refused_at_each_door(
    twin: str, invariant: str, tmp_path: Path
) -> None:
    run = training_run(tmp_path, twin, *BROKEN[invariant])
    for door, enter in of_runs(twin).items():
        with pytest.raises(CheckpointError) as caught:
            enter(run)
        said = str(caught.value)
        assert any(name in said for name in NAMED[invariant]), (door, said)
        assert said.startswith(str(checkpoint_path(run / "checkpoints", 3))), (door, said)
        assert [item.name for item in tmp_path.iterdir()] == ["run"], door


@pytest.mark.parametrize("twin", STORES)
def test_a_training_run_that_breaks_none_passes_each_door(twin: str, tmp_path: Path) -> None:
    for config in (TIED, UNTIED):
        folder = tmp_path / str(config.tie_word_embeddings)
        folder.mkdir()
        run = training_run(folder, twin, config, weights(config))
        for enter in of_runs(twin).values():
            enter(run)
            shutil.rmtree(folder / "out", ignore_errors=True)


@pytest.mark.parametrize("twin", STORES)
def test_a_training_run_without_a_config_is_refused(twin: str, tmp_path: Path) -> None:
    run = training_run(tmp_path, twin, TIED, weights(TIED))
    (run / "model" / "config.json").unlink()
    for enter in of_runs(twin).values():
        with pytest.raises(ValueError, match=r"config\.json"):
            enter(run)
        assert [item.name for item in tmp_path.iterdir()] == ["run"]


def given(config: DIYConfig, arrays: Arrays) -> dict[str, Callable[[Path], Any]]:
    """Doors that take a model in memory."""
    flax, state = in_flax(config, arrays), in_torch(config, arrays)

    def save_torch(path: Path) -> None:
        model = diy_torch.DIYForCausalLM(config)
        model.model.layers[0].attention.more = torch.nn.Module()
        for name in set(dict(model.named_parameters(remove_duplicate=False))) - set(state):
            module, _, leaf = name.rpartition(".")
            delattr(model.get_submodule(module), leaf)
        for name, tensor in state.items():
            module, _, leaf = name.rpartition(".")
            new = torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
            setattr(model.get_submodule(module), leaf, new)
        model.save_pretrained(path)

    return {
        "to_flax": lambda path: to_flax(state, config),
        "to_torch": lambda path: to_torch(flax, config),
        "save_pretrained of PyTorch": save_torch,
        "save_pretrained of JAX": lambda path: diy_jax.DIYForCausalLM(config).save_pretrained(
            path, flax
        ),
    }


@pytest.mark.parametrize("invariant", BROKEN)
def test_a_broken_model_in_memory_is_refused_at_each_door(invariant: str, tmp_path: Path) -> None:
    for door, enter in given(*BROKEN[invariant]).items():
        if invariant == "values are finite" and door.startswith("to_"):
            enter(tmp_path)  # what is in memory is handed on as it is: nothing is written
            continue
        with pytest.raises(CheckpointError) as caught:
            enter(tmp_path / "out")
        assert any(name in str(caught.value) for name in NAMED[invariant]), (door, caught.value)
        assert not (tmp_path / "out").exists()


def test_every_invariant_is_broken_here() -> None:
    assert {one.name for one in INVARIANTS} == {*BROKEN, "a config is there", "buffers are noted"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_checkpoint_without_a_config_is_refused(kind: str, tmp_path: Path) -> None:
    path = FORMATS[kind](tmp_path, TIED, weights(TIED))
    if kind == "gguf":
        return  # which holds it in the same file
    (path / "config.json").unlink()
    for enter in ON_DISK.values():
        with pytest.raises(ValueError, match=r"config\.json"):
            enter(path)
        shutil.rmtree(tmp_path / "copy-hf", ignore_errors=True)


def test_buffers_that_follow_from_the_config_are_left_out_with_a_note(tmp_path: Path) -> None:
    table = np.linspace(0.1, 1, TIED.head_size // 2, dtype=np.float32)
    arrays = weights(TIED) | {"model.layers.0.self_attn.rotary_emb.inv_freq": table}
    path = put(tmp_path / "hf", arrays, TIED)
    others = "which gives other frequencies than"
    for enter in (
        diy_torch.DIYForCausalLM.from_pretrained,
        diy_jax.DIYForCausalLM.from_pretrained,
        lambda path: to_flax(in_torch(TIED, arrays), TIED),
    ):
        with pytest.warns(CheckpointNote, match=others):
            enter(path)
    assert any(others in note for note in convert(path, tmp_path / "copy").notes)
    model = diy_torch.DIYForCausalLM.from_pretrained(put(tmp_path / "m", weights(TIED), TIED))
    model.model.layers[0].attention.register_buffer("inv_freq", torch.from_numpy(table))
    with pytest.warns(CheckpointNote, match=others):
        model.save_pretrained(tmp_path / "saved")
    assert same(read(tmp_path / "saved"), weights(TIED))


def test_zero_biases_are_left_out_with_a_note_by_both_twins(tmp_path: Path) -> None:
    """The config has no such bias, and the sum is the same without it."""
    arrays = weights(TIED) | {BIAS: np.zeros(len(weights(TIED)[UP]), np.float32)}
    model = diy_torch.DIYForCausalLM.from_pretrained(put(tmp_path / "m", weights(TIED), TIED))
    up = model.model.layers[0].feedforward.up_proj
    up.bias = torch.nn.Parameter(torch.from_numpy(arrays[BIAS]))
    with pytest.warns(CheckpointNote, match="1 bias was dropped"):
        model.save_pretrained(tmp_path / "torch")
    with pytest.warns(CheckpointNote, match="1 bias was dropped"):
        diy_jax.DIYForCausalLM(TIED).save_pretrained(tmp_path / "jax", in_flax(TIED, arrays))
    assert same(read(tmp_path / "torch"), weights(TIED))
    assert same(read(tmp_path / "jax"), weights(TIED))
