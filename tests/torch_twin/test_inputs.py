from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import diy_torch
from tests.bad_inputs import CASES, CONFIG, IDS, Case, Past
from tests.torch_twin.build import build, run, run_cached

MODEL = diy_torch.DIYForCausalLM(CONFIG)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_with_words_that_help(case: Case) -> None:
    with pytest.raises(ValueError, match=case.message):
        case.call(MODEL, torch.from_numpy)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_tensor_is_refused_like_a_list(case: Case) -> None:
    kwargs = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in case.kwargs.items()
    }
    with pytest.raises(ValueError, match=case.message):
        Case(case.name, kwargs, case.message, case.past).call(MODEL, torch.from_numpy)


@pytest.mark.parametrize(
    "ids",
    [
        IDS.tolist(),
        tuple(tuple(row) for row in IDS.tolist()),
        *(IDS.astype(kind) for kind in ("int8", "uint8", "uint16", "int64", "uint64")),
        IDS[::-1][::-1],
        torch.from_numpy(IDS),
        torch.from_numpy(IDS).long(),
    ],
    ids=lambda ids: f"{type(ids).__name__} {getattr(ids, 'dtype', '')}",
)
def test_ids_may_be_any_integers(ids: Any) -> None:
    assert (run(MODEL, ids) == run(MODEL, torch.from_numpy(IDS).long())).all()


def _brain(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", [bool, np.int32, np.uint8, np.float32, list, torch.tensor, _brain])
def test_a_mask_may_be_of_any_kind(kind: Any) -> None:
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    given = kind(mask.tolist()) if kind in (list, torch.tensor, _brain) else mask.astype(kind)
    kept = run(MODEL, IDS, given, logits_to_keep=1)
    assert (kept == run(MODEL, IDS, seq_lengths=[3, 1], logits_to_keep=1)).all()
    assert not (kept == run(MODEL, IDS, logits_to_keep=1)).all()


@pytest.mark.parametrize("kind", [np.int64, np.uint8, list, torch.tensor])
def test_lengths_may_be_any_integers(kind: Any) -> None:
    given = kind([3, 1]) if kind in (list, torch.tensor) else np.array([3, 1], kind)
    kept = run(MODEL, IDS, seq_lengths=given, logits_to_keep=1)
    assert (kept == run(MODEL, IDS, [[1, 1, 1], [1, 0, 0]], logits_to_keep=1)).all()


def test_a_mask_and_lengths_that_agree_are_one() -> None:
    both = run(MODEL, IDS, [[1, 1, 1], [1, 0, 0]], [3, 1], logits_to_keep=1)
    assert (both == run(MODEL, IDS, seq_lengths=[3, 1], logits_to_keep=1)).all()


def test_with_a_cache_a_row_may_be_empty_and_a_sequence_may_end_at_the_limit() -> None:
    past = Past(capacity=70, position=np.array([67, 70], np.int32)).make(torch.from_numpy)
    logits, presents = run_cached(MODEL, IDS, [[1, 1, 1], [0, 0, 0]], past_key_values=past)
    assert np.isfinite(logits).all()
    assert presents[0][1].tolist() == [70, 70]
    assert run(MODEL, np.ones((1, 70), int)).shape == (1, 70, 23)


def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    model = build(CONFIG, torch.float32)
    _, past = run_cached(model, IDS)
    before = [cached["key"].clone() for cached, _ in past]
    with pytest.raises(ValueError, match="input_ids must lie in"):
        run_cached(model, [[1], [23]], past_key_values=past)
    with pytest.raises(ValueError, match="beyond max_position_embeddings"):
        run_cached(model, np.ones((2, 68), int), past_key_values=past)
    with pytest.raises(ValueError, match="logits_to_keep"):
        run_cached(model, [[1], [2]], past_key_values=past, logits_to_keep=2)
    assert all(torch.equal(c["key"], old) for (c, _), old in zip(past, before, strict=True))


def test_under_vmap_values_are_not_looked_at_and_mask_and_lengths_must_agree() -> None:
    ids, mask = torch.from_numpy(IDS)[:, None], torch.tensor([[[1, 1, 0]], [[1, 0, 0]]])

    def last(ids: Any, mask: Any, lengths: Any) -> Any:
        return MODEL(ids, mask, lengths, logits_to_keep=1)

    with torch.no_grad():
        result = torch.vmap(last)(ids, mask, torch.tensor([[2], [3]]))
    expected = run(MODEL, IDS, seq_lengths=[2, 1], logits_to_keep=1)
    assert np.allclose(result[0, 0].numpy(), expected[0], rtol=1e-5, atol=1e-7)
    assert result[1].isnan().all()


def test_under_grad_the_checks_do_not_trip() -> None:
    parameters = dict(MODEL.named_parameters())

    def loss(parameters: Any, ids: Any) -> Any:
        return torch.func.functional_call(MODEL, parameters, (ids,)).square().sum()

    gradients = torch.func.grad(loss)(parameters, torch.from_numpy(IDS))
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.past is None], ids=lambda case: case.name
)
def test_an_accelerator_refuses_what_lies_on_the_host(case: Case) -> None:
    model = diy_torch.DIYForCausalLM(CONFIG, device="meta")  # any device whose values are not seen
    with pytest.raises(ValueError, match=case.message):
        case.call(model, torch.from_numpy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_floats_that_numpy_does_not_have_are_refused_like_others(dtype: torch.dtype) -> None:
    ids = torch.ones((2, 3)).to(dtype)
    with pytest.raises(ValueError, match="input_ids must be integers, got dtype"):
        MODEL(ids)
    with pytest.raises(ValueError, match="seq_lengths must be integers, got dtype"):
        MODEL(IDS, seq_lengths=ids[:, 0])
    with pytest.raises(ValueError, match="input_ids must be integers, got dtype"):
        diy_torch.generate(MODEL, ids, max_new_tokens=1)
