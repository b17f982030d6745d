"""Random healthy models by the hundred: the tracer finds nothing in any of them.

python -m tests.torture healthy --trials 200 --seed 0
"""

from __future__ import annotations

from pathlib import Path

import hypothesis
from hypothesis import strategies as st

from diy_core.config import DIYConfig
from parity.random_models import SCALES
from tests.parity.healthy_models import configs, trace_healthy
from tests.torture.common import Figures


def run(trials: int, seed: int, folder: Path) -> list[Figures]:
    """Trace so many models at each scale of weights, one half of them with inferred rules.

    Raises:
        AssertionError: a false alarm; it names the model.
    """
    return [_run(trials, seed, scale) for scale in SCALES]


def _run(trials: int, seed: int, scale: str) -> Figures:
    figures = Figures(f"healthy models, {scale}")

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=trials, deadline=None, database=None)
    @hypothesis.given(config=configs(), draw=st.integers(0, 9999), own=st.booleans())
    def trace(config: DIYConfig, draw: int, own: bool) -> None:
        trace_healthy(config, scale, draw, own)
        figures.outcomes["no divergence, " + ("own" if own else "inferred") + " rules"] += 1

    trace()
    return figures
