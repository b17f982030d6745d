"""A trainer of numpy alone, for the tests of the loop; as a script, its `train` command.

The config's `model` says how it behaves: `size`; `nan_at`, steps (from 0) that are not finite;
`empty_at`, steps whose batch has no label; `step_seconds`; `save_seconds`, how long a checkpoint
takes, in the background if `background`.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diy_core.checkpoints.atomic import atomic_directory
from diy_core.checkpoints.training_run import checkpoint_path
from diy_core.errors import CheckpointError
from diy_core.training.checkpoints.files import whole_checkpoints
from diy_core.training.checkpoints.store import drop_remains
from diy_core.training.command import run
from diy_core.training.config import DataConfig, OptimizerConfig, TrainConfig
from diy_core.training.protocols import Batch, Pieces
from diy_core.training.run.directory import RunDirectory
from diy_core.training.start.begin import train_config

# The command line refuses a model that cannot be built. Here only the last entry counts.
MODEL: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "size": 8,
}


class Result(NamedTuple):
    loss: Any
    grad_norm: Any
    tokens: Any
    skipped: Any


class FakeTrainer:
    """Momentum towards the mean token of a batch: every step depends on all before."""

    flops_per_token = 1000.0
    matmul_peak = 1e9
    compiles = False

    def __init__(self, config: TrainConfig) -> None:
        assert isinstance(config.model, dict)
        self.options: dict[str, Any] = config.model
        rng = np.random.default_rng(config.seed)
        self.weights = rng.standard_normal(self.options["size"]).astype(np.float32)
        self.mean = np.zeros_like(self.weights)
        self.rates: list[float] = []
        self.saved_weights: dict[int, bytes] = {}

    def train_step(self, batch: Batch, learning_rate: float, step: int) -> Result:
        time.sleep(self.options.get("step_seconds", 0.0))
        self.rates.append(learning_rate)
        tokens = np.int32((batch["labels"] != -100).sum())
        gradient = self.weights - np.float32(batch["input_ids"].mean())
        loss, norm = np.float32((gradient**2).mean()), np.float32(np.linalg.norm(gradient))
        if step in self.options.get("empty_at", ()):
            return Result(np.float32(np.nan), np.float32(0), np.int32(0), np.bool_(True))
        if step in self.options.get("nan_at", ()):
            return Result(np.float32(np.nan), np.float32(np.inf), tokens, np.bool_(True))
        self.mean = np.float32(0.9) * self.mean + gradient
        self.weights = self.weights - np.float32(learning_rate) * self.mean
        return Result(loss, norm, tokens, np.bool_(False))

    def evaluate(self, batch: Batch) -> tuple[np.float32, np.int32]:
        tokens = np.int32((batch["labels"] != -100).sum())
        distance = (self.weights - np.float32(batch["input_ids"].mean())) ** 2
        return np.float32(distance.mean()) * np.float32(tokens), tokens

    def memory(self) -> int | None:
        return None


class FakeStore:
    """Two arrays and a JSON file; in the background with a copy of the state."""

    def __init__(self, trainer: FakeTrainer, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self.deleted: list[int] = []
        drop_remains(folder)

    def save(self, step: int, extra: Mapping[str, Any]) -> None:
        self.wait()
        arrays = {"weights": self._trainer.weights.copy(), "mean": self._trainer.mean.copy()}
        self._thread = threading.Thread(target=self._write, args=(step, arrays, dict(extra)))
        self._thread.start()
        if not self._trainer.options.get("background", False):
            self.wait()

    def _write(self, step: int, arrays: dict[str, Any], extra: dict[str, Any]) -> None:
        try:
            with atomic_directory(checkpoint_path(self._folder, step)) as path:
                for name, array in arrays.items():
                    np.save(path / f"{name}.npy", array)
                    time.sleep(self._trainer.options.get("save_seconds", 0.0))
                (path / "extra.json").write_text(json.dumps(extra, sort_keys=True))
        except OSError as error:
            self._error = error

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def steps(self) -> list[int]:
        return whole_checkpoints(self._folder)

    def restore(self, step: int) -> dict[str, Any]:
        path = checkpoint_path(self._folder, step)
        self._trainer.weights, self._trainer.mean, extra = _read(path)
        return extra

    @staticmethod
    def verify(path: Path, model: Path) -> None:
        _read(path)

    def delete(self, step: int) -> None:
        self.deleted.append(step)
        shutil.rmtree(checkpoint_path(self._folder, step))

    def nbytes(self) -> int:
        return 8 * self._trainer.options["size"]


def _read(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    try:
        extra = json.loads((path / "extra.json").read_text())
        return np.load(path / "weights.npy"), np.load(path / "mean.npy"), extra
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(path, f"is damaged: {error}") from error


class FakeData:
    """Random tokens; `limit` ends them."""

    def __init__(self, config: TrainConfig, seed: int, limit: int | None = None) -> None:
        passes = config.accumulation_steps
        self._shape = (passes, config.batch_size // passes, config.sequence_length)
        self._seed, self._next, self._limit = seed, 0, limit

    def __next__(self) -> Batch:
        if self._next == self._limit:
            raise StopIteration
        rng = np.random.default_rng([self._seed, self._next])
        self._next += 1
        ids = rng.integers(0, 9, self._shape).astype(np.int32)
        labels = np.where(rng.random(self._shape) < 0.2, -100, ids).astype(np.int32)
        return {"input_ids": ids, "labels": labels, "segment_ids": np.ones_like(ids)}

    def state(self) -> Any:
        return {"next": self._next}

    def restore(self, state: Any) -> None:
        self._next = state["next"]


def validation_of(config: TrainConfig) -> Iterable[Batch]:
    """Two batches, always the same."""
    data = FakeData(config, seed=12345)
    return [next(data), next(data)]


def assemble(config: TrainConfig, directory: RunDirectory, device: str | None) -> Pieces:
    """What a twin gives to the command."""
    assert isinstance(config.model, dict)
    trainer = FakeTrainer(config)
    return Pieces(
        trainer=trainer,
        store=FakeStore(trainer, directory.checkpoints),
        data=FakeData(config, config.seed, config.model.get("batches")),
        validation=lambda: validation_of(config),
    )


class Runner:
    """Runs configs in one directory and keeps the pieces of the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pieces: Pieces | None = None

    def config(self, **changes: Any) -> TrainConfig:
        model = MODEL | changes.pop("model", {})
        values: dict[str, Any] = {
            "run_dir": str(self.path),
            "model": model,
            "data": DataConfig(train="builtin:pydoc"),
            "steps": 12,
            "batch_size": 4,
            "sequence_length": 8,
            "accumulation_steps": 2,
            "checkpoint_every": 5,
            "log_every": 3,
            "optimizer": OptimizerConfig(learning_rate=0.01, warmup_steps=3),
        }
        return TrainConfig(**(values | changes))

    def __call__(self, *, resume: bool = False, **changes: Any) -> int:
        def keep(*arguments: Any) -> Pieces:
            self.pieces = assemble(*arguments)
            return self.pieces

        return train_config(
            self.config(**changes), keep, FakeStore.verify, program="diy train", resume=resume
        )

    @property
    def trainer(self) -> FakeTrainer:
        assert self.pieces is not None
        assert isinstance(self.pieces.trainer, FakeTrainer)
        return self.pieces.trainer

    @property
    def metrics(self) -> bytes:
        return (self.path / "metrics.jsonl").read_bytes()

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluations.jsonl."""
        lines = (self.path / "evaluations.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.metrics.splitlines()]

    @property
    def checkpoints(self) -> list[int]:
        return whole_checkpoints(self.path / "checkpoints")


if __name__ == "__main__":
    sys.exit(run("fake train", sys.argv[1:], assemble, FakeStore.verify))
