"""Training: what `diy_core.training` drives, in JAX."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import contiguous
from diy_core.mapping import flatten, tensors, unflatten
from diy_core.training.config import TrainConfig
from diy_core.training.log.progress import flops_per_token, measure_peak
from diy_core.training.protocols import Batch, Pieces
from diy_core.training.run.directory import RunDirectory
from diy_core.training.start.parts import assemble_parts
from diy_jax.device import choose_device
from diy_jax.loss import cross_entropy
from diy_jax.model import DIYForCausalLM, init_params
from diy_jax.optimizer import build_optimizer
from diy_jax.step import StepResult, build_step
from diy_jax.tensors import to_array, to_numpy
from diy_jax.training_store import TrainingStore


class Trainer:
    """A model and its optimizer, which change with every step.

    Args:
        config: of the run.
        model: its dtypes are replaced by those of the config.
        params: at step 0, in float32 (float64 for dtype float64); they are used up.

    Attributes:
        params: as they are now.
        model_config: of the model.
        master: dtype of weights and moments.
        flops_per_token: of `diy_core.training.log.progress`.
        matmul_peak: floating point operations per second of a large matrix product in the dtype of
            the run; None: not measured.
        compiles: the first step is compiled, which takes a while.
    """

    def __init__(self, config: TrainConfig, model: DIYForCausalLM, params: Any) -> None:
        self.params, self.model_config = params, model.config
        self.master = np.dtype("float64" if config.dtype == "float64" else "float32")
        self.flops_per_token = flops_per_token(model.config, config.sequence_length)
        self.matmul_peak: float | None = None
        self.compiles = True
        self._seed = config.seed
        optimizer = build_optimizer(model, config.optimizer)
        self._state = optimizer.init(params)
        self._step = build_step(model, optimizer, config)
        compute = model.clone(dtype=jnp.dtype(config.dtype), param_dtype=self.master)
        self._evaluate = jax.jit(partial(_evaluate, compute, config.loss.chunk_tokens))

    def train_step(self, batch: Batch, learning_rate: float, step: int) -> StepResult:
        """One optimizer step.

        Args:
            batch: int32 (A, B, S) each, see `build_step`.
            learning_rate: of this step.
            step: its number, from 0.
        """
        self.params, self._state, result = self._step(
            self.params, self._state, batch, learning_rate, step, self._seed
        )
        return result

    def evaluate(self, batch: Batch) -> tuple[Any, Any]:
        """The sum of the cross-entropies of a batch, without dropout, and its counted tokens."""
        total, tokens = np.zeros((), np.float64), np.zeros((), np.int64)
        for row in range(len(batch["input_ids"])):
            arrays = {n: batch[n][row] for n in ("input_ids", "labels", "segment_ids")}
            loss, counted = self._evaluate(self.params, arrays)
            total, tokens = total + np.asarray(loss), tokens + np.asarray(counted)
        return total, tokens

    def memory(self) -> int | None:
        """Bytes of the accelerator that were in use at the peak; None on a CPU."""
        (device, *_) = jax.tree.leaves(self.params)[0].devices()
        return (device.memory_stats() or {}).get("peak_bytes_in_use")

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """A copy of the state on the host, under the names and in the layout of `state_shapes`."""
        mean, square = (optax.tree.get(self._state, name) for name in ("mu", "nu"))
        arrays: dict[str, NDArray[Any]] = {}
        for kind, tree in (("model", self.params), ("mean", mean), ("square", square)):
            flat = flatten(tree)
            for tensor in tensors(self.model_config):
                # On a CPU this is the memory of the device itself, which the next step reuses.
                shared = to_numpy(flat[tensor.flax])
                copied = contiguous(tensor.to_flax.inverse(shared))
                arrays[f"{kind}/{tensor.hf}"] = (
                    copied.copy() if np.shares_memory(copied, shared) else copied
                )
        return arrays

    def assign(self, arrays: Iterable[tuple[str, NDArray[Any]]], updates: int) -> None:
        """Take a state.

        Args:
            arrays: all of `state_shapes`, in the dtype of weights and moments.
            updates: how often the optimizer moved the weights.
        """
        by_name = {tensor.hf: tensor for tensor in tensors(self.model_config)}
        place = jax.tree.leaves(self.params)[0].sharding
        flat: dict[str, dict[tuple[str, ...], Any]] = {"model": {}, "mean": {}, "square": {}}
        for name, array in arrays:
            kind, _, hf = name.partition("/")
            tensor = by_name[hf]
            flat[kind][tensor.flax] = jax.device_put(to_array(tensor.to_flax(array)), place)
        self.params = unflatten(flat["model"])
        self._state = optax.tree.set(
            self._state,
            mu=unflatten(flat["mean"]),
            nu=unflatten(flat["square"]),
            count=jax.device_put(jnp.asarray(updates, jnp.int32), place),
        )


def assemble(config: TrainConfig, directory: RunDirectory, device: str | None) -> Pieces:
    """Everything for `diy_core.training.start.begin`.

    Args:
        config: of the run.
        directory: entered and begun.
        device: `cpu`, `gpu`, `tpu`; None: what JAX takes first.

    Raises:
        ValueError: model, data or device cannot be used.
    """
    place = choose_device(device)
    parts = assemble_parts(config, directory)
    directory.doing(f"{parts.first_weights} on {place.device_kind}")
    dtype = jnp.dtype("float64" if config.dtype == "float64" else "float32")
    with jax.default_device(place):
        if parts.weights is None:
            model = DIYForCausalLM(parts.model)
            params = init_params(parts.model, config.seed, dtype)
        else:
            model, params = DIYForCausalLM.from_pretrained(parts.weights, dtype)
        trainer = Trainer(config, model, jax.device_put(params, place))
    directory.doing("measuring the speed of matrix products")
    trainer.matmul_peak = _matmul_peak(jnp.dtype(config.dtype), place)
    return Pieces(
        trainer=trainer,
        store=TrainingStore(trainer, directory.checkpoints),
        data=parts.data,
        validation=parts.validation,
    )


def _evaluate(model: DIYForCausalLM, chunk_tokens: int, params: Any, arrays: Any) -> Any:
    def trunk(whole: DIYForCausalLM) -> Any:
        return whole.model(arrays["input_ids"], segment_ids=arrays["segment_ids"])

    variables = {"params": params}
    return cross_entropy(
        model.apply(variables, method=trunk),
        arrays["labels"],
        partial(model.apply, variables, method="project"),
        chunk_tokens=chunk_tokens,
    )


def _matmul_peak(dtype: Any, device: jax.Device) -> float:
    size = 1024 if device.platform == "cpu" else 8192
    square = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(jnp.matmul)
    return measure_peak(lambda: product(square, square).block_until_ready(), 2.0 * size**3)
