"""`DIYConfig`: the sizes and switches of the model, one class for both twins.

It reads today's Hugging Face `config.json` (transformers 5: `rope_parameters`) and yesterday's
(transformers 4: `rope_theta`, `rope_scaling`), and writes one that both read.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.fields import require_float, require_int
from diy_core.rope_scaling import ROPE_KEYS, RopeScaling, read_rope

MODEL_TYPES = ("llama",)
# Copied and compared as it is, what is in `extra` must not be deep or large: no real one is.
_DEPTH, _LIMIT = 32, 1 << 18  # bytes
ACTIVATIONS = ("silu", "swish")  # two names of one function

# What transformers' LlamaConfig assumes where a file says nothing. These are not our defaults.
_ABSENT_IN_FILE: dict[str, Any] = {
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
# Keys of the wider family that change the function, with the values that change nothing; a list
# counts item by item.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "embedding_multiplier": (None, 1),
    "final_logit_softcapping": (None,),
    "layer_types": (None, "full_attention"),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "no_rope_layers": (None, 1),  # 1 in the list means: this layer has rotary embedding
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "partial_rotary_factor": (None, 1),
    "pretraining_tp": (None, 1),  # changes the order of sums
    "qk_norm": (None, False),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": (None, 1),
    "rope_interleaved": (None, False),
    "sliding_window": (None,),
    "use_qk_norm": (None, False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIYConfig:
    """Sizes and switches of a Llama-style causal language model.

    Names are those of a Hugging Face `config.json`. `num_key_value_heads=None` means one key/value
    head per query head, and `head_dim=None` means `hidden_size // num_attention_heads`; both are
    filled in when the config is built. `attention_dropout` is of the attention's probabilities,
    `residual_dropout` (which transformers does not have) of what a layer's two halves add; both act
    only where the model is given a `dropout_key`. `extra` holds the keys of a file that change
    nothing here (`bos_token_id`, `torch_dtype`, ...), so that a round trip loses none.

    Raises:
        ValueError: a value out of range, or two values that contradict each other.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ):
            require_int(self, name)
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        require_int(self, "num_key_value_heads")
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                    f"({self.num_attention_heads}): give head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        require_int(self, "head_dim")
        if self.head_size % 2:
            raise ValueError(
                f"head_dim ({self.head_dim}) must be even: rotary embedding turns pairs of channels"
            )
        require_float(self, "rms_norm_eps", minimum=0.0)
        require_float(self, "rope_theta", positive=True)
        require_float(self, "initializer_range", minimum=0.0)
        for name in ("attention_dropout", "residual_dropout"):
            require_float(self, name, minimum=0.0)
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be less than 1, got {getattr(self, name)!r}")
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise ValueError(
                f"rope_scaling must be a RopeScaling or None, got {self.rope_scaling!r}; "
                "DIYConfig.from_dict reads the dict of a config.json"
            )
        if not isinstance(self.extra, Mapping):
            raise ValueError(f"extra must be a mapping, got {self.extra!r}")
        if _is_deeper(self.extra, _DEPTH):
            raise ValueError(f"extra is nested more than {_DEPTH} deep")
        if own := sorted({*_ABSENT_IN_FILE, *ROPE_KEYS} & set(self.extra)):
            raise ValueError(f"extra holds {', '.join(own)}: give it as an argument of its own")
        _refuse_unsupported({"model_type": "llama"} | dict(self.extra))
        object.__setattr__(self, "extra", copy.deepcopy(dict(self.extra)))

    @property
    def kv_heads(self) -> int:
        """`num_key_value_heads` as a plain int (K in shapes)."""
        assert self.num_key_value_heads is not None
        return self.num_key_value_heads

    @property
    def head_size(self) -> int:
        """`head_dim` as a plain int (H in shapes)."""
        assert self.head_dim is not None
        return self.head_dim

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DIYConfig:
        """Read the content of a Hugging Face `config.json`.

        A key that is absent means what transformers takes it to mean for the file's `model_type`.

        Raises:
            ValueError: the file asks for something that this model does not do; it says what.
        """
        _refuse_unsupported(values)
        fields = {key: values.get(key, absent) for key, absent in _ABSENT_IN_FILE.items()}
        if fields["attention_dropout"] is None:  # as transformers' config may have it
            fields["attention_dropout"] = 0.0
        rope_theta, rope_scaling = read_rope(values, fields["max_position_embeddings"])
        own = {*_ABSENT_IN_FILE, *ROPE_KEYS}
        extra = {key: value for key, value in values.items() if key not in own}
        return cls(**fields, rope_theta=rope_theta, rope_scaling=rope_scaling, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers 4 and 5 both read the same way."""
        fields = {key: getattr(self, key) for key in _ABSENT_IN_FILE}
        if not self.residual_dropout:
            del fields["residual_dropout"]  # where others' files are silent, so is ours
        scaling = self.rope_scaling.to_dict() if self.rope_scaling else None
        rope = {
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"}
            | (scaling or {}),
        }
        identity = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
        }
        return copy.deepcopy(identity | dict(self.extra) | fields | rope)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> DIYConfig:
        """Read `config.json` of a Hugging Face directory.

        Raises:
            ValueError: no such file, not JSON, or a config that cannot be honoured.
        """
        file = Path(path) / "config.json"
        try:
            with file.open("rb") as stream:
                text = stream.read(_LIMIT + 1)
            values = json.loads(text.decode("utf-8")) if len(text) <= _LIMIT else None
        except FileNotFoundError:
            raise ValueError(
                f"{file} does not exist: a model directory needs a config.json"
            ) from None
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from error
        if len(text) > _LIMIT:
            raise ValueError(f"{file} is longer than {_LIMIT} bytes")
        if not isinstance(values, dict):
            raise ValueError(f"{file} must hold a JSON object, got {type(values).__name__}")
        try:
            return cls.from_dict(values)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: {error}") from error


def _is_deeper(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, list)):
        return False
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    """Raise for keys of a `config.json` that change the function and are not implemented."""
    model_type = values.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"model_type {model_type!r} is not supported; choose one of {list(MODEL_TYPES)}"
        )
    activation = values.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act {activation!r} is not supported; choose one of {list(ACTIVATIONS)}"
        )
    for key, neutral in _NEUTRAL.items():
        value = values.get(key)
        if any(item not in neutral for item in (value if isinstance(value, list) else [value])):
            hint = ": dequantise the checkpoint first" if key == "quantization_config" else ""
            raise ValueError(
                f"{key} {value!r} is not supported; only {_list_of(neutral)} changes nothing{hint}"
            )


def _list_of(values: tuple[Any, ...]) -> str:
    return " or ".join(json.dumps(value) for value in values)
