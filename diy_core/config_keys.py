"""Every key of a `config.json` that is known here: honoured, refused, or without effect.

Known are all fields of transformers' `LlamaConfig`, of version 4 and 5, all that its Llama reads
from a config besides, and what relatives of Llama write under its name. A key that is in none of
the tables is carried along unread, with a note.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diy_core.errors import listed
from diy_core.rope_scaling import ROPE_KEYS

# Fields of `DIYConfig`, with what transformers' LlamaConfig assumes where a file says nothing.
# These are not our defaults.
ABSENT_IN_FILE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,  # a name of ours
}
# Honoured as a choice among few.
CHOICES: dict[str, tuple[str, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),  # two names of one function
}
HONOURED = frozenset({*ABSENT_IN_FILE, *CHOICES, *ROPE_KEYS, "original_max_position_embeddings"})

# Keys that change the function, with the values that change nothing; a list counts item by item.
# Where null changes nothing, neither does what is false or empty: it says nothing either.
REFUSED: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),  # transformers takes null for false
    "use_bidirectional_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "layer_types": (None, "full_attention", "attention"),
    "kv_sharing_modes": (None,),
    "num_kv_shared_layers": (None, 0),
    "per_layer_config": (None, {}),  # layers that are not all alike
    "pruned_heads": (None, {}),
    "attribute_map": (None, {}),  # other names for the keys of the file
    "text_config": (None,),  # a model of several, whose language model has a config inside
    "decoder": (None,),
    "generator": (None,),
    "encoder": (None,),
    "text_encoder": (None,),
    "transformers_weights": (None,),  # weights in a file of another name
    "quantization_config": (None,),
    "compression_config": (None,),
    "quantization": (None,),
    # Position embeddings.
    "partial_rotary_factor": (None, 1),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None, 1),  # 1 in the list means: this layer has rotary embedding
    "no_rope_layer_interval": (None,),
    "_rope_type_labels": (None,),
    "alibi": (None, False),
    # Attention and its scores.
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None,),
    "attn_temperature_tuning": (None, False),
    "clip_qkv": (None,),
    "qk_norm": (None, False),
    "query_pre_attn_scalar": (None,),
    "use_qk_norm": (None, False),
    # Scales, heads and experts.
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "use_parallel_residual": (None, False),
    "parallel_attn": (None, False),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
}
# Keys that change nothing where they are not less than max_position_embeddings.
REACHES = ("sliding_window", "attention_chunk_size")
_SWITCHES = {"sliding_window": "use_sliding_window"}  # of relatives; false: it is off
QUANTISED = ("quantization_config", "compression_config", "quantization")

# Where a model came from, how it is stored and run, what its tokens and its training are about.
_IDLE = """
    _name_or_path name_or_path _commit_hash transformers_version transformers.js_config
    unsloth_version unsloth_fixed is_llama_config _from_model_config mlx_version
    dtype torch_dtype use_bfloat16 torchscript tf_legacy_loss use_cache gradient_checkpointing
    chunk_size_feed_forward return_dict use_return_dict output_hidden_states output_attentions
    _output_attentions attn_implementation _attn_implementation _attn_implementation_internal
    _attn_implementation_autoset experts_implementation _experts_implementation
    _experts_implementation_internal _flash_attn_2_enabled fusion_config distributed_config
    base_model_tp_plan base_model_pp_plan base_model_fsdp_plan base_model_ep_plan
    is_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    tie_last_hidden_states initializer_factor init_std default_theta default_rope_type

    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id tokenizer_class prefix

    num_labels id2label label2id problem_type finetuning_task task_specific_params
    classifier_dropout hidden_dropout token_classification_bias

    max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p top_h
    repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size exponential_decay_length_penalty bad_words_ids suppress_tokens
    begin_suppress_tokens num_return_sequences output_scores return_dict_in_generate
    remove_invalid_values epsilon_cutoff eta_cutoff assistant_confidence_threshold
    assistant_lookbehind target_lookbehind num_assistant_tokens num_assistant_tokens_schedule

    num_mtp_layers mtp_layer_types mtp_mlp_layer_types mtp_per_layer_config mlp_layer_types
    mtp_hidden_states_first chain_hidden_post_norm first_k_dense_replace
    logits_mup_width_multiplier unpadded_vocab_size number_of_conv_states qk_head_dim
"""
WITHOUT_EFFECT = frozenset(_IDLE.split())
_SHOWN, _LONGEST = 8, 60  # unknown keys in a note, and characters of one


def refuse_unsupported(values: Mapping[str, Any], max_position_embeddings: int) -> None:
    """Raise for keys of a `config.json` that change the function and are not implemented.

    Args:
        values: keys and values.
        max_position_embeddings: what cannot be less than this has no effect.

    Raises:
        ValueError: the first such key, its value, and what is supported.
    """
    for key, choices in CHOICES.items():
        value = values.get(key, choices[0] if key == "hidden_act" else None)
        if value not in choices:
            raise ValueError(f"{key} {value!r} is not supported: this reads {listed(choices)}")
    for key in REFUSED.keys() & values.keys():
        value, neutral = values[key], REFUSED[key]
        if not _changes_nothing(value, neutral):
            hint = ": dequantise the checkpoint first" if key in QUANTISED else ""
            raise ValueError(
                f"{key} {value!r} is not supported; only {_list_of(neutral)} changes nothing{hint}"
            )
    for key in REACHES:
        value = values.get(key)
        if not (_is_off(key, values) or _reaches(value, max_position_embeddings)):
            raise ValueError(
                f"{key} {value!r} is not supported; only null changes nothing, or what is not less "
                f"than max_position_embeddings ({max_position_embeddings})"
            )
    if task := _other_task(values.get("architectures")):
        raise ValueError(
            f"architectures {task!r} is not supported: its head is not that of a language model; "
            "only LlamaForCausalLM and LlamaModel are"
        )


def notes_on(values: Mapping[str, Any]) -> list[str]:
    """A sentence about each key that does less than it may promise, and one about unknown ones."""
    notes = [
        say(values[key])
        for key, say in _NOTES.items()
        if values.get(key) is not None and not (key in REACHES and _is_off(key, values))
    ]
    known = {*HONOURED, *REFUSED, *REACHES, *_SWITCHES.values(), *WITHOUT_EFFECT, *_NOTES}
    unknown = [key for key in values if key not in known]
    if unknown:
        shown = [f"{key!r:.{_LONGEST}}{_nearest(key)}" for key in unknown[:_SHOWN]]
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        one = len(unknown) == 1
        notes.append(
            f"the config has {'a key' if one else 'keys'} that {'is' if one else 'are'} not known "
            f"here and {'is' if one else 'are'} carried along unread: {', '.join(shown)}{more}"
        )
    return [note for note in notes if note]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that one was probably meant to be, or None."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, cutoff=0.8)), None)


def _nearest(key: str) -> str:
    # Names of the tables alone: of two unknown ones, neither is better.
    near = nearest(key, [*ABSENT_IN_FILE, *ROPE_KEYS]) if len(key) <= _LONGEST else None
    return f" (was {near} meant?)" if near else ""


def says_nothing(value: Any) -> bool:
    """True for null, false, an empty text, and for an object or a list of nothing else."""
    if isinstance(value, (Mapping, list)):
        return all(map(says_nothing, value.values() if isinstance(value, Mapping) else value))
    return value is None or value is False or value == ""


def _is_off(key: str, values: Mapping[str, Any]) -> bool:
    """Whether one of `REACHES` bounds nothing; 0 or less is not a bound, as a token sees itself."""
    value = values.get(key)
    off = isinstance(value, int) and value <= 0 and value is not False
    switched_off = key in _SWITCHES and values.get(_SWITCHES[key], True) is False
    return switched_off or off or says_nothing(value)


def _changes_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    if says_nothing(value):
        return None in neutral
    return all(item in neutral for item in (value if isinstance(value, list) else [value]))


def _reaches(value: Any, length: int) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool)
    return number and value >= length


def _other_task(architectures: Any) -> Any:
    """The value, where all that it names are models with another head."""
    names = architectures if isinstance(architectures, list) else [architectures]
    other = [isinstance(n, str) and re.search(r"For(?!CausalLM)|Reward", n) for n in names]
    return architectures if names and all(other) else None


def _on_architectures(value: Any) -> str:
    names = value if isinstance(value, list) else [value]
    if not names or "LlamaForCausalLM" in names:
        return ""
    return f"architectures names {', '.join(map(str, names)):.{_LONGEST}}: read as LlamaForCausalLM"


def _on_code(value: Any) -> str:
    return "auto_map names code of the model's own, which is not run: it is read as a Llama"


def _on_pretraining_tp(value: Any) -> str:
    said = "says in how many pieces products are computed, which does not change them"
    return "" if value == 1 else f"pretraining_tp {value!r:.{_LONGEST}} was passed over: it {said}"


def _on_reach(key: str) -> Callable[[Any], str]:
    return lambda value: (
        f"{key} {value} was passed over: it is not less than max_position_embeddings"
    )


_NOTES: dict[str, Callable[[Any], str]] = {
    "architectures": _on_architectures,
    "auto_map": _on_code,
    "pretraining_tp": _on_pretraining_tp,
    **{key: _on_reach(key) for key in REACHES},
}


def classes() -> dict[str, str]:
    """Every known key, with `honoured`, `refused`, `noted` or `without effect`."""
    return {
        **dict.fromkeys(WITHOUT_EFFECT, "without effect"),
        **dict.fromkeys(_NOTES, "noted"),
        **dict.fromkeys(_SWITCHES.values(), "without effect"),
        **dict.fromkeys((*REFUSED, *REACHES), "refused"),
        **dict.fromkeys(HONOURED, "honoured"),
    }


def _list_of(values: tuple[Any, ...]) -> str:
    return " or ".join(json.dumps(value) for value in values)
