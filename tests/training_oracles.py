"""What training is measured against, in numpy and float64: the loss, AdamW, batches, configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from diy_core.training.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig

Array = NDArray[Any]
Tensors = Mapping[str, Array]
IGNORED = -100


def token_losses(logits: Array, labels: Array, z_loss: float) -> Array:
    """Cross-entropy of logits (..., V) at labels (...), plus z_loss * logsumexp^2."""
    logits = logits.astype(np.float64)
    normaliser = logsumexp(logits, axis=-1)
    wanted = np.where(labels == IGNORED, 0, labels)
    right = np.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
    return np.where(labels == IGNORED, 0.0, normaliser - right + z_loss * normaliser**2)


def loss_gradients(hidden: Array, labels: Array, head: Array, z_loss: float) -> tuple[Array, Array]:
    """Gradients of the sum of `token_losses` of hidden @ head.T: of hidden, and of head (V, D)."""
    logits = hidden @ head.T
    normaliser = logsumexp(logits, axis=-1, keepdims=True)
    slope = np.exp(logits - normaliser) * (1 + 2 * z_loss * normaliser)
    slope -= np.eye(head.shape[0])[np.where(labels == IGNORED, 0, labels)]
    slope[labels == IGNORED] = 0.0
    return slope @ head, np.einsum("bsv,bsd->vd", slope, hidden)


class LossCase:
    """Hidden states (3, 7, 5), a head (11, 5) and labels, of which about a third do not count."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.hidden = generator.normal(0.0, 2.0, (3, 7, 5))
        self.head = generator.normal(0.0, 1.0, (11, 5))
        self.labels = generator.integers(0, 11, (3, 7), np.int32)
        self.labels[generator.random((3, 7)) < 0.35] = IGNORED
        self.counted = int((self.labels != IGNORED).sum())
        assert 5 < self.counted < 20

    def loss(self, z_loss: float) -> float:
        return float(token_losses(self.hidden @ self.head.T, self.labels, z_loss).sum())

    def gradients(self, z_loss: float) -> tuple[Array, Array]:
        return loss_gradients(self.hidden, self.labels, self.head, z_loss)


def adamw(
    first: Tensors,
    gradients: Sequence[Tensors],
    rates: Sequence[float],
    options: OptimizerConfig,
    decayed: set[str],
) -> dict[str, Array]:
    """Parameters after these gradients, each step clipped and with its own learning rate."""
    p = {name: array.copy() for name, array in first.items()}
    m = {name: np.zeros_like(array) for name, array in first.items()}
    v = {name: np.zeros_like(array) for name, array in first.items()}
    for step, (drawn, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum(float((g**2).sum()) for g in drawn.values()))
        factor = min(1.0, options.clip_norm / (norm + 1e-6)) if options.clip_norm else 1.0
        for name in p:
            g = drawn[name] * factor
            m[name] = options.beta1 * m[name] + (1 - options.beta1) * g
            v[name] = options.beta2 * v[name] + (1 - options.beta2) * g * g
            mean = m[name] / (1 - options.beta1**step)
            root = np.sqrt(v[name] / (1 - options.beta2**step))
            decay = options.weight_decay * p[name] if name in decayed else 0.0
            p[name] = p[name] - rate * (mean / (root + options.eps) + decay)
    return p


def random_gradients(first: Tensors, steps: int) -> list[dict[str, Array]]:
    """Gradients whose common norm is in turn 0.1 and 10."""
    found = []
    for step in range(steps):
        generator = np.random.default_rng(step)
        drawn = {name: generator.standard_normal(array.shape) for name, array in first.items()}
        norm = np.sqrt(sum(float((g**2).sum()) for g in drawn.values()))
        found.append({name: g * ((10.0 if step % 2 else 0.1) / norm) for name, g in drawn.items()})
    return found


def train_config(
    *,
    optimizer: Mapping[str, Any] | None = None,
    loss: Mapping[str, Any] | None = None,
    **changes: Any,
) -> TrainConfig:
    """A small run in float64, as far as a step looks at it."""
    values: dict[str, Any] = {
        "run_dir": "run",
        "model": "model",
        "data": DataConfig(train="text"),
        "steps": 20,
        "dtype": "float64",
        "batch_size": 4,
        "sequence_length": 12,
    }
    return TrainConfig(
        **(values | changes),
        optimizer=OptimizerConfig(**(optimizer or {})),
        loss=LossConfig(**({"chunk_tokens": 10} | dict(loss or {}))),
    )


def random_batch(vocab_size: int, seed: int = 0, passes: int = 1) -> dict[str, Array]:
    """Four rows of 12 in so many passes: two documents and some padding each, some not counted."""
    generator = np.random.default_rng([seed, 5])
    ids = np.zeros((4, 12), np.int32)
    labels, segments = np.full_like(ids, IGNORED), np.zeros_like(ids)
    for row in range(4):
        ends = np.sort(generator.choice(np.arange(3, 13), 2, replace=False))
        for number, (start, end) in enumerate(zip((0, ends[0]), ends, strict=True), start=1):
            document = generator.integers(0, vocab_size, end - start)
            ids[row, start:end], segments[row, start:end] = document, number
            labels[row, start : end - 1] = document[1:]
    labels[generator.random(ids.shape) < 0.1] = IGNORED
    batch = {"input_ids": ids, "labels": labels, "segment_ids": segments}
    return {name: array.reshape(passes, 4 // passes, 12) for name, array in batch.items()}
