"""One optimizer step: passes over a batch, their gradient, clipping, AdamW.

Parameters and moments are float32 (float64 for dtype float64); the passes compute in the config's
dtype, on parameters that are cast where they are used, so that gradients arrive in float32.

Shapes: A accumulation passes, B rows of a pass, S sequence, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from diy_core import validate
from diy_core.config import DIYConfig
from diy_core.training.config import TrainConfig
from diy_core.validate import IGNORED
from diy_torch.inputs import dtype_name, host_values, wide_labels
from diy_torch.loss import token_losses
from diy_torch.model import DIYForCausalLM, DIYModel
from diy_torch.optimizer import can_be_squared, clip_by_global_norm
from diy_torch.random import fold_in, key

WATCHABLE = ("token_losses", "gradients", "clipped")
_BATCH = ("input_ids", "labels", "segment_ids")


class StepResult(NamedTuple):
    """What a step reports, each a scalar.

    Attributes:
        loss: the mean over all counted tokens of the step, before the update.
        grad_norm: of its gradient over all parameters together, before clipping.
        tokens: how many were counted.
        skipped: True where loss or norm were not finite, AdamW could not square the clipped
            gradient or no token was counted, and nothing was changed.
        watched: what `build_step` was asked to hand out, by name.
    """

    loss: Any
    grad_norm: Any
    tokens: Any
    skipped: Any
    watched: Any


def check_batch(batch: Mapping[str, Any], config: DIYConfig, passes: int) -> None:
    """A batch holds integers (A, B, S), the same shape for ids, labels and segments.

    Raises:
        ValueError: anything else, or ids or labels outside of the vocabulary.
    """
    ids, labels, segments = (torch.as_tensor(batch[name]) for name in _BATCH)
    shapes = {name: tuple(batch[name].shape) for name in _BATCH}
    if len(ids.shape) != 3 or ids.shape[0] != passes or len(set(shapes.values())) > 1:
        raise ValueError(
            f"a batch must hold arrays of one shape ({passes}, rows, sequence), got {shapes}"
        )
    flat = (-1, ids.shape[2])
    rows = ids.reshape(flat)
    validate.check_input_ids(rows.shape, dtype_name(ids.dtype), host_values(rows), config)
    dtype = dtype_name(segments.dtype)
    validate.check_segment_ids(segments.reshape(flat).shape, dtype, rows.shape, False)
    validate.check_labels(host_values(labels), config.vocab_size)


def build_step(
    model: DIYForCausalLM,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    watch: Collection[str] = (),
) -> Callable[..., StepResult]:
    """The function of one step, which updates the model and the optimizer in place.

        result = step(batch, learning_rate, number, seed)

    Its arguments:
        batch: `input_ids`, `labels` (-100: not counted) and `segment_ids`, integers (A, B, S).
            Labels are already shifted.
        learning_rate: of this step, a float.
        number: of this step, for dropout.
        seed: of the run, for dropout.

    The loss is the sum over the counted tokens of all passes by their number, so that A passes are
    one large batch. Where it or the norm of its gradient is not finite (or no token counts, or the
    clipped gradient is too large for AdamW to square), the step is skipped: parameters, moments and
    their count stay as they are. To know that, each step waits for the device.

    Args:
        model: its parameters are float32 (float64 for dtype float64).
        optimizer: of `build_optimizer`.
        config: dtype, passes, remat, compile, clipping and loss.
        watch: of `WATCHABLE`, what each result hands out on top, for those who check the step:
            `token_losses` (A, B, S), 0 where no token counts; the `gradients` of the whole step,
            and what is `clipped` of them, by torch name.

    Raises:
        ValueError: parameters of another dtype, or a name that is not of `WATCHABLE`.
    """
    _check_watch(watch)
    dtype: torch.dtype = getattr(torch, config.dtype)
    weight, master = model.model.embed_tokens.weight, torch.promote_types(dtype, torch.float32)
    if weight.dtype != master:
        raise ValueError(f"training in {dtype} needs parameters in {master}, got {weight.dtype}")
    device, parameters = weight.device, dict(model.named_parameters())
    trunk, project = _trunk_in(model.model, dtype, config), _In(model.lm_head, dtype)

    def step(batch: Mapping[str, Any], learning_rate: float, number: int, seed: int) -> StepResult:
        check_batch(batch, model.config, config.accumulation_steps)
        ids, labels, segments = (torch.as_tensor(batch[name], device=device) for name in _BATCH)
        labels = wide_labels(labels)
        tokens = (labels != IGNORED).sum()
        root = fold_in(key(seed, device), number)
        loss = torch.zeros((), dtype=master, device=device)
        watched: dict[str, Any] = {}
        losses = []
        for index in range(config.accumulation_steps):
            hidden = trunk(
                ids[index], segment_ids=segments[index], dropout_key=fold_in(root, index)
            )
            total, _, each = token_losses(
                hidden,
                labels[index],
                project,
                z_loss=config.loss.z_loss,
                chunk_tokens=config.loss.chunk_tokens,
            )
            share = total / tokens
            share.backward()
            loss += share.detach()
            losses.append(each)

        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        if "token_losses" in watch:
            watched["token_losses"] = torch.stack(losses)
        if "gradients" in watch:
            watched["gradients"] = {name: grad.clone() for name, grad in gradients.items()}
        limit = config.optimizer.clip_norm
        norm = clip_by_global_norm(list(gradients.values()), limit)
        if "clipped" in watch:
            watched["clipped"] = {name: grad.clone() for name, grad in gradients.items()}
        sound = bool(loss.isfinite() & norm.isfinite() & can_be_squared(norm, limit))
        if sound:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        # Their memory is free again while the next step's activations need it.
        optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, norm, tokens, not sound, watched)

    return step


def _check_watch(watch: Collection[str]) -> None:
    if unknown := [name for name in watch if name not in WATCHABLE]:
        raise ValueError(f"watch must be some of {', '.join(WATCHABLE)}, got {unknown[0]!r}")


def _trunk_in(model: DIYModel, dtype: torch.dtype, config: TrainConfig) -> DIYModel:
    """The same trunk with the same parameters, computed in another dtype."""
    with torch.device("meta"):
        trunk = DIYModel(model.config)
    trunk.add_module("embed_tokens", _Lookup(model.embed_tokens, dtype))
    trunk.layers = nn.ModuleList(_In(layer, dtype, config.remat) for layer in model.layers)
    if config.compile:
        for layer in trunk.layers:
            layer.compile()
    trunk.add_module("norm", _In(model.norm, dtype))
    return trunk


class _In(nn.Module):
    """A module computed in another dtype: its parameters are cast at each call.

    With `remat` nothing is kept for the backward pass but the inputs; casts included, it computes
    again. Drawn numbers come from keys, so they are the same.
    """

    def __init__(self, inner: nn.Module, dtype: torch.dtype, remat: bool = False) -> None:
        super().__init__()
        self.inner, self.dtype, self.remat = inner, dtype, remat

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.remat:
            return checkpoint(
                self._run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
            )
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        cast = {name: p.to(self.dtype) for name, p in self.inner.named_parameters()}
        return functional_call(self.inner, cast, args, kwargs)


class _Lookup(nn.Module):
    """The embedding, looked up in its own dtype and then cast.

    The other way the gradient of a token that comes often would be summed in bfloat16, where
    256 + 1 is 256.
    """

    def __init__(self, table: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = table
        # The trunk asks its embedding for dtype and device, and for nothing else.
        self.weight = torch.empty(0, dtype=dtype, device=table.weight.device)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.table.weight).to(self.weight.dtype)
