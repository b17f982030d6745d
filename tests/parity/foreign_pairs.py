"""Pairs of models that are not ours, healthy and with planted faults.

The weights are carried over by hand, tensor by tensor, so that the rules that are inferred have
something to be compared with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diy_torch.tensors import to_numpy
from parity.environment import TORCH_DTYPES
from parity.tracing.match.rules import Rule

Faults = dict[str, tuple[str, str, str]]  # direction, path in PyTorch, path in Flax


@dataclasses.dataclass
class ForeignPair:
    """Two models with the same weights, what they are given, and the rules written by hand."""

    torch: torch.nn.Module
    flax: nn.Module
    variables: dict[str, Any]
    inputs: Any
    rules: list[Rule]


def array(tensor: Tensor) -> NDArray[Any]:
    return to_numpy(tensor.detach()).copy()


def dense(layer: Any) -> dict[str, Any]:
    return {"kernel": array(layer.weight).T, "bias": array(layer.bias)}


def norm(layer: Any) -> dict[str, Any]:
    return {"scale": array(layer.weight), "bias": array(layer.bias)}


def layer_rules(torch: str, flax: str, *leaves: str) -> list[Rule]:
    names = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
    return [Rule(f"{torch}.{names[leaf]}", f"{flax}/{leaf}") for leaf in leaves]


def drawn(module: torch.nn.Module, dtype: str) -> torch.nn.Module:
    """The module with weights that leave nothing at 0 or 1, in evaluation mode."""
    generator = torch.Generator().manual_seed(5)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            noise = torch.empty(tensor.shape, dtype=torch.float64)
            noise.uniform_(0.5, 1.5, generator=generator)
            sign = torch.empty(tensor.shape).uniform_(generator=generator).round() * 2 - 1
            fan_in = math.prod(tensor.shape[1:])
            tensor.data = noise * sign / fan_in**0.5 if tensor.ndim > 1 else noise
    return module.to(TORCH_DTYPES[dtype]).eval()


def values(seed: int, *shape: int, dtype: str) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(jnp.dtype(dtype))


@jax.custom_vjp
def doubled(x: Any) -> Any:
    """The identity, whose gradient is wrong by a factor of 2."""
    return x


doubled.defvjp(lambda x: (x, None), lambda _, gradient: (2 * gradient,))


# A convolutional network: channels first against channels last, running statistics.


class TorchCNN(torch.nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(inplace=True),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(8, 12, 3, padding=1, groups=2),
            torch.nn.BatchNorm2d(12),
            torch.nn.ReLU(inplace=True),
            torch.nn.MaxPool2d(2),
        )
        self.classifier = torch.nn.Linear(12 * 2 * 3, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = self.features(image).flatten(1)
        if self.fault == "torch-detach":
            half = features.shape[1] // 2
            features = torch.cat([features[:, :half].detach(), features[:, half:]], 1)
        return self.classifier(features)


class FlaxCNN(nn.Module):
    dtype: Any
    fault: str = ""
    momentum: float = 0.9  # of what is kept; PyTorch's, of what is new, is 0.1

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x, dtype, fault = image, self.dtype, self.fault
        for i, channels in enumerate((8, 12)):
            here = fault if i == 1 else ""
            padding = "VALID" if here == "padding" else "SAME"
            if padding == "VALID":  # of the right shape, with the border from elsewhere
                x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
            x = nn.Conv(
                channels, (3, 3), padding=padding, feature_group_count=i + 1, param_dtype=dtype
            )(x)
            epsilon = 1e-3 if here == "epsilon" else 1e-5
            known: dict[str, Any] = {"momentum": self.momentum, "param_dtype": dtype}
            x = nn.BatchNorm(True, epsilon=epsilon, **known)(x)
            x = nn.leaky_relu(x) if here == "activation" else nn.relu(x)
            if here == "gradient":
                x = doubled(x)
            pool = nn.avg_pool if here == "pooling" else nn.max_pool
            x = pool(x, (2, 2), (2, 2))
        if fault == "stop-gradient":
            x = x.at[..., 0].set(jax.lax.stop_gradient(x[..., 0]))
        if fault != "order":
            x = x.transpose(0, 3, 1, 2)
        return nn.Dense(10, param_dtype=dtype)(x.reshape(len(x), -1))


CNN_FAULTS: Faults = {
    "kernel-flipped": ("forward", "features.4", "Conv_1"),
    "bias-missing": ("forward", "features.4", "Conv_1"),
    "statistics-swapped": ("forward", "features.1", "BatchNorm_0"),
    # What it pads with lies inside of PyTorch's convolution, whose input is a smaller one.
    "padding": ("forward", "features.4", "Conv_1"),
    "epsilon": ("forward", "features.5", "BatchNorm_1"),
    "activation": ("forward", "", ""),
    "pooling": ("forward", "", ""),
    "order": ("forward", "", ""),
    "gradient": ("backward", "", ""),
    "stop-gradient": ("backward", "", ""),
    "torch-detach": ("backward", "", ""),
}


def cnn(dtype: str = "float64", fault: str = "") -> ForeignPair:
    model: Any = drawn(TorchCNN(fault), dtype)
    parts = model.features
    for part in (parts[1], parts[5]):
        part.running_var.abs_()
    params = {"Dense_0": dense(model.classifier)}
    statistics = {}
    for i in range(2):
        conv, batch_norm = parts[4 * i], parts[4 * i + 1]
        kernel = array(conv.weight).transpose(2, 3, 1, 0)
        params[f"Conv_{i}"] = {"kernel": kernel, "bias": array(conv.bias)}
        params[f"BatchNorm_{i}"] = norm(batch_norm)
        mean, var = array(batch_norm.running_mean), array(batch_norm.running_var)
        statistics[f"BatchNorm_{i}"] = {"mean": mean, "var": var}
    if fault == "kernel-flipped":
        params["Conv_1"]["kernel"] = params["Conv_1"]["kernel"][::-1]
    elif fault == "bias-missing":
        params["Conv_1"]["bias"] = 0 * params["Conv_1"]["bias"]
    elif fault == "statistics-swapped":
        found = statistics["BatchNorm_0"]
        statistics["BatchNorm_0"] = {"mean": found["var"], "var": found["mean"]}
    image = values(1, 2, 3, 8, 12, dtype=dtype)
    rules = layer_rules("classifier", "Dense_0", "kernel", "bias")
    for i in range(2):
        rules += layer_rules(f"features.{4 * i}", f"Conv_{i}", "kernel", "bias")
        rules += layer_rules(f"features.{4 * i + 1}", f"BatchNorm_{i}", "scale", "bias")
        for leaf in ("mean", "var"):
            name = f"features.{4 * i + 1}.running_{leaf}"
            rules.append(Rule(name, f"batch_stats:BatchNorm_{i}/{leaf}"))
    return ForeignPair(
        model,
        FlaxCNN(jnp.dtype(dtype), fault),
        {"params": params, "batch_stats": statistics},
        {"torch": image, "flax": image.transpose(0, 2, 3, 1)},
        rules,
    )


# A model like GPT-2: one projection for query, key and value, against three; a tied head.


class TorchAttention(torch.nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = torch.nn.Linear(size, 3 * size)
        self.c_proj = torch.nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.c_attn(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class TorchMLP(torch.nn.Module):
    def __init__(self, size: int, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.c_fc = torch.nn.Linear(size, 4 * size)
        self.act = torch.nn.GELU(approximate="tanh")
        self.c_proj = torch.nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.c_fc(x))
        if self.fault == "torch-detach":
            x = (x + x.detach()) / 2
        return self.c_proj(x)


class TorchBlock(torch.nn.Module):
    def __init__(self, size: int, heads: int, fault: str) -> None:
        super().__init__()
        self.ln_1 = torch.nn.LayerNorm(size)
        self.attn = TorchAttention(size, heads)
        self.ln_2 = torch.nn.LayerNorm(size)
        self.mlp = TorchMLP(size, fault)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask=None)
        return x + self.mlp(self.ln_2(x))


class TorchGPT(torch.nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(31, 24)
        self.wpe = torch.nn.Embedding(16, 24)
        self.h = torch.nn.ModuleList(TorchBlock(24, 3, fault if i else "") for i in range(2))
        self.ln_f = torch.nn.LayerNorm(24)
        self.lm_head = torch.nn.Linear(24, 31, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1]))
        for block in self.h:
            x = block(x)
        return {"logits": self.lm_head(self.ln_f(x)), "hidden": x}


class FlaxAttention(nn.Module):
    heads: int
    dtype: Any
    fault: str = ""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        size, length, fault = x.shape[-1], x.shape[1], self.fault
        shape = (self.heads, size // self.heads)
        query, key, value = (
            nn.DenseGeneral(shape, name=name, param_dtype=self.dtype)(x)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqnh,bknh->bnqk", query, key)
        scores = scores / (1 if fault == "unscaled" else math.sqrt(shape[1]))
        causal = jnp.tril(jnp.ones((length, length), bool), 1 if fault == "mask" else 0)
        weights = nn.softmax(jnp.where(causal, scores, -jnp.inf), -1)
        if fault == "stop-gradient":
            weights = jax.lax.stop_gradient(weights)
        mixed = jnp.einsum("bnqk,bknh->bqnh", weights, value)
        if fault == "heads":
            mixed = mixed.swapaxes(2, 3).reshape(mixed.shape)
        return nn.DenseGeneral(size, axis=(-2, -1), name="out", param_dtype=self.dtype)(mixed)


class FixedScaleNorm(nn.LayerNorm):
    """A norm whose scale gets no gradient."""

    def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return jax.lax.stop_gradient(super().param(name, *args, **kwargs))


class FlaxBlock(nn.Module):
    heads: int
    dtype: Any
    fault: str = ""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        size, dtype, fault = x.shape[-1], self.dtype, self.fault
        y = nn.LayerNorm(1e-5, name="norm1", param_dtype=dtype)(x)
        y = FlaxAttention(self.heads, dtype, fault, name="attention")(y)
        x = (jax.lax.stop_gradient(x) if fault == "residual-stopped" else x) + y
        epsilon = 1e-3 if fault == "epsilon" else 1e-5
        layer_norm = FixedScaleNorm if fault == "scale-stopped" else nn.LayerNorm
        y = layer_norm(epsilon, name="norm2", param_dtype=dtype)(x)
        if fault == "post-norm":
            x = y
        y = nn.Dense(4 * size, name="fc1", param_dtype=dtype)(y)
        y = nn.gelu(y, approximate=fault != "gelu")
        if fault == "gradient":
            y = doubled(y)
        return x + nn.Dense(size, name="fc2", param_dtype=dtype)(y)


class FlaxGPT(nn.Module):
    dtype: Any
    fault: str = ""

    @nn.compact
    def __call__(self, input_ids: Any) -> dict[str, Any]:
        dtype, fault = self.dtype, self.fault
        tokens = nn.Embed(31, 24, name="tok", param_dtype=dtype, dtype=dtype)
        positions = jnp.arange(input_ids.shape[1]) + (fault == "position")
        x = nn.Embed(16, 24, name="pos", param_dtype=dtype)(positions)
        x = tokens(input_ids) * (24**0.5 if fault == "embedding-scaled" else 1) + x
        for i in range(2):
            x = FlaxBlock(3, dtype, fault if i else "", name=f"block_{i}")(x)
        y = nn.LayerNorm(1e-5, name="final_norm", param_dtype=dtype)(x)
        return {"hidden": x, "logits": tokens.attend(y)}


_ATTENTION, _BLOCK = ("h.1.attn", "block_1/attention"), ("h.1", "block_1")
GPT_FAULTS: Faults = {
    "unscaled": ("forward", *_ATTENTION),
    "mask": ("forward", *_ATTENTION),
    "heads": ("forward", *_ATTENTION),
    "key-scaled": ("forward", "h.1.attn.c_attn", "block_1/attention/key"),
    "query-and-key": ("forward", "h.1.attn.c_attn", "block_1/attention/query"),
    "projection-transposed": ("forward", "h.1.attn.c_proj", "block_1/attention/out"),
    "epsilon": ("forward", "h.1.ln_2", "block_1/norm2"),
    "post-norm": ("forward", *_BLOCK),
    "gelu": ("forward", *_BLOCK),
    "bias-missing": ("forward", "h.1.mlp.c_proj", "block_1/fc2"),
    "position": ("forward", "", ""),
    "embedding-scaled": ("forward", "", ""),
    "gradient": ("backward", *_BLOCK),
    "residual-stopped": ("backward", *_BLOCK),
    "scale-stopped": ("backward", "h.1.ln_2", "block_1/norm2"),
    "stop-gradient": ("backward", *_ATTENTION),
    "torch-detach": ("backward", *_BLOCK),
}


def gpt(dtype: str = "float64", fault: str = "") -> ForeignPair:
    model: Any = drawn(TorchGPT(fault), dtype)
    params: dict[str, Any] = {
        "tok": {"embedding": array(model.wte.weight)},
        "pos": {"embedding": array(model.wpe.weight)},
        "final_norm": norm(model.ln_f),
    }
    rules = [
        Rule("wte.weight", "tok/embedding"),
        Rule("wpe.weight", "pos/embedding"),
        *layer_rules("ln_f", "final_norm", "scale", "bias"),
        *layer_rules("h.{i}.ln_1", "block_{i}/norm1", "scale", "bias"),
        *layer_rules("h.{i}.ln_2", "block_{i}/norm2", "scale", "bias"),
        *layer_rules("h.{i}.mlp.c_fc", "block_{i}/fc1", "kernel", "bias"),
        *layer_rules("h.{i}.mlp.c_proj", "block_{i}/fc2", "kernel", "bias"),
        *layer_rules("h.{i}.attn.c_proj", "block_{i}/attention/out", "kernel", "bias"),
    ]
    for one, leaf in (("weight", "kernel"), ("bias", "bias")):
        parts = tuple(f"block_{{i}}/attention/{part}/{leaf}" for part in ("query", "key", "value"))
        rules.append(Rule(f"h.{{i}}.attn.c_attn.{one}", parts))
    for i, block in enumerate(model.h):
        attention: dict[str, Any] = {}
        fused = dense(block.attn.c_attn)
        for j, name in enumerate(("query", "key", "value")):
            here = slice(24 * j, 24 * (j + 1))
            kernel, bias = fused["kernel"][:, here], fused["bias"][here]
            attention[name] = {"kernel": kernel.reshape(24, 3, 8), "bias": bias.reshape(3, 8)}
        attention["out"] = dense(block.attn.c_proj)
        attention["out"]["kernel"] = attention["out"]["kernel"].reshape(3, 8, 24)
        params[f"block_{i}"] = {
            "attention": attention,
            "norm1": norm(block.ln_1),
            "norm2": norm(block.ln_2),
            "fc1": dense(block.mlp.c_fc),
            "fc2": dense(block.mlp.c_proj),
        }
    attention, fc2 = params["block_1"]["attention"], params["block_1"]["fc2"]
    if fault == "key-scaled":
        attention["key"]["kernel"] = attention["key"]["kernel"] * jnp.asarray(1.25, dtype)
    elif fault == "query-and-key":
        attention["query"], attention["key"] = attention["key"], attention["query"]
    elif fault == "projection-transposed":
        kernel = attention["out"]["kernel"]
        attention["out"]["kernel"] = kernel.reshape(24, 24).T.reshape(kernel.shape)
    elif fault == "bias-missing":
        fc2["bias"] = 0 * fc2["bias"]
    ids = np.random.default_rng(2).integers(0, 31, (2, 9)).astype(np.int32)
    return ForeignPair(model, FlaxGPT(jnp.dtype(dtype), fault), {"params": params}, ids, rules)


# An MLP-mixer whose names say nothing: nested sequences of numbers against one flat module.


class Residual(torch.nn.Module):
    def __init__(self, *parts: torch.nn.Module) -> None:
        super().__init__()
        self.f = torch.nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Turned(torch.nn.Sequential):
    """Its layers see the last two axes swapped."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class TorchMixer(torch.nn.Sequential):
    def __init__(self, fault: str) -> None:
        blocks: list[torch.nn.Module] = []
        for i in range(2):
            tokens = [torch.nn.Linear(9, 20), torch.nn.GELU(), torch.nn.Linear(20, 9)]
            channels = [torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 16)]
            if fault == "torch-detach" and i == 1:
                channels.insert(2, Detached())
            blocks.append(Residual(torch.nn.LayerNorm(16), Turned(*tokens)))
            blocks.append(Residual(torch.nn.LayerNorm(16), *channels))
        super().__init__(torch.nn.Linear(12, 16), *blocks, torch.nn.LayerNorm(16), Mean())
        self.append(torch.nn.Linear(16, 5))


class Detached(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + x.detach()) / 2


class Mean(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class FlaxMixer(nn.Module):
    dtype: Any
    fault: str = ""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        dtype, fault = self.dtype, self.fault

        def linear(size: int, y: Any) -> Any:
            return nn.Dense(size, param_dtype=dtype)(y)

        x = linear(16, x)
        for i in range(2):
            here = fault if i == 1 else ""
            y = nn.LayerNorm(1e-6 if here == "epsilon" else 1e-5, param_dtype=dtype)(x)
            y = linear(20, y if here == "unturned" else y.swapaxes(1, 2))
            y = linear(9, nn.gelu(y, approximate=here == "gelu"))
            x = x + y.swapaxes(1, 2)
            y = nn.LayerNorm(1e-5, param_dtype=dtype)(x)
            y = nn.gelu(linear(24, y), approximate=False)
            if here == "gradient":
                y = doubled(y)
            y = linear(16, y)
            x = y if here == "residual" else x + y
        y = nn.LayerNorm(1e-5, param_dtype=dtype)(x)
        y = y.max(1) if fault == "pooling" else y.mean(1)
        if fault == "stop-gradient":
            y = y.at[:, 3].set(jax.lax.stop_gradient(y[:, 3]))
        return linear(5, y)


MIXER_FAULTS: Faults = {
    "epsilon": ("forward", "3.f.0", "LayerNorm_2"),
    "gelu": ("forward", "", ""),
    "residual": ("forward", "", ""),
    "pooling": ("forward", "", ""),
    "layers-exchanged": ("forward", "1.f.1.0", "Dense_1"),
    "bias-missing": ("forward", "4.f.3", "Dense_8"),
    "gradient": ("backward", "", ""),
    "stop-gradient": ("backward", "", ""),
    "torch-detach": ("backward", "", ""),
}


def mixer(dtype: str = "float64", fault: str = "") -> ForeignPair:
    model = drawn(TorchMixer(fault), dtype)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    params = {f"Dense_{i}": dense(layer) for i, layer in enumerate(linear)}
    params |= {f"LayerNorm_{i}": norm(layer) for i, layer in enumerate(norms)}
    if fault == "layers-exchanged":
        params["Dense_1"], params["Dense_5"] = params["Dense_5"], params["Dense_1"]
    elif fault == "bias-missing":
        params["Dense_8"]["bias"] = 0 * params["Dense_8"]["bias"]
    rules = []
    for kind, name, leaf in (
        (torch.nn.Linear, "Dense", "kernel"),
        (torch.nn.LayerNorm, "LayerNorm", "scale"),
    ):
        paths = [path for path, part in model.named_modules() if isinstance(part, kind)]
        for i, path in enumerate(paths):
            rules += layer_rules(path, f"{name}_{i}", leaf, "bias")
    inputs = values(3, 2, 9, 12, dtype=dtype)
    return ForeignPair(model, FlaxMixer(jnp.dtype(dtype), fault), {"params": params}, inputs, rules)


# A cell that is called again and again with the same weights, and returns tuples.


class TorchCell(torch.nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.gate = torch.nn.Linear(12, 12)
        self.mix = torch.nn.Linear(12, 12)

    def forward(self, x: Tensor, *, state: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        gate = self.gate(x).sigmoid_()
        if state is not None:
            gate = gate * state
        y = self.mix(x).tanh_()
        if self.fault == "torch-detach" and state is not None:
            y = (y + y.detach()) / 2
        return gate * y + (1 - gate) * x, {"gate": gate, "name": "cell", "nothing": None}


class TorchRepeated(torch.nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(12)
        self.cell = TorchCell(fault)
        self.again = self.cell  # one module, two names
        self.out = torch.nn.Linear(12, 7)

    def forward(self, *, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Any:
        hidden, first = self.cell(self.norm(x))
        hidden, second = self.again(self.norm(hidden), state=first["gate"])
        y = self.out(hidden * scale)
        return (y if mask is None else y * mask, [first["gate"], second["gate"]]), {"last": hidden}


class FlaxCell(nn.Module):
    dtype: Any
    fault: str = ""

    def setup(self) -> None:
        self.gate = nn.Dense(12, param_dtype=self.dtype)
        self.mix = nn.Dense(12, param_dtype=self.dtype)

    def __call__(self, x: Any, state: Any = None) -> tuple[Any, dict[str, Any]]:
        fault = self.fault if state is not None else ""  # in the second call
        gate = nn.sigmoid(self.gate(x))
        if state is not None and fault != "state":
            gate = gate * state
        if fault == "gradient":
            gate = doubled(gate)
        y = jnp.tanh(self.mix(jax.lax.stop_gradient(x) if fault == "stop-gradient" else x))
        carried = x if fault == "carry" else (1 - gate) * x
        return gate * y + carried, {"gate": gate * (2 if fault == "returned" else 1)}


class FlaxRepeated(nn.Module):
    dtype: Any
    fault: str = ""

    def setup(self) -> None:
        self.norm = nn.LayerNorm(1e-5, param_dtype=self.dtype)
        self.cell = FlaxCell(self.dtype, self.fault)
        self.out = nn.Dense(7, param_dtype=self.dtype)

    def __call__(self, x: Any, scale: float = 1.0, mask: Any = None) -> Any:
        hidden, first = self.cell(self.norm(x))
        normed = hidden if self.fault == "unnormed" else self.norm(hidden)
        hidden, second = self.cell(normed, state=first["gate"])
        y = self.out(hidden if self.fault == "unscaled" else hidden * scale)
        y = y if mask is None else y * mask
        last = jax.lax.stop_gradient(hidden) if self.fault == "last-stopped" else hidden
        return (y, [first["gate"], second["gate"]]), {"last": last}


REPEATED_FAULTS: Faults = {
    "state": ("forward", "cell", "cell"),
    "carry": ("forward", "cell", "cell"),
    "returned": ("forward", "cell", "cell"),
    "bias-missing": ("forward", "cell.mix", "cell/mix"),
    "unnormed": ("forward", "", ""),
    "unscaled": ("forward", "", ""),
    "gradient": ("backward", "cell", "cell"),
    "stop-gradient": ("backward", "cell", "cell"),
    "last-stopped": ("backward", "", ""),
    "torch-detach": ("backward", "cell", "cell"),
}


def repeated(dtype: str = "float64", fault: str = "") -> ForeignPair:
    model: Any = drawn(TorchRepeated(fault), dtype)
    cell = {"gate": dense(model.cell.gate), "mix": dense(model.cell.mix)}
    params = {"norm": norm(model.norm), "cell": cell, "out": dense(model.out)}
    if fault == "bias-missing":
        cell["mix"]["bias"] = 0 * cell["mix"]["bias"]
    rules = [
        *layer_rules("norm", "norm", "scale", "bias"),
        *layer_rules("cell.gate", "cell/gate", "kernel", "bias"),
        *layer_rules("cell.mix", "cell/mix", "kernel", "bias"),
        *layer_rules("out", "out", "kernel", "bias"),
    ]
    inputs = {"x": values(4, 3, 12, dtype=dtype), "scale": 0.75, "mask": None}
    return ForeignPair(
        model, FlaxRepeated(jnp.dtype(dtype), fault), {"params": params}, inputs, rules
    )


PAIRS: dict[str, tuple[Callable[..., ForeignPair], Faults]] = {
    "cnn": (cnn, CNN_FAULTS),
    "gpt": (gpt, GPT_FAULTS),
    "mixer": (mixer, MIXER_FAULTS),
    "repeated": (repeated, REPEATED_FAULTS),
}
