"""`DIYConfig`: the sizes and switches of the model, one class for both twins.

It reads today's Hugging Face `config.json` (transformers 5: `rope_parameters`) and yesterday's
(transformers 4: `rope_theta`, `rope_scaling`), and writes one that both read.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from diy_core.config_keys import (
    ABSENT_IN_FILE,
    QUANTISED,
    classes,
    nearest,
    notes_on,
    refuse_unsupported,
    says_nothing,
)
from diy_core.errors import shorten
from diy_core.fields import require_float, require_int
from diy_core.rope_scaling import ROPE_KEYS, RopeScaling, read_rope
from diy_core.system.hub_cache import hint
from diy_core.system.lfs import refuse_lfs_pointer
from diy_core.system.outside import is_there, read_bytes
from diy_core.system.parsing import parse_object
from diy_core.system.places import as_path

# Copied and compared as it is, what is in `extra` must not be deep or large: no real one is.
_DEPTH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIYConfig:
    """Sizes and switches of a Llama-style causal language model.

    Names are those of a Hugging Face `config.json`. Integers are at least 1.

    Attributes:
        vocab_size: V, rows of the embedding; a tokenizer may use fewer.
        hidden_size: D, channels of the residual stream.
        intermediate_size: F, channels within the feed-forward half of a layer.
        num_hidden_layers: layers.
        num_attention_heads: N, query heads.
        num_key_value_heads: K, key/value heads, a divisor of N; None means N.
        head_dim: H, channels of a head, even; None means D / N, which must then be whole.
        max_position_embeddings: positions that the model was trained for, in tokens.
        rms_norm_eps: what every norm adds to the mean square, at least 0.
        rope_theta: base of the rotary frequencies, above 0.
        rope_scaling: how the frequencies are stretched; None: not at all.
        tie_word_embeddings: whether the output head is the embedding.
        attention_bias: whether the four projections of attention have biases.
        mlp_bias: whether the three projections of the feed-forward have biases.
        initializer_range: standard deviation of first weights, at least 0.
        attention_dropout: share of the attention's probabilities that is dropped, from 0 to below
            1; acts only where the model is given a `dropout_key`.
        residual_dropout: share of what a layer's two halves add that is dropped, likewise;
            transformers does not have it.
        extra: the keys of a file that change nothing here (`bos_token_id`, `torch_dtype`, ...), so
            that a round trip loses none.

    Raises:
        TypeError: an argument of a name that no field has; the message says which is near.
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
    _of_reading: ClassVar[tuple[str, ...]] = ()  # notes; one that was read from a file has its own

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
        if own := sorted({*ABSENT_IN_FILE, *ROPE_KEYS} & set(self.extra)):
            raise ValueError(f"extra holds {', '.join(own)}: give it as an argument of its own")
        refuse_unsupported({"model_type": "llama"} | dict(self.extra), self.max_position_embeddings)
        object.__setattr__(self, "extra", copy.deepcopy(dict(self.extra)))

    def __new__(cls, *_: Any, **values: Any) -> DIYConfig:
        """Refuse an argument of a name that no field has, and say which one is near."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = nearest(name, known)
                hint = (
                    "it goes into extra, or from_dict reads it with the rest of a config.json"
                    if name in classes()
                    else f"did you mean {near}?"
                    if near
                    else f"choose among {', '.join(known)}"
                )
                raise TypeError(f"DIYConfig has no {name}: {hint}")
        return super().__new__(cls)

    @property
    def notes(self) -> list[str]:
        """What a user should know about keys that do nothing here, a sentence each."""
        return [*self._of_reading, *notes_on(self.extra)]

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

        Args:
            values: the keys and values of the file; both spellings of rope are read.

        Returns:
            The config. Keys that change nothing here are in its `extra`, and what is odd but
            harmless is in its `notes`, a sentence each.

        Raises:
            ValueError: the file asks for something that this model does not do; it says what.
            TypeError: `values` is not a mapping.
        """
        if not isinstance(values, Mapping):
            raise TypeError(
                "values must be the content of a config.json, as a dict (of a config of "
                f"transformers its to_dict()), got {type(values).__name__}"
            )
        fields = {key: values.get(key, absent) for key, absent in ABSENT_IN_FILE.items()}
        refuse_unsupported(values, fields["max_position_embeddings"])
        for name in ("attention_dropout", "residual_dropout"):
            if fields[name] is None:  # as transformers' config may have it
                fields[name] = 0.0
        rope_theta, rope_scaling, notes = read_rope(values, fields["max_position_embeddings"])
        own = {*ABSENT_IN_FILE, *ROPE_KEYS}
        # transformers takes any such object for a quantisation, and misses its method.
        empty = [key for key in QUANTISED if key in values and says_nothing(values[key])]
        empty = [key for key in empty if values[key] is not None]
        notes += [f"{key} {values[key]!r} says nothing and was left out" for key in empty]
        extra = {key: value for key, value in values.items() if key not in {*own, *empty}}
        config = cls(**fields, rope_theta=rope_theta, rope_scaling=rope_scaling, extra=extra)
        object.__setattr__(config, "_of_reading", tuple(notes))
        return config

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers 4 and 5 both read the same way."""
        fields = {key: getattr(self, key) for key in ABSENT_IN_FILE}
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

        Args:
            path: of the directory.

        Returns:
            The config, as `from_dict` reads the file.

        Raises:
            ValueError: no such file, not JSON, or a config that cannot be honoured.
        """
        file = as_path(path) / "config.json"
        if not is_there(file):
            raise ValueError(
                f"{file} does not exist: a model directory needs a config.json{hint(file.parent)}"
            )
        refuse_lfs_pointer(file)
        values = parse_object(read_bytes(file, "config_bytes"), file)
        try:
            return cls.from_dict(values)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: {shorten(str(error))}") from error


def require_config(config: object) -> None:
    """Raise for what is not a config, such as one of transformers.

    Raises:
        TypeError: it is none; the message says how to make one.
    """
    if not isinstance(config, DIYConfig) and hasattr(config, "to_dict"):
        raise TypeError(
            f"config must be a DIYConfig, got {type(config).__name__}: "
            "DIYConfig.from_dict(config.to_dict()) makes one of it"
        )
    if not isinstance(config, DIYConfig):
        raise TypeError(
            "config must be a DIYConfig (DIYConfig.from_pretrained reads a directory, from_dict "
            f"what a config.json holds), got {config!r:.100}"
        )


def _is_deeper(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, list)):
        return False
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)
