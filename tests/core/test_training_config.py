"""Configs: what is refused, what may differ on resume."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from diy_core.training.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig, as_dict
from diy_core.training.options import from_dict
from diy_core.training.run.resume import MAY_DIFFER, differences


def config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "run_dir": "run",
        "model": {"size": 4},
        "data": DataConfig(train="builtin:pydoc"),
        "steps": 10,
        "batch_size": 4,
        "sequence_length": 8,
    }
    return TrainConfig(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"batch_size": True}, "batch_size must be a positive integer, got True"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"seed": 1 << 32}, "seed must be less than"),
        ({"dtype": "float16"}, "choose one of float32, bfloat16, float64"),
        ({"accumulation_steps": 3}, "batch_size (4) must be a multiple of accumulation_steps (3)"),
        ({"model": 3}, "model must be a Hugging Face directory or the content of a config.json"),
        ({"model": ""}, "model must be a text that is not empty"),
        ({"run_dir": ""}, "run_dir must be a text"),
        ({"run_dir": "r\udcff"}, "run_dir must be UTF-8, and holds the byte 0xff of another"),
        ({"model": {"a": ["\ud800"]}}, "model must be UTF-8, and holds \\ud800, half of a"),
        ({"remat": 1}, "remat must be true or false"),
        ({"keep_last": 0}, "keep_last must be a positive integer"),
        ({"stop_at": -1}, "stop_at must be an integer of at least 0"),
        ({"optimizer": None}, "optimizer must be of OptimizerConfig, got None"),
        (
            {"optimizer": OptimizerConfig(learning_rate=1e38)},
            "learning_rate must be at most 3.4e+3",
        ),
        (
            {"optimizer": OptimizerConfig(eps=1e39)},
            "optimizer.eps must be at most 3.4e+38, which fl",
        ),
        ({"loss": LossConfig(z_loss=1e39)}, "loss.z_loss must be at most"),
        (
            {"optimizer": OptimizerConfig(warmup_steps=11)},
            "optimizer.warmup_steps (11) must not be more than steps (10)",
        ),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        config(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        (OptimizerConfig, {"learning_rate": float("nan")}, "learning_rate must be a finite"),
        (OptimizerConfig, {"beta1": 1.0}, "beta1 must be less than 1, got 1.0"),
        (OptimizerConfig, {"schedule": "step"}, "choose one of cosine, linear, constant"),
        (OptimizerConfig, {"final_learning_rate": 1.5}, "a share of the peak, from 0 to 1"),
        (OptimizerConfig, {"warmup_steps": 1.5}, "warmup_steps must be an integer"),
        (LossConfig, {"z_loss": -1.0}, "z_loss must be at least 0"),
        (LossConfig, {"chunk_tokens": 0}, "chunk_tokens must be a positive integer"),
        (DataConfig, {"train": ""}, "train must be a text"),
        (DataConfig, {"train": "x", "validation": 1.0}, "a share of the documents, less than 1"),
        (DataConfig, {"train": "x", "packing": "no"}, "packing must be true or false"),
        (DataConfig, {"train": "x", "workers": -1}, "workers must be an integer of at least 0"),
    ],
)
def test_a_part_that_cannot_be_run_is_refused(
    part: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        part(**changes)
    assert message in str(caught.value)


def test_what_may_differ_are_fields_and_all_others_are_named_with_both_values() -> None:
    old = as_dict(config())
    assert differences(old, old) == []
    assert set(old) >= MAY_DIFFER
    changed = as_dict(
        config(
            run_dir="other",
            stop_at=5,
            checkpoint_every=7,
            eval_every=3,
            log_every=2,
            keep_last=9,
            keep_every=4,
            keep_best=False,
        )
    )
    assert differences(old, changed) == []
    other = as_dict(config(seed=1, model={"size": 8}, optimizer=OptimizerConfig(beta2=0.9)))
    assert differences(old, other) == [
        "model.size: 4, now 8",
        "seed: 0, now 1",
        "optimizer.beta2: 0.95, now 0.9",
    ]


def test_a_difference_of_a_field_that_one_side_lacks_and_of_true_and_one() -> None:
    assert differences({"a": 1}, {"a": True}) == ["a: 1, now True"]
    assert differences({"a": 1}, {"a": 1.0}) == []
    assert differences({"a": {"b": 1}}, {"a": "x"}) == [
        "a.b: 1, now not given",
        "a: not given, now 'x'",
    ]


def test_nested_dicts_become_a_config_and_unknown_names_are_refused() -> None:
    values = as_dict(config(optimizer=OptimizerConfig(eps=1e-6)))
    assert from_dict(values) == config(optimizer=OptimizerConfig(eps=1e-6))
    with pytest.raises(ValueError, match=r"x\.yaml: stpes is not known: did you mean steps\?"):
        from_dict(values | {"stpes": 3}, "x.yaml")
    with pytest.raises(ValueError, match=r"optimizer\.beta3 is not known: did you mean opt.*beta"):
        from_dict(values | {"optimizer": {"beta3": 3}})
    with pytest.raises(ValueError, match="steps"):
        from_dict({name: value for name, value in values.items() if name != "steps"})


def test_the_last_step_is_the_earlier_of_both() -> None:
    assert config().last_step == 10
    assert config(stop_at=3).last_step == 3
    assert config(stop_at=30).last_step == 10
    assert dataclasses.replace(config(), steps=2).last_step == 2
