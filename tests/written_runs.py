"""Runs that nobody trained: checkpoints as the twins' stores write them, and logs beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.training_run import checkpoint_path
from diy_core.config import DIYConfig
from diy_core.training.checkpoints.store import CheckpointStore
from diy_core.training.config import as_dict
from diy_core.training.state import Position, state_shapes
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.training_store import TrainingStore as TorchStore
from tests.training_runs import run_config

State = dict[str, NDArray[Any]]
STORES: dict[str, type[CheckpointStore]] = {"torch": TorchStore, "jax": JaxStore}
CONFIG = DIYConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def state(seed: int = 0, config: DIYConfig = CONFIG) -> State:
    """Weights and both moments."""
    rng = np.random.default_rng(seed)
    shapes = state_shapes(config).items()
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes}


def moved(arrays: State, name: str, by: float = 1e-3) -> State:
    """A state of which one array is another, by about so much."""
    return arrays | {name: (arrays[name] * np.float32(1 + by)).astype(np.float32)}


def line(step: int, loss: float | None = 2.0, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    values = {"step": step, "loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens": 100}
    return values | {"total_tokens": 100 * step, "skipped": False} | changes


def write_run(
    run: Path,
    twin: str,
    states: Mapping[int, State],
    lines: Sequence[Mapping[str, Any]] = (),
    config: DIYConfig = CONFIG,
    **changes: Any,
) -> Path:
    """A run with a checkpoint for each step; the changes are of its config."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text(json.dumps(config.to_dict()))
    values = as_dict(run_config(run, Path("text.txt"), dtype="float32", **changes))
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    for step, arrays in states.items():
        add_checkpoint(run, twin, step, arrays)
    return run


def add_checkpoint(run: Path, twin: str, step: int, arrays: State, **changes: Any) -> Path:
    """One more; the changes are of its position."""
    layout = {name: Stored(array.shape, array.dtype) for name, array in arrays.items()}
    values = {"seed": 3, "step": step, "tokens": 100 * step, "data": {"next_index": step}}
    path = checkpoint_path(run / "checkpoints", step)
    STORES[twin].write(path, layout, [arrays], Position(**(values | changes)).to_json())
    return path


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a folder: mode and time of its last change, and its bytes."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.stat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found
