"""Train both twins apart on one config, and print how far their curves and weights part.

python benchmarks/training_twins.py [--config examples/tiny.yaml] [--steps 100] [--dtype float64]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


def train(package: str, run: Path, options: argparse.Namespace) -> float:
    """Seconds of a run in a process of its own."""
    words = ["train", f"--config={options.config}", f"--run_dir={run}", "--device=cpu"]
    words += [f"--steps={options.steps}", f"--dtype={options.dtype}"]
    begun = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", package, *words], check=True, env=environment)
    return time.monotonic() - begun


def losses(run: Path) -> np.ndarray[Any, Any]:
    rows = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return np.array([row["loss"] for row in rows if "loss" in row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(ROOT / "examples" / "tiny.yaml"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", default="float64")
    options = parser.parse_args()
    from diy_core.config import DIYConfig
    from diy_core.training.run_directory import checkpoint_path
    from diy_jax.training_store import TrainingStore as JaxStore
    from diy_torch.training_store import TrainingStore as TorchStore

    with tempfile.TemporaryDirectory() as folder:
        states, curves = [], []
        for package, store in (("diy_torch", TorchStore), ("diy_jax", JaxStore)):
            run = Path(folder) / package
            print(f"{package}: {train(package, run, options):.1f} s", flush=True)
            config = DIYConfig.from_pretrained(run / "model")
            path = checkpoint_path(run / "checkpoints", options.steps)
            states.append(dict(store.open(path, config).read_all()))
            curves.append(losses(run))
    apart = np.abs(curves[0] - curves[1])
    print(f"losses: {len(apart)} steps, at most {apart.max():.2e} apart ", end="")
    print(f"(relative {(apart / curves[0]).max():.2e}), last {curves[0][-1]!r}")
    for kind in ("model", "mean", "square"):
        found = {
            name: np.linalg.norm(one - states[1][name]) / np.linalg.norm(one)
            for name, one in states[0].items()
            if name.startswith(f"{kind}/")
        }
        print(f"{kind}: relative L2 at most {max(found.values()):.2e}, {max(found, key=found.get)}")


if __name__ == "__main__":
    main()
