"""Training runs of both twins, killed at random moments, and switched to and fro.

python -m tests.torture runs --trials 20 --seed 0
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from diy_core.checkpoints.training_run import checkpoint_path
from diy_core.config import DIYConfig
from diy_core.training.checkpoints.files import whole_checkpoints
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.training_store import TrainingStore as TorchStore
from parity.convert.switch import switch
from tests.torture.common import ROOT, Figures

PACKAGES = ("diy_torch", "diy_jax")
STORES = {"diy_torch": TorchStore, "diy_jax": JaxStore}
STEPS = 100
_WORDS = ("--resume=auto", "--device=cpu")
_DTYPES = ("float32", "float64")
_REST = 15  # last steps, in which a run could be over before it is killed
_BOUND = 1e-9  # relative L2 of weights and moments after switches, float64

State = dict[str, NDArray[Any]]


def run(trials: int, seed: int, folder: Path, steps: int = STEPS) -> list[Figures]:
    """Kill a run of each twin so often, and switch one half as often.

    Raises:
        AssertionError: what came out differs from the run that was left alone.
    """
    with tempfile.TemporaryDirectory(prefix="compiled-") as compiled:
        runs = {dtype: _Runs(folder / dtype, dtype, steps, compiled) for dtype in _DTYPES}
        killed = [_kill(runs["float32"], package, trials, seed) for package in PACKAGES]
        return [*killed, _switch(runs["float64"], max(1, trials // 2), seed)]


class _Runs:
    """Runs of `examples/tiny.yaml` in one dtype; `whole` of each twin is left alone."""

    def __init__(self, folder: Path, dtype: str, steps: int, compiled: str) -> None:
        self.folder, self.steps, self._compiled = folder, steps, compiled
        folder.mkdir()
        values = yaml.safe_load((ROOT / "examples" / "tiny.yaml").read_text())
        values |= {"steps": steps, "dtype": dtype, "checkpoint_every": 3, "eval_every": 10}
        values["optimizer"]["warmup_steps"] = min(10, steps)
        self._values = values

    def start(self, package: str, name: str, **changes: Any) -> subprocess.Popen[str]:
        """A process that begins this run or goes on with it."""
        run = self.folder / name
        config = run.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(self._values | {"run_dir": str(run)} | changes))
        environment = {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            # What the first process compiled the others need not.
            "JAX_COMPILATION_CACHE_DIR": self._compiled,
        }
        return subprocess.Popen(
            [sys.executable, "-m", package, "train", "--config", str(config), *_WORDS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            start_new_session=True,
        )

    def finish(self, package: str, name: str, **changes: Any) -> float:
        """Seconds that a run takes from here to its end."""
        begun = time.monotonic()
        process = self.start(package, name, **changes)
        _, said = process.communicate()
        assert process.returncode == 0, said
        return time.monotonic() - begun

    def step(self, name: str) -> int:
        """The last step that is in the metrics."""
        file = self.folder / name / "metrics.jsonl"
        lines = file.read_bytes().splitlines() if file.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines and lines[-1][-1:] == b"}" else 0

    def state(self, package: str, name: str) -> State:
        config = DIYConfig.from_pretrained(self.folder / name / "model")
        path = checkpoint_path(self.folder / name / "checkpoints", self.steps)
        return dict(STORES[package].open(path, config).read_all())

    def bytes_of(self, name: str) -> dict[str, bytes]:
        """What must not depend on how often a run was killed, but for the arrays."""
        run = self.folder / name
        kept = whole_checkpoints(run / "checkpoints")
        files = [checkpoint_path(run / "checkpoints", step) / "position.json" for step in kept]
        files += [run / "metrics.jsonl", run / "evaluations.jsonl"]
        return {str(file.relative_to(run)): file.read_bytes() for file in files}


def _kill(runs: _Runs, package: str, trials: int, seed: int) -> Figures:
    """So many kills on the way through one run; one in three of them while a process starts."""
    figures = Figures(f"kill -9, training, {package}")
    whole, name = f"{package}-whole", f"{package}-killed"
    begun = time.monotonic()
    process = runs.start(package, whole)
    while runs.step(whole) == 0 and process.poll() is None:
        time.sleep(0.001)
    starting, _ = time.monotonic() - begun, process.communicate()
    assert process.returncode == 0
    pace = (time.monotonic() - begun - starting) / runs.steps
    rng, steps = random.Random(f"{seed} {package}"), []
    for trial in range(trials):
        now, begun = runs.step(name), time.monotonic()
        # Never so far that the steps that are left would not do for the kills that are left.
        target = now + rng.randint(1, max(1, (runs.steps - _REST - now) // (trials - trial)))
        moment = rng.uniform(0, starting) if trial % 3 == 0 else None
        process = runs.start(package, name)
        while process.poll() is None:
            if runs.step(name) >= target or (moment and time.monotonic() - begun > moment):
                break
            time.sleep(0.001)
        if moment is None:
            time.sleep(rng.uniform(0, pace))
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -9, f"trial {trial}: over before it was killed: {said}"
        steps.append(runs.step(name))
        figures.outcomes["killed while it started" if moment else "killed at work"] += 1
    runs.finish(package, name)
    one, other = runs.state(package, whole), runs.state(package, name)
    assert set(one) == set(other)
    assert all(one[n].tobytes() == other[n].tobytes() for n in one), "weights or moments differ"
    assert runs.bytes_of(whole) == runs.bytes_of(name), "metrics or positions differ"
    remains = [p.name for p in (runs.folder / name / "checkpoints").iterdir()]
    assert all(item.isdecimal() for item in remains), f"remains: {remains}"
    figures.note = (
        f"{runs.steps} steps, {len(one)} arrays, positions and metrics equal to the bit; killed "
        f"at steps {', '.join(map(str, steps))}"
    )
    return figures


def _switch(runs: _Runs, switches: int, seed: int) -> Figures:
    """A run that changes the framework again and again, against each twin's run alone."""
    figures, rng = Figures("switched, float64"), random.Random(f"{seed} switch")
    for package in PACKAGES:
        runs.finish(package, f"{package}-whole")
    stops = sorted(rng.sample(range(1, runs.steps), switches))
    first, name = rng.randrange(2), "switched-0"
    for index, stop in enumerate([*stops, None]):
        package = PACKAGES[(first + index) % 2]
        runs.finish(package, name, stop_at=stop)
        if stop is not None:
            new = f"switched-{index + 1}"
            switch(runs.folder / name, runs.folder / new)
            figures.outcomes[f"from {package}"] += 1
            name = new
    state, notes = runs.state(package, name), []
    for other in PACKAGES:
        alone, losses = runs.state(other, f"{other}-whole"), []
        worst = max(
            float(np.linalg.norm(alone[n] - state[n]) / np.linalg.norm(alone[n])) for n in alone
        )
        assert worst <= _BOUND, f"{worst:.1e} from {other} alone"
        losses = [_losses(runs.folder / run) for run in (f"{other}-whole", name)]
        assert len(losses[0]) == len(losses[1]) == runs.steps
        apart = float(np.abs(np.subtract(*losses)).max())
        notes.append(f"{worst:.1e} from {other} alone (losses {apart:.1e})")
    figures.note = f"at steps {', '.join(map(str, stops))}: " + ", ".join(notes)
    return figures


def _losses(run: Path) -> Sequence[float]:
    rows = (json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines())
    return [row["loss"] for row in rows]
