"""The check without a model: every small random model, several at a time."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from parity.check.identity import Proven, identify
from parity.check.model import Plan, check_model
from parity.environment import DeviceChoice, choose_device
from parity.random_models import SCALES, small_configs, write_random_model

_PROCESSES = 4  # at most: each takes 1.5 GB


def check_small_models(
    device: DeviceChoice,
    dtypes: Sequence[str],
    plan: Plan,
    *,
    names: Sequence[str] | None = None,
    processes: int | None = None,
) -> Iterator[Proven]:
    """Check configs of `small_configs` at both weight scales, in their order.

    Nearly all of the time goes into compiling, which one process does on one core.

    Args:
        device: as in `choose_device`.
        dtypes: as in `check_model`.
        plan: for each of them.
        names: of the configs; None: all.
        processes: how many configs at a time; None: one on a GPU, else one for each core, up to 4.

    Raises:
        ValueError: as `check_model` does.
    """
    names = list(small_configs()) if names is None else names
    if processes is None:
        on_gpu = choose_device(device).name == "gpu"
        processes = 1 if on_gpu else min(_PROCESSES, os.cpu_count() or 1)
    check = functools.partial(_check_config, device=device, dtypes=tuple(dtypes), plan=plan)
    if processes == 1:
        for name in names:
            yield from check(name)
        return
    # New processes and not copies of this one, whose threads a copy would not have.
    with multiprocessing.get_context("spawn").Pool(processes, _leave_interrupts) as pool:
        for found in pool.imap(check, names):
            yield from found


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that started this one, and will end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_config(
    name: str, *, device: DeviceChoice, dtypes: Sequence[str], plan: Plan
) -> list[Proven]:
    """Both scales of one config: what is compiled for the first serves the second."""
    torch.set_num_threads(1)  # on tiny tensors threads only wait for each other
    found = []
    for scale in SCALES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            write_random_model(path, small_configs()[name], scale)
            result = check_model(path, choose_device(device), dtypes, plan)
            found.append(Proven(f"{name}/{scale}", identify(path), plan, result))
    return found
