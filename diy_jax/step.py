"""One optimizer step: passes over a batch, their gradient, clipping, AdamW.

Parameters and moments are float32 (float64 for dtype float64); the passes compute in the config's
dtype, on parameters that are cast where they are used, so that gradients arrive in float32.

Shapes: A accumulation passes, B rows of a pass, S sequence, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from diy_core import validate
from diy_core.config import DIYConfig
from diy_core.training.config import TrainConfig
from diy_core.validate import IGNORED
from diy_jax.inputs import dtype_name, host_values, wide_labels
from diy_jax.loss import token_losses
from diy_jax.model import DIYForCausalLM, ModelBlock
from diy_jax.optimizer import can_be_squared, clip_by_global_norm
from diy_jax.random import fold_in, key

WATCHABLE = ("token_losses", "gradients", "clipped")
_BATCH = ("input_ids", "labels", "segment_ids")


class StepResult(NamedTuple):
    """What a step reports, each a scalar on the device.

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
    ids, labels, segments = (batch[name] for name in _BATCH)
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
    optimizer: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
    *,
    watch: Collection[str] = (),
) -> Callable[..., tuple[Any, Any, StepResult]]:
    """The function of one step, compiled at its first call and not again for the same shapes.

        params, state, result = step(params, state, batch, learning_rate, number, seed)

    Its arguments:
        params: as `init_params` makes them, float32 (float64 for dtype float64). Donated, as is
            the state: their memory becomes that of the results.
        state: `optimizer.init(params)`.
        batch: `input_ids`, `labels` (-100: not counted) and `segment_ids`, integers (A, B, S).
            Labels are already shifted.
        learning_rate: of this step, a float.
        number: of this step, for dropout.
        seed: of the run, for dropout.

    The loss is the sum over the counted tokens of all passes by their number, so that A passes are
    one large batch. Where it or the norm of its gradient is not finite (or no token counts, or the
    clipped gradient is too large for AdamW to square), the step is skipped: parameters, moments and
    their count stay as they are.

    Args:
        model: its dtypes are replaced by those of the config.
        optimizer: of `build_optimizer`.
        config: dtype, passes, remat, clipping and loss.
        watch: of `WATCHABLE`, what each result hands out on top, for those who check the step:
            `token_losses` (A, B, S), 0 where no token counts; the `gradients` of the whole step,
            and what is `clipped` of them, as the params are.

    Raises:
        ValueError: a name that is not of `WATCHABLE`.
    """
    _check_watch(watch)
    compute, master = jnp.dtype(config.dtype), _master(config.dtype)
    model = model.clone(dtype=compute, param_dtype=master)
    run = jax.jit(partial(_step, model, optimizer, config, frozenset(watch)), donate_argnums=(0, 1))

    def step(
        params: Any,
        state: Any,
        batch: Mapping[str, Any],
        learning_rate: float,
        number: int,
        seed: int,
    ) -> tuple[Any, Any, StepResult]:
        check_batch(batch, model.config, config.accumulation_steps)
        arrays = {name: batch[name] for name in _BATCH}
        rate = np.asarray(learning_rate, master)
        return run(params, state, arrays, rate, np.uint32(number), key(seed))

    return step


def _check_watch(watch: Collection[str]) -> None:
    if unknown := [name for name in watch if name not in WATCHABLE]:
        raise ValueError(f"watch must be some of {', '.join(WATCHABLE)}, got {unknown[0]!r}")


def _master(dtype: str) -> Any:
    """The dtype of parameters and moments."""
    return np.promote_types(jnp.dtype(dtype), np.float32)


def _step(
    model: DIYForCausalLM,
    optimizer: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
    watch: frozenset[str],
    params: Any,
    state: Any,
    batch: Mapping[str, Any],
    learning_rate: Any,
    number: Any,
    root: Any,
) -> tuple[Any, Any, StepResult]:
    batch = {**batch, "labels": wide_labels(batch["labels"])}
    tokens = (batch["labels"] != IGNORED).sum(dtype=jnp.int32)
    root = fold_in(root, number)

    def add_pass(so_far: Any, one: tuple[Any, Any]) -> tuple[Any, Any]:
        arrays, index = one
        (share, each), gradients = jax.value_and_grad(
            partial(_pass_loss, model, config), has_aux=True
        )(params, arrays, tokens, fold_in(root, index))
        added = jax.tree.map(jnp.add, so_far, (share, gradients))
        return added, each if "token_losses" in watch else None

    nothing = jnp.zeros((), _master(config.dtype)), jax.tree.map(jnp.zeros_like, params)
    passes = jnp.arange(config.accumulation_steps, dtype=jnp.uint32)
    (loss, gradients), each = jax.lax.scan(add_pass, nothing, (batch, passes))

    limit = config.optimizer.clip_norm
    clipped, norm = clip_by_global_norm(gradients, limit)
    updates, moved = optimizer.update(clipped, state, params, learning_rate=learning_rate)
    sound = jnp.isfinite(loss) & jnp.isfinite(norm) & can_be_squared(norm, limit)
    params, state = jax.tree.map(
        partial(jnp.where, sound), (optax.apply_updates(params, updates), moved), (params, state)
    )
    stages = {"token_losses": each, "gradients": gradients, "clipped": clipped}
    watched = {name: stages[name] for name in watch}
    return params, state, StepResult(loss, norm, tokens, ~sound, watched)


def _pass_loss(
    model: DIYForCausalLM,
    config: TrainConfig,
    params: Any,
    arrays: Mapping[str, Any],
    tokens: Any,
    dropout_key: Any,
) -> Any:
    """The share of one pass in the loss of the step, and the loss of each token."""

    def trunk(whole: DIYForCausalLM) -> Any:
        return whole.model(
            arrays["input_ids"], segment_ids=arrays["segment_ids"], dropout_key=dropout_key
        )

    variables = {"params": params}
    with nn.intercept_methods(partial(_intercept, config.remat)):
        hidden = model.apply(variables, method=trunk)
    total, _, each = token_losses(
        hidden,
        arrays["labels"],
        partial(model.apply, variables, method="project"),
        z_loss=config.loss.z_loss,
        chunk_tokens=config.loss.chunk_tokens,
    )
    return total / tokens, each


def _intercept(
    remat: bool,
    call: Callable[..., Any],
    args: Any,
    kwargs: Any,
    context: nn.module.InterceptorContext,
) -> Any:
    """How training calls the model's modules: the same values, other gradients' sums and memory."""
    module = context.module
    if isinstance(module, nn.Embed) and context.method_name == "__call__":
        # Looked up, then cast. The other way the gradient of a token that comes often would be
        # summed in bfloat16, where 256 + 1 is 256.
        (ids,) = args
        return jnp.take(module.embedding, ids, axis=0).astype(module.dtype)
    inner = module.path  # a block that is applied alone, below, is at the root
    if remat and isinstance(module, ModelBlock) and context.method_name == "__call__" and inner:
        block, variables = module.unbind()
        return jax.checkpoint(block.apply)(variables, *args, **kwargs)
    return call(*args, **kwargs)
