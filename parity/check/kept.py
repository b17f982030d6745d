"""The last logits of each row, `logits_to_keep`, in a call that says its lengths by a mask."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from numpy.typing import NDArray

from diy_torch.tensors import to_numpy
from parity.batch import Batch
from parity.check import lines
from parity.check.compare import Check
from parity.twins import Pair

KEPT = 3  # of each row


def checks(pair: Pair, batch: Batch, device: str) -> list[Check]:
    """The line of each twin, against the same tokens of a full forward of the PyTorch twin."""
    tokens, found = kept_tokens(batch), []
    truth = pair.full_logits(batch)[tokens]

    def place(index: int) -> str:
        return batch.place(int(tokens[index]))

    for twin, logits in kept_logits(pair, batch).items():
        line = f"kept {twin}", "float64", device
        more = line[0], place, logits, truth, device
        found.append(lines.provable(*line, lines.same_positions, *more))
    return [dataclasses.replace(check, reach=batch.reach) for check in found]


def kept_logits(pair: Pair, batch: Batch) -> dict[str, NDArray[np.float64]]:
    """What both twins give for the last tokens of each row, and begin a cache with: (B * n, V)."""
    mask = batch.valid.astype(np.int32)
    place = pair.device.torch
    with torch.inference_mode():
        logits, _ = pair.torch(
            torch.from_numpy(batch.ids).to(place),
            torch.from_numpy(mask).to(place),
            use_cache=True,
            logits_to_keep=KEPT,
        )
    params = jax.device_put(pair.params, pair.device.jax)
    other = np.asarray(_logits(pair.flax, params, batch.ids, mask), np.float64)
    return {
        "torch": to_numpy(logits).astype(np.float64).reshape(-1, logits.shape[-1]),
        "flax": other.reshape(-1, other.shape[-1]),
    }


def kept_tokens(batch: Batch) -> NDArray[np.intp]:
    """Which valid tokens these are, row by row; of a shorter row the first one again."""
    ends = np.cumsum(batch.lengths)
    within = np.maximum(batch.lengths[:, None] + np.arange(-KEPT, 0), 0)
    return ((ends - batch.lengths)[:, None] + within).ravel()


@partial(jax.jit, static_argnames="model")
def _logits(model: Any, params: Any, ids: Any, mask: Any) -> Any:
    more = {"use_cache": True, "logits_to_keep": KEPT}
    return model.apply({"params": params}, ids, mask, **more)[0]
