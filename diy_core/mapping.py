"""The one table of tensor names: Hugging Face, PyTorch twin, Flax twin.

    Hugging Face  model.layers.0.self_attn.q_proj.weight             (out, in)
    torch         model.layers.0.attention.q_proj.weight             (out, in)
    flax          params/model/layers_0/attention/q_proj/kernel      (in, out)

A row names a tensor, its shape in letters, the operation that leads from the Hugging Face and torch
layout to Flax's, and how it is first drawn. Everything that moves tensors between worlds (weights,
gradients, module outputs, first weights) goes through these rows; inverses are derived from them.

Letters: V vocabulary, D hidden, N*H all query heads, K*H all key/value heads, F feed-forward.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Permute:
    """Reorder axes: an operation with an inverse, on anything that has `.transpose`."""

    axes: tuple[int, ...]

    def __call__(self, array: Any) -> Any:
        """The array with its axes in this order (a view where the array library gives one)."""
        return array if self.is_identity else array.transpose(self.axes)

    @property
    def is_identity(self) -> bool:
        """True where nothing moves."""
        return self.axes == tuple(range(len(self.axes)))

    @property
    def inverse(self) -> Permute:
        """The operation that undoes this one."""
        return Permute(tuple(int(i) for i in np.argsort(self.axes)))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result for an array of this shape."""
        return tuple(shape[axis] for axis in self.axes)


Kind = Literal["projection", "bias", "norm", "embedding"]
_FLAX_LEAF = {"projection": "kernel", "bias": "bias", "norm": "scale", "embedding": "embedding"}
_OPERATION = {
    "projection": Permute((1, 0)),  # flax Dense keeps (in, out)
    "bias": Permute((0,)),
    "norm": Permute((0,)),
    "embedding": Permute((0, 1)),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table; `{i}` in a name stands for the layer's number."""

    hf: str
    torch: str
    shape: tuple[str, ...]
    kind: Kind
    present: Callable[[DIYConfig], bool] = lambda config: True


def _projection(hf: str, torch: str, out: str, into: str, bias: str) -> list[Row]:
    return [
        Row(f"{hf}.weight", f"{torch}.weight", (out, into), "projection"),
        Row(f"{hf}.bias", f"{torch}.bias", (out,), "bias", lambda config: getattr(config, bias)),
    ]


_HF, _TORCH = "model.layers.{i}", "model.layers.{i}"
_ATTENTION, _FEEDFORWARD = "attention_bias", "mlp_bias"
LAYER_ROWS: list[Row] = [
    Row(f"{_HF}.input_layernorm.weight", f"{_TORCH}.attention_norm.weight", ("D",), "norm"),
    *_projection(f"{_HF}.self_attn.q_proj", f"{_TORCH}.attention.q_proj", "N*H", "D", _ATTENTION),
    *_projection(f"{_HF}.self_attn.k_proj", f"{_TORCH}.attention.k_proj", "K*H", "D", _ATTENTION),
    *_projection(f"{_HF}.self_attn.v_proj", f"{_TORCH}.attention.v_proj", "K*H", "D", _ATTENTION),
    *_projection(f"{_HF}.self_attn.o_proj", f"{_TORCH}.attention.o_proj", "D", "N*H", _ATTENTION),
    Row(
        f"{_HF}.post_attention_layernorm.weight",
        f"{_TORCH}.feedforward_norm.weight",
        ("D",),
        "norm",
    ),
    *_projection(f"{_HF}.mlp.gate_proj", f"{_TORCH}.feedforward.gate_proj", "F", "D", _FEEDFORWARD),
    *_projection(f"{_HF}.mlp.up_proj", f"{_TORCH}.feedforward.up_proj", "F", "D", _FEEDFORWARD),
    *_projection(f"{_HF}.mlp.down_proj", f"{_TORCH}.feedforward.down_proj", "D", "F", _FEEDFORWARD),
]
FIRST_ROWS = [
    Row("model.embed_tokens.weight", "model.embed_tokens.weight", ("V", "D"), "embedding")
]
LAST_ROWS = [
    Row("model.norm.weight", "model.norm.weight", ("D",), "norm"),
    Row(
        "lm_head.weight",
        "lm_head.weight",
        ("V", "D"),
        "projection",
        lambda config: not config.tie_word_embeddings,
    ),
]
TIED_HEAD = "lm_head.weight"
TIED_EMBEDDING = "model.embed_tokens.weight"
# The number of a layer (or of an expert in it), in a name of any world.
_NUMBER = re.compile(r"(?<=layers_)\d{1,9}(?!\d)|(?<![^./])\d{1,9}(?![^./])")
_FEW, _EACH = 3, 6  # faults that are alike and stand alone; faults of each side that come first


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a concrete model in the three worlds; `shape` is that of HF and torch."""

    hf: str
    torch: str
    flax: tuple[str, ...]
    shape: tuple[int, ...]
    kind: Kind
    layer: int | None

    @property
    def to_flax(self) -> Permute:
        """The operation from the torch layout to the Flax layout; `.inverse` leads back."""
        return _OPERATION[self.kind]

    @property
    def flax_shape(self) -> tuple[int, ...]:
        """The shape in the Flax layout."""
        return self.to_flax.shape(self.shape)

    @property
    def parameters(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))


def tensors(config: DIYConfig) -> list[Tensor]:
    """Every tensor of a model of this config, in the order of the forward pass."""
    sizes = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "N*H": config.num_attention_heads * config.head_size,
        "K*H": config.kv_heads * config.head_size,
    }

    def expand(rows: Iterable[Row], layer: int | None) -> list[Tensor]:
        return [
            Tensor(
                hf=row.hf.format(i=layer),
                torch=row.torch.format(i=layer),
                flax=_flax_path(row.torch.format(i=layer), row.kind),
                shape=tuple(sizes[letter] for letter in row.shape),
                kind=row.kind,
                layer=layer,
            )
            for row in rows
            if row.present(config)
        ]

    layers = [t for i in range(config.num_hidden_layers) for t in expand(LAYER_ROWS, i)]
    return expand(FIRST_ROWS, None) + layers + expand(LAST_ROWS, None)


def flax_module_path(torch_path: str) -> tuple[str, ...]:
    """`model.layers.3.attention` in torch is `("model", "layers_3", "attention")` in Flax."""
    return tuple(re.sub(r"\blayers\.(\d+)", r"layers_\1", torch_path).split("."))


def _flax_path(torch_name: str, kind: Kind) -> tuple[str, ...]:
    module, _, _ = torch_name.rpartition(".")
    return (*flax_module_path(module), _FLAX_LEAF[kind])


def match(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Faults of a set of named shapes against the wanted one: missing, extra, misshapen.

    What is at fault alike in many layers is one fault; of a long list, the first show all sides.
    """
    missing = _folded("missing", {n: str(wanted[n]) for n in wanted if n not in found})
    extra = _folded("unexpected", {n: str(found[n]) for n in found if n not in wanted})
    misshapen = [
        f"tensor {name} has shape {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    sides = (missing, extra, misshapen)
    if sum(map(len, sides)) <= 3 * _EACH:
        return [*missing, *extra, *misshapen]
    first = [fault for side in sides for fault in side[:_EACH]]
    return first + [fault for side in sides for fault in side[_EACH:]]


def _folded(what: str, shapes: Mapping[str, str]) -> list[str]:
    """One line for each name, or for all of more than a few that differ in a layer's number."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, shape in shapes.items():
        alike.setdefault((_NUMBER.sub("*", name), shape), []).append(name)
    lines = []
    for (pattern, shape), names in alike.items():
        if len(names) <= _FEW:
            lines += [f"{what} tensor {name} {shape}" for name in names]
            continue
        numbers = sorted(int(match[0]) for name in names if (match := _NUMBER.search(name)))
        lines.append(
            f"{what} tensor {pattern} {shape}, {len(names)} of them: {numbers[0]} to {numbers[-1]}"
        )
    return lines


def match_flax(flat: Mapping[tuple[str, ...], Any], config: DIYConfig) -> list[str]:
    """Faults of flattened Flax params against those of a config: missing, extra, misshapen."""
    return match(
        {"/".join(path): tuple(array.shape) for path, array in flat.items()},
        {"/".join(tensor.flax): tensor.flax_shape for tensor in tensors(config)},
    )


def flatten(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """A nested dict of parameters as `{path: leaf}`.

    Raises:
        CheckpointError: a key is not a string.
    """
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise CheckpointError(
                "params", f"key {key!r} under {'/'.join(prefix)!r} is not a string"
            )
        if isinstance(value, Mapping):
            flat |= flatten(value, (*prefix, key))
        else:
            flat[(*prefix, key)] = value
    return flat


def unflatten(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The nested dict that `flatten` came from."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree
