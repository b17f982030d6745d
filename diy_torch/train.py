"""Training: what `diy_core.training` drives, in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from diy_core.mapping import tensors
from diy_core.training.config import TrainConfig
from diy_core.training.log.progress import flops_per_token, measure_peak
from diy_core.training.protocols import Batch, Pieces
from diy_core.training.run.directory import RunDirectory
from diy_core.training.start.parts import assemble_parts
from diy_torch.device import choose_device
from diy_torch.loss import cross_entropy
from diy_torch.model import DIYForCausalLM
from diy_torch.optimizer import build_optimizer
from diy_torch.step import StepResult, build_step
from diy_torch.tensors import to_numpy, to_tensor
from diy_torch.training_store import TrainingStore


class Trainer:
    """A model and its optimizer, which change with every step.

    Args:
        config: of the run.
        model: at step 0, in float32 (float64 for dtype float64).

    Attributes:
        model: as it is now.
        model_config: of the model.
        master: dtype of weights and moments.
        flops_per_token: of `diy_core.training.log.progress`.
        matmul_peak: floating point operations per second of a large matrix product in the dtype of
            the run; None: not measured.
        compiles: the first step is compiled, which takes a while.
    """

    def __init__(self, config: TrainConfig, model: DIYForCausalLM) -> None:
        self.model, self.model_config = model, model.config
        self.master = np.dtype("float64" if config.dtype == "float64" else "float32")
        self.flops_per_token = flops_per_token(model.config, config.sequence_length)
        self.matmul_peak: float | None = None
        self.compiles = config.compile
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._seed, self._chunk_tokens = config.seed, config.loss.chunk_tokens
        self._optimizer = build_optimizer(model, config.optimizer)
        self._step = build_step(model, self._optimizer, config)

    def train_step(self, batch: Batch, learning_rate: float, step: int) -> StepResult:
        """One optimizer step.

        Args:
            batch: int32 (A, B, S) each, see `build_step`.
            learning_rate: of this step.
            step: its number, from 0.
        """
        return self._step(batch, learning_rate, step, self._seed)

    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the cross-entropies of a batch, without dropout, and its counted tokens."""
        trunk, head = self.model.model, self.model.lm_head
        cast = {name: p.to(self._dtype) for name, p in trunk.named_parameters()}
        weight = {"weight": head.weight.to(self._dtype)}
        total, tokens = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        with torch.no_grad():
            for row in range(len(batch["input_ids"])):
                ids, labels, segments = (
                    torch.as_tensor(batch[name][row], device=head.weight.device)
                    for name in ("input_ids", "labels", "segment_ids")
                )
                hidden = functional_call(trunk, cast, (ids,), {"segment_ids": segments})
                loss, counted = cross_entropy(
                    hidden,
                    labels,
                    lambda states: functional_call(head, weight, (states,)),
                    chunk_tokens=self._chunk_tokens,
                )
                total += loss.cpu()
                tokens += counted.cpu()
        return total, tokens

    def memory(self) -> int | None:
        """Bytes of the GPU that were in use at the peak; None on a CPU."""
        device = self.model.lm_head.weight.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """A copy of the state on the host, under the names and in the layout of `state_shapes`."""
        parameters = dict(self.model.named_parameters())
        arrays: dict[str, NDArray[Any]] = {}
        for kind, moment in (("model", None), ("mean", "exp_avg"), ("square", "exp_avg_sq")):
            for tensor in tensors(self.model_config):
                parameter = parameters[tensor.torch]
                found = (
                    self._optimizer.state.get(parameter, {}).get(moment) if moment else parameter
                )
                value = torch.zeros_like(parameter) if found is None else found.detach()
                arrays[f"{kind}/{tensor.hf}"] = to_numpy(value.to("cpu", copy=True))
        return arrays

    def assign(self, arrays: Iterable[tuple[str, NDArray[Any]]], updates: int) -> None:
        """Take a state.

        Args:
            arrays: all of `state_shapes`, in the dtype of weights and moments.
            updates: how often the optimizer moved the weights.
        """
        by_name = {tensor.hf: tensor for tensor in tensors(self.model_config)}
        parameters = dict(self.model.named_parameters())
        for name, array in arrays:
            kind, _, hf = name.partition("/")
            parameter, value = parameters[by_name[hf].torch], to_tensor(array)
            with torch.no_grad():
                if kind == "model":
                    parameter.copy_(value)
                    continue
                state = self._optimizer.state[parameter]
                state["step"] = torch.tensor(float(updates))
                state["exp_avg" if kind == "mean" else "exp_avg_sq"] = value.to(parameter.device)


def assemble(config: TrainConfig, directory: RunDirectory, device: str | None) -> Pieces:
    """Everything for `diy_core.training.start.begin`.

    Args:
        config: of the run.
        directory: entered and begun.
        device: `cpu`, `cuda`, ...; None: a GPU where there is one.

    Raises:
        ValueError: model, data or device cannot be used.
    """
    place = choose_device(device)
    parts = assemble_parts(config, directory)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    directory.doing(f"{parts.first_weights} on {name}")
    dtype = torch.promote_types(getattr(torch, config.dtype), torch.float32)
    if parts.weights is None:
        model = DIYForCausalLM(parts.model, config.seed, dtype=dtype, device=place)
    else:
        model = DIYForCausalLM.from_pretrained(parts.weights, dtype, place)
    trainer = Trainer(config, model)
    directory.doing("measuring the speed of matrix products")
    trainer.matmul_peak = _matmul_peak(getattr(torch, config.dtype), place)
    return Pieces(
        trainer=trainer,
        store=TrainingStore(trainer, directory.checkpoints),
        data=parts.data,
        validation=parts.validation,
    )


def _matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    size = 1024 if device.type == "cpu" else 8192
    square = torch.ones((size, size), dtype=dtype, device=device)

    def multiply() -> None:
        product = square @ square
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        del product

    return measure_peak(multiply, 2.0 * size**3)
