"""Attention that is computed otherwise on one side: by torch's own, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from parity.diagnosis.evidence import Evidence
from parity.diagnosis.explain import explain
from tests.parity.test_suspects_evidence import both_sides, evidence_of, first, normal

B, S, N, K, H = 2, 7, 4, 2, 8
Change = Callable[..., torch.Tensor]


class Heads(torch.nn.Module):
    num_heads = N


def projected(kv_heads: int = K) -> dict[str, Any]:
    widths = {"q_proj": N, "k_proj": kv_heads, "v_proj": kv_heads}
    return {name: normal(B, S, n * H, seed=i) for i, (name, n) in enumerate(widths.items())}


def tables(shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(S, dtype=torch.float64) + 3 + shift
    angles = places[:, None] * 100.0 ** (-torch.arange(H // 2, dtype=torch.float64) / (H // 2))
    return angles.cos()[None], angles.sin()[None]


def rotated(x: torch.Tensor, way: str = "half", shift: int = 0) -> torch.Tensor:
    """(B, N, S, H), as complex numbers."""
    cos, sin = tables(shift)
    turn = torch.complex(cos, -sin if way == "backwards" else sin)
    a, b = (x[..., ::2], x[..., 1::2]) if way == "interleaved" else x.chunk(2, -1)
    turned = torch.complex(a.contiguous(), b.contiguous()) * turn
    if way == "interleaved":
        return torch.view_as_real(turned).flatten(-2)
    return torch.cat((turned.real, turned.imag), -1)


def rotated_part(x: torch.Tensor, frequencies: int) -> torch.Tensor:
    cos, sin = (table[..., :frequencies] for table in tables())
    a, b, rest = x.split([frequencies, frequencies, H - 2 * frequencies], -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def attended(
    given: dict[str, Any],
    kv_heads: int = K,
    *,
    rope: Callable[[torch.Tensor, str], torch.Tensor] = lambda x, _: rotated(x),
    score: Callable[[torch.Tensor], torch.Tensor] | None = None,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    group: list[int] | None = None,
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    merge: Callable[[torch.Tensor], torch.Tensor] = lambda x: x.transpose(1, 2).flatten(2),
    split: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    weigh: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    later: str = "",
) -> Any:
    """Grouped-query attention, (B, S, N*H); hidden keys are False in the mask."""
    split = split or (lambda x, n: x.view(B, S, n, H).transpose(1, 2))
    given = {n: np.pad(a[:, :-1], ((0, 0), (1, 0), (0, 0))) if n == later else a
             for n, a in given.items()}  # fmt: skip
    heads = [
        split(torch.from_numpy(given[name]), n)
        for name, n in (("q_proj", N), ("k_proj", kv_heads), ("v_proj", kv_heads))
    ]
    q, k = (rope(prepare(x), role) for x, role in zip(heads[:2], "qk", strict=True))
    v = rope(heads[2], "v") if rope is not None and rope.__name__ == "all_three" else heads[2]
    order = group or [n * kv_heads // N for n in range(N)]
    k, v = k[:, order], v[:, order]
    mask = torch.ones(S, S).tril().bool() if mask is None else mask
    if weigh is not None:
        mixed = weigh(torch.einsum("bnsh,bnth->bnst", q, k) / H**0.5, mask) @ v
    elif score is None:
        mixed = functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    else:
        scores = score(torch.einsum("bnsh,bnth->bnst", q, k) / H**0.5)
        mixed = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
    return merge(mixed).numpy()


def evidence(right: Any, wrong: Any, odd: str, given: dict[str, Any], **more: Any) -> Evidence:
    cos, sin = (table.numpy() for table in tables())
    inputs = {"cos": cos, "sin": sin, **more.pop("inputs", {})}
    before = {name: given[name] for name in given}
    return evidence_of(
        right, wrong, odd, inputs=inputs, before=before, stage="o_proj", module=Heads(), **more
    )


def all_three(x: torch.Tensor, _: str) -> torch.Tensor:
    return rotated(x)


def window(size: int) -> torch.Tensor:
    rows = [[0 <= i - j < size for j in range(S)] for i in range(S)]
    return torch.tensor(rows)


def chunks(size: int) -> torch.Tensor:
    return torch.tensor([[j <= i and i // size == j // size for j in range(S)] for i in range(S)])


def ahead() -> torch.Tensor:
    return torch.tensor([[j <= i + 1 for j in range(S)] for i in range(S)])


def averaged(x: torch.Tensor) -> torch.Tensor:
    mean = x.view(B, K, N // K, S, H).mean(2, keepdim=True).expand(B, K, N // K, S, H)
    return mean.reshape(B, N, S, H).transpose(1, 2).flatten(2)


def behind() -> torch.Tensor:
    return torch.tensor([[j < i or i == j == 0 for j in range(S)] for i in range(S)])


def without_first() -> torch.Tensor:
    return torch.tensor([[0 < j <= i or i == j == 0 for j in range(S)] for i in range(S)])


def prefix(size: int) -> torch.Tensor:
    return torch.tensor([[j <= i or j < size for j in range(S)] for i in range(S)])


def rotated_plainly(x: torch.Tensor) -> torch.Tensor:
    (cos, sin), (a, b) = tables(), x.chunk(2, -1)
    return torch.cat((a * cos + b * sin, b * cos + a * sin), -1)


def rotated_from_0(x: torch.Tensor, theta: float) -> torch.Tensor:
    angles = (
        torch.arange(S).double()[:, None] * theta ** (-torch.arange(H // 2) / (H // 2)).double()
    )
    (a, b), cos, sin = x.chunk(2, -1), angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


SLOPES = torch.tensor([2.0 ** (-8 * (n + 1) / N) for n in range(N)], dtype=torch.float64)
DISTANCE = torch.tensor([[float(i - j) for j in range(S)] for i in range(S)]).double()
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "rope-interleaved": ({"rope": lambda x, _: rotated(x, "interleaved")}, "neighbouring"),
    "rope-left-out": ({"rope": lambda x, _: x}, "does not rotate"),
    "rope-backwards": ({"rope": lambda x, _: rotated(x, "backwards")}, "the other way"),
    "rope-query-only": ({"rope": lambda x, r: rotated(x) if r == "q" else x}, "queries only"),
    "rope-key-only": ({"rope": lambda x, r: rotated(x) if r == "k" else x}, "keys only"),
    "rope-value-too": ({"rope": all_three}, "values too"),
    "rope-twice": ({"rope": lambda x, _: rotated(rotated(x))}, "twice"),
    "rope-part": (
        {"rope": lambda x, _: rotated_part(x, 2)},
        "half of the channels",
    ),
    "scale-missing": ({"scale": 1.0}, "does not scale"),
    "scale-head-dim": ({"scale": 1 / H}, "1/H"),
    "scale-hidden": ({"scale": (N * H) ** -0.5}, "whole width"),
    "mask-left-out": ({"mask": torch.ones(S, S).bool()}, "no mask"),
    "mask-one-ahead": ({"mask": ahead()}, "one key of the future"),
    "mask-diagonal": ({"mask": torch.eye(S).bool()}, "own key only"),
    "mask-window": ({"mask": window(3)}, "the last 3 keys only"),
    "mask-chunks": ({"mask": chunks(3)}, "own chunk of 3"),
    "heads-regrouped": ({"group": [0, 1, 0, 1]}, "key head n % K"),
    "heads-first": ({"group": [0, 0, 0, 0]}, "first key head"),
    "heads-reversed": ({"group": [1, 1, 0, 0]}, "in reverse"),
    "heads-merged-otherwise": (
        {"merge": lambda x: x.permute(0, 2, 3, 1).flatten(2)},
        "merges heads as (H, N)",
    ),
    "heads-not-moved-back": ({"merge": lambda x: x.reshape(B, S, N * H)}, "without moving"),
    "query-key-norm": (
        {"prepare": lambda x: functional.rms_norm(x, (H,), eps=1e-6)},
        "normalises queries and keys in each head",
    ),
    "query-key-norm-rotated": (
        {"rope": lambda x, r: functional.rms_norm(rotated(x), (H,), eps=1e-6)},
        "normalises",
    ),
    "query-key-norm-l2": ({"prepare": lambda x: functional.normalize(x, dim=-1)}, "length 1"),
    "query-key-cosine": (
        {"prepare": lambda x: functional.normalize(x, dim=-1), "scale": 1.0},
        "cosine",
    ),
    "alibi": ({"score": lambda s: s - SLOPES[:, None, None] * DISTANCE}, "ALiBi"),
    "softcap": ({"score": lambda s: 1.5 * torch.tanh(s / 1.5)}, "caps its scores at 1.5 "),
    "scale-other": ({"scale": 0.3 * H**-0.5}, "by another 0.3"),
    "rope-no-minus": ({"rope": lambda x, _: rotated_plainly(x)}, "without the minus"),
    "heads-split-only": (
        {"split": lambda x, n: x.view(B, S, H, n).permute(0, 3, 1, 2)},
        "splits heads as (H, N)",
    ),
    "softmax-relu": ({"weigh": lambda s, m: torch.relu(s) * m / S}, "ReLU"),
    "softmax-relu-squared": ({"weigh": lambda s, m: torch.relu(s) ** 2 * m / S}, "squared ReLU"),
    "values-shifted": ({"later": "v_proj"}, "values of the token before"),
    "keys-shifted": ({"later": "k_proj"}, "keys of the token before"),
    "values-added": (
        {"weigh": lambda s, m: s.masked_fill(~m, -torch.inf).softmax(-1) + torch.eye(S)},
        "own values",
    ),
    "heads-averaged": (
        {"merge": averaged},
        "averages the query heads",
    ),
    "mask-one-behind-but-first": ({"mask": behind()}, "but the first's"),
    "mask-first-key": ({"mask": without_first()}, "hides the first key"),
    "mask-transposed": ({"mask": torch.ones(S, S).triu().bool()}, "swapped in its mask"),
    "mask-prefix": ({"mask": prefix(3)}, "the first 3 keys to all"),
    "scores-clipped": ({"score": lambda s: s.clamp(-0.5, 0.5)}, "scores off at 0.5"),
    "rope-theta": ({"rope": lambda x, _: rotated_from_0(x, 2e4)}, "rope theta of 20000"),
    "scores-bfloat16": ({"score": lambda s: s.bfloat16().double()}, "scores to bfloat16"),
}


FITTED = {"softcap", "scale-other", "scores-clipped", "rope-theta"}


@both_sides
@pytest.mark.parametrize("name", CASES)
def test_one_thing_is_done_otherwise(name: str, odd: str) -> None:
    change, words = CASES[name]
    given = projected()
    right, wrong = attended(given), attended(given, **change)
    bound = 1e-9 if name in FITTED else 1e-12
    found = explain(evidence(right, wrong, odd, given, bound=bound))
    known = {suspect.name: suspect.sentence for suspect in found}
    if name == "query-key-norm-rotated":  # a norm without a weight does not care for rotations
        name = "query-key-norm"
    assert name in known, known
    assert words in known[name]
    assert known[name].endswith(f"in {odd}")
    assert all(s.before > bound >= s.after for s in found if s.after is not None)


@both_sides
@pytest.mark.parametrize("shift", [1, -1])
def test_positions_of_queries_are_off_by_one(odd: str, shift: int) -> None:
    given = projected()
    right = attended(given)
    wrong = attended(given, rope=lambda x, r: rotated(x, shift=shift if r == "q" else 0))
    name = "position-ahead" if shift > 0 else "position-behind"
    found = explain(evidence(right, wrong, odd, given))
    assert name in {s.name for s in found}, [str(s) for s in found]


@both_sides
def test_padding_and_documents_are_not_hidden(odd: str) -> None:
    given = projected()
    mask = torch.ones(B, 1, S, S).tril().bool()
    mask[0, :, 2:, :2] = False
    shown = {"mask": mask[:, 0].numpy()}
    right, wrong = attended(given, mask=mask), attended(given)
    first(
        evidence(right, wrong, odd, given, inputs=shown),
        "mask-causal-only",
        "masks the future only",
        f"in {odd}",
    )


@both_sides
@pytest.mark.parametrize(("name", "order"), [("key-value-swapped", 0), ("query-key-swapped", 1)])
def test_roles_that_are_exchanged(name: str, order: int, odd: str) -> None:
    given = projected(N)
    q, k, v = given.values()
    other = dict(zip(given, ((q, v, k), (k, q, v))[order], strict=True))
    right, wrong = attended(given, N), attended(other, N)
    first(evidence(right, wrong, odd, given), name, f"in {odd}")


@both_sides
def test_queries_keys_and_values_are_cut_off(odd: str) -> None:
    given = projected()
    right = attended(given)
    wrong = attended({name: np.clip(array, -0.7, 0.7) for name, array in given.items()})
    found = evidence(right, wrong, odd, given, bound=1e-9)
    first(found, "inputs-clipped", f"cuts queries, keys and values off at 0.7 in {odd}")


@both_sides
def test_a_mask_the_wrong_way_round(odd: str) -> None:
    given = projected()
    kept = torch.ones(B, S).bool()
    kept[:, 5:] = False
    right, wrong = (
        attended(given, mask=m[:, None, None].expand(B, 1, S, S)) for m in (kept, ~kept)
    )
    inputs = {"mask": kept.numpy().astype(np.int64)}
    first(evidence(right, wrong, odd, given, inputs=inputs), "mask-inverted", f"in {odd}")


def given_to_torch_alone() -> list[Any]:
    """As transformers hands them on: tables for both halves, and a mask that is added."""
    cos, sin = (np.concatenate([table.numpy()] * 2, -1) for table in tables())
    added = np.where(window(3).numpy(), 0.0, np.finfo(np.float32).min)
    return [cos, sin, np.broadcast_to(added, (B, 1, S, S))]


@both_sides
def test_tables_and_masks_that_only_pytorch_is_given(odd: str) -> None:
    given = projected()
    right, wrong = attended(given, mask=window(3)), attended(given, mask=window(3), scale=1.0)
    known = evidence_of(
        right, wrong, odd, before=given, stage="o_proj", module=Heads(),
        given=given_to_torch_alone(),
    )  # fmt: skip
    first(known, "scale-missing", f"in {odd}")


@both_sides
def test_what_is_added_to_the_scores_as_for_relative_positions(odd: str) -> None:
    """T5 scales nothing, and adds a table of distances."""
    given, bias = projected(), normal(S, S, N, seed=7)
    added = torch.from_numpy(bias).permute(2, 0, 1)

    def unscaled(scores: torch.Tensor, with_bias: bool = True) -> torch.Tensor:
        return scores * H**0.5 + added * with_bias

    plain: dict[str, Any] = {"rope": lambda x, _: x}
    right = attended(given, score=unscaled, **plain)
    for wrong, name in (
        (attended(given, score=lambda s: unscaled(s, with_bias=False), **plain), "left-out"),
        (attended(given, score=lambda s: s * H**0.5 + added.mT, **plain), "transposed"),
    ):
        known = evidence_of(
            right, wrong, odd, before={**given, "bias": bias}, stage="o_proj", module=Heads()
        )
        first(known, f"score-bias-{name}", f"in {odd}")


@both_sides
def test_heads_that_are_kept_apart(odd: str) -> None:
    """Flax's DenseGeneral takes (B, S, N, H)."""
    given = projected()
    right, wrong = (attended(given, scale=scale).reshape(B, S, N, H) for scale in (None, 1.0))
    first(evidence(right, wrong, odd, given), "scale-missing", f"in {odd}")


def test_healthy_and_unrelated_attention() -> None:
    given = projected()
    right = attended(given)
    assert not explain(evidence(right, right, "Flax", given))
    names = {s.name for s in explain(evidence(right, normal(B, S, N * H, seed=9), "Flax", given))}
    assert not names - {"other-input", "only-in"}
    twisted = evidence(normal(B, S, N * H, seed=8), normal(B, S, N * H, seed=9), "Flax", given)
    assert not explain(twisted)
    kept = {name: a.copy() for name, a in given.items()}
    explain(evidence(right, attended(given, scale=1.0), "Flax", given))
    for name, array in given.items():
        np.testing.assert_array_equal(array, kept[name])
