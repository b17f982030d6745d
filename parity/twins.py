"""Both twins with the same weights, and what they compute: module outputs, logits, gradients."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen as nn
from numpy.typing import NDArray

import diy_jax
import diy_torch
from diy_core.config import DIYConfig
from diy_core.mapping import flatten, flax_module_path, tensors
from diy_core.system.memory import trim
from diy_torch.tensors import to_numpy
from parity.batch import Batch
from parity.environment import TORCH_DTYPES, Device

EMBEDDING = "model.embed_tokens"
LOGITS = "logits"
_SMALL = 1_000_000  # weights
_PARTS = (
    ".attention_norm",
    *(f".attention.{name}_proj" for name in "qkvo"),
    ".attention",
    ".feedforward_norm",
    *(f".feedforward.{name}_proj" for name in ("gate", "up", "down")),
    ".feedforward",
    "",
)


@dataclasses.dataclass
class Observation:
    """What one twin computed, as numpy on the host, in the dtype it was computed in.

    Attributes:
        activations: output of each module by its torch path, in the order of execution, and the
            logits; valid positions only, (tokens, features).
        gradients: of the mean cross-entropy, by Hugging Face name, in the torch layout.
        embedded: its gradient by what the embedding gives, at the positions that have a label:
            (labels, D); None without gradients.
    """

    activations: dict[str, NDArray[Any]]
    gradients: dict[str, NDArray[Any]]
    embedded: NDArray[Any] | None = None

    @property
    def logits(self) -> NDArray[Any]:
        """The logits, (tokens, V)."""
        return self.activations[LOGITS]


class Pair:
    """The two twins with the same weights, in one dtype, on one device.

    The PyTorch side is loaded when it is first asked for; `drop_torch` frees it while the other
    side needs the memory.
    """

    def __init__(self, path: str | Path, dtype: str, device: Device) -> None:
        self.path, self.dtype, self.device = Path(path), dtype, device
        self._torch: diy_torch.DIYForCausalLM | None = None
        self.flax, self.params = diy_jax.DIYForCausalLM.from_pretrained(path, jnp.dtype(dtype))

    @property
    def torch(self) -> diy_torch.DIYForCausalLM:
        """The PyTorch twin."""
        if self._torch is None:
            with torch.inference_mode(False):  # its weights are to have gradients later
                self._torch = diy_torch.DIYForCausalLM.from_pretrained(
                    self.path, TORCH_DTYPES[self.dtype], self.device.torch
                )
        return self._torch

    def drop_torch(self) -> None:
        """Free the PyTorch twin's memory; it is loaded again when it is asked for."""
        self._torch = None
        release_memory(self.config)

    @property
    def config(self) -> DIYConfig:
        """The config of both."""
        return self.flax.config

    def observe_torch(self, batch: Batch, gradients: bool = True) -> Observation:
        """Run the PyTorch twin, forward and (if wanted) backward."""
        activations: dict[str, NDArray[Any]] = {}
        embedded: list[torch.Tensor] = []
        valid = batch.valid

        def record(name: str) -> Callable[..., None]:
            def hook(module: Any, args: Any, output: Any) -> None:
                output = output[0] if isinstance(output, tuple) else output
                activations[name] = to_numpy(output.detach())[valid]
                if gradients and name == EMBEDDING:
                    output.retain_grad()
                    embedded.append(output)

            return hook

        hooks = [
            self.torch.get_submodule(name).register_forward_hook(record(name))
            for name in module_names(self.config)
        ]
        try:
            with torch.set_grad_enabled(gradients):
                ids = torch.from_numpy(batch.ids).to(self.device.torch)
                logits = self.torch(ids, seq_lengths=batch.lengths.tolist())
        finally:
            for hook in hooks:
                hook.remove()
        activations[LOGITS] = to_numpy(logits.detach())[valid]
        if not gradients:
            return Observation(activations, {})
        labels = torch.from_numpy(batch.labels).to(self.device.torch)
        torch_cross_entropy(logits, labels).mean().backward()
        parameters = dict(self.torch.named_parameters())
        found = {}
        for tensor in tensors(self.config):
            grad = parameters[tensor.torch].grad
            assert grad is not None, tensor.torch
            found[tensor.hf] = to_numpy(grad)
            parameters[tensor.torch].grad = None
        by_position = embedded[0].grad
        assert by_position is not None
        return Observation(activations, found, to_numpy(by_position)[batch.labels >= 0])

    def full_logits(self, batch: Batch, twin: str = "torch") -> NDArray[np.float64]:
        """Logits of one twin at the valid tokens, by one full forward: (tokens, V)."""
        if twin == "flax":
            params = jax.device_put(self.params, self.device.jax)
            found = _logits(self.flax, params, batch.ids, batch.lengths)
            return np.asarray(found)[batch.valid].astype(np.float64)
        ids = torch.from_numpy(batch.ids).to(self.device.torch)
        with torch.inference_mode():
            logits = self.torch(ids, seq_lengths=batch.lengths.tolist())
        return to_numpy(logits)[batch.valid].astype(np.float64)

    def observe_flax(self, batch: Batch, gradients: bool = True) -> Observation:
        """Run the Flax twin under `jit`, forward and (if wanted) backward."""
        params = jax.device_put(self.params, self.device.jax)
        labels = batch.labels.astype(np.int32)
        run = _gradients if gradients else _forward
        (_, (logits, captured)), found_gradients = run(
            self.flax, params, batch.ids, batch.lengths, labels
        )
        grads, embedded = found_gradients
        flat = flatten(grads)
        valid, outputs = batch.valid, flatten(captured)
        activations = {}
        for name in module_names(self.config):
            (output,) = outputs[(*flax_module_path(name), "__call__")]
            output = output[0] if isinstance(output, tuple) else output
            activations[name] = np.asarray(output)[valid]
        activations[LOGITS] = np.asarray(logits)[valid]
        found = {
            tensor.hf: tensor.to_flax.inverse(np.asarray(flat[tensor.flax]))
            for tensor in (tensors(self.config) if gradients else [])
        }
        by_position = np.asarray(embedded)[labels >= 0] if gradients else None
        return Observation(activations, found, by_position)


def release_memory(config: DIYConfig) -> None:
    """Give freed memory back to the system: thousands of freed tensors else stay in the heap.

    A small model leaves none to speak of, and to look for it takes longer than to run the model.
    """
    if sum(math.prod(tensor.shape) for tensor in tensors(config)) < _SMALL:
        return
    gc.collect()
    trim()
    torch.cuda.empty_cache()  # JAX shares that memory; nothing happens where there is none


def module_names(config: DIYConfig) -> list[str]:
    """The torch path of every module whose output is compared, in the order of the forward pass.

    The head is not among them: its output are the logits, and the tied Flax twin has no module
    for it.
    """
    layers = [
        f"model.layers.{layer}{part}"
        for layer in range(config.num_hidden_layers)
        for part in _PARTS
    ]
    return [EMBEDDING, *layers, "model.norm", "model"]


def torch_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (B, S, V) at each label (B, S) that counts, not -1: (tokens,).

    Computed in float32, or in float64 where the logits are.
    """
    wide, counted = torch.promote_types(logits.dtype, torch.float32), labels >= 0
    return torch.nn.functional.cross_entropy(
        logits[counted].to(wide), labels[counted], reduction="none"
    )


def flax_cross_entropy(logits: Any, labels: Any) -> Any:
    """The same in JAX, where shapes are fixed: (B, S), 0 where no label counts."""
    wide = logits.astype(np.promote_types(logits.dtype, np.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(wide, jnp.maximum(labels, 0))
    return jnp.where(labels >= 0, losses, 0)


def _loss(model: Any, params: Any, nudge: Any, ids: Any, lengths: Any, labels: Any) -> Any:
    """Mean cross-entropy of the next tokens; beside it logits and every module's output.

    `nudge` is added to what the embedding gives: zeros, whose gradient is that of the embedding's
    output.
    """

    with nudged_embedding(nudge):
        logits, state = model.apply(
            {"params": params},
            ids,
            seq_lengths=lengths,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
    loss = flax_cross_entropy(logits, labels).sum() / (labels >= 0).sum()
    return loss, (logits, state["intermediates"])


@partial(jax.jit, static_argnums=0)
def _gradients(model: Any, params: Any, ids: Any, *batch: Any) -> Any:
    """((loss, (logits, outputs)), gradients); compiled once per config and shape."""
    zeros = jnp.zeros((*ids.shape, model.config.hidden_size), model.dtype)
    run = jax.value_and_grad(partial(_loss, model), argnums=(0, 1), has_aux=True)
    return run(params, zeros, ids, *batch)


@partial(jax.jit, static_argnums=0)
def _forward(model: Any, params: Any, *batch: Any) -> Any:
    """((loss, (logits, outputs)), no gradients)."""
    return _loss(model, params, 0, *batch), ({}, None)


@partial(jax.jit, static_argnums=0)
def _logits(model: Any, params: Any, ids: Any, lengths: Any) -> Any:
    return model.apply({"params": params}, ids, seq_lengths=lengths)


def nudged_embedding(nudge: Any) -> contextlib.AbstractContextManager[None]:
    """Inside, calls of the Flax twin add `nudge` to what its embedding gives."""

    def add(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        found = call(*args, **kwargs)
        here = context.module.name == "embed_tokens" and context.method_name == "__call__"
        return found + nudge if here else found

    return nn.intercept_methods(add)
