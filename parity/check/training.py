"""Training both twins from the same weights on the same batches, and the control of that.

The step is the one that users run: `build_step` of each twin, with its AdamW and its clipping.

Training amplifies rounding. How much is measured and not guessed: the control is the same run from
weights of which one is moved by one unit in the last place. Where it stays small (1e-14 after 100
steps at this learning rate), a bound means something; where it is large the run is chaotic, and no
two implementations could agree.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import diy_jax
import diy_jax.optimizer
import diy_jax.step
import diy_torch.optimizer
import diy_torch.step
from diy_core.mapping import flatten, tensors, unflatten
from diy_core.training.config import DataConfig, Dtype, OptimizerConfig, TrainConfig
from diy_core.validate import IGNORED
from diy_torch.tensors import to_numpy
from parity.batch import Batch, with_edges
from parity.twins import Pair

_WATCHED = ("token_losses",)
_FOLLOWERS = 4


@dataclasses.dataclass
class Run:
    """What a training left: the losses of each step, and the parameters by Hugging Face name.

    A loss is the mean over the tokens in float64 of their losses in the dtype of the training. The
    float32 sum of a hundred losses alone has an error as large as all of the training (1e-7), which
    would be hidden behind it. What the step itself reported, users see: loss and norm.
    """

    losses: NDArray[np.float64]
    parameters: dict[str, NDArray[Any]]
    reported: dict[str, NDArray[Any]]


def token_batches(vocab_size: int, steps: int, rows: int, columns: int, seed: int) -> list[Batch]:
    """Batches of a text that can be learnt: each token has four that may follow it.

    The first and the last id, which chance would leave out, stand in the last batch. They follow
    nothing in that text; in an early batch they move all of the curve, and its rounding with it (of
    12 seeds one had a ratio of 2.8 between healthy twins).
    """
    generator = np.random.default_rng([seed, 3])
    follows = generator.integers(0, vocab_size, (vocab_size, _FOLLOWERS), np.int32)
    ids = np.empty((steps, rows, columns), np.int32)
    ids[:, :, 0] = generator.integers(0, vocab_size, (steps, rows))
    for column in range(1, columns):
        choice = generator.integers(0, _FOLLOWERS, (steps, rows))
        ids[:, :, column] = follows[ids[:, :, column - 1], choice]
    with_edges(ids[-1, 0], vocab_size)
    return [Batch(batch, np.full(rows, columns, np.int32)) for batch in ids]


def train_torch(pair: Pair, recipe: OptimizerConfig, batches: list[Batch]) -> Run:
    """Train the PyTorch twin, and drop it: its weights are the file's no longer."""
    model, config = pair.torch, _train_config(pair.dtype, recipe, batches)
    optimizer = diy_torch.optimizer.build_optimizer(model, recipe)
    step = diy_torch.step.build_step(model, optimizer, config, watch=_WATCHED)
    results = [
        step(_arrays(batch), recipe.learning_rate, number, config.seed)
        for number, batch in enumerate(batches)
    ]
    named = dict(model.named_parameters())
    parameters = {t.hf: to_numpy(named[t.torch].detach()) for t in tensors(pair.config)}
    pair.drop_torch()
    return _run(results, batches, parameters)


def train_flax(
    pair: Pair, recipe: OptimizerConfig, batches: list[Batch], *, moved: bool = False
) -> Run:
    """Train the Flax twin, or its control: `moved` begins with one weight moved by one ulp."""
    first = one_ulp_moved(pair.params) if moved else pair.params
    # Copies: the step is given its arguments' memory.
    params = jax.device_put(jax.tree.map(jnp.copy, first), pair.device.jax)
    config = _train_config(pair.dtype, recipe, batches)
    optimizer, step = flax_step(pair.flax, config)
    state, results = optimizer.init(params), []
    for number, batch in enumerate(batches):
        params, state, result = step(
            params, state, _arrays(batch), recipe.learning_rate, number, config.seed
        )
        results.append(result)
    flat = flatten(params)
    parameters = {t.hf: t.to_flax.inverse(np.asarray(flat[t.flax])) for t in tensors(pair.config)}
    return _run(results, batches, parameters)


@functools.lru_cache(maxsize=8)
def flax_step(model: diy_jax.DIYForCausalLM, config: TrainConfig) -> tuple[Any, Any]:
    """The optimizer and the step, which is compiled once for both runs of a check."""
    optimizer = diy_jax.optimizer.build_optimizer(model, config.optimizer)
    return optimizer, diy_jax.step.build_step(model, optimizer, config, watch=_WATCHED)


def _train_config(dtype: str, recipe: OptimizerConfig, batches: list[Batch]) -> TrainConfig:
    """What a step is built from; no run is made, so that directory, model and data name none."""
    rows, columns = batches[0].ids.shape
    return TrainConfig(
        run_dir="none",
        model="none",
        data=DataConfig(train="none"),
        steps=len(batches),
        dtype=cast(Dtype, dtype),
        batch_size=rows,
        sequence_length=columns,
        optimizer=recipe,
    )


def _arrays(batch: Batch) -> dict[str, NDArray[Any]]:
    """One pass, as a step takes it: each row is one document."""
    labels = np.where(batch.labels >= 0, batch.labels, IGNORED).astype(np.int32)
    segments = batch.valid.astype(np.int32)
    arrays = {"input_ids": batch.ids, "labels": labels, "segment_ids": segments}
    return {name: array[None] for name, array in arrays.items()}


def _run(results: list[Any], batches: list[Batch], parameters: dict[str, NDArray[Any]]) -> Run:
    losses = [
        np.asarray(result.watched["token_losses"]).sum(dtype=np.float64) / (batch.labels >= 0).sum()
        for result, batch in zip(results, batches, strict=True)
    ]
    reported = {
        "the losses that are reported": np.array([float(result.loss) for result in results]),
        "the gradient norms": np.array([float(result.grad_norm) for result in results]),
    }
    return Run(np.array(losses), parameters, reported)


def one_ulp_moved(params: Any) -> Any:
    """The same params but for the first weight of the first query projection: the next number."""
    flat = flatten(params)
    path = ("model", "layers_0", "attention", "q_proj", "kernel")
    kernel = np.array(flat[path])
    kernel[0, 0] = np.nextafter(kernel[0, 0], kernel.dtype.type(np.inf))
    return unflatten(flat | {path: jnp.asarray(kernel)})
