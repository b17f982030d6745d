"""Both twins train as transformers, torch's AdamW and a plain loop do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diy_core.config import DIYConfig
from diy_core.data import Batches, TokenData
from diy_core.training.config import TrainConfig, as_dict
from diy_core.training.export import export
from diy_jax.train import assemble as assemble_jax
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.train import assemble as assemble_torch
from diy_torch.training_store import TrainingStore as TorchStore
from parity.environment import Device, exact
from parity.random_models import write_random_model
from tests.jax_cache import compiled_once
from tests.parity import transformers_oracle, transformers_trainer
from tests.tiny_checkpoints import PIECES, put_tokenizer
from tests.training_runs import STEPS, Runs, distance, evaluations, rows

TWINS = ("torch", "jax")


class Trained:
    """Runs of both twins from one directory, in float64, and what the witness can go on from."""

    def __init__(self, folder: Path, device: Device) -> None:
        self.device, self.model = device, folder / "model"
        self.runs = {
            "torch": Runs(assemble_torch, TorchStore, folder, device.torch.type),
            "jax": Runs(assemble_jax, JaxStore, folder, device.name),
        }
        plain = self.runs["torch"].config("torch", eval_every=STEPS)
        assert isinstance(plain.model, dict)
        without = {"attention_dropout": 0.0, "residual_dropout": 0.0}  # drawn by other generators
        changes = without | {"vocab_size": len(PIECES) + 1}
        shape = DIYConfig.from_dict({"model_type": "llama"} | plain.model | changes)
        write_random_model(self.model, shape, "fan-in", seed=1)
        put_tokenizer(self.model)
        (self.model / "generation_config.json").write_text('{"eos_token_id": 0 }')
        self.config: TrainConfig = dataclasses.replace(
            plain, model=str(self.model), data=dataclasses.replace(plain.data, tokenizer=None)
        )
        for name, runs in self.runs.items():
            config = dataclasses.replace(self.config, run_dir=str(folder / name))
            assert runs.train_config(config) == 0

    def steps(self, twin: str) -> Any:
        """Loss and norm of the gradient at each step: float64 (20, 2)."""
        found = rows(self.runs[twin].folder / twin)
        return np.array([(row["loss"], row["grad_norm"]) for row in found])

    def witness(self, **optimizer: Any) -> tuple[Any, Any]:
        """The same of transformers, and its model after the last step."""
        options = dataclasses.replace(self.config.optimizer, **optimizer)
        config = as_dict(dataclasses.replace(self.config, optimizer=options))
        model = transformers_oracle.load(self.model, torch.float64, self.device.torch)
        batches = Batches(
            TokenData(self.runs["torch"].folder / "torch" / "data"),
            **{name: config[name] for name in ("batch_size", "sequence_length", "seed")},
            accumulation_steps=config["accumulation_steps"],
        )
        steps = transformers_trainer.train(model, (batches[i] for i in range(STEPS)), config)
        return np.array(list(steps)), model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, device: Device) -> Trained:
    with exact(device), compiled_once():
        return Trained(tmp_path_factory.mktemp("runs"), device)


def test_losses_norms_and_weights_are_those_of_a_plain_loop(
    trained: Trained, device: Device
) -> None:
    """Packing, accumulation, warmup, cosine, clipping, what decays and what not, a z-loss."""
    with exact(device):
        steps, model = trained.witness()
    assert steps.shape == (STEPS, 2)
    assert (steps[:, 1] > trained.config.optimizer.clip_norm).all()
    assert steps[-1, 0] < steps[0, 0] - 0.3
    weights = {f"model/{name}": p.detach().cpu().numpy() for name, p in model.named_parameters()}
    for twin in TWINS:
        assert trained.steps(twin) == pytest.approx(steps, rel=1e-11, abs=0)
        state = trained.runs[twin].state(twin)
        assert distance({name: state[name] for name in weights}, weights) <= 1e-9


@pytest.mark.parametrize("twin", TWINS)
def test_an_export_says_in_transformers_what_the_run_said_of_held_out_text(
    twin: str, trained: Trained, device: Device, tmp_path: Path
) -> None:
    """Window by window, nothing packed; with the tokenizer of the model that the run began with."""
    runs, length = trained.runs[twin], trained.config.sequence_length
    export(runs.store, runs.folder / twin, STEPS, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (trained.model / name).read_bytes()

    _, said = evaluations(runs.folder / twin)
    documents, total, counted, cut = TokenData(runs.folder / twin / "data/validation"), 0.0, 0, 0
    with exact(device), torch.no_grad():
        model = transformers_oracle.load(tmp_path / "out", torch.float64, device.torch)
        for index in range(len(documents)):
            tokens = torch.tensor(documents[index].astype(np.int64), device=device.torch)
            for start in range(0, len(tokens) - 1, length):
                window = tokens[start : start + length + 1]
                logits, labels = model(window[None, :-1]).logits[0], window[1:]
                loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
                total, counted, cut = total + float(loss), counted + len(labels), cut + bool(start)
    assert cut > 2
    assert len(documents) > 2
    assert counted == said["tokens"]
    assert total / counted == pytest.approx(said["loss"], rel=1e-12, abs=0)


RIGHT = {name: getattr(transformers_trainer, name) for name in ("apart", "decays", "rate")}
WRONG: dict[str, dict[str, Any]] = {
    "the norms decay too": {
        "decays": lambda name, parameter: "norm" in name or RIGHT["decays"](name, parameter)
    },
    "the embedding decays too": {"decays": lambda name, parameter: parameter.ndim == 2},
    "only some matrices decay": {"decays": lambda name, parameter: "mlp" in name},
    "every pass counts the same": {"weight": lambda labels, index: 1 / len(labels)},
    "documents see each other": {
        "apart": lambda segments, dtype: RIGHT["apart"]((segments > 0).long(), dtype)
    },
    "the warmup begins at 0": {
        "rate": lambda step, steps, options: RIGHT["rate"](max(step - 1, 0), steps, options)
    },
    "the cosine ends a step earlier": {
        "rate": lambda step, steps, options: RIGHT["rate"](step, steps - 1, options)
    },
    "gradients are not clipped": {"clip_norm": 1e9},
    "another beta2": {"beta2": 0.951},
    "another eps": {"eps": 1e-6},
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_witness_with_a_fault_disagrees(
    fault: str, trained: Trained, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = {name: value for name, value in WRONG[fault].items() if callable(value)}
    for name, value in functions.items():
        monkeypatch.setattr(transformers_trainer, name, value)
    numbers = {name: value for name, value in WRONG[fault].items() if name not in functions}
    with exact(device):
        steps, _ = trained.witness(**numbers)
    for twin in TWINS:
        apart = np.abs(trained.steps(twin)[:, 0] / steps[:, 0] - 1).max()
        print(f"{fault}: {apart:.1e}")
        assert apart > 1e-8
