"""Gradients through the cache: what is cut off is seen, and the truth is the derivative."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from diy_core.config import DIYConfig
from parity.batch import Batch
from parity.check.cache_documents import ORDER, Document
from parity.check.cache_gradients import checks, torch_prefix, whole_gradients, whole_prefix
from parity.check.measures import relative_l2
from parity.check.plan import Plan
from parity.environment import Device, exact
from parity.random_models import write_random_model
from parity.twins import Pair, torch_cross_entropy

CONFIG = DIYConfig(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
PLAN = Plan(cache_rows=(11, 7), cache_chunk=4, cache_prefix=3)
LINES = ["torch", "flax", "prefix torch", "prefix flax"]


@pytest.fixture
def pair(tmp_path: Path, device: Device) -> Iterator[Pair]:
    write_random_model(tmp_path / "model", CONFIG, "fan-in")
    with exact(device):
        yield Pair(tmp_path / "model", "float64", device)


def document(plan: Plan = PLAN, config: DIYConfig = CONFIG) -> Document:
    return Document.make(config, plan.cache_rows, plan.cache_chunk, plan.cache_prefix, plan.seed)


def failed(pair: Pair, damaged: bool = False, plan: Plan = PLAN) -> set[str]:
    """Which lines are red; what JAX compiled is forgotten where it is, or was, damaged."""
    if damaged:
        jax.clear_caches()
    try:
        found = checks(pair, plan, pair.device.name)
    finally:
        if damaged:
            jax.clear_caches()
    assert [check.name for check in found] == [f"cache-gradients {line}" for line in LINES]
    assert all(check.compared > 0 and check.bound == 1e-10 for check in found)
    names = {check.name.removeprefix("cache-gradients ") for check in found if not check.passed}
    assert all(check.value < 1e-13 for check in found if check.passed)
    return names


def test_documents_are_fed_in_ragged_chunks_and_every_label_counts_once() -> None:
    made = document()
    counts = np.stack([new for _, new, _ in made.chunks])
    assert counts.tolist() == [[4, 2], [4, 4], [3, 1]]
    for row, length in enumerate((11, 7)):
        fed = [ids[row, : new[row]] for ids, new, _ in made.chunks]
        assert np.concatenate(fed).tolist() == made.batch.ids[row, :length].tolist()
        labels = np.concatenate([labels[row, : new[row]] for _, new, labels in made.chunks])
        assert labels.tolist() == [*made.batch.ids[row, 1:length], -1]
    assert all((labels[row, new[row] :] == -1).all() for _, new, labels in made.chunks
               for row in range(2))  # fmt: skip
    assert made.labelled == 16
    few = document(config=dataclasses.replace(CONFIG, max_position_embeddings=8))
    assert few.columns == 8
    assert len(few.chunks) > 2


def test_both_twins_pass(pair: Pair) -> None:
    assert failed(pair) == set()


def cut_off(patch: pytest.MonkeyPatch, twin: str, names: tuple[str, ...]) -> None:
    """What earlier calls left in the cache lets no gradient through."""
    module = importlib.import_module(f"{twin}.attention")
    stop: Any = torch.Tensor.detach if twin == "diy_torch" else jax.lax.stop_gradient
    true: Callable[..., Any] = module.update_cache

    def update(cached: Any, *rest: Any) -> Any:
        return true(cached | {name: stop(cached[name]) for name in names}, *rest)

    patch.setattr(module, "update_cache", update)


@pytest.mark.parametrize(
    ("twin", "names"),
    [("torch", ORDER), ("torch", ORDER[:1]), ("flax", ORDER), ("flax", ORDER[:1])],
)
def test_what_no_forward_pass_shows_is_red(
    names: tuple[str, ...], twin: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch, {"torch": "diy_torch", "flax": "diy_jax"}[twin], names)
    assert failed(pair, damaged=twin == "flax") == {twin, f"prefix {twin}"}


@pytest.mark.parametrize("twin", ["torch", "flax"])
def test_the_first_layer_alone_shows_it(
    twin: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a large model, whose other layers would take minutes; the pair stays whole."""
    few = dataclasses.replace(PLAN, cache_layers=1)
    assert failed(pair, plan=few) == set()
    (line, *_) = checks(pair, few, pair.device.name)
    assert line.reach == "2 rows, 0-10, 1 layer"
    assert {e.name.split(".")[2] for e in line.tensors if ".layers." in e.name} == {"0"}
    assert len(pair.torch.model.layers) == pair.torch.config.num_hidden_layers == 2
    cut_off(monkeypatch, {"torch": "diy_torch", "flax": "diy_jax"}[twin], ORDER)
    assert failed(pair, twin == "flax", few) == {twin, f"prefix {twin}"}


def loss_of(pair: Pair, given: Document) -> float:
    """By the PyTorch twin without a cache, in one pass over the document alone."""
    batch: Batch = given.batch
    with torch.no_grad():
        logits = pair.torch(batch.ids, seq_lengths=batch.lengths.tolist())
    return float(torch_cross_entropy(logits, torch.from_numpy(batch.labels)).mean())


def test_the_truth_is_the_derivative_of_the_loss(pair: Pair) -> None:
    given, step = document(), 1e-5
    found = whole_gradients(pair, given)["model.layers.0.self_attn.k_proj.weight"]
    weight = pair.torch.get_submodule("model.layers.0.attention.k_proj").weight
    direction = np.random.default_rng(1).normal(size=found.shape)
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * torch.from_numpy(direction)
            losses.append(loss_of(pair, given))
            weight -= sign * step * torch.from_numpy(direction)
    slope = (losses[0] - losses[1]) / (2 * step)
    assert float(np.vdot(found, direction)) == pytest.approx(slope, rel=1e-7)


def test_the_prefix_that_is_learned_is_the_one_in_the_cache(pair: Pair) -> None:
    """Without a cache its keys are turned back first; both ways are one function of it."""
    given = document()
    truth, cached = whole_prefix(pair, given), torch_prefix(pair, given)
    assert list(truth) == [f"model.layers.{i}.{name}" for i in range(2) for name in ORDER]
    assert all(relative_l2(cached[name], truth[name]) < 1e-13 for name in truth)
    other = dataclasses.replace(
        given, prefix=[{n: 2 * a for n, a in layer.items()} for layer in given.prefix]
    )
    assert relative_l2(whole_prefix(pair, other)["model.layers.0.key"],
                       truth["model.layers.0.key"]) > 1e-3  # fmt: skip
