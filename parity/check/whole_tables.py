"""Whole tables, row by row: the rotation of every position, the embedding of every id.

A batch has a few hundred tokens. What is wrong at one position or for one id of many would be
found there by chance alone; here all of them are compared, a part at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray

import diy_jax.inputs
import diy_jax.model
import diy_torch.inputs
import diy_torch.model
from diy_core.config import DIYConfig
from diy_core.norms import norms
from diy_core.rope import inverse_frequencies
from diy_torch.tensors import to_numpy
from parity.check import lines
from parity.check.compare import Check, ratio
from parity.check.measures import NothingProven, TensorError, machine_epsilon, tensor_error
from parity.environment import TORCH_DTYPES
from parity.twins import Pair

_ROWS = 4096  # of a part
_TABLES = "rope_tables"  # as the model knows it
Part = tuple[NDArray[np.float64], NDArray[np.float64]]
Table = Callable[[NDArray[np.int32]], NDArray[np.float64]]


def rotations(pair: Pair, device: str) -> list[Check]:
    """Cosines and sines of each position, in both twins, against those of numpy."""
    positions, found = pair.config.max_position_embeddings, []
    reach = f"positions 0-{positions - 1}"
    for twin, table in _tables(pair, "float64").items():
        parts = ((table(rows), rotation_table(pair.config, rows)) for rows in _parts(positions))
        name = f"rotations {twin}", "float64", device
        found.append(lines.provable(*name, _worst_row, *name, parts, "position", reach))
    return found


def rounded_rotations(pair: Pair, dtype: str, device: str, control: tuple[float, float]) -> Check:
    """The same tables in a dtype that rounds: both twins' errors over each other.

    Part by part, and the worst of them: positions far out have the largest errors, and would hide
    what is wrong with the first ones.

    Args:
        pair: the twins, of any dtype.
        dtype: of the tables.
        device: where.
        control: what is allowed beyond a ratio of 2, see `parity.check.matmul_control`.
    """
    positions, floor = pair.config.max_position_embeddings, machine_epsilon(dtype) / 4
    tables, seen, ways = _tables(pair, dtype), [], []
    for rows in _parts(positions):
        truth = rotation_table(pair.config, rows)
        where = f"positions {rows[0]}-{rows[-1]}"
        seen.append([tensor_error(where, table(rows), truth, s) for s, table in tables.items()])
        one, other = (max(side.relative_l2, floor) for side in seen[-1])
        ways.append((*ratio(one, other, control), where))
    value, bound, where = max(ways, key=lambda way: way[0] / way[1])
    return Check(
        "rotations", dtype, device, positions * pair.config.head_size, value, bound,
        value <= bound, where, tensors=tuple(e for part in zip(*seen, strict=True) for e in part),
        reach=f"positions 0-{positions - 1}",
    )  # fmt: skip


def embeddings(pair: Pair, device: str) -> list[Check]:
    """What the embedding gives for each id there is, JAX against PyTorch."""
    one, other = _torch_embedding(pair), _flax_embedding(pair)
    size = pair.config.vocab_size
    parts = ((other(ids), one(ids)) for ids in _parts(size))
    name = "embeddings flax", "float64", device
    reach = f"ids 0-{size - 1}"
    return [lines.provable(*name, _worst_row, *name, parts, "id", reach)]


def rotation_table(config: DIYConfig, positions: NDArray[np.int32]) -> NDArray[np.float64]:
    """Cosines, then sines, of each position times each frequency: (positions, H)."""
    angles = positions[:, None].astype(np.float64) * inverse_frequencies(config)
    return np.concatenate((np.cos(angles), np.sin(angles)), axis=1)


def _parts(size: int) -> Iterator[NDArray[np.int32]]:
    for start in range(0, size, _ROWS):
        yield np.arange(start, min(start + _ROWS, size), dtype=np.int32)


def _tables(pair: Pair, dtype: str) -> dict[str, Table]:
    """What makes the table of some positions, by twin; of values in this dtype."""
    return {"torch": _torch_table(pair, dtype), "flax": _flax_table(pair, dtype)}


def _torch_table(pair: Pair, dtype: str) -> Table:
    make = getattr(diy_torch.model, _TABLES)

    def table(positions: NDArray[np.int32]) -> NDArray[np.float64]:
        places = torch.from_numpy(positions[None]).to(pair.device.torch)
        tables = make(pair.config, places, TORCH_DTYPES[dtype])
        return to_numpy(torch.cat(tables, -1))[0].astype(np.float64)

    return table


def _flax_table(pair: Pair, dtype: str) -> Table:
    function = getattr(diy_jax.model, _TABLES)
    make = jax.jit(lambda places: function(pair.config, places, jnp.dtype(dtype)))

    def table(positions: NDArray[np.int32]) -> NDArray[np.float64]:
        places = jax.device_put(positions[None], pair.device.jax)
        parts = [np.asarray(part)[0].astype(np.float64) for part in make(places)]
        return np.concatenate(parts, axis=-1)

    return table


def _torch_embedding(pair: Pair) -> Callable[[NDArray[np.int32]], NDArray[np.float64]]:
    def embedded(ids: NDArray[np.int32]) -> NDArray[np.float64]:
        with torch.inference_mode():
            given = diy_torch.inputs.prepare_input_ids(ids[:, None], pair.config, pair.device.torch)
            return to_numpy(pair.torch.model.embed_tokens(given))[:, 0]

    return embedded


def _flax_embedding(pair: Pair) -> Callable[[NDArray[np.int32]], NDArray[np.float64]]:
    trunk = {"embed_tokens": pair.params["model"]["embed_tokens"]}
    params = jax.device_put({"model": trunk}, pair.device.jax)

    def embed(model: Any, ids: Any) -> Any:
        return model.model.embed_tokens(diy_jax.inputs.prepare_input_ids(ids, model.config))

    run = jax.jit(lambda params, ids: pair.flax.apply({"params": params}, ids, method=embed))
    return lambda ids: np.asarray(run(params, ids[:, None]))[:, 0]


def _worst_row(
    name: str, dtype: str, device: str, parts: Iterator[Part], row: str, reach: str
) -> Check:
    """A line about the worst row of all parts; one of zeros is right where it is zeros as well.

    Raises:
        NothingProven: all of them are zeros in the reference.
    """
    what, twin = name.split()
    errors: list[NDArray[np.float64]] = []
    compared, whole = 0, TensorError(what, twin, 0.0, 0.0, -1.0, ())
    for found, truth in parts:
        sizes, apart = norms(truth), norms(found - truth)
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.where(apart == 0, 0.0, apart / sizes)
        start = sum(len(part) for part in errors)
        errors.append(np.where(np.isfinite(part), part, np.inf))
        if sizes.any():
            whole = _joined(whole, tensor_error(what, found, truth, twin), start)
        compared += truth.size
    if not whole.size:
        raise NothingProven("all rows are zero in the reference: nothing can be told from them")
    every = np.concatenate(errors)
    worst = int(every.argmax())
    value, bound = float(every[worst]), lines.ACTIVATION_BOUND
    return Check(
        name, dtype, device, compared, value, bound, value <= bound, f"{row} {worst}",
        tensors=(whole,), reach=reach,
    )  # fmt: skip


def _joined(whole: TensorError, part: TensorError, start: int) -> TensorError:
    """The error of the rows so far and of a further part."""
    row, column = part.index
    further = part.largest > whole.largest or not math.isfinite(part.largest)
    return TensorError(
        whole.name,
        whole.side,
        math.hypot(whole.difference, part.difference),
        math.hypot(whole.size, part.size),
        part.largest if further else whole.largest,
        (row + start, column) if further else whole.index,
    )
