"""`loss.png`: the curves of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diy_core.checkpoints.atomic import atomic_file

_POINTS = 2000  # a line has no more than this; each is the mean of its stretch


def draw_losses(
    path: Path, losses: Sequence[tuple[int, float]], evaluations: Mapping[int, float]
) -> None:
    """Draw the loss of the steps and of the evaluations, in nats a token.

    Args:
        path: the PNG to write; one that is there is replaced at once.
        losses: (step, loss).
        evaluations: validation loss by step; infinite ones are left out.
    """
    from matplotlib.figure import Figure  # late: it takes a second

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if losses:
        points = np.array(losses)
        parts = np.array_split(points, min(len(points), _POINTS))
        means = np.array([part.mean(axis=0) for part in parts])
        axes.plot(means[:, 0], means[:, 1], linewidth=1, label="training")
    shown = [(step, loss) for step, loss in evaluations.items() if np.isfinite(loss)]
    if shown:
        axes.plot(*zip(*shown, strict=True), "o-", markersize=4, label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    if losses or shown:
        axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
