"""Whole tables: every row counts, in the order of the parts, and zeros prove nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import diy_jax.model
from diy_core.config import DIYConfig
from parity.check import whole_tables
from parity.environment import Device, exact
from parity.random_models import write_random_model
from parity.twins import Pair
from tests.oracles import tiny

CONFIG = tiny(vocab_size=29, max_position_embeddings=21, rope_theta=500.0)


@pytest.fixture
def pair(tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(whole_tables, "_ROWS", 8)
    write_random_model(tmp_path / "model", CONFIG, "fan-in")
    with exact(device):
        return Pair(tmp_path / "model", "float64", device)


def test_all_rows_of_all_parts_are_compared(pair: Pair, device: Device) -> None:
    with exact(device):
        found = [*whole_tables.rotations(pair, "cpu"), *whole_tables.embeddings(pair, "cpu")]
    assert [check.name for check in found] == [
        *("rotations torch", "rotations flax"),
        "embeddings flax",
    ]
    assert all(check.passed and check.value < 1e-15 for check in found)
    assert [check.compared for check in found] == [
        *([21 * CONFIG.head_size] * 2),
        29 * CONFIG.hidden_size,
    ]
    assert [check.reach for check in found] == [*(["positions 0-20"] * 2), "ids 0-28"]


@pytest.mark.parametrize("row", [0, 7, 8, 28])
def test_the_row_that_differs_is_named(row: int, pair: Pair, device: Device) -> None:
    table = pair.params["model"]["embed_tokens"]
    with exact(device):
        table["embedding"] = table["embedding"].at[row, 3].multiply(1 + 1e-9)
        (check,) = whole_tables.embeddings(pair, "cpu")
    assert not check.passed
    assert 1e-11 < check.value < 1e-9
    assert check.where == f"id {row}"
    assert check.tensors[0].index == (row, 3)


@pytest.mark.parametrize(("rows", "passed"), [((5,), True), (tuple(range(29)), False)])
def test_a_row_of_zeros_is_right_but_a_table_of_them_proves_nothing(
    rows: tuple[int, ...], passed: bool, pair: Pair, device: Device
) -> None:
    table, zeros = pair.params["model"]["embed_tokens"], np.array(rows)
    with exact(device):
        weight = pair.torch.model.embed_tokens.weight.data
        weight[zeros] = 0
        (other,) = whole_tables.embeddings(pair, "cpu")
        assert not other.passed
        table["embedding"] = table["embedding"].at[zeros].set(0)
        (check,) = whole_tables.embeddings(pair, "cpu")
    assert check.passed == passed
    assert passed or "nothing can be told" in check.where


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotations_that_round_are_no_worse_in_one_twin(
    dtype: str, pair: Pair, device: Device
) -> None:
    with exact(device):
        found = whole_tables.rounded_rotations(pair, dtype, "cpu", (1.0, 1.0))
    assert found.passed
    assert 1 <= found.value < 1.2
    assert (found.name, found.dtype, found.reach) == ("rotations", dtype, "positions 0-20")
    assert found.compared == 21 * CONFIG.head_size
    assert [error.side for error in found.tensors] == ["torch"] * 3 + ["flax"] * 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positions_that_are_rounded_are_seen_where_they_are_large(
    dtype: str, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = {"float32": jnp.float16, "bfloat16": jnp.bfloat16}[dtype]
    monkeypatch.setattr(whole_tables, "_ROWS", 256)
    write_random_model(tmp_path / "model", tiny(max_position_embeddings=5000), "fan-in")
    tables = diy_jax.model.rope_tables

    def rounded(config: DIYConfig, positions: Any, wanted: Any) -> Any:
        return tables(config, positions.astype(narrow).astype(jnp.int32), wanted)

    with exact(device):
        pair = Pair(tmp_path / "model", dtype, device)
        assert whole_tables.rounded_rotations(pair, dtype, "cpu", (1.0, 1.0)).passed
        monkeypatch.setattr(diy_jax.model, "rope_tables", rounded)
        found = whole_tables.rounded_rotations(pair, dtype, "cpu", (1.0, 1.0))
    assert not found.passed
    assert found.value > 100
