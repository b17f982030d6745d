"""What the torture runs share: a pair of models to tell apart, exact content, and figures."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.hf.writer import write_hf_directory
from diy_core.checkpoints.interface import Reader
from diy_core.config import DIYConfig, RopeScaling
from diy_core.mapping import tensors

ROOT = Path(__file__).parents[2]
KINDS = ("hf", "orbax", "gguf")
# 2.5 MB in 38 tensors: several shards of SHARD, and a conversion takes some tens of milliseconds.
MEDIUM = DIYConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
)
SHARD = 500_000  # bytes
# 40 KB, with everything that a header can say.
TINY = DIYConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=5e5,
    tie_word_embeddings=False,
)
LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)

Arrays = dict[str, NDArray[Any]]


@dataclasses.dataclass
class Figures:
    """One line of the table.

    Attributes:
        name: what was done to what.
        outcomes: how often each outcome came; they add up to the trials.
        seconds: the longest time that one trial took, where it is bounded.
        nbytes: the most memory that one trial took, where it is bounded.
        note: anything else, in a few words.
        tenths: how often each outcome came in each tenth of the time, where that is told.
        faults: the cases that fall short, where a part goes on after one; with any, it failed.
    """

    name: str
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: float | None = None
    nbytes: int | None = None
    note: str = ""
    tenths: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)

    @property
    def trials(self) -> int:
        return sum(self.outcomes.values())


def weights(config: DIYConfig, seed: int, dtype: Any = np.float32) -> Arrays:
    """Random tensors by Hugging Face name; every value is finite and no two models share one."""
    draw = np.random.default_rng(seed)
    return {t.hf: draw.normal(0.0, 0.1, t.shape).astype(dtype) for t in tensors(config)}


def write_model(path: Path, config: DIYConfig, seed: int, dtype: Any = np.float32) -> Path:
    """A Hugging Face directory with these weights, in one file."""
    write_hf_directory(path, config, weights(config, seed, dtype).items())
    return path


def shards(kind: str) -> dict[str, Any]:
    """The option of `convert` that makes several files of a model, where the kind has files."""
    return {"max_shard_size": SHARD} if kind == "hf" else {}


def target_of(kind: str, folder: Path) -> Path:
    """Where a checkpoint of this kind goes in the runs."""
    return folder / ("model.gguf" if kind == "gguf" else f"model-{kind}")


def fingerprint(arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Dtype, shape and SHA-256 by name; the sum is taken here and not by the code under test."""
    return {
        name: f"{a.dtype} {a.shape} {hashlib.sha256(a.tobytes()).hexdigest()}"
        for name, a in arrays.items()
    }


def content(reader: Reader) -> dict[str, str]:
    """All that a loaded model depends on: the fingerprint of every tensor, and the config."""
    found = fingerprint(dict(reader.read_all(verify=True)))
    return found | {"config": repr(dataclasses.replace(reader.config, extra={}))}


def snapshot(path: Path) -> dict[str, str]:
    """The sum of every file at or below a path, by relative name; a missing path has none."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def remains(path: Path) -> list[str]:
    """What a write may have left beside a path."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(tmp-.*|old)")
    return sorted(name for name in os.listdir(path.parent) if pattern.fullmatch(name))


def put(source: Path, path: Path) -> None:
    """A copy of a file or a directory in place of what is there."""
    remove(path)
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copyfile(source, path)


def remove(path: Path) -> None:
    """Nothing is there, and nothing beside it."""
    for item in (path, *(path.with_name(name) for name in remains(path))):
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink(missing_ok=True)
