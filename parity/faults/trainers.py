"""A small trainer for each twin, which writes down what every stage of a step gave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from numpy.typing import NDArray

import diy_jax
import diy_torch
from diy_core.config import DIYConfig
from diy_core.mapping import flatten, tensors, unflatten
from diy_torch.tensors import to_numpy
from parity.environment import Device
from parity.tracing.result import Divergence
from parity.training_steps.steps import AdamW, MicroStep, Step
from parity.training_steps.tracer import trace_steps

Array = NDArray[Any]
Rates = Callable[[Any], Any]
_STEPS, _WARMUP = 3, 4


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The parts of the Flax side's step; a fault replaces one of them."""

    loss: Callable[..., Any]
    weigh: Callable[[Sequence[Any]], list[Any]]
    clip: Callable[[float], optax.GradientTransformation]
    adamw: Callable[..., optax.GradientTransformation]


def rate(count: Any) -> Any:
    """The learning rate of a step: it grows at each of the first ones."""
    return 2.0**-8 * (count + 1) / _WARMUP


def recipe(config: DIYConfig) -> AdamW:
    """What both trainers are asked to do."""
    decayed = frozenset(t.hf for t in tensors(config) if t.kind in ("embedding", "projection"))
    rates = [rate(count) for count in range(_STEPS + 1)]
    return AdamW(rates, 0.875, 0.96875, 2.0**-17, 0.125, decayed, 0.5)


def token_loss(logits: Any, ids: Any, lengths: Any, *, shift: int = 1, mean: str = "tokens") -> Any:
    """Mean cross-entropy of the next tokens; or another one."""
    length = ids.shape[1]
    valid = jnp.arange(length - shift)[None, :] + shift < lengths[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits[:, : length - shift], ids[:, shift:]
    )
    losses = jnp.where(valid, losses, 0)
    if mean == "positions":
        return losses.mean()
    if mean == "rows":
        return (losses.sum(1) / valid.sum(1)).mean()
    return losses.sum() / valid.sum()


def by_tokens(tokens: Sequence[int]) -> list[float]:
    """The weight of each pass: its share of the tokens, so that they make one large batch."""
    return [count / sum(tokens) for count in tokens]


def torch_clip(limit: float, floor: float = 1e-6) -> optax.GradientTransformation:
    """min(1, limit / (norm + 1e-6)), as PyTorch has it."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + floor))
        return jax.tree.map(lambda update: update * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def optax_adamw(wanted: AdamW, mask: Any, rates: Rates = rate, **other: Any) -> Any:
    """AdamW as it is asked for; `other` is done otherwise."""
    options = {
        "b1": wanted.beta1,
        "b2": wanted.beta2,
        "eps": wanted.eps,
        "weight_decay": wanted.weight_decay,
        "mask": mask,
    }
    return optax.adamw(rates, **(options | other))


HEALTHY = Trainer(token_loss, by_tokens, torch_clip, optax_adamw)


def trace_training(path: Path, device: Device, trainer: Trainer = HEALTHY) -> Divergence | None:
    """Train both twins for a few steps, and compare the stages.

    Args:
        path: a Hugging Face directory.
        device: where; inside `exact`.
        trainer: what the Flax twin's step is made of.
    """
    config = DIYConfig.from_pretrained(path)
    batches = _batches(config)
    return trace_steps(
        _train_torch(path, batches, recipe(config), device),
        _train_flax(path, batches, recipe(config), device, trainer),
        recipe(config),
    )


Batches = list[list[tuple[Array, Array]]]


def _batches(config: DIYConfig) -> Batches:
    """For each step two passes, ragged, with other numbers of tokens."""
    generator = np.random.default_rng(0)
    lengths = (np.array([12, 7], np.int32), np.array([5, 9], np.int32))
    return [
        [(generator.integers(0, config.vocab_size, (2, 12), np.int32), n) for n in lengths]
        for _ in range(_STEPS)
    ]


def _train_torch(path: Path, batches: Batches, wanted: AdamW, device: Device) -> list[Step]:
    model = diy_torch.DIYForCausalLM.from_pretrained(path, torch.float64, device.torch)
    rows = tensors(model.config)
    named = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {
            "params": [named[t.torch] for t in rows if (t.hf in wanted.decayed) is on],
            "weight_decay": wanted.weight_decay if on else 0.0,
        }
        for on in (True, False)
    ]
    betas = wanted.beta1, wanted.beta2
    optimizer = torch.optim.AdamW(groups, lr=wanted.learning_rates[0], betas=betas, eps=wanted.eps)

    def copies(of: Callable[[Any], Any]) -> dict[str, Array]:
        return {t.hf: to_numpy(of(named[t.torch]).detach()).copy() for t in rows}

    steps = []
    for number, batch in enumerate(batches):
        before, micro = copies(lambda p: p), []
        tokens = [int((lengths - 1).sum()) for _, lengths in batch]
        for (ids, lengths), weight in zip(batch, by_tokens(tokens), strict=True):
            given = torch.from_numpy(ids).to(device.torch)
            logits = model(given, seq_lengths=lengths.tolist())
            labels = given.long().clone()
            labels[torch.arange(ids.shape[1])[None, :] >= torch.from_numpy(lengths)[:, None]] = -1
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-1
            )
            found = torch.autograd.grad(loss, [named[t.torch] for t in rows])
            gradients = {t.hf: to_numpy(g).copy() for t, g in zip(rows, found, strict=True)}
            values = to_numpy(logits.detach())
            micro.append(MicroStep(ids, lengths, values, loss.item(), gradients))
            for t, gradient in zip(rows, found, strict=True):
                parameter = named[t.torch]
                part = weight * gradient
                parameter.grad = part if parameter.grad is None else parameter.grad + part
        gradients = copies(lambda p: p.grad)
        torch.nn.utils.clip_grad_norm_(named.values(), wanted.max_norm)
        clipped = copies(lambda p: p.grad)
        for group in optimizer.param_groups:
            group["lr"] = wanted.learning_rates[number]
        optimizer.step()
        optimizer.zero_grad()
        steps.append(Step(micro, gradients, clipped, before, copies(lambda p: p)))
    return steps


def _train_flax(
    path: Path, batches: Batches, wanted: AdamW, device: Device, trainer: Trainer
) -> list[Step]:
    model, params = diy_jax.DIYForCausalLM.from_pretrained(path, jnp.float64)
    rows = tensors(model.config)
    params = jax.device_put(params, device.jax)
    mask = unflatten({t.flax: t.hf in wanted.decayed for t in rows})
    clip, optimizer = trainer.clip(wanted.max_norm), trainer.adamw(wanted, mask=mask)
    state = optimizer.init(params)

    def loss_of(params: Any, ids: Any, lengths: Any) -> Any:
        logits = model.apply({"params": params}, ids, seq_lengths=lengths)
        return trainer.loss(logits, ids, lengths), logits

    passes = jax.jit(jax.value_and_grad(loss_of, has_aux=True))

    def copies(tree: Any) -> dict[str, Array]:
        flat = flatten(tree)
        return {t.hf: t.to_flax.inverse(np.asarray(flat[t.flax])) for t in rows}

    steps = []
    for batch in batches:
        micro, found = [], []
        for ids, lengths in batch:
            (loss, logits), gradients = passes(params, ids, lengths)
            found.append(gradients)
            values = np.asarray(logits)
            micro.append(MicroStep(ids, lengths, values, float(loss), copies(gradients)))
        weights = trainer.weigh([int((lengths - 1).sum()) for _, lengths in batch])
        total = jax.tree.map(jnp.zeros_like, params)
        for weight, gradients in zip(weights, found, strict=True):
            total = jax.tree.map(lambda t, g, w=weight: t + w * g, total, gradients)
        clipped, _ = clip.update(total, clip.init(params), params)
        updates, state = optimizer.update(clipped, state, params)
        after = optax.apply_updates(params, updates)
        steps.append(Step(micro, copies(total), copies(clipped), copies(params), copies(after)))
        params = after
    return steps
