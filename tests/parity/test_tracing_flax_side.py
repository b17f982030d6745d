"""What the interceptor tells, against JAX asked in another way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from parity.environment import Device, exact
from parity.tracing.record.calls import Numbering, Site
from parity.tracing.record.flax_side import calls_of, traced
from tests.parity.foreign_pairs import FlaxCell, ForeignPair, repeated, values
from tests.parity.small_pair import FlaxChain, small_pair

Heard = dict[tuple[Site, str, str], Any]


@pytest.fixture(autouse=True)
def _exact(device: Device) -> Iterator[None]:
    with exact(device):
        yield


class Ear:
    """Keeps what it hears, and may put something else in its place."""

    def __init__(self, instead: Heard | None = None) -> None:
        self.heard_arrays: Heard = {}
        self.ended: list[Site] = []
        self._instead = instead or {}

    def heard(self, site: Site, kind: str, name: str, array: Any) -> None:
        self.heard_arrays[site, kind, name] = array

    def substitute(self, site: Site, kind: str, name: str) -> Any:
        return self._instead.get((site, kind, name))

    def left(self, site: Site) -> None:
        self.ended.append(site)


def loss_of(outputs: Any) -> Any:
    return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(outputs))


def listened(
    module: nn.Module, variables: Any, kwargs: Any, ear: Ear, jit: bool = False
) -> tuple[Any, Any]:
    """The outputs and the gradients of the loss by the parameters."""
    run, arrays, _ = traced(module, (), kwargs, ear)
    call = jax.jit(run) if jit else run
    outputs, pull = jax.vjp(lambda params: call({"params": params}, arrays), variables["params"])
    (gradients,) = pull(jax.grad(loss_of)(outputs))
    jax.effects_barrier()
    return outputs, gradients


@dataclasses.dataclass
class Nudge:
    """Adds something to an array of one call, by an interceptor of its own."""

    site: Site
    kind: str
    of: Callable[[Any], Any]
    seen: Any = None

    def loss(self, pair: ForeignPair, add: Any) -> float:
        """The loss of the model that is nudged."""
        numbering = Numbering()

        def interceptor(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
            site = numbering.next("/".join(context.module.path), context.method_name)
            args, kwargs = self._nudged(site, "inputs", (args, kwargs), add)
            return self._nudged(site, "outputs", run(*args, **kwargs), add)

        with nn.intercept_methods(interceptor):
            return float(loss_of(pair.flax.apply(pair.variables, **pair.inputs)))

    def _nudged(self, site: Site, kind: str, tree: Any, add: Any) -> Any:
        if (site, kind) != (self.site, self.kind):
            return tree
        self.seen = self.of(tree)
        return jax.tree.map(lambda leaf: leaf + add if leaf is self.seen else leaf, tree)


@pytest.mark.parametrize("jit", [False, True])
def test_gradients_are_those_of_finite_differences(jit: bool) -> None:
    pair, ear = repeated(), Ear()
    pair.variables = jax.tree.map(jnp.asarray, pair.variables)
    pair.inputs["x"] = jnp.asarray(pair.inputs["x"])
    _, gradients = listened(pair.flax, pair.variables, pair.inputs, ear, jit)
    expected = jax.grad(lambda v: loss_of(pair.flax.apply(v, **pair.inputs)))(pair.variables)
    for one, other in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(expected["params"]), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14)
    places: dict[tuple[Site, str, str], Callable[[Any], Any]] = {
        (Site("cell", nth=1), "inputs", "args.0"): lambda tree: tree[0][0],
        (Site("cell", nth=1), "inputs", "kwargs.state"): lambda tree: tree[1]["state"],
        (Site("cell"), "outputs", "1.gate"): lambda tree: tree[1]["gate"],
        (Site("norm"), "outputs", ""): lambda tree: tree,
        (Site(""), "inputs", "kwargs.x"): lambda tree: tree[1]["x"],
    }
    step = 1e-5
    for (site, kind, name), of in places.items():
        nudge, array = Nudge(site, kind, of), ear.heard_arrays[site, kind, name]
        direction = values(9, *array.shape, dtype="float64")
        up, down = (nudge.loss(pair, sign * step * direction) for sign in (1, -1))
        np.testing.assert_allclose(array, nudge.seen, rtol=1e-3)
        gradient = ear.heard_arrays[site, f"{kind[:-1]}_gradients", name]
        slope = (up - down) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-7), name


@pytest.mark.parametrize("jit", [False, True])
def test_something_else_takes_the_place_of_an_array(jit: bool) -> None:
    """Later calls compute with it; the gradient goes on to where the array came from."""
    pair, site = small_pair(), Site("layers_1/inner")
    new = values(5, 5, 6, dtype="float64")
    ear = Ear({(site, "outputs", ""): new})
    variables = {"params": jax.tree.map(jnp.asarray, pair.params)}
    outputs, gradients = listened(pair.flax, variables, {"x": pair.inputs}, ear, jit)
    x = np.tanh(new)
    for name in ("layers_2", "out"):
        layer = pair.params[name].get("inner", pair.params[name])
        x = x @ layer["kernel"] + layer["bias"]
        x = np.tanh(x) if name == "layers_2" else x
    np.testing.assert_allclose(outputs, x, rtol=1e-12)
    np.testing.assert_array_equal(ear.heard_arrays[site, "outputs", ""], new)
    gradient = ear.heard_arrays[site, "output_gradients", ""]
    inputs = ear.heard_arrays[site, "inputs", "args.0"]
    found = gradients["layers_1"]["inner"]["kernel"]
    np.testing.assert_allclose(found, inputs.T @ gradient, rtol=1e-10)
    assert np.abs(gradients["layers_0"]["inner"]["kernel"]).min() > 0


def test_a_gradient_is_replaced_too() -> None:
    pair, site = small_pair(), Site("layers_1/inner")
    new = values(5, 5, 6, dtype="float64")
    ear = Ear({(site, "output_gradients", ""): new})
    variables = {"params": jax.tree.map(jnp.asarray, pair.params)}
    _, gradients = listened(pair.flax, variables, {"x": pair.inputs}, ear)
    inputs = ear.heard_arrays[site, "inputs", "args.0"]
    found = gradients["layers_1"]["inner"]
    np.testing.assert_allclose(found["kernel"], inputs.T @ new, rtol=1e-10)
    np.testing.assert_allclose(found["bias"], new.sum(0), rtol=1e-12)


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = FlaxChain(name="first")(x)
        first = jnp.tile(jax.lax.stop_gradient(x), (1, 2))[:, :6]
        return FlaxChain(name="second")(first)


def test_a_gradient_is_heard_even_if_its_array_depends_on_no_parameter() -> None:
    """So that who stops a gradient is told from who did not get one."""
    pair, ear = small_pair(), Ear()
    params = jax.tree.map(jnp.asarray, pair.params)
    variables = {"params": {"first": params, "second": params}}
    listened(Outer(), variables, {"x": pair.inputs}, ear)
    gradient = ear.heard_arrays[Site("second"), "input_gradients", "args.0"]
    assert np.abs(gradient).max() > 0
    assert (Site("first"), "output_gradients", "") not in ear.heard_arrays


def test_the_calls_before_anything_is_computed() -> None:
    pair = repeated()
    found = calls_of(pair.flax, pair.variables, (), pair.inputs)
    assert (found.mapped, found.looped, found.compiled, found.eager) == ([], [], False, False)
    names = ["", "norm", "cell", "cell/gate", "cell/mix", "norm", "cell", "cell/gate", "cell/mix"]
    assert [site.path for site in found.calls] == [*names, "out"]
    call = found.calls[Site("cell", nth=1)]
    assert (call.kind, call.parent) == (FlaxCell.__name__, Site(""))
    assert {n: s.shape for n, s in call.inputs.items()} == {
        "args.0": (3, 12),
        "kwargs.state": (3, 12),
    }
    assert list(call.outputs) == ["0", "1.gate"]


@pytest.mark.parametrize(("lift", "compiled"), [(None, False), (nn.remat, False), (nn.jit, True)])
def test_lifted_modules_have_their_calls(lift: Any, compiled: bool) -> None:
    pair = small_pair(lift=lift)
    found = calls_of(pair.flax, {"params": pair.params}, (pair.inputs,), {})
    paths = [site.path for site in found.calls if site.method == "__call__"]
    inner = [path for i in range(3) for path in (f"layers_{i}", f"layers_{i}/inner")]
    assert paths == ["", *inner, "out"]
    assert (found.compiled, found.eager) == (compiled, compiled)
    assert (found.mapped, found.looped) == ([], [])


def test_who_listens_is_told_of_the_ends_of_calls() -> None:
    pair, ear = small_pair(), Ear()
    run, arrays, _ = traced(pair.flax, (pair.inputs,), {}, ear)
    run({"params": pair.params}, arrays)
    inner = [path for i in range(3) for path in (f"layers_{i}/inner", f"layers_{i}")]
    assert [site.path for site in ear.ended] == [*inner, "out", ""]
