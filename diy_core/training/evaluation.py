"""The loss on the validation data."""

from __future__ import annotations

import math
from typing import Any

from diy_core.training.config import TrainConfig
from diy_core.training.protocols import Pieces
from diy_core.training.signals import Interruption

_ANSWER = "leaving this evaluation, which is made up for when the run goes on"


def is_evaluation_due(config: TrainConfig, step: int) -> bool:
    """Every `eval_every` steps, and behind the last one."""
    return config.eval_every > 0 and (step % config.eval_every == 0 or step == config.steps)


def evaluate(pieces: Pieces, interruption: Interruption) -> tuple[float, int] | None:
    """The mean loss and the number of tokens; None: a signal arrived before the end.

    Args:
        pieces: with validation data.
        interruption: entered.
    """
    assert pieces.validation is not None
    total, tokens = 0.0, 0
    with interruption.answering(_ANSWER):
        for batch in pieces.validation():
            if interruption.received:
                return None
            loss, counted = pieces.trainer.evaluate(batch)
            total += float(loss)
            tokens += int(counted)
    return total / tokens if tokens else math.nan, tokens


def evaluation_line(row: dict[str, Any]) -> str:
    """A line about an evaluation, from its line of `evaluations.jsonl`."""
    loss, perplexity = (
        "not finite" if row[name] is None else f"{row[name]:.4f}" for name in ("loss", "perplexity")
    )
    return f"step {row['step']}: validation loss {loss}, perplexity {perplexity}"
