"""Conversion in memory and on disk: bit for bit, and every fault named."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

import diy_jax
import diy_torch
import parity
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten
from diy_core.notes import CheckpointNote
from diy_core.rope_scaling import RopeScaling
from diy_jax import orbax_store
from parity.convert.formats import KINDS, WRITERS, convert, kind_of, open_checkpoint
from parity.random_models import small_configs, write_random_model
from tests.oracles import LLAMA3, tiny
from tests.tiny_checkpoints import (
    DTYPES,
    EMBEDDING,
    HEAD,
    MANIFEST,
    NORM,
    QUERY,
    TEMPLATE,
    UP,
    Arrays,
    put,
    put_tokenizer,
    read,
    read_config,
    same,
    snapshot,
    sums,
    sums_of,
    weights,
)

NO_TOKENIZER = "has no tokenizer.json, so the GGUF file has no tokenizer to run text with"
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("name", ["gqa", "untied", "biases"])
def test_there_and_back_in_memory_is_the_same_to_the_bit(name: str, dtype: str) -> None:
    config = small_configs()[name]
    state = diy_torch.DIYForCausalLM(config, seed=3, dtype=TORCH_DTYPES[dtype]).state_dict()
    params = parity.to_flax(state, config)
    expected = flatten(diy_jax.init_params(config, seed=3, dtype=DTYPES[dtype]))
    assert {path: str(a.dtype) for path, a in flatten(params).items()} == dict.fromkeys(
        expected, dtype
    )
    for path, array in flatten(params).items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(expected[path]))
    back = parity.to_torch(params, config)
    assert set(back) == set(state) != set()
    assert all(same_bits(back[key], state[key]) for key in state)
    diy_torch.DIYForCausalLM(config, dtype=TORCH_DTYPES[dtype]).load_state_dict(back)


def test_float64_is_kept_with_64_bits_and_refused_without() -> None:
    config = small_configs()["gqa"]
    state = diy_torch.DIYForCausalLM(config, dtype=torch.float64).state_dict()
    with pytest.raises(ValueError, match="jax_enable_x64"):
        parity.to_flax(state, config)
    with jax.enable_x64(True):
        params = parity.to_flax(state, config)
        assert all(array.dtype == np.float64 for array in flatten(params).values())


def test_every_fault_of_a_state_dict_is_named_at_once() -> None:
    config = small_configs()["gqa"]
    state = diy_torch.DIYForCausalLM(config).state_dict()
    del state["model.norm.weight"]
    state["model.layers.7.attention.q_proj.weight"] = torch.zeros(2)
    state["model.layers.0.attention.k_proj.weight"] = torch.zeros(16, 47)
    with pytest.raises(CheckpointError) as error:
        parity.to_flax(state, config)
    text = str(error.value)
    for part in (
        "3 faults",
        "missing tensor model.norm.weight",
        "unexpected tensor model.layers.7",
        "(16, 47), expected (16, 48)",
    ):
        assert part in text


def test_what_is_odd_about_weights_in_memory_is_noted() -> None:
    config = small_configs()["gqa"]
    plain = diy_torch.DIYForCausalLM(config).state_dict()
    params = parity.to_flax(plain, config)
    state = {f"module.{name}": tensor for name, tensor in plain.items()}
    state["module.lm_head.weight"] = state["module.lm_head.weight"].double()
    state["module.lm_head.bias"] = torch.zeros(config.vocab_size)
    state["module.model.attn_bias"] = torch.full((8, 8), -torch.inf, dtype=torch.bfloat16).triu(1)
    with pytest.warns(CheckpointNote) as said:
        again = parity.to_flax(state, config)
    assert [str(note.message).split(":")[:2] for note in said] == [
        ["state_dict", " 'module' (of DistributedDataParallel) was taken off the names"],
        [
            "state_dict",
            " 1 mask or positions was dropped, such as module.model.attn_bias",
        ],
        ["state_dict", " 1 bias was dropped, such as module.lm_head.bias"],
    ]
    assert {note.filename for note in said} == {__file__}
    state["module.lm_head.bias"][3] = 1
    with pytest.raises(CheckpointError, match="unexpected tensor"):
        parity.to_flax(state, config)
    for odd, words in (
        ({"policy": {"inner": params}}, "the parameters lie below 'policy/inner', which was"),
        (params["model"], "the paths have no 'model' in front"),
    ):
        with pytest.warns(CheckpointNote, match=f"^params: {words}"):
            back = parity.to_torch(odd, config)
        assert all(same_bits(back[key], plain[key]) for key in plain)
    assert flatten(again).keys() == flatten(params).keys()


def test_a_tied_head_that_drifted_is_refused() -> None:
    config = small_configs()["gqa"]
    state = dict(diy_torch.DIYForCausalLM(config).state_dict())
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        parity.to_flax(state, config)


def test_faults_of_params_are_named() -> None:
    config = small_configs()["gqa"]
    params = diy_jax.init_params(config)
    params["model"]["layers_0"]["attention"]["bogus"] = np.zeros(3)
    with pytest.raises(CheckpointError, match="unexpected tensor model/layers_0/attention/bogus"):
        parity.to_torch(params, config)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_hugging_face_to_orbax_and_back_is_the_same_to_the_bit(dtype: str, tmp_path: Path) -> None:
    config = small_configs()["biases"]
    write_random_model(tmp_path / "random", config, "fan-in")
    kind = getattr(torch, dtype)
    diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "random", kind).save_pretrained(
        tmp_path / "model"
    )
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    assert convert(tmp_path / "model", tmp_path / "orbax").kind == "orbax"
    assert kind_of(tmp_path / "orbax") == "orbax"
    assert convert(tmp_path / "orbax", tmp_path / "back").kind == "hf"
    assert (tmp_path / "back" / "tokenizer.json").read_text() == "{}"
    before, after = HFReader(tmp_path / "model"), HFReader(tmp_path / "back")
    assert before.config.to_dict() == after.config.to_dict()
    assert before.stored == after.stored
    for name in before.stored:
        one, other = before.read(name), after.read(name)
        assert one.dtype == other.dtype == np.dtype(dtype)
        assert one.tobytes() == other.tobytes()


def test_relative_paths_do_as_well_as_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    monkeypatch.chdir(tmp_path)
    assert convert("model", "orbax").kind == "orbax"
    assert convert("orbax", "back").kind == "hf"
    assert HFReader("back").stored == HFReader("model").stored


def test_plain_orbax_reads_what_was_written(tmp_path: Path) -> None:
    config = small_configs()["gqa"]
    write_random_model(tmp_path / "model", config, "fan-in")
    convert(tmp_path / "model", tmp_path / "orbax")
    name, leaf = "model.layers.1.mlp.up_proj.weight", ("layers_1", "feedforward", "up_proj")
    expected = HFReader(tmp_path / "model").read(name).T
    with jax.enable_x64(True):
        new: Any = ocp.load(tmp_path / "orbax")
        old = orbax.checkpoint.PyTreeCheckpointer().restore(tmp_path / "orbax" / "state")
    for tree in (new, old):
        node = tree["model"]
        for key in leaf:
            node = node[key]
        np.testing.assert_array_equal(np.asarray(node["kernel"]), expected)


def test_an_orbax_checkpoint_runs_in_the_flax_twin(tmp_path: Path) -> None:
    config = small_configs()["gqa"]
    diy_torch.DIYForCausalLM(config, seed=1).save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "orbax")
    config, params = orbax_store.load_params(tmp_path / "orbax")
    model, expected = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model")
    ids = [[1, 2, 3]]
    np.testing.assert_array_equal(
        model.apply({"params": params}, ids), model.apply({"params": expected}, ids)
    )


def test_a_link_in_a_circle_is_no_place_to_write_to(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    (tmp_path / "loop").symlink_to("loop")
    for kind in ("hf", "orbax"):
        with pytest.raises(CheckpointError, match="loop: is a link that leads back to itself"):
            convert(tmp_path / "model", tmp_path / "loop", to=kind, overwrite=True)
    assert (tmp_path / "loop").is_symlink()


def test_what_is_in_the_way_is_not_lost(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    convert(tmp_path / "model", tmp_path / "orbax")
    with pytest.raises(CheckpointError, match="exists already: overwrite=True"):
        convert(tmp_path / "model", tmp_path / "orbax")
    convert(tmp_path / "model", tmp_path / "orbax", overwrite=True)
    with pytest.raises(CheckpointError, match="is the source itself"):
        convert(tmp_path / "model", tmp_path / "model", overwrite=True)
    before = snapshot(tmp_path / "model")
    for inner in ("inner", "inner.gguf", "../model/deep/er"):
        with pytest.raises(CheckpointError, match=r"lies inside of the source, .*model, which"):
            convert(tmp_path / "model", tmp_path / "model" / inner)
    assert snapshot(tmp_path / "model") == before
    (tmp_path / "model" / "inner").mkdir()
    convert(tmp_path / "orbax", tmp_path / "model" / "inner", overwrite=True)
    with pytest.raises(CheckpointError, match=r"holds the source, .*inner, and would be"):
        convert(tmp_path / "model" / "inner", tmp_path / "model", to="hf", overwrite=True)
    with pytest.raises(ValueError, match="destination is empty: give a path"):
        convert(tmp_path / "model", "", overwrite=True)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("years")
    with pytest.raises(CheckpointError, match="choose another place"):
        convert(tmp_path / "model", tmp_path / "papers", overwrite=True)
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "years"
    with pytest.raises(CheckpointError, match="neither a Hugging Face directory"):
        convert(tmp_path / "papers", tmp_path / "x")


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("hf", "model.safetensors"),
        ("hf", "model-00001-of-00002.safetensors"),
        ("hf", "config.json"),
        ("hf", "tokenizer.json"),
        ("hf", "additional_chat_templates"),
        ("orbax", "state"),
        ("orbax", "state/d"),
        ("orbax", "config.json"),
        ("gguf", ""),
    ],
)
def test_what_lies_in_a_directory_named_as_a_part_is_not_lost(
    tmp_path: Path, to: str, name: str
) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    target = tmp_path / ("new.gguf" if to == "gguf" else "new")
    convert(tmp_path / "model", target, to=to, dtype="float32")
    if (target / name).is_file():
        (target / name).unlink()
    (target / name).mkdir(parents=True, exist_ok=True)
    (target / name / "my notes.txt").write_text("years")
    before = snapshot(target)
    with pytest.raises(CheckpointError, match=r"my notes\.txt|is a directory|choose another place"):
        convert(tmp_path / "model", target, to=to, dtype="float32", overwrite=True)
    assert snapshot(target) == before
    assert sorted(os.listdir(tmp_path)) == ["model", target.name]


def test_an_orbax_checkpoint_that_does_not_fit_its_config_is_refused(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    convert(tmp_path / "model", tmp_path / "orbax")
    config = json.loads((tmp_path / "orbax" / "config.json").read_text())
    config["intermediate_size"] = 81
    (tmp_path / "orbax" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"up_proj/kernel has shape \(48, 80\), expected"):
        convert(tmp_path / "orbax", tmp_path / "back")
    assert not (tmp_path / "back").exists()


# Any kind to any kind.


def convert_to(kind: str, source: Path, **options: Any) -> Path:
    """Beside the source, under a name of its own."""
    to = source.with_name(f"{source.name}-{kind}")
    assert convert(source, to, to=kind, **options).kind == kind
    return to


def chain(source: Path, *kinds: str) -> Path:
    """From one kind to the next, each with the sums of the first, and each source checked."""
    notes = DIYConfig.from_pretrained(source).notes  # each step tells of unknown keys again
    lacks = [] if (source / "tokenizer.json").exists() else [NO_TOKENIZER]
    for number, kind in enumerate(kinds):
        to = source.with_name(f"{source.name}-{kind}")
        done = convert(source, to, to=kind)
        expected = [*notes, *(lacks if kind == "gguf" else [])]
        assert (done.kind, done.verified, done.notes) == (kind, True, expected)
        assert done.source_verified == (number > 0 or (source / MANIFEST).exists())
        source = to
    return source


MIXED = {QUERY: "bfloat16", NORM: "float16", UP: "float16"}


def mixed(config: DIYConfig) -> Arrays:
    return {n: a.astype(DTYPES[MIXED.get(n, "float32")]) for n, a in weights(config).items()}


CHAINS = [
    ("orbax", "hf"),
    ("gguf", "hf"),
    ("orbax", "gguf", "hf"),
    ("gguf", "orbax", "hf"),
    ("gguf", "gguf", "orbax", "orbax", "hf", "hf"),
]
FILES = {
    "generation_config.json": b'{"eos_token_id":\r\n 0}',
    "LICENSE": b"free\r\n",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}\r\n",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "mixed"])
@pytest.mark.parametrize("kinds", CHAINS, ids="-".join)
def test_any_chain_of_conversions_is_the_same_to_the_bit(
    tmp_path: Path, kinds: tuple[str, ...], dtype: str
) -> None:
    config = tiny(vocab_size=270, attention_bias=True, rope_scaling=LLAMA3, head_dim=6)
    arrays = mixed(config) if dtype == "mixed" else weights(config, dtype)
    named = {} if dtype == "mixed" else {"dtype": dtype, "torch_dtype": dtype}
    source = put(tmp_path / "m", arrays, config, **named, bos_token_id=1, mine=[1, {"a": None}])
    put_tokenizer(source, chat_template=TEMPLATE)
    (source / "additional_chat_templates").mkdir()
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    back = chain(source, *kinds)
    assert same(read(back), arrays)
    assert read_config(back) == read_config(source)
    files = [*FILES, "tokenizer.json", "tokenizer_config.json"]
    assert all((back / name).read_bytes() == (source / name).read_bytes() for name in files)
    expected = {*files, "config.json", "model.safetensors", MANIFEST}
    assert set(snapshot(back)) == expected
    for step in tmp_path.iterdir():
        if step != source:
            assert sums_of(step) == sums(arrays)


@st.composite
def models(draw: st.DrawFn) -> DIYConfig:
    """Every switch of the config, with numbers that single precision cannot hold."""
    groups, repeat = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    size = draw(st.sampled_from([2, 6, 8]))
    low = draw(st.floats(0.1, 4.0))
    scaling = st.one_of(
        st.none(),
        st.builds(
            RopeScaling, rope_type=st.just("linear"), factor=st.just(1.0) | st.floats(1.0, 40.0)
        ),
        st.builds(
            RopeScaling,
            rope_type=st.just("llama3"),
            factor=st.floats(1.0, 40.0),
            low_freq_factor=st.just(low),
            high_freq_factor=st.floats(low + 0.1, 16.0),
            original_max_position_embeddings=st.integers(1, 10_000),
        ),
    )
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    )
    extra = draw(st.dictionaries(st.sampled_from(["mine", "bos_token_id", "a.b", "ä"]), values))
    return DIYConfig(
        vocab_size=draw(st.sampled_from([1, 7, 23])),
        hidden_size=draw(st.sampled_from([3, 8])),
        intermediate_size=draw(st.sampled_from([1, 5])),
        num_hidden_layers=draw(st.sampled_from([1, 2])),
        num_attention_heads=groups * repeat,
        num_key_value_heads=groups,
        head_dim=size,
        max_position_embeddings=draw(st.integers(1, 1 << 31)),
        rms_norm_eps=draw(st.floats(1e-12, 0.1)),
        rope_theta=draw(st.floats(1.5, 1e9)),
        rope_scaling=draw(scaling),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        initializer_range=draw(st.floats(0.0, 1.0)),
        extra=extra,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(config=models(), dtype=st.sampled_from(["float32", "bfloat16", "float16"]))
def test_any_model_survives_any_format(config: DIYConfig, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arrays = weights(config, dtype)
        source = put(Path(folder) / "m", arrays, config, dtype=dtype, torch_dtype=dtype)
        back = chain(source, "gguf", "orbax", "hf")
        assert same(read(back), arrays)
        assert sums_of(back) == sums_of(Path(folder) / "m-gguf") == sums(arrays)
        assert read_config(back) == read_config(source)


@pytest.mark.model
def test_the_real_model_survives_every_format(smollm2: Path, tmp_path: Path) -> None:
    arrays = read(smollm2)
    expected = sums(arrays)
    del arrays
    source = smollm2
    for kind in ("orbax", "gguf", "hf"):
        to = tmp_path / kind
        assert convert(source, to, to=kind).source_verified
        assert sums_of(to) == expected
        source = to
    assert sums(read(source)) == expected
    assert read_config(source) == read_config(smollm2)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (source / name).read_bytes() == (smollm2 / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_recognised_and_have_defaults(tmp_path: Path, kind: str) -> None:
    source = convert_to(kind, put(tmp_path / "m", weights()))
    assert kind_of(source) == kind
    assert convert(source, tmp_path / "a").kind == ("orbax" if kind == "hf" else "hf")
    assert convert(source, tmp_path / "b.gguf").kind == kind_of(tmp_path / "b.gguf") == "gguf"
    for to in ("hf", "orbax"):
        with pytest.raises(ValueError, match=r"c\.gguf is the name of a GGUF file"):
            convert(source, tmp_path / "c.gguf", to=to)
    with pytest.raises(ValueError, match=r"'onnx' .* choose one of gguf, hf, orbax"):
        convert(source, tmp_path / "d", to="onnx")
    with pytest.raises(ValueError, match="dtype 'int8' is not supported"):
        convert(source, tmp_path / "d", dtype="int8")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_replaces_what_it_may_and_its_tokenizer(tmp_path: Path, kind: str) -> None:
    old = put(tmp_path / "old", weights(seed=1, config=tiny(vocab_size=270)), tiny(vocab_size=270))
    put_tokenizer(old, chat_template="old")
    convert(old, tmp_path / "out", to=kind)
    new = put(tmp_path / "new", weights())
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="exists already: overwrite=True"):
        convert(new, tmp_path / "out", to=kind)
    assert snapshot(tmp_path) == before
    convert(new, tmp_path / "out", to=kind, overwrite=True)
    back = convert_to("hf", tmp_path / "out")
    assert same(read(back), weights())
    assert not (back / "tokenizer.json").exists()
    assert not (tmp_path / "out" / "tokenizer_config.json").exists()


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_not_replaced_by_one_of_another_kind(
    tmp_path: Path, kind: str, to: str
) -> None:
    source = put(tmp_path / "source", weights())
    convert(source, tmp_path / "out", to=kind)
    before = snapshot(tmp_path)
    if kind == to:
        convert(source, tmp_path / "out", to=to, overwrite=True)
        return
    with pytest.raises(CheckpointError):
        convert(source, tmp_path / "out", to=to, overwrite=True)
    assert snapshot(tmp_path) == before


def test_the_manifest_names_the_source_under_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(put(tmp_path / "here", weights()))
    assert convert(".", tmp_path / "a", to="hf").kind == "hf"
    odd = put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff")), weights())
    assert convert(odd, tmp_path / "b").kind == "orbax"
    assert convert(odd, tmp_path / "c.gguf").kind == "gguf"
    sources = [open_checkpoint(tmp_path / name).manifest for name in ("a", "b", "c.gguf")]
    assert [m.source for m in sources if m] == ["hf here", "hf m?", "hf m?"]


# Values of the source, and its sums.


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_changed_is_named_in_every_kind(tmp_path: Path, kind: str) -> None:
    """The sums of one checkpoint beside the weights of another."""
    one = convert_to(kind, put(tmp_path / "one", weights()))
    arrays = weights()
    arrays[UP][0, 0] += 1
    other = convert_to(kind, put(tmp_path / "other", arrays))
    if kind == "gguf":
        content = other.read_bytes()
        old, new = (s[UP].encode() for s in (sums(arrays), sums(weights())))
        assert content.count(old) == 1
        other.write_bytes(content.replace(old, new))
    else:
        shutil.copy(one / MANIFEST, other / MANIFEST)
    for to in KINDS:
        with pytest.raises(CheckpointError, match=f"{UP} does not have the SHA-256"):
            convert(other, tmp_path / "out", to=to)
        assert not (tmp_path / "out").exists()
    done = convert(other, tmp_path / "out", to="hf", verify=False)
    assert (done.verified, done.source_verified) == (False, False)
    assert sums_of(tmp_path / "out") == sums(arrays)


@pytest.mark.parametrize("to", KINDS)
def test_sums_are_of_the_rounded_values(tmp_path: Path, to: str) -> None:
    source = convert_to("orbax", put(tmp_path / "m", weights()))
    done = convert(source, tmp_path / "out", to=to, dtype="bfloat16")
    assert done.source_verified
    expected = {
        name: torch.from_numpy(array).to(torch.bfloat16).view(torch.int16).numpy()
        for name, array in weights().items()
    }
    assert sums_of(tmp_path / "out") == sums(expected)
    assert done.nbytes == sum(array.nbytes for array in expected.values())


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("value", [np.nan, 7e4])
def test_values_that_cannot_be_converted_are_named_as_the_file_has_them(
    tmp_path: Path, kind: str, value: float
) -> None:
    arrays = weights()
    arrays[NORM][2] = value
    if kind == "gguf" and np.isnan(value):
        source = convert_to(kind, put(tmp_path / "m", weights() | {NORM: np.full(16, 7e4, "f4")}))
        content = source.read_bytes()
        pattern = np.full(16, 7e4, "<f4").tobytes()
        assert content.count(pattern) == 1
        source.write_bytes(content.replace(pattern, arrays[NORM].tobytes()))
    else:
        source = put(tmp_path / "m", arrays)
        source = source if kind == "hf" else convert_to(kind, source)
    called = {"hf": NORM, "gguf": "output_norm.weight"}[kind]
    words = "values that are not finite, first at" if np.isnan(value) else "values too large for"
    with pytest.raises(CheckpointError, match=rf"tensor {called} has 1 {words}"):
        convert(source, tmp_path / "out", to="orbax", dtype="float16")
    assert not (tmp_path / "out").exists()


class Liar(orbax_store.OrbaxWriter):
    """A disk that changes one parameter before it is read back."""

    def prepare(self, name: str, array: Any) -> Any:
        return -super().prepare(name, array) if name == UP else super().prepare(name, array)


@pytest.mark.parametrize("old", [False, True])
def test_an_orbax_checkpoint_that_reads_back_otherwise_is_refused(
    tmp_path: Path, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put(tmp_path / "m", weights())
    if old:
        convert(put(tmp_path / "old", weights(seed=1)), tmp_path / "out")
    before = snapshot(tmp_path)
    monkeypatch.setitem(WRITERS, "orbax", Liar)
    with pytest.raises(CheckpointError, match=f"tensor {UP} does not have the SHA-256"):
        convert(source, tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path) == before
    convert(source, tmp_path / "out", overwrite=True, verify=False)


# Tied and untied.


def logits(path: Path) -> Any:
    """Of both twins, which have to agree; any kind."""
    ids = np.array([[1, 2, 3, 4]])
    with tempfile.TemporaryDirectory() as folder:
        convert(path, Path(folder) / "hf", to="hf")
        with torch.no_grad():
            by_torch = diy_torch.DIYForCausalLM.from_pretrained(Path(folder) / "hf")(ids).numpy()
        model, params = diy_jax.DIYForCausalLM.from_pretrained(Path(folder) / "hf")
    np.testing.assert_allclose(model.apply({"params": params}, ids), by_torch, atol=1e-5)
    return by_torch


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_untied_the_model_answers_as_before(tmp_path: Path, kind: str, to: str) -> None:
    source = put(tmp_path / "m", weights())
    source = source if kind == "hf" else convert_to(kind, source)
    out = convert_to(to, source, untie=True)
    reader = open_checkpoint(out)
    assert not reader.config.tie_word_embeddings
    assert sums_of(out) == sums(weights() | {HEAD: weights()[EMBEDDING]})
    assert reader.read(HEAD).tobytes() == weights()[EMBEDDING].tobytes()
    np.testing.assert_array_equal(logits(out), logits(source))
    convert(out, tmp_path / "again", to="hf", untie=True)  # of what is untied, nothing
    assert same(read(tmp_path / "again"), weights() | {HEAD: weights()[EMBEDDING]})


@pytest.mark.parametrize("to", KINDS)
def test_a_head_that_differs_is_kept_if_it_is_asked_for(tmp_path: Path, to: str) -> None:
    head = {HEAD: weights(seed=1)[EMBEDDING]}
    source = put(tmp_path / "m", weights() | head)
    words = r"`parity convert .*m DIR --to hf --untie` keeps the head"
    with pytest.raises(CheckpointError, match=words):
        convert(source, tmp_path / "x", to=to)
    assert not (tmp_path / "x").exists()
    out = convert_to(to, source, untie=True)
    assert sums_of(out) == sums(weights() | head)
    values = read_config(source) | {"tie_word_embeddings": False}
    (source / "config.json").write_text(json.dumps(values))
    np.testing.assert_array_equal(logits(out), logits(source))


@pytest.mark.parametrize("to", KINDS)
def test_a_head_that_is_the_embedding_is_dropped_with_a_note(tmp_path: Path, to: str) -> None:
    source = put(tmp_path / "m", weights() | {HEAD: weights()[EMBEDDING].copy()})
    done = convert(source, tmp_path / "out", to=to)
    dropped = f"{HEAD} was dropped: it equals the embedding, to which the config ties it"
    assert done.notes == ([NO_TOKENIZER, dropped] if to == "gguf" else [dropped])
    assert done.tensors == 20
    assert sums_of(tmp_path / "out") == sums(weights())
    assert open_checkpoint(tmp_path / "out").config.tie_word_embeddings


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_of_a_model_directory_is_answered_with_the_directory(
    tmp_path: Path, file: str
) -> None:
    source = put(tmp_path / "m", weights())
    with pytest.raises(CheckpointError, match="is one file of a model directory"):
        kind_of(source / file)
    with pytest.raises(CheckpointError, match="does not exist"):
        kind_of(source / f"other-{file}")
