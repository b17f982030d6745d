"""Every example is a config that can be run; both twins run the smallest one as they stand."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_core.training.options import parse

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
SIZES = {"tiny": 0.5e6, "small": 10e6, "pretrain-1b": 1e9}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_config(path: Path) -> None:
    config, resume, device, strict, _ = parse("diy-jax train", ["--config", str(path)])
    assert (resume, device, strict) == (False, None, False)
    assert isinstance(config.model, Mapping) == (path.stem in SIZES)
    if isinstance(config.model, Mapping):
        model = DIYConfig.from_dict({"model_type": "llama"} | dict(config.model))
        size = sum(math.prod(tensor.shape) for tensor in tensors(model))
        assert size == pytest.approx(SIZES[path.stem], rel=0.15)
        assert config.sequence_length <= model.max_position_embeddings


def test_all_examples_are_told_of_and_no_others() -> None:
    page = (ROOT / "docs" / "train.md").read_text()
    assert set(re.findall(r"examples/([\w-]+)\.yaml", page)) == {path.stem for path in EXAMPLES}


def test_both_twins_run_the_smallest(tmp_path: Path) -> None:
    losses = []
    for twin in ("diy_torch", "diy_jax"):
        shutil.copytree(ROOT / "examples", tmp_path / twin / "examples")
        command = [sys.executable, "-m", twin, "train", "--config", "examples/tiny.yaml"]
        options = ["--stop_at", "2", "--device", "cpu"]
        done = subprocess.run(
            [*command, *options], cwd=tmp_path / twin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "saved step 2 of 100" in done.stderr
        lines = (tmp_path / twin / "runs/tiny/metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == [1, 2]
        assert {"step", "loss", "grad_norm", "learning_rate", "tokens"} <= set(rows[0])
        losses.append([row["loss"] for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
