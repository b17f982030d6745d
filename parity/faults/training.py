"""Faults of a training step: labels, loss, accumulation, clipping, optimizer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from parity.faults.fault import ListedFault
from parity.faults.trainers import optax_adamw, rate, token_loss, torch_clip
from parity.training_steps.steps import AdamW


@dataclasses.dataclass(frozen=True)
class TrainingFault(ListedFault):
    """One bug of a training step.

    Attributes:
        suspects: names of hypotheses that are right about it.
        change: which part of the trainer is replaced, by what.
        model: which of `parity.random_models.small_configs` is trained.
    """

    suspects: tuple[str, ...]
    change: dict[str, Callable[..., Any]]
    model: str = "biases"


def _chain(wanted: AdamW, mask: Any, *, correct: str = "both", decay: str = "decoupled") -> Any:
    """AdamW out of parts, with one of them otherwise."""

    def moments(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count, mean, square = state
        if decay == "coupled":
            updates = jax.tree.map(
                lambda u, p, on: u + wanted.weight_decay * p if on else u, updates, params, mask
            )
        b1, b2 = wanted.beta1, wanted.beta2
        mean = jax.tree.map(lambda m, u: b1 * m + (1 - b1) * u, mean, updates)
        square = jax.tree.map(lambda v, u: b2 * v + (1 - b2) * u * u, square, updates)
        power = (count + 1).astype(jnp.float64)
        first = 1 - b1**power if correct in ("both", "first") else 1.0
        second = 1 - b2**power if correct in ("both", "second") else 1.0
        steps = jax.tree.map(
            lambda m, v: -rate(count) * (m / first) / (jnp.sqrt(v / second) + wanted.eps),
            mean,
            square,
        )
        scale = 1.0 if decay == "unscaled" else rate(count)
        if decay != "coupled":
            steps = jax.tree.map(
                lambda s, p, on: s - scale * wanted.weight_decay * p if on else s,
                steps,
                params,
                mask,
            )
        return steps, (count + 1, mean, square)

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), jnp.int32), zeros, zeros

    return optax.GradientTransformation(init, moments)


def _per_tensor(limit: float) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def clip(update: Any) -> Any:
            return update * jnp.minimum(1.0, limit / (jnp.linalg.norm(update) + 1e-6))

        return jax.tree.map(clip, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


_part = functools.partial
TRAINING_FAULTS = [
    TrainingFault("labels-not-shifted", ("labels-shift",), {"loss": _part(token_loss, shift=0)}),
    TrainingFault("labels-shifted-twice", ("labels-shift",), {"loss": _part(token_loss, shift=2)}),
    TrainingFault(
        "loss-over-padding", ("loss-mean",), {"loss": _part(token_loss, mean="positions")}
    ),
    TrainingFault("loss-of-rows", ("loss-mean",), {"loss": _part(token_loss, mean="rows")}),
    TrainingFault(
        "accumulation-mean",
        ("accumulation-weights",),
        {"weigh": lambda tokens: [1 / len(tokens)] * len(tokens)},
    ),
    TrainingFault(
        "accumulation-sum", ("accumulation-weights",), {"weigh": lambda tokens: [1.0] * len(tokens)}
    ),
    TrainingFault("clip-formula", ("clip-formula",), {"clip": _part(torch_clip, floor=0.0)}),
    TrainingFault("clip-per-tensor", ("clip-formula",), {"clip": _per_tensor}),
    TrainingFault("clip-left-out", ("clip-formula",), {"clip": lambda limit: optax.identity()}),
    TrainingFault(
        "decay-on-norms",
        ("weight-decay",),
        {"adamw": lambda wanted, mask: optax_adamw(wanted, None)},
    ),
    TrainingFault(
        "decay-left-out", ("weight-decay",), {"adamw": _part(optax_adamw, weight_decay=0.0)}
    ),
    TrainingFault("decay-coupled", ("weight-decay",), {"adamw": _part(_chain, decay="coupled")}),
    TrainingFault("decay-unscaled", ("weight-decay",), {"adamw": _part(_chain, decay="unscaled")}),
    TrainingFault(
        "bias-correction", ("bias-correction",), {"adamw": _part(_chain, correct="none")}
    ),
    TrainingFault(
        "bias-correction-second", ("bias-correction",), {"adamw": _part(_chain, correct="first")}
    ),
    TrainingFault(
        "eps-under-root",
        ("eps-place",),
        {"adamw": lambda wanted, mask: optax_adamw(wanted, mask, eps=0.0, eps_root=wanted.eps)},
    ),
    TrainingFault(
        "schedule-off-by-one",
        ("schedule",),
        {"adamw": _part(optax_adamw, rates=lambda n: rate(n + 1))},
    ),
]
