"""Every module call of a Linen model, as it happens: inputs, outputs and their gradients.

An interceptor sees each call. Its arrays pass through an identity function with a gradient of its
own, which hands them to a listener: forward when they are computed, backward when their gradients
are. So nothing is kept, with `jit` or without; and the listener may put another array in their
place.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.interpreters import partial_eval as pe
from numpy.typing import NDArray

from parity.tracing.record.calls import Call, Kind, Numbering, Site
from parity.tracing.record.torch_side import leaf_name

Shape = jax.ShapeDtypeStruct


class Listener(Protocol):
    """Who is told of every array."""

    def heard(self, site: Site, kind: Kind, name: str, array: NDArray[Any]) -> None:
        """An array has been computed."""

    def substitute(self, site: Site, kind: Kind, name: str) -> NDArray[Any] | None:
        """What takes the place of an array, or None."""

    def left(self, site: Site) -> None:
        """A call has ended (not under `jit`)."""


def traced(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], listener: Listener | None
) -> tuple[Callable[[Any, list[Any]], Any], list[Any], dict[Site, Call[Shape]]]:
    """A model as a function of its variables and arrays, every array told to the listener.

    Returns:
        The function; the arrays among the arguments, its second argument (what else is among them
        is fixed); and the calls, which are known once it has run or has been traced by JAX.
    """
    leaves, tree = jax.tree.flatten((args, dict(kwargs)))
    moving = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
    calls: dict[Site, Call[Shape]] = {}

    def run(variables: Any, arrays: list[Any]) -> Any:
        calls.clear()
        filled = list(leaves)
        for i, array in zip(moving, arrays, strict=True):
            filled[i] = array
        inside, inside_kwargs = jax.tree.unflatten(tree, filled)
        with nn.intercept_methods(_Interceptor(listener, calls, _probe(variables))):
            outputs = module.apply(variables, *inside, **inside_kwargs)
        return jax.tree.map(lambda leaf: None if isinstance(leaf, str) else leaf, outputs)

    return run, [leaves[i] for i in moving], calls


def _probe(variables: Any) -> Any:
    """A number that has a gradient whenever the model has: with it every array has one."""
    leaves = jax.tree.leaves(variables.get("params", {}))
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return floats[0].reshape(-1)[0] if floats else jnp.zeros(())


@dataclasses.dataclass
class FlaxCalls:
    """What is known of a model's calls before it runs.

    Attributes:
        calls: in order, with the shapes of all arrays.
        mapped: paths of modules that JAX runs many times at once (`nn.vmap`): their calls cannot
            be told apart and are left out.
        looped: the same of `nn.scan`, where it is compiled.
        compiled: whether modules are compiled by themselves (`nn.jit`), which hides their calls.
        eager: whether some calls are seen, or told apart, only with JAX's compiler off: those of
            `nn.jit`, and those of `nn.scan`, which then is a plain loop.
    """

    calls: dict[Site, Call[Shape]]
    mapped: list[str]
    looped: list[str]
    compiled: bool
    eager: bool


def calls_of(
    module: nn.Module,
    variables: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    jit: bool = False,
) -> FlaxCalls:
    """The calls of a model, which will run compiled or not; nothing is computed."""
    run, arrays, calls = traced(module, args, kwargs, None)
    jax.eval_shape(run, variables, arrays)
    usual = collections.Counter(site.path for site in calls)
    with jax.disable_jit():
        jax.eval_shape(run, variables, arrays)
    every = collections.Counter(site.path for site in calls)
    scanned = {path for path in every if usual[path] not in (0, every[path])}
    mapped = {site.path for site, call in calls.items() if call.batched}
    hidden = mapped | scanned if jit else mapped

    def outside(site: Site | None) -> bool:
        return site is None or (site.path not in hidden and outside(calls[site].parent))

    kept = {site: call for site, call in calls.items() if outside(site)}
    for site, layer in _layers(kept, scanned - hidden, usual).items():
        if layer < 0:
            del kept[site]
        else:
            kept[site].layer = layer
    outermost = [p for p in every if p in hidden and p.rpartition("/")[0] not in hidden]
    compiled = len(usual) < len(every)
    return FlaxCalls(
        kept,
        [path for path in outermost if path in mapped],
        [path for path in outermost if path not in mapped],
        compiled,
        compiled or bool(scanned and not jit),
    )


def _layers(
    calls: Mapping[Site, Call[Shape]], scanned: Collection[str], usual: Mapping[str, int]
) -> dict[Site, int]:
    """Which iteration of a loop each call is made in; below 0 in a rehearsal.

    `nn.scan` rehearses its body before the loop. Where that is hidden in `nn.remat`, it is told by
    what is seen of a loop that is compiled: a rehearsal, and a body that stands for all layers.
    """
    found: dict[Site, int] = {}
    count: collections.Counter[tuple[Site, str]] = collections.Counter()
    for site, call in calls.items():  # callers come before what they call
        if call.parent is None:
            continue
        if call.parent in found:
            found[site] = found[call.parent]
        elif site.path in scanned:
            rehearsals = usual[site.path] // usual[call.parent.path] - 1
            found[site] = count[call.parent, site.path] - rehearsals
            count[call.parent, site.path] += 1
    return found


class _Interceptor:
    def __init__(
        self, listener: Listener | None, calls: dict[Site, Call[Shape]], probe: Any
    ) -> None:
        self._listener = listener
        self._calls = calls
        self._probe = probe
        self._numbering = Numbering()
        self._open: list[Site] = []

    def __call__(
        self, run: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        method = context.method_name
        private = method.startswith("_") and method != "__call__"
        if method == "setup" or private or not method.isidentifier():  # Flax has lambdas
            return run(*args, **kwargs)
        if any(map(_is_rehearsed, jax.tree.leaves((args, kwargs)))):
            return run(*args, **kwargs)
        site = self._numbering.next("/".join(context.module.path), method)
        parent = self._open[-1] if self._open else None
        call = self._calls[site] = Call(site, parent, type(context.module).__name__)
        if isinstance(context.module, nn.BatchNorm):
            call.kept = context.module.momentum
        with self._opened(site):
            args = self._tapped(args, call, "inputs", "args")
            kwargs = self._tapped(kwargs, call, "inputs", "kwargs")
            outputs = run(*args, **kwargs)
        outputs = self._tapped(outputs, call, "outputs", "")
        if self._listener is not None and not _is_traced(outputs):
            self._listener.left(site)
        return outputs

    @contextlib.contextmanager
    def _opened(self, site: Site) -> Iterator[None]:
        self._open.append(site)
        try:
            yield
        finally:
            self._open.pop()

    def _tapped(self, tree: Any, call: Call[Shape], kind: Kind, prefix: str) -> Any:
        def tap(keys: Any, leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array | np.ndarray) or _is_key(leaf):
                return leaf
            name = leaf_name(prefix, keys)
            call.of(kind)[name] = Shape(leaf.shape, leaf.dtype)
            if self._listener is None:
                call.batched |= type(leaf).__name__ == "BatchTracer"  # which JAX does not export
                return leaf
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                return _tap(self._listener, call.site, kind, name, leaf, self._probe)
            return _told(self._listener, call.site, kind, name, leaf)

        return jax.tree_util.tree_map_with_path(tap, tree)


def _is_traced(tree: Any) -> bool:
    """Whether this is `jit` at work: what is heard comes later."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _is_rehearsed(leaf: Any) -> bool:
    """Whether `nn.scan` only looks at what its body would do: no call, and it never runs."""
    return isinstance(leaf, pe.JaxprTracer)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _told(listener: Listener, site: Site, kind: Kind, name: str, leaf: Any) -> Any:
    """The array itself or what takes its place."""
    other = listener.substitute(site, kind, name)
    if other is not None:
        leaf = jnp.asarray(other, leaf.dtype)
    _tell(partial(listener.heard, site, kind, name), leaf)
    return leaf


def _tell(heard: Callable[[NDArray[Any]], None], leaf: Any) -> None:
    if not isinstance(leaf, jax.core.Tracer):
        heard(np.asarray(leaf))
        return
    # A callback runs in a thread of its own, where 64 bits may be off: halves survive that.
    dtype, shape = leaf.dtype, leaf.shape
    halves = jax.lax.bitcast_convert_type(leaf, jnp.uint32) if dtype.itemsize == 8 else leaf

    def callback(array: Any) -> None:
        heard(np.ascontiguousarray(array).view(dtype).reshape(shape))

    jax.debug.callback(callback, halves)


_GRADIENTS: dict[Kind, Kind] = {"inputs": "input_gradients", "outputs": "output_gradients"}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _tap(listener: Listener, site: Site, kind: Kind, name: str, leaf: Any, probe: Any) -> Any:
    """The array, or what takes its place; and likewise its gradient, even if nobody asks for it."""
    return _told(listener, site, kind, name, leaf)  # a substitute leaves the gradient its way


def _forward(listener: Listener, site: Site, kind: Kind, name: str, leaf: Any, probe: Any) -> Any:
    return _tap(listener, site, kind, name, leaf, probe), probe


def _backward(
    listener: Listener, site: Site, kind: Kind, name: str, probe: Any, gradient: Any
) -> Any:
    return _told(listener, site, _GRADIENTS[kind], name, gradient), jnp.zeros_like(probe)


_tap.defvjp(_forward, _backward)
