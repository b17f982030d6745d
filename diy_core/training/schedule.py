"""The learning rate of every step, computed on the host: both twins use the same bits."""

from __future__ import annotations

import math

from diy_core.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step, in float64.

    It rises linearly, step 0 taking peak / warmup_steps and step warmup_steps - 1 the whole peak.
    With p the share of the steps after the warmup that are done, 0 to 1, it then falls from the
    peak to peak * final as

        cosine    final + (1 - final) * (1 + cos(pi * p)) / 2     (SGDR without restarts,
                                                       https://arxiv.org/abs/1608.03983, eq. 5)
        linear    1 - (1 - final) * p
        constant  1

    Args:
        config: the optimizer's.
        step: counted from 0.
        steps: of the whole run; p would be 1 at this one, the first that is no longer taken.
    """
    if step < config.warmup_steps:
        return config.learning_rate * ((step + 1) / config.warmup_steps)
    after = steps - config.warmup_steps
    share = min(1.0, (step - config.warmup_steps) / after) if after else 1.0
    final = config.final_learning_rate
    if config.schedule == "cosine":
        factor = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
    elif config.schedule == "linear":
        factor = 1 - (1 - final) * share
    else:
        factor = 1.0
    return config.learning_rate * factor
