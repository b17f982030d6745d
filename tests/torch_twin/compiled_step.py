"""Three steps with and without `torch.compile`, and how many graphs it made, as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from torch._dynamo.utils import counters

from diy_core.mapping import tensors
from diy_torch.optimizer import build_optimizer
from diy_torch.step import build_step
from tests.oracles import CONFIGS
from tests.torch_twin.build import build
from tests.training_oracles import random_batch, train_config


def three_steps(compiled: bool) -> dict[str, Any]:
    config = train_config(compile=compiled)
    model = build(dataclasses.replace(CONFIGS["gqa"], num_hidden_layers=2), torch.float64)
    step = build_step(model, build_optimizer(model, config.optimizer), config)
    losses = [float(step(random_batch(23, n), 1e-2, n, 3).loss) for n in range(3)]
    named = dict(model.named_parameters())
    return {
        "loss": losses,
        "parameters": {t.hf: named[t.torch].tolist() for t in tensors(model.config)},
    }


if __name__ == "__main__":
    found: dict[str, Any] = {"eager": three_steps(False)}
    assert not counters["stats"], "something was compiled unasked"
    found |= {"compiled": three_steps(True), "graphs": counters["stats"]["unique_graphs"]}
    print(json.dumps(found))
