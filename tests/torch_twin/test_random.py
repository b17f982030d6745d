"""threefry against its authors' vectors, and what is built on it; tests/parity has JAX's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diy_torch import random

ONES = 0xFFFFFFFF
# Random123 1.14, tests/kat_vectors: threefry2x32, 20 rounds. Counter, key, result.
VECTORS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
KEY = random.key(5)


def words(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint32)


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_the_hash_gives_the_published_vectors(
    counter: tuple[int, int], key: tuple[int, int], result: tuple[int, int]
) -> None:
    high, low = random.threefry2x32(words(*key), words(counter[0]), words(counter[1]))
    assert (high.tolist(), low.tolist()) == ([result[0]], [result[1]])


def test_what_is_drawn_is_made_of_the_hash() -> None:
    (_, _, (first, second)) = VECTORS[0]
    zero = random.key(0)
    assert random.fold_in(zero, 0).tolist() == [first, second]
    assert random.bits(zero).item() == first ^ second
    assert random.uniform(zero).item() == ((first ^ second) >> 9) / 2**23
    wide = random.uniform(zero, (1,), torch.float64)
    assert wide.item() == ((first << 32 | second) >> 12) / 2**52


@pytest.mark.parametrize(
    ("seed", "high", "low"),
    [(0, 0, 0), (7, 0, 7), (2**32, 1, 0), (2**63 + 5, 2**31, 5), (2**64 - 1, ONES, ONES)],
)
def test_a_key_is_the_two_words_of_the_seed(seed: int, high: int, low: int) -> None:
    assert random.key(seed).tolist() == random.key(np.uint64(seed)).tolist() == [high, low]


def test_what_is_no_seed_no_number_and_no_key_is_refused() -> None:
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=rf"seed must lie in 0\.\.2\*\*64 - 1, got {seed}"):
            random.key(seed)
    for data in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"data must lie in 0\.\.2\*\*32 - 1, got {data}"):
            random.fold_in(KEY, data)
    for wrong in (torch.zeros(2), torch.zeros(2, dtype=torch.int64), words(1), words(1, 2, 3)):
        with pytest.raises(ValueError, match=r"a key is uint32 of shape \(2,\)"):
            random.bits(wrong, (3,))
    with pytest.raises(ValueError, match=r"p must lie in 0\.\.1, got 1\.5"):
        random.bernoulli(KEY, 1.5)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*32 numbers, got shape \(65536, 65536\)"):
        random.bits(KEY, (2**16, 2**16))
    for dtype in (torch.bfloat16, torch.int32):
        for draw in (random.uniform, random.gumbel):
            with pytest.raises(ValueError, match="dtype must be float32 or float64"):
                draw(KEY, (2,), dtype)
    with pytest.raises(TypeError):
        random.key(1.0)


def test_a_number_depends_on_its_place_alone() -> None:
    many = random.bits(KEY, (3 << 20,)).tolist()  # more than are hashed at a time
    assert random.bits(KEY, (3, 1 << 20)).flatten().tolist() == many
    assert random.bits(KEY, (1000,)).tolist() == many[:1000]
    assert len(set(many)) > 0.999 * len(many)
    assert random.bits(KEY, (4, 0)).shape == (4, 0)


def test_keys_of_many_numbers_are_those_of_each() -> None:
    data = torch.arange(6).view(2, 3)
    keys = random.fold_in(KEY, data)
    assert keys.shape == (2, 3, 2)
    assert keys.dtype == torch.uint32
    for row in range(2):
        for column in range(3):
            alone = random.fold_in(KEY, int(data[row, column]))
            assert torch.equal(keys[row, column], alone)
    assert torch.equal(random.split(KEY, 6), keys.view(6, 2))
    assert len({tuple(k) for k in random.split(KEY, 1000).tolist()}) == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_are_uniform(dtype: torch.dtype) -> None:
    numbers = random.uniform(KEY, (400, 500), dtype)
    assert numbers.dtype == dtype
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    counts = torch.histc(numbers.double(), 20, 0, 1)
    assert (((counts - 10_000) / math.sqrt(10_000 * 0.95)) ** 2).sum() < 43.8  # chi2, 19, 0.1%


def test_gumbel_numbers_are_finite_and_have_their_mean() -> None:
    noise = random.gumbel(KEY, (200_000,), torch.float64)
    assert noise.isfinite().all()
    assert abs(noise.mean() - 0.5772156649) < 4 * math.pi / math.sqrt(6 * 200_000)


def test_categorical_draws_with_the_probabilities_of_its_logits() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    logits = probabilities.log().expand(50_000, -1)
    for axis, given in ((-1, logits), (0, logits.T)):
        drawn = random.categorical(KEY, given.contiguous(), axis)
        shares = torch.bincount(drawn, minlength=4) / 50_000
        assert (shares - probabilities).abs().max() < 4 * math.sqrt(0.25 / 50_000)
        assert shares[1] == 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dropout_keeps_its_share_and_the_mean(rate: float, dtype: torch.dtype) -> None:
    x = torch.ones(300, 400, dtype=dtype)
    dropped = random.dropout(KEY, x, rate)
    assert dropped.dtype == dtype
    share = (dropped == 0).double().mean()
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / x.numel())
    kept = dropped[dropped != 0]
    assert (kept == torch.tensor(1 / (1 - rate), dtype=dtype)).all()
    assert not torch.equal(dropped, random.dropout(random.key(6), x, rate))


def test_what_is_dropped_has_no_influence_not_even_of_infinities() -> None:
    x = torch.full((50,), torch.inf, requires_grad=True)
    kept = random.dropout(KEY, x, 0.5) != 0
    random.dropout(KEY, x, 0.5)[~kept].sum().backward()
    assert 0 < int(kept.sum()) < 50
    assert not x.grad.any()


def test_everything_runs_without_values() -> None:
    with FakeTensorMode():
        key = random.key(3)
        keys = random.split(key, 4)
        logits = torch.zeros(2, 5)
        drawn = [random.uniform(keys[0], (2, 3)), random.categorical(keys[1], logits)]
        drawn.append(random.dropout(keys[2], torch.zeros(7), 0.5))
    assert [tuple(x.shape) for x in drawn] == [(2, 3), (2,), (7,)]
