"""GGUF files as others read them: the gguf library, transformers, and our own reader."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from diy_core import CheckpointError, DIYConfig, RopeScaling
from diy_core.checkpoints.gguf import writer as gguf_writer
from diy_core.checkpoints.gguf.reader import GGUFReader
from diy_core.checkpoints.gguf.writer import GGUFWriter
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.checkpoints.transfer import transfer
from diy_core.text.tokenizer import Tokenizer
from tests.oracles import CONFIGS, LLAMA3, tiny
from tests.tiny_checkpoints import (
    CONFIG,
    DTYPES,
    MERGES,
    NORM,
    PIECES,
    SPECIAL,
    TEMPLATE,
    UNTIED,
    UP,
    Arrays,
    build_tokenizer,
    put,
    put_tokenizer,
    read,
    same,
    snapshot,
    sums,
    sums_of,
    weights,
)

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
}
TEXTUAL = tiny(vocab_size=270)  # a few rows more than tokens
TOKENS = [*PIECES, "<tool>"]


def export(source: Path, to: Path, **options: Any) -> Any:
    return transfer(HFReader(source), functools.partial(GGUFWriter, to), **options)


def back(source: Path, to: Path) -> Path:
    transfer(GGUFReader(source), functools.partial(HFWriter, to))
    return to


def entries(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def their_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def permute(array: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def expected_tensors(config: DIYConfig, arrays: Arrays) -> Arrays:
    """What the file has to hold: names, order of rows, float32 where there is one axis."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}
    found = {}
    for name, array in arrays.items():
        role = name.split(".")[-2]
        stored = permute(array, heads[role]) if role in heads else array
        found[their_name(name)] = stored.astype(np.float32) if stored.ndim == 1 else stored
    return found


FORMS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@pytest.mark.parametrize("dtype", FORMS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_library_finds_every_tensor_where_llama_cpp_looks(
    tmp_path: Path, name: str, dtype: str
) -> None:
    config = CONFIGS[name]
    arrays = weights(config, dtype)
    export(put(tmp_path / "model", arrays, config), tmp_path / "m.gguf")
    expected = expected_tensors(config, arrays)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert found.keys() - {"rope_freqs.weight"} == expected.keys()
    assert ("rope_freqs.weight" in found) == (name == "llama3")
    for key, array in expected.items():
        tensor = found[key]
        assert tensor.tensor_type.name == ("F32" if array.ndim == 1 else FORMS[dtype])
        assert tuple(reversed(tensor.shape.tolist())) == array.shape
        assert tensor.data_offset % reader.alignment == 0
        assert tensor.data.tobytes() == array.tobytes()
    size = (tmp_path / "m.gguf").stat().st_size
    assert size % 32 == 0  # llama.cpp wants the last tensor padded too
    assert sums_of(tmp_path / "m.gguf") == sums(arrays)


def test_mixed_dtypes_are_kept_and_the_most_frequent_names_the_file(tmp_path: Path) -> None:
    arrays = weights()
    for name, array in arrays.items():
        if "mlp" in name or "self_attn" in name:
            arrays[name] = array.astype(DTYPES["bfloat16"])
    arrays[UP] = arrays[UP].astype(np.float16)
    export(put(tmp_path / "model", arrays), tmp_path / "m.gguf")
    assert entries(tmp_path / "m.gguf")["general.file_type"] == 32  # MOSTLY_BF16
    forms = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert forms["blk.1.ffn_up.weight"] == "F16"
    assert forms["blk.0.ffn_up.weight"] == "BF16"
    assert forms["token_embd.weight"] == forms["blk.0.attn_norm.weight"] == "F32"
    assert same(read(back(tmp_path / "m.gguf", tmp_path / "back")), arrays)


def test_the_matrices_name_the_file_and_no_config_names_two_dtypes(tmp_path: Path) -> None:
    """Also where there are more norms and biases than matrices."""
    config = CONFIGS["biases"]
    arrays = {
        name: array.astype(DTYPES["bfloat16"]) if array.ndim > 1 else array
        for name, array in weights(config).items()
    }
    export(put(tmp_path / "model", arrays, config), tmp_path / "m.gguf")
    found = entries(tmp_path / "m.gguf")
    assert found["general.file_type"] == 32  # MOSTLY_BF16
    assert not {"dtype", "torch_dtype"} & json.loads(found["diy_lm.config"]).keys()


@pytest.mark.parametrize("piece", [7, 1000])
def test_tensors_are_written_in_pieces_of_any_size(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put(tmp_path / "model", weights())
    export(source, tmp_path / "whole.gguf")
    monkeypatch.setattr(gguf_writer, "PIECE", piece)
    export(source, tmp_path / "parts.gguf")
    assert (tmp_path / "parts.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_layers_have_numbers_of_any_length(tmp_path: Path) -> None:
    config = tiny(num_hidden_layers=11)
    arrays = weights(config)
    export(put(tmp_path / "model", arrays, config), tmp_path / "m.gguf")
    found = {t.name: t.data.tobytes() for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    expected = expected_tensors(config, arrays)
    assert "blk.10.ffn_up.weight" in expected
    assert found == {name: array.tobytes() for name, array in expected.items()}


@pytest.mark.parametrize(("dtype", "kind"), [("float32", 0), ("float16", 1), ("bfloat16", 32)])
def test_the_metadata_says_what_llama_cpp_needs(tmp_path: Path, dtype: str, kind: int) -> None:
    config = tiny(head_dim=6, rope_theta=5e5, rms_norm_eps=1e-6, num_key_value_heads=1)
    export(put(tmp_path / "model", weights(config, dtype), config), tmp_path / "m.gguf")
    found = entries(tmp_path / "m.gguf")
    wanted = {
        "general.architecture": "llama",
        "general.file_type": kind,
        "llama.block_count": 2,
        "llama.context_length": 256,
        "llama.embedding_length": 16,
        "llama.feed_forward_length": 20,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": 6,
        "llama.attention.value_length": 6,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
        "llama.rope.freq_base": 5e5,
        "llama.rope.dimension_count": 6,
        "llama.vocab_size": 23,
        "tokenizer.ggml.model": "no_vocab",
    }
    ours = {"diy_lm.config", "diy_lm.files", "diy_lm.manifest"}
    assert {key: found[key] for key in wanted} == wanted
    assert {k for k in found if not k.startswith("GGUF.")} == wanted.keys() | ours
    types = {key: field.types[0].name for key, field in _fields(tmp_path / "m.gguf").items()}
    assert types["llama.block_count"] == types["general.file_type"] == "UINT32"
    assert types["llama.rope.freq_base"] == "FLOAT32"
    assert json.loads(found["diy_lm.config"])["dtype"] == dtype
    assert json.loads(found["diy_lm.manifest"])["source"] == "hf model"


def _fields(file: Path) -> Any:
    return gguf.GGUFReader(file).fields


def test_linear_scaling_is_an_entry(tmp_path: Path) -> None:
    config = CONFIGS["linear"]
    export(put(tmp_path / "model", weights(config), config), tmp_path / "m.gguf")
    found = entries(tmp_path / "m.gguf")
    assert found["llama.rope.scaling.type"] == "linear"
    assert found["llama.rope.scaling.factor"] == 4.0


def llama3_factors(config: DIYConfig, scaling: RopeScaling) -> list[float]:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    context = scaling.original_max_position_embeddings
    assert low is not None
    assert high is not None
    assert context is not None
    factors = []
    for j in range(0, config.head_size, 2):
        wavelength = 2 * math.pi * config.rope_theta ** (j / config.head_size)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(scaling.factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return factors


@pytest.mark.parametrize("context", [64, 100, 8192])
def test_llama3_scaling_is_a_tensor_of_factors(tmp_path: Path, context: int) -> None:
    scaling = dataclasses.replace(LLAMA3, original_max_position_embeddings=context)
    config = tiny(rope_scaling=scaling, rope_theta=500.0, head_dim=12)
    export(put(tmp_path / "model", weights(config), config), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    (tensor,) = (t for t in reader.tensors if t.name == "rope_freqs.weight")
    assert tensor.tensor_type.name == "F32"
    expected = llama3_factors(config, scaling)
    assert (min(expected) < max(expected)) == (context < 8192)
    np.testing.assert_allclose(tensor.data, expected, rtol=1e-5)
    assert "llama.rope.scaling.type" not in entries(tmp_path / "m.gguf")
    assert GGUFReader(tmp_path / "m.gguf").config.rope_scaling == scaling


# Other programs.


@pytest.mark.parametrize("dtype", FORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_same_weights(tmp_path: Path, tied: bool, dtype: str) -> None:
    # Its reader takes the head size from the hidden size.
    config = dataclasses.replace(TEXTUAL, tie_word_embeddings=tied, hidden_size=128, head_dim=32)
    source = put(tmp_path / "model", weights(config, dtype), config)
    put_tokenizer(source)
    export(source, tmp_path / "m.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=getattr(torch, dtype)
    )
    state = theirs.state_dict()
    for name, array in weights(config, dtype).items():
        assert np.array_equal(state[name].float().numpy(), array.astype(np.float32)), name
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == tied
    assert theirs.config.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.config.num_key_value_heads == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in ("the year", "<|begin|>he<tool>"):  # of digits it knows nothing
        assert tokenizer(text)["input_ids"] == build_tokenizer().encode(text).ids


# The tokenizer.


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with a tokenizer."""
    put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    put_tokenizer(tmp_path / "model", chat_template=TEMPLATE)
    return tmp_path / "model"


def test_the_vocabulary_is_what_llama_cpp_reads(tmp_path: Path, source: Path) -> None:
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    export(source, tmp_path / "m.gguf")
    found = entries(tmp_path / "m.gguf")
    vocabulary = {k.split(".", 2)[2]: v for k, v in found.items() if "tokenizer.ggml." in k}
    padding = [f"[PAD{i}]" for i in range(len(TOKENS), 270)]
    assert len(padding) > 1
    assert vocabulary == {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": TOKENS + padding,
        "token_type": [3] * 3 + [1] * (len(PIECES) - 3) + [4] + [5] * len(padding),
        "merges": [" ".join(merge) for merge in MERGES],
        "bos_token_id": 1,
        "eos_token_id": 0,  # the end of a text, whatever comes first in generation_config.json
        "eot_token_id": 2,
        "padding_token_id": 2,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    assert found["tokenizer.chat_template"] == TEMPLATE


def test_templates_of_names_that_differ_in_punctuation_each_have_an_entry(
    tmp_path: Path, source: Path
) -> None:
    """Keys of GGUF have underscores for it."""
    texts = {name: f"{name}: {{{{ messages }}}}" for name in ("a b", "a-b", "a_b", "a_b_2", "rag")}
    (source / "additional_chat_templates").mkdir()
    for name, text in texts.items():
        (source / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    done = export(source, tmp_path / "m.gguf")
    called = {"a b": "a_b_3", "a-b": "a_b_4", "a_b": "a_b", "a_b_2": "a_b_2", "rag": "rag"}
    found = entries(tmp_path / "m.gguf")
    assert found["tokenizer.chat_templates"] == sorted(called.values())
    for name, text in texts.items():
        assert found[f"tokenizer.chat_template.{called[name]}"] == text
    for name in ("a b", "a-b"):
        assert (
            f"chat template '{name}' is called '{called[name]}' in the GGUF file, as 'a_b' is chat "
            "template 'a_b'"
        ) in done.notes
    assert len(done.notes) == 2
    copy = back(tmp_path / "m.gguf", tmp_path / "back")
    assert Tokenizer.from_pretrained(copy).chat_templates == texts | {"default": TEMPLATE}
    with pytest.raises(CheckpointError, match="chat template 'a b' is called"):
        export(source, tmp_path / "strict.gguf", strict=True)
    assert not (tmp_path / "strict.gguf").exists()


def test_what_ends_a_turn_is_also_found_in_the_config(tmp_path: Path) -> None:
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL, eos_token_id=[0, 2])
    put_tokenizer(source, unk_token="he")
    export(source, tmp_path / "m.gguf")
    found = entries(tmp_path / "m.gguf")
    ids = [found[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "unknown")]
    assert ids == [0, 2, TOKENS.index("he")]


@pytest.mark.parametrize("begin", ["<|begin|>", "<|end|>"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_what_is_put_around_a_text_is_said(
    tmp_path: Path, bos: bool, eos: bool, begin: str
) -> None:
    """Also where one token begins and ends texts."""
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    backend = build_tokenizer(before=begin if bos else "", after="<|end|>" if eos else "")
    put_tokenizer(source, backend, bos_token=begin)
    export(source, tmp_path / "m.gguf")
    found = entries(tmp_path / "m.gguf")
    assert found["tokenizer.ggml.add_bos_token"] is bos
    assert found["tokenizer.ggml.add_eos_token"] is eos


def test_an_unknown_text_is_not_taken_for_what_is_put_around_it(tmp_path: Path) -> None:
    """A vocabulary that lacks letters may have one token for unknown ones, first and last."""
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    backend, known = build_tokenizer(), [token for token in PIECES if token != "a"]
    backend.model = models.BPE({t: i for i, t in enumerate(known)}, MERGES, unk_token="<|end|>")
    put_tokenizer(source, backend, bos_token="<|end|>")
    assert backend.encode("a").ids == [0]
    export(source, tmp_path / "m.gguf")
    found = entries(tmp_path / "m.gguf")
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.ggml.add_eos_token"] is False


def test_what_is_put_around_a_text_and_is_no_bos_or_eos_is_refused(tmp_path: Path) -> None:
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    put_tokenizer(source, build_tokenizer(before="<|turn|>", after="<|turn|>"))
    with pytest.raises(CheckpointError, match="puts more around a text than BOS in front and EOS"):
        export(source, tmp_path / "m.gguf")


def test_tokens_that_stand_elsewhere_than_in_tokenizer_json_are_written(tmp_path: Path) -> None:
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    put_tokenizer(source, extra_special_tokens=["<|tool|>"], eos_token="<|stop|>")
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    export(source, tmp_path / "m.gguf")
    found = entries(tmp_path / "m.gguf")
    for token in ("<|tool|>", "<|stop|>"):
        token_id = theirs.convert_tokens_to_ids(token)
        assert found["tokenizer.ggml.tokens"][token_id] == token
        assert found["tokenizer.ggml.token_type"][token_id] == gguf.TokenType.CONTROL
    assert found["tokenizer.ggml.eos_token_id"] == theirs.eos_token_id


def test_a_token_that_files_disagree_about_is_printed_or_not_as_the_tokenizer_does(
    tmp_path: Path,
) -> None:
    """Special to tokenizer.json, and not to added_tokens_decoder: its text is left out."""
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    plain = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized", "special"], False)
    put_tokenizer(source, added_tokens_decoder={"1": {"content": "<|begin|>"} | plain})
    assert Tokenizer.read(source).decode([1], skip_special_tokens=True) == ""
    export(source, tmp_path / "m.gguf")
    assert entries(tmp_path / "m.gguf")["tokenizer.ggml.token_type"][1] == gguf.TokenType.CONTROL


def test_fillers_have_names_that_no_token_has(tmp_path: Path) -> None:
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    put_tokenizer(source, extra_special_tokens=[f"[PAD{len(TOKENS) + 1}]"])
    export(source, tmp_path / "m.gguf")
    tokens = entries(tmp_path / "m.gguf")["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens) == TEXTUAL.vocab_size


def test_two_tokens_with_one_id_are_refused(tmp_path: Path) -> None:
    """The library numbers a new token by the size of the vocabulary, which may have gaps."""
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    backend = json.loads(build_tokenizer().to_str())
    last = max(backend["model"]["vocab"], key=backend["model"]["vocab"].__getitem__)
    backend["model"]["vocab"][last] = len(backend["model"]["vocab"]) + 1
    backend["added_tokens"] = []
    extra = ["<|a|>", "<|b|>", "<|c|>"]
    put_tokenizer(
        source,
        tokenizers.Tokenizer.from_str(json.dumps(backend)),
        extra_special_tokens=extra,
    )
    with pytest.raises(CheckpointError, match=r"gives the tokens .* one id, \d+"):
        export(source, tmp_path / "m.gguf")


@pytest.mark.parametrize("decoder", [None, decoders.Fuse(), decoders.BPEDecoder()])
def test_another_decoder_is_refused(tmp_path: Path, decoder: Any) -> None:
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    backend = build_tokenizer()
    backend.decoder = decoder
    put_tokenizer(source, backend)
    with pytest.raises(CheckpointError, match=r"its decoder is .*, and llama\.cpp always decodes"):
        export(source, tmp_path / "m.gguf")


def test_what_is_odd_about_the_tokenizer_is_noted(tmp_path: Path) -> None:
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL, eos_token_id=9000)
    put_tokenizer(source)
    done = export(source, tmp_path / "m.gguf")
    assert [note for note in done.notes if "eos_token_id 9000 was left out" in note]
    with pytest.raises(CheckpointError, match=r"eos_token_id 9000 .*\(refused: strict\)"):
        export(source, tmp_path / "strict.gguf", strict=True)
    assert not (tmp_path / "strict.gguf").exists()


CLEANS_UP_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split_special_tokens": True}, "split_special_tokens is true, which a GGUF file cannot"),
        *(
            (
                {"mask_token": {"__type": "AddedToken", "content": "<|mask|>", flag: True}},
                rf"the added token '<\|mask\|>' has {flag}, which a GGUF file cannot say",
            )
            for flag in ("lstrip", "rstrip", "single_word")
        ),
        (
            {"clean_up_tokenization_spaces": True, CLEANS_UP_BPE: True},
            "clean_up_tokenization_spaces is forced, which a GGUF file cannot say",
        ),
        ({"tokenizer_class": "Qwen2Tokenizer"}, "without a normaliser"),
    ],
)
def test_what_a_gguf_file_cannot_say_of_a_tokenizer_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    put_tokenizer(source, **settings)
    with pytest.raises(CheckpointError, match=words):
        export(source, tmp_path / "m.gguf")


RULES = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(
                    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?"
                    "[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


@pytest.mark.parametrize(
    ("rules", "whole", "name"),
    [
        ("gpt-2", False, "gpt-2"),
        ("llama-bpe", True, "llama-bpe"),
        ("llama-bpe", False, "smaug-bpe"),  # the same expressions, and words are merged
    ],
)
def test_known_rules_have_their_name(tmp_path: Path, rules: str, whole: bool, name: str) -> None:
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    backend = build_tokenizer(RULES[rules])
    backend.model.ignore_merges = whole
    put_tokenizer(source, backend)
    export(source, tmp_path / "m.gguf")
    assert entries(tmp_path / "m.gguf")["tokenizer.ggml.pre"] == name


def unknown_tokenizers() -> dict[str, tuple[Any, str]]:
    plain, known = "is not a byte-level BPE tokenizer", "splits text, or takes whole words"
    normaliser = build_tokenizer()
    normaliser.normalizer = normalizers.NFC()
    words = {token: i for i, token in enumerate(["[UNK]", *SPECIAL, "he"])}
    suffix = build_tokenizer()
    suffix.model = models.BPE({t: i for i, t in enumerate(PIECES)}, MERGES, end_of_word_suffix="e")
    prefix = build_tokenizer()
    prefix.model = models.BPE(
        {t: i for i, t in enumerate(PIECES)}, [], continuing_subword_prefix="h"
    )
    fallback = build_tokenizer()
    fallback.model.byte_fallback = True
    whole = build_tokenizer(RULES["gpt-2"])
    whole.model.ignore_merges = True
    return {
        "whole words first": (whole, known),
        "normaliser": (normaliser, plain),
        "WordPiece": (
            tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]")),  # type: ignore[arg-type]
            plain,
        ),
        "whole words": (
            tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]")),  # type: ignore[arg-type]
            plain,
        ),
        "end of words": (suffix, plain),
        "middle of words": (prefix, plain),
        "bytes": (fallback, plain),
        "whitespace": (build_tokenizer(pre_tokenizers.Whitespace()), known),
        "a space before": (
            build_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)),
            known,
        ),
        "another order": (
            build_tokenizer(pre_tokenizers.Sequence([RULES["gpt-2"], pre_tokenizers.Digits(True)])),
            known,
        ),
    }


@pytest.mark.parametrize("kind", unknown_tokenizers())
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(tmp_path: Path, kind: str) -> None:
    backend, words = unknown_tokenizers()[kind]
    source = put(tmp_path / "model", weights(TEXTUAL), TEXTUAL)
    put_tokenizer(source, backend)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: {words}") as error:
        export(source, tmp_path / "m.gguf")
    assert "use llama.cpp's own converter" in str(error.value)
    assert os.listdir(tmp_path) == ["model"]


def test_more_tokens_than_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = len(TOKENS) - 1
    config = tiny(vocab_size=rows)
    source = put(tmp_path / "model", weights(config), config)
    put_tokenizer(source)
    # Of many tokens, what is said of each takes more memory than a refusal may.
    monkeypatch.setattr(tokenizers.Tokenizer, "to_str", None)
    with pytest.raises(
        CheckpointError,
        match=f"has {rows + 1} tokens, and the model's vocabulary has {rows} rows",
    ):
        export(source, tmp_path / "m.gguf")


def test_ids_beyond_the_rows_are_refused(tmp_path: Path) -> None:
    config = tiny(vocab_size=len(TOKENS) + 9)
    source = put(tmp_path / "model", weights(config), config)
    put_tokenizer(source)
    file = source / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["vocab"]["far"] = 7777
    file.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=f"has token id 7777, and .* {len(TOKENS) + 9} rows"):
        export(source, tmp_path / "m.gguf")


# The way back.


FILES: dict[str, bytes] = {
    "generation_config.json": b'{\r\n "temperature": 0.5, "eos_token_id": 0}',
    "special_tokens_map.json": b'{"bos_token": {"content": "<|begin|>"}}\n',
    "chat_template.jinja": "{# ä #}\r\n{{ messages }}".encode(),
    "tokenizer.model": bytes(range(256)),
    "merges.txt": b"#version\r\nh e\r",
    "LICENSE": "© Müller".encode("latin-1"),
}


def test_every_file_comes_back_byte_for_byte(tmp_path: Path, source: Path) -> None:
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    (source / "README.md").write_text("which stays")
    export(source, tmp_path / "m.gguf")
    found = snapshot(back(tmp_path / "m.gguf", tmp_path / "back"))
    expected = snapshot(source)
    del expected["README.md"]
    for name in ("model.safetensors", "config.json"):
        del expected[name]
    assert {name: found[name] for name in expected} == expected
    assert found.keys() == expected.keys() | {
        "model.safetensors",
        "config.json",
        "diy_manifest.json",
    }


def test_a_model_without_a_tokenizer_keeps_its_other_files(tmp_path: Path) -> None:
    source = put(tmp_path / "model", weights())
    (source / "generation_config.json").write_bytes(FILES["generation_config.json"])
    export(source, tmp_path / "m.gguf")
    assert entries(tmp_path / "m.gguf")["tokenizer.ggml.model"] == "no_vocab"
    found = snapshot(back(tmp_path / "m.gguf", tmp_path / "back"))
    assert found["generation_config.json"] == FILES["generation_config.json"]
    assert "tokenizer.json" not in found
    assert "tokenizer_config.json" not in found


ODD = {
    "eps and theta": {"rms_norm_eps": 1e-5 + 1e-12, "rope_theta": 12345.6789},
    "linear 1": {"rope_scaling": RopeScaling(rope_type="linear", factor=1.0)},
    "linear": {"rope_scaling": RopeScaling(rope_type="linear", factor=1.1)},
    "llama3 of unusual numbers": {
        "rope_scaling": dataclasses.replace(LLAMA3, factor=3.3, low_freq_factor=0.7),
        "rope_theta": 777.7,
    },
    "llama3 of ones": {"rope_scaling": dataclasses.replace(LLAMA3, factor=1.0)},
    "initialisation": {"initializer_range": 0.3},
}


@pytest.mark.parametrize("kind", ODD)
def test_a_config_that_gguf_cannot_say_comes_back(tmp_path: Path, kind: str) -> None:
    config = dataclasses.replace(
        CONFIG, **ODD[kind], extra={"task_specific_params": {"a": [1, None, "ä"]}}
    )
    done = export(put(tmp_path / "model", weights(config), config), tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    found = dict(reader.config.extra)
    assert dataclasses.replace(reader.config, extra={}) == dataclasses.replace(config, extra={})
    assert found["task_specific_params"] == {"a": [1, None, "ä"]}
    assert done.notes == [
        "has no tokenizer.json, so the GGUF file has no tokenizer to run text with"
    ]
    assert reader.notes == []


# What is refused, and what is then left.


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_theta": 1e39}, r"llama\.rope\.freq_base is 1e\+39, more than a GGUF file can say"),
        ({"max_position_embeddings": 1 << 32}, r"context_length is 4294967296, more than"),
    ],
)
def test_numbers_that_gguf_cannot_hold_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str, old: bool
) -> None:
    """Found after the file was begun: what was begun must not be moved into place."""
    if old:
        export(put(tmp_path / "old", weights()), tmp_path / "m.gguf")
    config = dataclasses.replace(CONFIG, **change)
    source = put(tmp_path / "model", weights(config), config)
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        export(source, tmp_path / "m.gguf")
    assert snapshot(tmp_path) == before


def test_the_largest_numbers_that_gguf_can_hold_are_written(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_position_embeddings=(1 << 32) - 1, rope_theta=3e38)
    export(put(tmp_path / "model", weights(config), config), tmp_path / "m.gguf")
    assert GGUFReader(tmp_path / "m.gguf").config.max_position_embeddings == (1 << 32) - 1


def test_float64_is_refused_with_the_way_out(tmp_path: Path) -> None:
    arrays = weights() | {NORM: weights()[NORM].astype(np.float64)}
    words = rf"tensor {NORM} is float64, .* such as dtype='float32'"
    with pytest.raises(CheckpointError, match=words):
        export(put(tmp_path / "model", arrays), tmp_path / "m.gguf")
    assert os.listdir(tmp_path) == ["model"]
    export(tmp_path / "model", tmp_path / "m.gguf", dtype=DTYPES["float32"])


@pytest.mark.parametrize("content", [b"my thesis", b"GGU", b"PK\3\4"])
def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    source = put(tmp_path / "model", weights(UNTIED), UNTIED)
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="exists and is not a GGUF file: choose another"):
        export(source, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == content
    (tmp_path / "m.gguf").write_bytes(b"")
    export(source, tmp_path / "m.gguf")
    export(source, tmp_path / "m.gguf")
    assert sums_of(tmp_path / "m.gguf") == sums(weights(UNTIED))
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="exists already: overwrite=True"):
        transfer(
            HFReader(source), functools.partial(GGUFWriter, tmp_path / "m.gguf", overwrite=False)
        )
    assert snapshot(tmp_path) == before
