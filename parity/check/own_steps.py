"""The twins' own training step, with everything on: what a run trains with, for a few steps.

Dropout, packed documents, labels that do not count, passes, a z-loss, recomputed layers, clipping,
decay, another learning rate each time, and a step that is skipped since no token counts in it. The
lines `optimizer` and `training` compare what torch and optax make of a gradient; this one compares
what `diy-torch train` and `diy-jax train` do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from numpy.typing import NDArray

import diy_jax
import diy_jax.optimizer
import diy_jax.step
import diy_torch
import diy_torch.optimizer
import diy_torch.step
from diy_core.config import DIYConfig
from diy_core.mapping import flatten, tensors, unflatten
from diy_core.training.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig
from diy_core.validate import IGNORED
from diy_torch.tensors import assign_weights, to_numpy
from parity.batch import random_ids
from parity.check import lines
from parity.check.compare import Check, worst_tensor
from parity.environment import Device
from parity.twins import Pair

STEPS, SKIPPED = 6, 3
_ROWS, _PASSES, _COLUMNS, _SEED = 4, 2, 24, 7
Tensors = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class OwnSteps:
    """A few steps of training from the same weights on the same batches.

    Attributes:
        config: of the model, with dropout.
        options: of the run.
        batches: of each step, (A, B, S).
    """

    config: DIYConfig
    options: TrainConfig
    batches: list[Tensors]

    @classmethod
    def make(cls, config: DIYConfig, seed: int) -> OwnSteps:
        """Random documents.

        Args:
            config: of the model.
            seed: of the documents.
        """
        columns = min(_COLUMNS, config.max_position_embeddings)
        options = TrainConfig(
            run_dir="run",
            model="model",
            data=DataConfig(train="data"),
            steps=STEPS,
            dtype="float64",
            batch_size=_ROWS,
            sequence_length=columns,
            accumulation_steps=_PASSES,
            remat=True,
            # eps as in `RECIPE`: with a small one, rounding decides where nearly nothing pulls.
            optimizer=OptimizerConfig(
                beta1=0.875, beta2=0.96875, eps=2.0**-17, weight_decay=0.125, clip_norm=0.5
            ),
            loss=LossConfig(z_loss=2.0**-10, chunk_tokens=max(columns - 3, 1)),
        )
        dropping = dataclasses.replace(config, attention_dropout=0.125, residual_dropout=0.25)
        return cls(dropping, options, list(_batches(config.vocab_size, columns, seed)))

    @property
    def reach(self) -> str:
        """How far it looks, in words."""
        return f"{STEPS} steps, 0-{self.options.sequence_length - 1}"


def check(pair: Pair, first: Tensors, seed: int) -> Check:
    """The line: what the steps reported and left, parameters and moments, JAX against PyTorch.

    Args:
        pair: the twins; neither is changed.
        first: their weights by Hugging Face name, in the torch layout.
        seed: of the documents.
    """
    steps, device = OwnSteps.make(pair.config, seed), pair.device
    line = "step", "float64", device.name
    one, other = (train(steps, first, device) for train in (train_torch, train_flax))
    more = line[0], one, other, lines.GRADIENT_BOUND, *line[1:]
    found = lines.provable(*line, worst_tensor, *more)
    return dataclasses.replace(found, reach=steps.reach)


def _batches(vocab_size: int, columns: int, seed: int) -> Iterator[Tensors]:
    """Two documents in a row, of uneven lengths; the second pass has fewer labels that count."""
    shape = _PASSES, _ROWS // _PASSES, columns
    for step in range(STEPS):
        generator = np.random.default_rng([seed, 6, step])
        ids = random_ids(generator, vocab_size, (_ROWS, columns))
        second = np.arange(columns) >= generator.integers(1, columns + 1, (_ROWS, 1))
        labels = np.full_like(ids, IGNORED)
        same = second[:, 1:] == second[:, :-1]
        labels[:, :-1] = np.where(same, ids[:, 1:], IGNORED)
        # Of the second pass, most; of a step that is to be skipped, all.
        labels[_ROWS // 2 :][generator.random((_ROWS // 2, columns)) < 0.6] = IGNORED
        labels[0, 0] = ids[0, min(1, columns - 1)]
        if step == SKIPPED:
            labels[:] = IGNORED
        batch = {"input_ids": ids, "labels": labels, "segment_ids": second.astype(np.int32) + 1}
        yield {name: array.reshape(shape) for name, array in batch.items()}


def rate(step: int) -> float:
    """The learning rate of a step: it grows."""
    return 2.0**-9 * (step + 1) / STEPS


def train_torch(steps: OwnSteps, first: Tensors, device: Device) -> Tensors:
    """What every step reported and what the last one left, by the PyTorch twin.

    Args:
        steps: what is done.
        first: weights by Hugging Face name, in the torch layout.
        device: where.
    """
    rows = tensors(steps.config)
    model = diy_torch.DIYForCausalLM(steps.config)
    weights = ((t.torch, first[t.hf].copy()) for t in rows)  # they are changed in place
    tied = steps.config.tie_word_embeddings
    assign_weights(model, weights, torch.float64, device.torch, tied=tied)
    optimizer = diy_torch.optimizer.build_optimizer(model, steps.options.optimizer)
    step = diy_torch.step.build_step(model, optimizer, steps.options)
    results = [step(batch, rate(n), n, _SEED) for n, batch in enumerate(steps.batches)]
    found, named = _reported(results), dict(model.named_parameters())
    for t in rows:
        parameter = named[t.torch]
        found[t.hf] = to_numpy(parameter.detach())
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"{key} of {t.hf}"] = to_numpy(optimizer.state[parameter][key])
    return found


def train_flax(steps: OwnSteps, first: Tensors, device: Device) -> Tensors:
    """The same by the Flax twin."""
    rows, model = tensors(steps.config), diy_jax.DIYForCausalLM(steps.config)
    flat = {t.flax: jnp.asarray(t.to_flax(first[t.hf])) for t in rows}
    params = jax.device_put(unflatten(flat), device.jax)
    optimizer = diy_jax.optimizer.build_optimizer(model, steps.options.optimizer)
    step = diy_jax.step.build_step(model, optimizer, steps.options)
    state, results = optimizer.init(params), []
    for n, batch in enumerate(steps.batches):
        params, state, result = step(params, state, batch, rate(n), n, _SEED)
        results.append(result)
    found, trees = _reported(results), {"": params}
    for key, field in (("exp_avg of ", "mu"), ("exp_avg_sq of ", "nu")):
        trees[key] = optax.tree.get(state, field)
    leaves = {key: flatten(tree) for key, tree in trees.items()}
    for t in rows:
        for key in trees:
            found[key + t.hf] = t.to_flax.inverse(np.asarray(leaves[key][t.flax]))
    return found


def _reported(results: list[Any]) -> Tensors:
    """Loss, norm, tokens and whether it was skipped, of each step; no numbers of a skipped one."""
    skipped = np.array([bool(result.skipped) for result in results])
    loss, norm = (
        np.where(skipped, 0.0, [float(getattr(result, name)) for result in results])
        for name in ("loss", "grad_norm")
    )
    tokens = np.array([int(result.tokens) for result in results], np.float64)
    return {"loss": loss, "norm": norm, "tokens": tokens, "skipped": skipped.astype(np.float64)}
