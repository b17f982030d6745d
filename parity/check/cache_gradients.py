"""Gradients through the cache: documents trained on in chunks, and prefixes that are learned.

A loss over a document that is fed chunk by chunk depends on the first chunks in two ways: by their
own logits, and by the keys and values that they leave in the cache. Where the cache cuts the second
one off, no forward pass shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from numpy.typing import NDArray

import diy_jax
import diy_torch
from diy_core.mapping import flatten, tensors
from diy_torch.rope import apply_rope, rope_tables
from diy_torch.tensors import to_numpy
from parity.check.cache_documents import ORDER, Document, Piece, by_row
from parity.check.compare import Check, Tensors
from parity.check.first_layers import first_layers, in_words
from parity.check.lines import through_cache
from parity.check.plan import Plan
from parity.twins import (
    EMBEDDING,
    Pair,
    flax_cross_entropy,
    nudged_embedding,
    torch_cross_entropy,
)

KIND = "cache-gradients"
EMBEDDED = "embeddings"


def checks(pair: Pair, plan: Plan, device: str) -> list[Check]:
    """The lines of the check: gradients of all parameters, and of a prefix, through the cache.

    Of as many layers as the plan says. The truths are the PyTorch twin's, of whole documents
    without a cache. That twin is let go before Flax's gradients need the memory.
    """
    layers = pair.config.num_hidden_layers
    pair = first_layers(pair, min(plan.cache_layers or layers, layers))
    document = Document.make(
        pair.config, plan.cache_rows, plan.cache_chunk, plan.cache_prefix, plan.seed
    )
    truth, prefix = whole_gradients(pair, document), whole_prefix(pair, document)
    lines = through_cache(KIND, truth, {"torch": torch_gradients(pair, document)}, device)
    found = {"torch": torch_prefix(pair, document)}
    pair.drop_torch()
    other, found["flax"] = flax_gradients(pair, document)
    lines += through_cache(KIND, truth, {"flax": other}, device)
    lines += through_cache(f"{KIND} prefix", prefix, found, device)
    reach = f"{document.batch.reach}, {in_words(pair.config)}"
    return [dataclasses.replace(line, reach=reach) for line in lines]


def whole_gradients(pair: Pair, document: Document) -> Tensors:
    """The truth, by the PyTorch twin without a cache: parameters, and what the embedding gives."""

    batch = document.batch
    whole = batch.ids, batch.lengths, batch.labels

    def run() -> torch.Tensor:
        ids = torch.from_numpy(batch.ids).to(pair.device.torch)
        logits = pair.torch(ids, seq_lengths=batch.lengths.tolist())
        return _torch_losses(pair, logits, batch.labels)

    return _torch_parameters(pair, document, [whole], run)


def torch_gradients(pair: Pair, document: Document) -> Tensors:
    """The same of the PyTorch twin, chunk by chunk through the cache."""

    def run() -> torch.Tensor:
        config, rows = pair.config, len(document.batch.lengths)
        past = diy_torch.init_cache(
            config, rows, document.columns, torch.float64, pair.device.torch
        )
        return _torch_pieces(pair, document.chunks, past)

    return _torch_parameters(pair, document, document.chunks, run)


def whole_prefix(pair: Pair, document: Document) -> Tensors:
    """The truth of a prefix, by the PyTorch twin without a cache.

    Tokens of any kind stand before the document, and what the projections give for them is replaced
    by the prefix, with its keys turned back: the model rotates them again.
    """
    batch, (rows, _, length, _) = document.batch, document.prefix[0]["key"].shape
    leaves = _leaves(pair, document)
    places = torch.arange(length, dtype=torch.int32, device=pair.device.torch).expand(rows, -1)
    cos, sin = rope_tables(pair.config, places, torch.float64)
    hooks = []
    for i, leaf in enumerate(leaves):
        for name, given in (("k", apply_rope(leaf["key"], cos, -sin)), ("v", leaf["value"])):
            own = given.transpose(1, 2).flatten(2)
            module = pair.torch.get_submodule(f"model.layers.{i}.attention.{name}_proj")
            hooks.append(
                module.register_forward_hook(
                    lambda module, args, output, own=own: torch.cat((own, output[:, length:]), 1)
                )
            )
    pad = ((0, 0), (length, 0))
    ids = torch.from_numpy(np.pad(batch.ids, pad)).to(pair.device.torch)
    try:
        with torch.enable_grad():
            logits = pair.torch(ids, seq_lengths=(batch.lengths + length).tolist())
            labels = np.pad(batch.labels, pad, constant_values=-1)
            return _prefix_gradients(document, leaves, _torch_losses(pair, logits, labels))
    finally:
        for hook in hooks:
            hook.remove()


def torch_prefix(pair: Pair, document: Document) -> Tensors:
    """The same of the PyTorch twin, with the prefix in a cache and the document in chunks."""
    rows, _, length, _ = document.prefix[0]["key"].shape
    leaves = _leaves(pair, document)
    empty = diy_torch.init_cache(
        pair.config, rows, document.columns, torch.float64, pair.device.torch
    )
    with torch.enable_grad():
        past = [
            ({n: torch.cat((leaf[n], slots[n][:, :, length:]), 2) for n in ORDER}, at + length)
            for leaf, (slots, at) in zip(leaves, empty, strict=True)
        ]
        return _prefix_gradients(document, leaves, _torch_pieces(pair, document.chunks, past))


def _leaves(pair: Pair, document: Document) -> list[dict[str, torch.Tensor]]:
    """The prefix as tensors that have gradients."""
    return [
        {n: torch.from_numpy(a).to(pair.device.torch).requires_grad_() for n, a in layer.items()}
        for layer in document.prefix
    ]


def _prefix_gradients(
    document: Document, leaves: list[dict[str, torch.Tensor]], losses: torch.Tensor
) -> Tensors:
    flat = [leaf[n] for leaf in leaves for n in ORDER]
    return _named(document, _torch_grads(losses / document.labelled, flat))


def _torch_grads(loss: torch.Tensor, leaves: Sequence[torch.Tensor]) -> list[NDArray[Any]]:
    """Gradients as arrays; of what the loss does not depend on, which is a fault, zeros."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [to_numpy(gradient) for gradient in found]


def flax_gradients(pair: Pair, document: Document) -> tuple[Tensors, Tensors]:
    """The Flax twin, chunk by chunk: gradients of parameters and embeddings, and of a prefix.

    Both are of one function of all three, so that it is compiled once: with a prefix in the cache,
    and with none.
    """
    params = jax.device_put(pair.params, pair.device.jax)
    pieces = tuple(np.stack(arrays) for arrays in zip(*document.chunks, strict=True))
    nudges = np.zeros((*pieces[0].shape, pair.config.hidden_size), pair.flax.dtype)
    rows, length = document.prefix[0]["key"].shape[0], document.prefix[0]["key"].shape[2]
    empty = diy_jax.init_cache(pair.config, rows, document.columns, pair.flax.dtype)
    zeros, positions = [slots for slots, _ in empty], [position for _, position in empty]
    filled = [
        {n: slots[n].at[:, :, :length].set(layer[n]) for n in ORDER}
        for layer, slots in zip(document.prefix, zeros, strict=True)
    ]
    behind = [position + length for position in positions]
    learned = _gradients(pair.flax, params, nudges, filled, behind, pieces)[2]
    prefix = _named(document, [np.asarray(g[n])[:, :, :length] for g in learned for n in ORDER])
    del learned, filled
    grads, embedded, _ = _gradients(pair.flax, params, nudges, zeros, positions, pieces)
    flat = flatten(grads)
    found = {t.hf: t.to_flax.inverse(np.asarray(flat[t.flax])) for t in tensors(pair.config)}
    found[EMBEDDED] = by_row(document.chunks, list(np.asarray(embedded)))
    return found, prefix


@partial(jax.jit, static_argnames="model")
def _gradients(
    model: Any, params: Any, nudges: Any, cached: Any, positions: Any, pieces: Any
) -> Any:
    """Gradients of the mean loss of all chunks by params, nudges and what is cached before them.

    `nudges` are added to what the embedding gives: zeros, whose gradient is that of its output.
    """

    def loss(params: Any, nudges: Any, cached: Any) -> Any:
        def step(past: Any, piece: Any) -> Any:
            nudge, ids, new, labels = piece

            with nudged_embedding(nudge):
                logits, past = model.apply(
                    {"params": params}, ids, seq_lengths=new, past_key_values=past, use_cache=True
                )
            return past, flax_cross_entropy(logits, labels).sum()

        past = list(zip(cached, positions, strict=True))
        _, losses = jax.lax.scan(step, past, (nudges, *pieces))
        return losses.sum() / (pieces[2] >= 0).sum()

    return jax.grad(loss, argnums=(0, 1, 2))(params, nudges, cached)


def _torch_pieces(pair: Pair, pieces: Sequence[Piece], past: Any) -> torch.Tensor:
    """The losses of all pieces, summed."""
    total = torch.zeros((), dtype=torch.float64, device=pair.device.torch)
    for ids, new, labels in pieces:
        logits, past = pair.torch(
            torch.from_numpy(ids).to(pair.device.torch),
            seq_lengths=torch.from_numpy(new).to(pair.device.torch),
            past_key_values=past,
            use_cache=True,
        )
        total = total + _torch_losses(pair, logits, labels)
    return total


def _torch_losses(pair: Pair, logits: torch.Tensor, labels: NDArray[np.int64]) -> torch.Tensor:
    return torch_cross_entropy(logits, torch.from_numpy(labels).to(pair.device.torch)).sum()


def _torch_parameters(
    pair: Pair,
    document: Document,
    pieces: Sequence[Piece],
    run: Callable[[], torch.Tensor],
) -> Tensors:
    """Gradients of a sum of losses, by the number of labels; what the embedding gave among them."""
    outputs: list[torch.Tensor] = []
    hook = pair.torch.get_submodule(EMBEDDING).register_forward_hook(
        lambda module, args, output: outputs.append(output)
    )
    parameters = dict(pair.torch.named_parameters())
    rows = tensors(pair.config)
    try:
        with torch.enable_grad():
            loss = run() / document.labelled
            grads = _torch_grads(loss, [*(parameters[t.torch] for t in rows), *outputs])
    finally:
        hook.remove()
    found = {t.hf: g for t, g in zip(rows, grads[: len(rows)], strict=True)}
    return found | {EMBEDDED: by_row(pieces, grads[len(rows) :])}


def _named(document: Document, arrays: Sequence[NDArray[Any]]) -> Tensors:
    names = [f"model.layers.{i}.{n}" for i in range(len(document.prefix)) for n in ORDER]
    return dict(zip(names, arrays, strict=True))
