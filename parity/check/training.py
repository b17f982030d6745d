"""Training both twins from the same weights on the same batches, and the control of that.

    step = cross-entropy, clipped gradients, AdamW with decay of matrices alone

Training amplifies rounding. How much is measured and not guessed: the control is the same run from
weights of which one is moved by one unit in the last place. Where it stays small (1e-14 after 100
steps at this learning rate), a bound means something; where it is large the run is chaotic, and no
two implementations could agree.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from numpy.typing import NDArray

from diy_core.mapping import flatten, tensors, unflatten
from diy_torch.tensors import to_numpy
from parity.batch import Batch, with_edges
from parity.check.optimizers import Recipe, optax_adamw, torch_adamw
from parity.twins import Pair, flax_cross_entropy, torch_cross_entropy

_FOLLOWERS = 4


@dataclasses.dataclass
class Run:
    """What a training left: the loss of each step, and the parameters by Hugging Face name.

    A loss is the mean over the tokens in float64 of their losses in the dtype of the training. The
    float32 sum of a hundred losses alone has an error as large as all of the training (1e-7), which
    would be hidden behind it.
    """

    losses: NDArray[np.float64]
    parameters: dict[str, NDArray[Any]]


def token_batches(vocab_size: int, steps: int, rows: int, columns: int, seed: int) -> list[Batch]:
    """Batches of a text that can be learnt: each token has four that may follow it.

    The first and the last id, which chance would leave out, stand in the first batch.
    """
    generator = np.random.default_rng([seed, 3])
    follows = generator.integers(0, vocab_size, (vocab_size, _FOLLOWERS), np.int32)
    ids = np.empty((steps, rows, columns), np.int32)
    ids[:, :, 0] = generator.integers(0, vocab_size, (steps, rows))
    for column in range(1, columns):
        choice = generator.integers(0, _FOLLOWERS, (steps, rows))
        ids[:, :, column] = follows[ids[:, :, column - 1], choice]
    with_edges(ids[0, 0], vocab_size)
    return [Batch(batch, np.full(rows, columns, np.int32)) for batch in ids]


def train_torch(pair: Pair, recipe: Recipe, batches: list[Batch]) -> Run:
    """Train the PyTorch twin, and drop it: its weights are the file's no longer."""
    model = pair.torch
    named = dict(model.named_parameters())
    optimizer, losses = torch_adamw(named, pair.config, recipe), []
    for batch in batches:
        logits = model(torch.from_numpy(batch.ids).to(pair.device.torch))
        found = torch_cross_entropy(logits, torch.from_numpy(batch.labels).to(pair.device.torch))
        optimizer.zero_grad()
        found.mean().backward()
        torch.nn.utils.clip_grad_norm_(named.values(), recipe.max_norm)
        optimizer.step()
        losses.append(found.detach().double().mean().item())
    parameters = {t.hf: to_numpy(named[t.torch].detach()) for t in tensors(pair.config)}
    pair.drop_torch()
    return Run(np.array(losses), parameters)


def train_flax(pair: Pair, recipe: Recipe, batches: list[Batch], *, moved: bool = False) -> Run:
    """Train the Flax twin, or its control: `moved` begins with one weight moved by one ulp."""
    first = one_ulp_moved(pair.params) if moved else pair.params
    # Copies: the step is given its arguments' memory.
    params = jax.device_put(jax.tree.map(jnp.copy, first), pair.device.jax)
    state, losses = optax_adamw(pair.config, recipe).init(params), []
    for batch in batches:
        labels = batch.labels.astype(np.int32)
        params, state, loss = _step(pair.flax, recipe, params, state, batch.ids, labels)
        losses.append(loss)
    flat = flatten(params)
    parameters = {t.hf: t.to_flax.inverse(np.asarray(flat[t.flax])) for t in tensors(pair.config)}
    counted = [float((batch.labels >= 0).sum()) for batch in batches]
    sums = [np.asarray(loss, np.float64).sum() for loss in losses]
    return Run(np.array(sums) / counted, parameters)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(model: Any, recipe: Recipe, params: Any, state: Any, ids: Any, labels: Any) -> Any:
    """(params, optimizer state, losses (B, S) before); compiled once per config and shape."""

    def loss_of(params: Any) -> Any:
        losses = flax_cross_entropy(model.apply({"params": params}, ids), labels)
        return losses.sum() / (labels >= 0).sum(), losses

    gradients, losses = jax.grad(loss_of, has_aux=True)(params)
    updates, state = optax_adamw(model.config, recipe).update(gradients, state, params)
    return optax.apply_updates(params, updates), state, losses


def one_ulp_moved(params: Any) -> Any:
    """The same params but for the first weight of the first query projection: the next number."""
    flat = flatten(params)
    path = ("model", "layers_0", "attention", "q_proj", "kernel")
    kernel = np.array(flat[path])
    kernel[0, 0] = np.nextafter(kernel[0, 0], kernel.dtype.type(np.inf))
    return unflatten(flat | {path: jnp.asarray(kernel)})
