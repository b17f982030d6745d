"""`parity trace`: two directories against each other."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from diy_core.rope_scaling import RopeScaling
from parity.__main__ import main
from parity.convert.formats import convert
from parity.random_models import small_configs, write_random_model
from tests.tiny_checkpoints import QUERY, put, read

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_same_directory_is_the_same_model(model: Path, dtype: str, capsys: Capture) -> None:
    assert main(["trace", str(model), "--dtype", dtype, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "no divergence in 29 calls\n"


def test_a_changed_value_is_found_in_an_orbax_checkpoint(model: Path, capsys: Capture) -> None:
    arrays = read(model)
    arrays[QUERY][3, 4] += 0.5
    put(model.parent / "changed", arrays, small_configs()["gqa"])
    convert(model.parent / "changed", model.parent / "orbax")
    command = ["trace", str(model), str(model.parent / "orbax"), "--no-backward", "--jit"]
    assert main([*command, "--device", "cpu", "--all"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "model.layers.0.attention.q_proj: forward, output is off by" in out
    assert "weight differs in 1 of 2304 values" in out
    assert main([*command, "--device", "cpu", "--json", "-"]) == 1
    found = json.loads(capsys.readouterr().out)["first_divergence"]
    assert found["module_flax"] == "model/layers_0/attention/q_proj"
    assert found["suspects"][0]["suspect"] == "weight-differs"


def test_what_cannot_be_traced_is_one_message(model: Path, capsys: Capture) -> None:
    assert main(["trace", str(model), "--tokens", "0"]) == 2
    assert "--tokens must be at least 1" in capsys.readouterr().err
    assert main(["trace", str(model), "--tokens", "100000"]) == 2
    err = capsys.readouterr().err
    assert re.search(r"--tokens \(100000\) are more than max_position_embeddings \((\d+)\)", err)
    assert re.search(r": give at most --tokens \d+$", err)
    assert main(["trace", str(model.parent / "gone")]) == 2
    assert capsys.readouterr().err.startswith("parity trace: ")


def test_configs_that_differ_stand_beside_what_the_tables_show(
    tmp_path: Path, capsys: Capture
) -> None:
    scaling = RopeScaling(
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    config = dataclasses.replace(
        small_configs()["gqa"], head_dim=32, rope_theta=5e5, rope_scaling=scaling
    )
    write_random_model(tmp_path / "one", config, "fan-in")
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"rope_theta": 1e4}, "config: rope_theta is 500000.0 in PyTorch, 10000.0 in Flax"),
        (
            {"rope_scaling": dataclasses.replace(scaling, factor=8.0)},
            "config: rope_scaling.factor is 32.0 in PyTorch, 8.0 in Flax",
        ),
    )
    for change, words in changes:
        other = tmp_path / "other" / "model"
        shutil.copytree(tmp_path / "one", other, dirs_exist_ok=True)
        changed = dataclasses.replace(config, **change)
        (other / "config.json").write_text(json.dumps(changed.to_dict()))
        paths = [str(tmp_path / "one"), str(other)]
        assert main(["trace", *paths, "--no-backward", "--device", "cpu"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("model: forward, what goes into model.layers.0 is off by")
        text = " ".join(lines)
        assert "leaves out" not in text
        assert words in text
