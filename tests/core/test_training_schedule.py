"""The schedule against transformers' own."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from diy_core.training.config import OptimizerConfig
from diy_core.training.schedule import learning_rate


def transformers_rates(name: str, warmup: int, steps: int) -> list[float]:
    """The peak is 1; transformers' warmup begins at 0, ours at the first of its steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    make = {
        "cosine": transformers.get_cosine_schedule_with_warmup,
        "linear": transformers.get_linear_schedule_with_warmup,
    }[name]
    schedule = make(optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    return [schedule.lr_lambdas[0](step) for step in range(steps + 1)]


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_schedule_is_that_of_transformers(name: str, warmup: int) -> None:
    config = OptimizerConfig(
        learning_rate=1.0, schedule=name, warmup_steps=warmup, final_learning_rate=0.0
    )
    ours = [learning_rate(config, step, 40) for step in range(41)]
    theirs = transformers_rates(name, warmup, 40)
    assert ours[warmup:] == pytest.approx(theirs[warmup:], rel=1e-14, abs=1e-15)
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1], rel=1e-14)


def test_the_first_step_of_the_warmup_has_its_share_of_the_peak() -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=4)
    assert [learning_rate(config, step, 10) for step in range(4)] == [0.125, 0.25, 0.375, 0.5]
    assert learning_rate(config, 4, 10) == 0.5


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_end_is_the_given_share_of_the_peak(name: str) -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule=name, final_learning_rate=0.25)
    assert learning_rate(config, 100, 100) == pytest.approx(0.5, rel=1e-15)
    middle = learning_rate(config, 50, 100)
    assert middle == pytest.approx(2.0 * (0.25 + 1) / 2, rel=1e-15)


def test_constant_stays_at_the_peak_and_all_warmup_ends_there() -> None:
    constant = OptimizerConfig(learning_rate=3e-4, schedule="constant", warmup_steps=2)
    assert {learning_rate(constant, step, 9) for step in range(2, 9)} == {3e-4}
    warmup = OptimizerConfig(learning_rate=1.0, warmup_steps=5, final_learning_rate=0.1)
    assert learning_rate(warmup, 4, 5) == 1.0
    assert math.isclose(learning_rate(warmup, 5, 5), 0.1)
