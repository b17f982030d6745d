"""Names that are not quite those of the table: read where there is one reading, shown where not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers

from diy_core import CheckpointError, DIYConfig
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.mapping import tensors
from diy_core.stored_names import read_names
from tests.tiny_checkpoints import (
    CONFIG,
    EMBEDDING,
    HEAD,
    NORM,
    QUERY,
    UNTIED,
    put,
    same,
    weights,
)

Rename = Callable[[str], str]


def under(prefix: str) -> Rename:
    return lambda name: prefix + name


def body(prefix: str) -> Rename:
    """Only `model.` becomes another prefix; the head stays where it is."""
    return lambda name: name.replace("model.", prefix, 1) if name.startswith("model.") else name


def inside(part: str) -> Rename:
    return lambda name: name.replace("layers.0.", f"layers.0.{part}.").replace(
        "layers.1.", f"layers.1.{part}."
    )


TORCH = {tensor.hf: tensor.torch for tensor in tensors(UNTIED)}
READINGS: dict[str, tuple[Rename, str]] = {
    "data parallel": (under("module."), "'module' (of DistributedDataParallel)"),
    "compiled": (under("_orig_mod."), "'_orig_mod' (of torch.compile)"),
    "both": (
        under("module._orig_mod."),
        "'module' (of DistributedDataParallel) and '_orig_mod' (of torch.compile)",
    ),
    "each layer compiled": (inside("_orig_mod"), "'_orig_mod' (of torch.compile)"),
    "fsdp": (inside("_fsdp_wrapped_module"), "'_fsdp_wrapped_module' (of FSDP)"),
    "checkpointed": (inside("_checkpoint_wrapped_module"), "activation checkpointing"),
    "peft": (under("base_model.model."), "begin with 'base_model.model.model.' in place of"),
    "peft, adapters taken out": (inside("base_layer"), "'base_layer' (of PEFT)"),
    "of several, old": (under("language_model."), "begin with 'language_model.model.' in place"),
    "of several, new": (body("model.language_model."), "begin with 'model.language_model.' in"),
    "part of several": (body("language_model."), "begin with 'language_model.' in place of"),
    "gpt-like": (body("transformer."), "begin with 'transformer.' in place of 'model.'"),
    "bare": (body(""), "no 'model.' in front"),
    "bare, compiled": (lambda n: "_orig_mod." + body("")(n), "torch.compile) was taken off the n"),
    "bare layers": (lambda n: n.replace("model.layers", "layers"), "no 'model.' in front"),
    "bare embedding": (lambda n: n.replace("model.embed", "embed"), f"taken for {EMBEDDING}"),
    "bare ends": (
        lambda n: n if "layers" in n else n.removeprefix("model."),
        f"embed_tokens.weight was taken for {EMBEDDING}, and 1 more so",
    ),
    "one layer compiled": (
        lambda n: n.replace("layers.0.", "layers.0._orig_mod."),
        "'_orig_mod' (of torch.compile)",
    ),
    "torch twin": (TORCH.__getitem__, "the names are the PyTorch twin's"),
}


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("name", READINGS)
def test_a_prefix_is_read_past_where_all_tensors_then_match(
    tmp_path: Path, name: str, config: DIYConfig
) -> None:
    rename, words = READINGS[name]
    arrays = weights(config)
    put(tmp_path, {rename(name): array for name, array in arrays.items()}, config)
    reader = HFReader(tmp_path)
    assert same(dict(reader.read_all()), arrays)
    assert len(reader.notes) == 1
    assert words in reader.notes[0]
    assert reader.called(QUERY) == rename(QUERY)


@pytest.mark.parametrize("name", ["data parallel", "of several, old", "bare", "compiled"])
def test_where_tensors_do_not_match_the_prefix_is_named_and_what_is_there(
    tmp_path: Path, name: str
) -> None:
    rename, words = READINGS[name]
    arrays = {rename(name): array for name, array in weights().items()}
    arrays["vision_tower.patch.weight"] = arrays.pop(rename(NORM))
    put(tmp_path, arrays)
    with pytest.raises(CheckpointError) as refused:
        HFReader(tmp_path)
    first, *others = refused.value.faults
    assert words in first
    assert first.endswith("even so, not all tensors fit")
    assert others == [
        f"missing tensor {NORM} (16,)",
        "unexpected tensor vision_tower.patch.weight (16,)",
    ]


@pytest.mark.parametrize("name", ["data parallel", "peft", "of several, new", "bare"])
def test_a_second_copy_of_the_embedding_may_have_the_prefix_too(tmp_path: Path, name: str) -> None:
    rename, words = READINGS[name]
    arrays = weights() | {HEAD: weights()[EMBEDDING].copy()}
    put(tmp_path, {rename(name): array for name, array in arrays.items()})
    reader = HFReader(tmp_path)
    assert same(dict(reader.read_all()), weights())
    assert words in reader.notes[0]
    assert reader.notes[1].startswith(f"{HEAD} was dropped: it equals the embedding")


@pytest.mark.parametrize("head", ["model.lm_head.weight", "student.net.lm_head.weight"])
@pytest.mark.parametrize("rename", [body("model."), body("student.model.")])
def test_the_head_may_be_under_another_prefix(tmp_path: Path, head: str, rename: Rename) -> None:
    arrays = weights(UNTIED)
    put(tmp_path, {head if n == HEAD else rename(n): a for n, a in arrays.items()}, UNTIED)
    reader = HFReader(tmp_path)
    assert same(dict(reader.read_all()), arrays)
    assert f"{head} was taken for {HEAD}" in reader.notes[0]
    put(tmp_path, {rename(n): a for n, a in arrays.items()} | {head: arrays[HEAD]}, UNTIED)
    with pytest.raises(CheckpointError, match=f"unexpected tensor {head}|{HEAD} is there twice"):
        HFReader(tmp_path)


def test_adapters_that_were_not_merged_are_called_so(tmp_path: Path) -> None:
    base = QUERY.removesuffix("weight")
    arrays = {f"base_model.model.{name}": array for name, array in weights().items()}
    query = arrays.pop(f"base_model.model.{QUERY}")
    arrays[f"base_model.model.{base}base_layer.weight"] = query
    arrays[f"base_model.model.{base}lora_A.default.weight"] = np.ones((2, 16), np.float32)
    with pytest.raises(CheckpointError) as refused:
        HFReader(put(tmp_path, arrays))
    assert refused.value.faults[1].startswith("there are adapters beside the weights: merge them")
    assert f"unexpected tensor base_model.model.{base}lora_A.default.weight (2, 16)" in (
        refused.value.faults
    )


def test_two_tensors_that_would_be_one_are_no_reading() -> None:
    shapes = {tensor.hf: tensor.shape for tensor in tensors(CONFIG)}
    found = shapes | {f"module.{NORM}": (16,)}
    reading = read_names(found, CONFIG, lambda name: [])
    assert reading.faults == [f"unexpected tensor module.{NORM} (16,)"]


def test_a_tensor_under_both_of_two_prefixes_is_no_reading(tmp_path: Path) -> None:
    arrays = {f"language_model.{name}": array for name, array in weights().items()}
    with pytest.raises(CheckpointError) as refused:
        HFReader(put(tmp_path, arrays | {NORM: np.ones(16, np.float32)}))
    assert refused.value.faults[1:] == [
        f"tensor {NORM} is there twice, also as language_model.{NORM}"
    ]


def test_a_prefix_ends_with_a_dot(tmp_path: Path) -> None:
    arrays = {body("my")(name): array for name, array in weights().items()}
    with pytest.raises(CheckpointError, match=f"missing tensor {EMBEDDING}"):
        HFReader(put(tmp_path, arrays))


def test_a_head_alone_is_the_embedding_that_it_is_tied_to(tmp_path: Path) -> None:
    arrays = weights()
    stored = {HEAD if name == EMBEDDING else name: array for name, array in arrays.items()}
    put(tmp_path, stored)
    reader = HFReader(tmp_path)
    assert same(dict(reader.read_all()), arrays)
    assert reader.notes == [
        f"there is no {EMBEDDING}: {HEAD} was taken, to which the config ties it"
    ]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert np.array_equal(theirs.state_dict()[EMBEDDING].numpy(), arrays[EMBEDDING])
    untied = dict(HFReader(tmp_path, untie=True).read_all())
    assert same(untied, arrays | {HEAD: arrays[EMBEDDING]})


@pytest.mark.parametrize("gone", [EMBEDDING, HEAD])
def test_of_two_that_are_not_tied_none_may_be_missing(tmp_path: Path, gone: str) -> None:
    arrays = weights(UNTIED)
    del arrays[gone]
    with pytest.raises(CheckpointError) as refused:
        HFReader(put(tmp_path, arrays, UNTIED))
    assert f"and there is no {gone}; set it to true" in str(refused.value)


def test_a_bare_llama_model_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    theirs = transformers.LlamaModel(transformers.LlamaConfig.from_dict(CONFIG.to_dict()))
    theirs.save_pretrained(tmp_path)
    reader = HFReader(tmp_path)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    found = dict(reader.read_all())
    assert all(np.array_equal(whole[name].numpy(), array) for name, array in found.items())
    assert ["LlamaModel" in note for note in reader.notes] == [True, True]
