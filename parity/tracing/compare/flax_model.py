"""The Flax side, ready to run forward and backward while somebody listens."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from numpy.typing import NDArray

from parity.tracing.compare.comparison import Comparison, Ended
from parity.tracing.match.align import Pair
from parity.tracing.record.flax_side import traced
from parity.tracing.record.torch_side import leaf_name


def projection(shape: Sequence[int], name: str) -> NDArray[np.float64]:
    """The weights of the default loss for one output: random, and always the same."""
    generator = np.random.default_rng([7, *name.encode()])
    return generator.standard_normal(shape) / math.sqrt(max(1, math.prod(shape)))


@dataclasses.dataclass
class FlaxModel:
    """The Flax side, ready to run."""

    module: nn.Module
    variables: Mapping[str, Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    jit: bool = False
    loss: Callable[[Any], Any] | None = None

    def with_variables(self, variables: Mapping[str, Any]) -> FlaxModel:
        """The same model with other parameters."""
        return dataclasses.replace(self, variables=variables)

    def forward(self, comparison: Comparison) -> Any:
        """The outputs; or None where the comparison ended the run."""
        run, arrays, _ = traced(self.module, self.args, self.kwargs, comparison)
        with contextlib.suppress(Ended):
            outputs = (jax.jit(run) if self.jit else run)(self.variables, arrays)
            jax.effects_barrier()
            return outputs
        return None

    def backward(self, comparison: Comparison, root: Pair) -> tuple[float, Any]:
        """The loss, and its gradients by the parameters."""
        run, arrays, _ = traced(self.module, self.args, self.kwargs, comparison)
        call = jax.jit(run) if self.jit else run
        fixed = {name: tree for name, tree in self.variables.items() if name != "params"}
        outputs, pull = jax.vjp(
            lambda params: call({**fixed, "params": params}, arrays), self.variables["params"]
        )
        jax.effects_barrier()
        if self.loss is not None:
            value, pull_loss = jax.vjp(self.loss, outputs)
            (cotangent,) = pull_loss(jnp.ones_like(value))
        else:
            value, cotangent = _project(outputs, comparison, root)
        (gradients,) = pull(cotangent)
        jax.effects_barrier()
        return float(value), gradients


def _project(outputs: Any, comparison: Comparison, root: Pair) -> tuple[float, Any]:
    """The default loss on the Flax side, and its gradient by the outputs."""
    total = 0.0

    def weights(keys: Any, leaf: Any) -> Any:
        nonlocal total
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, jax.dtypes.float0)
        found = comparison.leaf(root, "outputs", leaf_name("", keys))
        if found is None:
            return jnp.zeros_like(leaf)
        array = found.operation(projection(found.operation.source, found.torch))
        array = jnp.asarray(array, leaf.dtype)
        total += float((leaf * array).sum(dtype=np.promote_types(leaf.dtype, np.float32)))
        return array

    cotangent = jax.tree_util.tree_map_with_path(weights, outputs)
    return total, cotangent
