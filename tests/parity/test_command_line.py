"""The `parity` command: exit codes, records, and errors that say what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import parity.check
from diy_core.config import DIYConfig
from diy_torch import DIYForCausalLM
from parity.__main__ import build_parser, main
from parity.random_models import small_configs, write_random_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    return tmp_path / "model"


def test_check_writes_the_record_and_the_table(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = parity.check.Plan(
        sequence=40, decode_prompts=(5, 60), decode_positions=100, greedy_tokens=8
    )
    monkeypatch.setattr(parity.check, "plan_for", lambda path: plan)
    arguments = ["check", str(model), "--dtype", "float64", "--device", "cpu", "--json", "-"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["passed"] is True
    assert set(record) == {"passed", "checks", "environment"}
    wanted = {"name", "dtype", "device", "compared", "value", "bound", "passed", "where"}
    assert all(set(check) == wanted for check in record["checks"])
    assert record["environment"]["versions"]["jax"]
    assert "The twins are equal" in err
    # The same model with a bound that nothing can meet: the command says so and fails.
    monkeypatch.setattr(parity.check, "ACTIVATION_BOUND", 1e-20)
    assert main([*arguments[:-1], str(model.parent / "record.json")]) == 1
    out, _ = capsys.readouterr()
    assert "The twins differ" in out
    assert json.loads((model.parent / "record.json").read_text())["passed"] is False


def test_convert_says_what_it_wrote(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model), str(model.parent / "orbax")]) == 0
    assert "Orbax checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere"], "nowhere"),
        (["convert", "nowhere", "there"], "does not exist"),
        (["demo", "--model", "nowhere"], "is not a directory"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"parity {arguments[0]}: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["check", "convert", "demo"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        build_parser().parse_args([command, "--help"])
    assert done.value.code == 0
    assert len(capsys.readouterr().out) > 300


@pytest.mark.model
def test_the_demo_runs_on_a_model_of_ones_own(
    smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DIYConfig(
        vocab_size=49152,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    DIYForCausalLM(config, seed=5).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(smollm2 / name, tmp_path / "model")
    out = tmp_path / "out"
    arguments = ["--model", str(tmp_path / "model"), "--max-new-tokens", "4", "--out", str(out)]
    assert main(["demo", *arguments]) == 0
    printed = capsys.readouterr().out
    for part in ("PyTorch", "JAX", "HF -> Orbax -> HF", "chat tokens", "The twins are equal"):
        assert part in printed
    assert json.loads((out / "check.json").read_text())["passed"] is True
