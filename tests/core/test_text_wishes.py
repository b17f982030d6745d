"""What generation_config.json asks of a generation, held to what transformers does with it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from diy_core.text.wishes import unheeded_wishes

ENDS = {"eos_token_id": 30, "pad_token_id": 0}
QUIET = dict.fromkeys(["do_sample", "use_cache"], False) | {"temperature": 1.0, "top_k": 50}
# Each asks for other tokens than the most probable ones of the model below.
ASKED = {
    "repetition_penalty": 4.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[i] for i in range(20)],
    "suppress_tokens": list(range(20)),
    "begin_suppress_tokens": list(range(20)),
    "forced_eos_token_id": 30,
    "sequence_bias": [[[5], 50.0]],
    "num_beams": 3,
    "exponential_decay_length_penalty": [1, 9.0],
    "guidance_scale": 9.0,
    "watermarking_config": {"bias": 50.0, "context_width": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of transformers that writes some tokens below 20 again and again."""
    path = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    torch.manual_seed(2)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=31, num_hidden_layers=1, **sizes, **ENDS))
    for weight in llama.parameters():
        torch.nn.init.normal_(weight)
    llama.lm_head.weight.data[20:] *= 0.1
    llama.save_pretrained(path)
    return path


def written(path, name, values):
    """The new tokens of the model, with such a file next to it."""
    config = json.loads((path / "config.json").read_text())
    (path / "generation_config.json").unlink(missing_ok=True)
    try:
        content = values if name == "generation_config.json" else config | values
        (path / name).write_text(json.dumps(ENDS | content))
        llama = AutoModelForCausalLM.from_pretrained(path)
        ids = torch.tensor([[1, 2, 3, 4]])
        tokens = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8)
        return tokens[0, 4:].tolist(), unheeded_wishes(path)
    finally:
        (path / "config.json").write_text(json.dumps(config))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("key", ASKED)
def test_what_makes_transformers_write_other_tokens_is_noted(model, name, key):
    plain, none = written(model, name, {})
    other, [note] = written(model, name, {key: ASKED[key]})
    assert plain != other
    assert none == []
    assert note.startswith(f"{name} asks for {key} {json.dumps(ASKED[key]):.60}: passed over")


def test_what_asks_for_nothing_has_no_note(tmp_path):
    assert unheeded_wishes(tmp_path) == []
    usual = GenerationConfig().to_dict() | QUIET | ENDS
    silent = {"repetition_penalty": 1.0, "num_beams": 1, "bad_words_ids": [], "min_length": 0}
    (tmp_path / "generation_config.json").write_text(json.dumps(usual | silent))
    assert unheeded_wishes(tmp_path) == []


def test_next_to_a_generation_config_the_config_is_not_asked(tmp_path):
    (tmp_path / "config.json").write_text('{"repetition_penalty": 2}')
    assert len(unheeded_wishes(tmp_path)) == 1
    (tmp_path / "generation_config.json").write_text("{}")
    assert unheeded_wishes(tmp_path) == []
