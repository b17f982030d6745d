"""Positions far out: which, of which layers, and that it is the model itself that is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from parity.check import long_context
from parity.check.long_context import Far, far_logits
from parity.check.measures import relative_l2
from parity.environment import Device, exact
from parity.random_models import write_random_model
from parity.twins import Pair
from tests.oracles import tiny

CONFIG = tiny(max_position_embeddings=600, num_hidden_layers=3)


@pytest.mark.parametrize(
    ("limit", "starts"),
    [
        (2048, (256, 512, 1024, 2044)),
        (600, (256, 512, 596)),
        (256, (252,)),
        (5, (1,)),
        (2, (0,)),
    ],
)
def test_positions_double_up_to_the_last(limit: int, starts: tuple[int, ...]) -> None:
    far = Far.make(dataclasses.replace(CONFIG, max_position_embeddings=limit), 0)
    assert far.starts == starts
    last = far.starts[-1] + far.ids.shape[1] - 1
    assert last == limit - 1
    assert far.place(far.ids.size - 1) == f"position {last}"
    assert far.place(0) == f"position {starts[0]}"
    assert far.reach == f"1 row, {far.ids.size} of 0-{last}, 3 layers"


def test_as_many_layers_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = 2 * 8 * 600 * CONFIG.kv_heads * CONFIG.head_size
    for room, layers in ((0, 1), (2 * layer, 2), (99 * layer, 3)):
        monkeypatch.setattr(long_context, "_ROOM", room)
        assert Far.make(CONFIG, 0).layers == layers


@pytest.mark.parametrize("layers", [1, 3])
def test_it_is_what_the_model_says_after_such_a_cache(
    layers: int, tmp_path: Path, device: Device
) -> None:
    write_random_model(tmp_path / "model", CONFIG, "fan-in")
    far = dataclasses.replace(Far.make(CONFIG, 0), layers=layers)
    with exact(device):
        pair = Pair(tmp_path / "model", "float64", device)
        found = far_logits(pair, far)
        assert len(pair.torch.model.layers) == pair.torch.config.num_hidden_layers == 3
        assert relative_l2(found["flax"], found["torch"]) <= 1e-12
        drawn = [
            {n: torch.from_numpy(a).to(device.torch) for n, a in long_context.draw(CONFIG, far, i)}
            for i in range(3)
        ]
        past = [(cached, torch.tensor([far.starts[0]])) for cached in drawn]
        ids = torch.from_numpy(far.ids[:1]).to(device.torch)
        with torch.no_grad():
            whole, _ = pair.torch(ids, past_key_values=past, use_cache=True)
    same = relative_l2(found["torch"][:4], whole[0].cpu().numpy()) <= 1e-12
    assert same == (layers == 3)
