"""`loss.png`: the curves of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from diy_core.checkpoints.atomic import atomic_file
from diy_core.errors import CheckpointError
from diy_core.system.disk import DiskFull, described, naming_full_disks
from diy_core.training.log.metrics import Metrics

_POINTS = 2000  # a line has no more than this; each is the mean of its stretch


class Plot:
    """The file with the curves of a run.

    Args:
        path: of the PNG.
        metrics: of the run; they grow.
        report: is told where they could not be drawn, which ends nothing.
    """

    def __init__(self, path: Path, metrics: Metrics, report: Callable[[str], None]) -> None:
        self._path, self._metrics, self._report = path, metrics, report
        self._drawn = time.monotonic()

    def draw(self, pause: float = 0.0) -> None:
        """Draw the curves, unless that was done less than so many seconds ago."""
        if time.monotonic() - self._drawn < pause:
            return
        try:
            with naming_full_disks(self._path):
                draw_losses(self._path, self._metrics.losses, self._metrics.evaluations)
        except DiskFull as error:
            self._report(f"{self._path} was not drawn: {error.strerror}")
        except (OSError, CheckpointError) as error:
            why = described(error) if isinstance(error, OSError) else str(error)
            self._report(f"{self._path} was not drawn: {why}")
        self._drawn = time.monotonic()


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
