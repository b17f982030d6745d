"""Small runs of both twins in float64, for their own tests and for those between them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.training_run import FORMS, checkpoint_path
from diy_core.config import DIYConfig
from diy_core.training.checkpoints.files import whole_checkpoints
from diy_core.training.checkpoints.store import CheckpointStore
from diy_core.training.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig
from diy_core.training.start.begin import Assemble, train_config

ROOT = Path(__file__).parents[1]
STEPS = 20
_COMPILED = tempfile.TemporaryDirectory(prefix="jax-processes-")
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # A process that goes on from another need not compile what that one did.
    _ENVIRONMENT["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    _ENVIRONMENT["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
TEXT = "the cat sat on a mat and the dog saw it from afar while rain fell over quiet hills"


def write_text(path: Path, seed: int = 0) -> Path:
    """Sixty documents of 1 to 30 words, with an empty line between them."""
    rng = random.Random(seed)
    documents = (" ".join(rng.choices(TEXT.split(), k=rng.randint(1, 30))) for _ in range(60))
    path.write_text("\n\n".join(documents))
    return path


def run_config(run: Path, text: Path, **changes: Any) -> TrainConfig:
    """Accumulation, packing, dropout, clipping, decay, a z-loss, warmup: all at once."""
    model = {
        "vocab_size": 257,
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "attention_dropout": 0.1,
        "residual_dropout": 0.1,
    }
    values: dict[str, Any] = {
        "run_dir": str(run),
        "model": model | changes.pop("model", {}),
        "data": DataConfig(train=str(text), validation=0.1, tokenizer="bytes", separator="\n\n"),
        "steps": STEPS,
        "seed": 3,
        "dtype": "float64",
        "batch_size": 4,
        "sequence_length": 24,
        "accumulation_steps": 2,
        "checkpoint_every": 6,
        "keep_every": 6,
        "eval_every": 8,
        "keep_last": 2,
        "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=5, clip_norm=0.5),
        "loss": LossConfig(z_loss=1e-4, chunk_tokens=30),
    }
    return TrainConfig(**(values | changes))


Precision = Callable[[str], contextlib.AbstractContextManager[Any]]


class Runs:
    """Runs of one twin in one directory.

    Args:
        assemble: the twin's.
        store: the twin's.
        folder: for the text and the runs.
        device: as on the command line.
        precision: a context in which the framework has this dtype, as the command line sets it.
    """

    def __init__(
        self,
        assemble: Assemble,
        store: type[CheckpointStore],
        folder: Path,
        device: str = "cpu",
        precision: Precision = lambda dtype: contextlib.nullcontext(),
    ) -> None:
        self.precision = precision
        self.assemble, self.store, self.folder, self.device = assemble, store, folder, device
        self.text = folder / "text.txt"
        if not self.text.exists():
            write_text(self.text)

    def config(self, name: str, **changes: Any) -> TrainConfig:
        return run_config(self.folder / name, self.text, **changes)

    def train(self, name: str, *, resume: bool = False, **changes: Any) -> int:
        return self.train_config(self.config(name, **changes), resume=resume)

    def train_config(self, config: TrainConfig, *, resume: bool = False) -> int:
        with self.precision(config.dtype):
            return train_config(
                config,
                self.assemble,
                self.store.verify,
                program=f"{FORMS[self.store.form]} train",
                resume=resume,
                device=self.device,
            )

    def steps(self, name: str) -> list[int]:
        return whole_checkpoints(self.folder / name / "checkpoints")

    def path(self, name: str, step: int = STEPS) -> Path:
        return checkpoint_path(self.folder / name / "checkpoints", step)

    def state(self, name: str, step: int = STEPS) -> dict[str, NDArray[Any]]:
        config = DIYConfig.from_pretrained(self.folder / name / "model")
        return dict(self.store.open(self.path(name, step), config).read_all())

    def position(self, name: str, step: int = STEPS) -> dict[str, Any]:
        config = DIYConfig.from_pretrained(self.folder / name / "model")
        return self.store.open(self.path(name, step), config).position


def rows(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The lines of `evaluations.jsonl`."""
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_bytes().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


def same_bits(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
    assert set(one) == set(other)
    assert one
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def distance(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> float:
    """The largest relative L2 distance of two arrays of one name."""
    assert set(one) == set(other)
    return max(float(np.linalg.norm(one[n] - other[n]) / np.linalg.norm(one[n])) for n in one)


def arguments(config: TrainConfig) -> list[str]:
    """A config as a file, and the command line that reads it."""
    import yaml

    from diy_core.training.config import as_dict

    file = Path(config.run_dir).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(as_dict(config)))
    return ["train", "--config", str(file), "--device=cpu"]


def start(package: str, words: list[str]) -> subprocess.Popen[str]:
    """A process of `diy_torch` or `diy_jax`, which takes no signals from the tests'."""
    return subprocess.Popen(
        [sys.executable, "-m", package, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | _ENVIRONMENT,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """Return when the run has written this step; it must not end before."""
    while True:
        lines = metrics.read_bytes().splitlines() if metrics.exists() else []
        if lines and lines[-1].endswith(b"}") and json.loads(lines[-1])["step"] >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
