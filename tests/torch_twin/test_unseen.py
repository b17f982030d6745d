"""What eager code refuses is NaN where values cannot be seen, and only in the row that is wrong."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import diy_torch
from diy_torch.loss import cross_entropy
from diy_torch.unseen import wrong_rows
from tests.oracles import tiny
from tests.torch_twin.build import build

CONFIG = tiny(max_position_embeddings=70)
SERVED = tiny(vocab_size=512, hidden_size=128, intermediate_size=256)
MODEL = build(CONFIG, torch.float32)
IDS = np.array([[1, 2, 3], [4, 5, 6]], np.int64)


@torch.no_grad()
def _compiled(**kwargs: Any) -> Any:
    """The model's answer where it takes itself to be compiled: no value can be seen."""
    kwargs = {"input_ids": IDS} | kwargs
    tensors = {
        name: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in kwargs.items()
    }
    with mock.patch("torch.compiler.is_compiling", return_value=True):
        return MODEL(**tensors)


def _only_row_1_is_nan(logits: Any, expected: Any) -> bool:
    sound = torch.allclose(logits[0], expected[0], rtol=1e-5, atol=1e-6)
    return sound and bool(logits[1].isnan().all())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"attention_mask": np.array([[1, 1, 1], [1, 0, 1]])},
        {"attention_mask": np.array([[1, 1, 1], [0, 1, 1]])},
        {"attention_mask": np.array([[1, 1, 1], [2, 1, 0]])},
        {"attention_mask": np.array([[1.0, 1.0, 1.0], [0.5, 0, 0]])},
        {"attention_mask": np.array([[True, True, True], [False, False, False]])},
        {"attention_mask": np.array([[1, 1, 1], [1, 1, 0]]), "seq_lengths": np.array([3, 3])},
        {"seq_lengths": np.array([3, 4])},
        {"seq_lengths": np.array([3, 0])},
        {"seq_lengths": np.array([3, -2])},
        {"seq_lengths": np.array([3, 2**32 + 2])},
        {"seq_lengths": np.array([3, 2**32 + 2], np.uint64)},
        {"seq_lengths": np.array([3, 2**64 - 1], np.uint64)},
    ],
    ids=lambda kwargs: f"{next(iter(kwargs))}={next(iter(kwargs.values()))[1]}",
)
def test_a_row_that_would_be_refused_is_nan(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="row 1"):
        MODEL(**({"input_ids": IDS} | kwargs))
    assert _only_row_1_is_nan(_compiled(**kwargs), MODEL(IDS))


def test_the_gradients_of_a_row_that_would_be_refused_are_nan() -> None:
    for lengths, sound in ((torch.tensor([3, 3]), True), (torch.tensor([3, 4]), False)):
        with mock.patch("torch.compiler.is_compiling", return_value=True):
            logits = MODEL(torch.as_tensor(IDS), seq_lengths=lengths)
        found = torch.autograd.grad(logits.sum(), list(MODEL.parameters()))
        assert [bool(array.isfinite().all()) for array in found] == [sound] * len(found)


def test_a_row_without_room_in_its_cache_is_nan_from_then_on() -> None:
    cache = diy_torch.init_cache(CONFIG, 2, 4)  # 64 slots
    ids = np.resize(np.arange(1, 23), (2, 66))

    def step(ids: Any, lengths: Any, past: Any) -> Any:
        return _compiled(
            input_ids=ids, seq_lengths=np.array(lengths), past_key_values=past, use_cache=True
        )

    _, cache = step(ids[:, :64], [60, 64], cache)
    logits, cache = step(ids[:, 60:62], [2, 0], cache)  # full, and nothing new
    assert logits.isfinite().all()
    logits, cache = step(ids[:, 62:63], [1, 1], cache)
    whole = MODEL(ids[:, :63])
    assert _only_row_1_is_nan(logits[:, 0], whole[:1, 62].expand(2, -1))
    logits, cache = step(ids[:, 63:64], [1, 0], cache)
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()
    with pytest.raises(ValueError, match=r"row 1 is negative .*; a compiled call marks"):
        MODEL(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("positions", [(3, 5), (-1, -1), (65, 65), (2**40, 2**40)])
def test_a_cache_at_an_impossible_place_is_nan(positions: tuple[int, int]) -> None:
    cache = [
        (cached, torch.tensor([3, position]))
        for (cached, _), position in zip(diy_torch.init_cache(CONFIG, 2), positions, strict=True)
    ]
    with pytest.raises(ValueError, match="row 1"):
        MODEL(IDS[:, :1], past_key_values=cache)
    logits = _compiled(input_ids=IDS[:, :1], past_key_values=cache)
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()


@pytest.mark.parametrize(("has_cache", "wrong"), [(False, [2, 3, 5, 6]), (True, [2, 3, 6])])
def test_ids_and_lengths_are_wrong_from_the_first_beyond_their_range(
    has_cache: bool, wrong: list[int]
) -> None:
    """Asked of the rows alone: an embedding on a CPU refuses ids that it has no row for."""
    ids = torch.tensor([[0, 22], [22, 0], [-1, 0], [0, 23], [0, 0], [0, 0], [0, 0]])
    lengths = torch.tensor([1, 2, 2, 2, 2, 0, 3])
    with mock.patch("torch.compiler.is_compiling", return_value=True):
        found = wrong_rows(ids, lengths, None, has_cache, CONFIG)
    assert found is not None
    assert found.nonzero()[:, 0].tolist() == wrong


@pytest.mark.parametrize("label", [-1, 23, 2**40, -101])
def test_a_label_outside_of_the_vocabulary_is_a_loss_of_nan(label: int) -> None:
    head = torch.ones(4, 23)
    hidden = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 4))).float()

    hidden.requires_grad_()

    def loss(labels: Any) -> Any:
        return cross_entropy(hidden, labels, lambda x: x @ head)

    with mock.patch("torch.compiler.is_compiling", return_value=True):
        assert loss(torch.tensor([[1, 22, -100]]))[0].isfinite()
        wrong = loss(torch.tensor([[1, label, -100]]))[0]
        assert wrong.isnan()
        assert torch.autograd.grad(wrong, hidden)[0][0, 1].isnan().all()
    with pytest.raises(ValueError, match="labels must lie in"):
        loss(torch.tensor([[1, label, -100]]))


class Moved(TorchDispatchMode):
    """Counts the bytes that operations read and write; views count, too, as if they were copies."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, torch.Tensor)]
        self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return found


@pytest.mark.parametrize("columns", [1, 64], ids=["a step", "a prompt"])
def test_the_check_costs_nothing_beside_the_model(columns: int) -> None:
    """By the products of matrices and the bytes that are moved, with the check and without."""
    model, ids = build(SERVED, torch.float32), torch.ones((8, columns), dtype=torch.int64)
    past, lengths = diy_torch.init_cache(SERVED, 8, 256), torch.full((8,), columns)

    def cost() -> tuple[int, int]:
        with (
            torch.no_grad(),
            mock.patch("torch.compiler.is_compiling", return_value=True),
            FlopCounterMode(display=False) as products,
            Moved() as moved,
        ):
            model(ids, None, lengths, past, True)
        return products.get_total_flops(), moved.bytes

    checked = cost()
    with mock.patch("diy_torch.model.wrong_rows", return_value=None):
        unchecked = cost()
    assert checked[0] == unchecked[0] > 0
    assert unchecked[1] < checked[1] < 1.005 * unchecked[1]
