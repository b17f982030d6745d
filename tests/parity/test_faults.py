"""The catalogue of port bugs: each is found, in its module, and told for what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diy_torch import DIYForCausalLM
from parity.__main__ import main
from parity.environment import Device, exact
from parity.faults.catalogue import CATALOGUE
from parity.faults.fault import Fault
from parity.faults.listed import LISTED
from parity.faults.run import Outcome, trace_fault
from parity.faults.trainers import trace_training
from parity.faults.training import TrainingFault
from parity.random_models import small_configs, write_random_model

# The tracer finds these in their module, and has no hypothesis for them.
UNNAMED = {"gradient-norm-root-cut", "gradient-silu"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in {fault.model for fault in CATALOGUE}:
        write_random_model(folder / name, small_configs()[name], "fan-in")
    return folder


@pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.name)
def test_a_fault_is_detected_localised_and_named(
    fault: Fault | TrainingFault, models: Path, device: Device
) -> None:
    with exact(device):
        outcome = Outcome(fault, trace_fault(fault, models / fault.model, device))
    assert outcome.detected
    assert outcome.localised, str(outcome.divergence)
    assert outcome.named == (fault.name not in UNNAMED), str(outcome.divergence)


def test_the_catalogue_is_large_and_says_what_it_is() -> None:
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE) >= 50
    assert len({fault.sentence for fault in CATALOGUE}) == len(CATALOGUE)
    assert len(UNNAMED) <= 0.2 * len(CATALOGUE)
    for fault in CATALOGUE:  # each damages something
        if isinstance(fault, TrainingFault):
            assert fault.change
        else:
            assert fault.params or fault.config or fault.patches
        assert fault.suspects


def test_every_fault_is_listed_and_nothing_else_is() -> None:
    assert [fault.name for fault in CATALOGUE] == list(LISTED)
    modules = {name for name, _ in DIYForCausalLM(small_configs()["gqa"]).named_modules()}
    stages = {"loss", "accumulation", "clipping", "optimizer"}
    for fault in CATALOGUE:
        assert fault.module in (stages if isinstance(fault, TrainingFault) else modules)


def test_the_list_needs_no_framework() -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['jax'] = None; "
        "from parity.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "faults", *words]
        return subprocess.run(command, capture_output=True, text=True)

    done = run("--list", "eps", "loss-of-rows", "--json", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["module"] for row in json.loads(done.stdout)["catalogue"]] == [
        "model.layers.0.attention_norm",
        "loss",
    ]
    done = run("epss")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "parity faults: no fault is called 'epss': did you mean eps?\n"
    done = run("eps")
    assert done.returncode == 2
    assert done.stderr == (
        "parity faults needs torch, which is not installed: pip install 'diy-lm[all]'\n"
    )


@pytest.mark.parametrize("name", sorted(small_configs()))
def test_a_model_without_a_fault_is_clean(name: str, tmp_path: Path, device: Device) -> None:
    write_random_model(tmp_path / "m", small_configs()[name], "small")
    for scenario in ("backward", "decode"):
        healthy = Fault("none", (), scenario, name)
        with exact(device):
            assert trace_fault(healthy, tmp_path / "m", device) is None


@pytest.mark.parametrize("name", sorted(small_configs()))
def test_a_training_without_a_fault_is_clean(name: str, tmp_path: Path, device: Device) -> None:
    write_random_model(tmp_path / "m", small_configs()[name], "fan-in")
    with exact(device):
        assert trace_training(tmp_path / "m", device) is None


def test_the_command_counts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = tmp_path / "faults.json"
    assert main(["faults", "eps", "gradient-silu", "--json", str(record)]) == 0
    assert "2 faults: 2 detected, 2 localised, 1 named\n" in capsys.readouterr().out
    found = json.loads(record.read_text())
    assert [found[key] for key in ("faults", "detected", "localised", "named")] == [2, 2, 2, 1]
    assert found["outcomes"][0]["divergence"]["suspects"][0]["suspect"] == "norm-eps"
    assert main(["faults", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(fault.name in out for fault in CATALOGUE)
    assert main(["faults", "--list", "--json", "-"]) == 0
    catalogue = json.loads(capsys.readouterr().out)["catalogue"]
    assert [fault["name"] for fault in catalogue] == [fault.name for fault in CATALOGUE]
    assert main(["faults", "gremlin"]) == 2
    assert "no fault is called 'gremlin'" in capsys.readouterr().err
