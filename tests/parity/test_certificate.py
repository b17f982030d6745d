"""The certificate: which weights they were, and that every number is in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from parity.check.compare import Check, worst_tensor
from parity.check.curves import Curve
from parity.check.identity import Proven, identify
from parity.check.model import Plan, Result
from parity.random_models import small_configs, write_random_model
from parity.report.certificate import make
from parity.report.table import as_text


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_random_model(tmp_path / "model", small_configs()["untied"], "fan-in")
    return tmp_path / "model"


def test_the_sums_are_those_of_the_files(model: Path) -> None:
    found = identify(model)
    weights = load_file(model / "model.safetensors")
    assert found.config_sha256 == hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    assert found.tensors.keys() == weights.keys()
    for name, array in weights.items():
        entry = found.tensors[name]
        assert entry.sha256 == hashlib.sha256(array.tobytes()).hexdigest()
        assert (entry.dtype, entry.shape) == (str(array.dtype), array.shape)
    assert found.parameters == sum(array.size for array in weights.values())
    assert found.manifest == "agrees"


def test_a_manifest_that_is_of_other_weights_is_noticed(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, model / "model.safetensors")
    assert identify(model).manifest == "differs"
    (model / "diy_manifest.json").unlink()
    assert identify(model).manifest == "none"


def test_it_is_json_with_every_value_and_bound(model: Path) -> None:
    truth = {"logits": np.ones((2, 3))}
    lost = {"logits": np.full((2, 3), np.nan)}
    checks = [
        worst_tensor("logits", truth, {"logits": truth["logits"] * 1.25}, 1.0, "float64", "cpu"),
        worst_tensor("blocks", truth, lost, 1.0, "float64", "cpu"),
        Check("training", "float32", "cpu", 5, 1.25, 2.0, True, "step 3", 1e-8, reach="5 steps"),
    ]
    curve = Curve("forward by layer", "float64", "flax", ("embed", "0"), (0.25, float("inf")))
    plan = Plan(kinds=("logits", "blocks"))
    proven = Proven("models/a", identify(model), plan, Result(checks, [curve]))
    record = make([proven], "parity check models/a", {"device": "cpu"}, {"error": 1.0})
    found = json.loads(as_text(record), parse_constant=pytest.fail)
    assert set(found) == {
        *("format", "passed", "date", "command", "environment", "models", "divergence"),
    }
    assert (found["format"], found["passed"]) == ("diy-lm certificate 1", False)
    assert found["divergence"] == {"error": 1.0}
    (one,) = found["models"]
    assert one["not_checked"] == [
        *("gradients", "decode", "chunked", "ragged", "kept", "packed", "context"),
        *("rotations", "embeddings"),
        *("cache-gradients", "step", "optimizer", "training"),
    ]
    assert one["plan"]["recipe"]["eps"] == 2**-17
    assert [(c["value"], c["bound"], c["passed"], c["control"]) for c in one["checks"]] == [
        (0.25, 1.0, True, None),
        ("inf", 1.0, False, None),
        (1.25, 2.0, True, 1e-8),
    ]
    assert [check["reach"] for check in one["checks"]] == ["", "", "5 steps"]
    assert one["curves"][0]["y"] == [0.25, "inf"]
    assert one["checks"][0]["tensors"][0]["relative_l2"] == 0.25


def test_without_a_check_nothing_is_certified() -> None:
    assert make([], "parity check", {})["passed"] is False
