"""Train both twins apart on one config, and print how far their curves and weights part.

python benchmarks/training_twins.py [--config examples/tiny.yaml] [--steps 100] [--dtype float64]

Beside it stands the control: the same twin once more, from weights of which a single one differs by
one unit in its last place. What the control does to a curve is what rounding alone may do to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from diy_core.checkpoints.hf.writer import write_hf_directory
from diy_core.checkpoints.training_run import checkpoint_path
from diy_core.config import DIYConfig
from diy_core.first_weights import first_weights
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.training_store import TrainingStore as TorchStore

ROOT = Path(__file__).parents[1]
STORES = {"diy_torch": TorchStore, "diy_jax": JaxStore}
NUDGED = "model.layers.0.self_attn.q_proj.weight"

State = dict[str, NDArray[Any]]
Trained = tuple[list[float], State]


def write_first_model(path: Path, values: dict[str, Any], nudge: bool) -> None:
    """The model that the config describes, with its first weights, one of them nudged."""
    config = DIYConfig.from_dict({"model_type": "llama"} | values["model"])
    dtype = np.float64 if values["dtype"] == "float64" else np.float32
    weights = {t.hf: array.astype(dtype) for t, array in first_weights(config, values["seed"])}
    if nudge:
        weights[NUDGED][0, 0] = np.nextafter(weights[NUDGED][0, 0], dtype(1))
    write_hf_directory(path, config, weights.items())


def train(package: str, model: Path, values: dict[str, Any], run: Path) -> Trained:
    """A run in a process of its own: the loss of each step, and the state after the last."""
    config = run.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(values | {"model": str(model), "run_dir": str(run)}))
    words = ["train", f"--config={config}", "--device=cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", package, *words], check=True, env=environment)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    path = checkpoint_path(run / "checkpoints", values["steps"])
    checkpoint = STORES[package].open(path, DIYConfig.from_pretrained(run / "model"))
    return [row["loss"] for row in rows], dict(checkpoint.read_all())


def compare(what: str, one: Trained, other: Trained) -> None:
    """A line: losses, and the worst tensor of weights and moments."""
    apart = np.abs(np.subtract(one[0], other[0]))
    print(
        f"{what}: losses at most {apart.max():.1e} apart (step {int(apart.argmax()) + 1})", end=""
    )
    for kind in ("model", "mean", "square"):
        distances = [
            np.linalg.norm(array - other[1][name]) / np.linalg.norm(array)
            for name, array in one[1].items()
            if name.startswith(f"{kind}/")
        ]
        print(f", {kind} {max(distances):.1e}", end="")
    print(" (relative L2, the worst tensor)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default=str(ROOT / "examples" / "tiny.yaml"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", default="float64")
    options = parser.parse_args()
    values = yaml.safe_load(Path(options.config).read_text())
    values |= {"steps": options.steps, "dtype": options.dtype}
    values["data"].setdefault("tokenizer", "bytes")
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        for nudge in (False, True):
            write_first_model(folder / f"model-{nudge}", values, nudge)
            for package in STORES:
                run = folder / f"{package}-{nudge}"
                found[package, nudge] = train(package, folder / f"model-{nudge}", values, run)
    losses = found["diy_torch", False][0]
    print(f"{len(losses)} steps in {options.dtype}, loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    compare("torch and JAX", found["diy_torch", False], found["diy_jax", False])
    for package in STORES:
        what = f"control, {package} and itself from weights one unit apart"
        compare(what, found[package, False], found[package, True])


if __name__ == "__main__":
    main()
