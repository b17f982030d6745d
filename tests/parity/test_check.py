"""`parity check` on healthy models, and on damaged ones that it has to catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diy_core.mapping import flatten, unflatten
from parity.check import DTYPES, Plan, check_model, make_batch
from parity.compare import Check, passed, rounding, worst_tensor
from parity.decoding import Decoding, cached_logits
from parity.environment import Device, choose_device, exact
from parity.metrics import pooled_gradients, pooled_outputs, relative_l2
from parity.pair import LOGITS, Pair
from parity.random_models import SCALES, small_configs, write_random_model

QUICK = Plan(sequence=40, decode_prompts=(5, 60), decode_positions=100, greedy_tokens=8)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", small_configs())
def test_the_twins_are_equal_on_every_small_model(
    name: str, scale: str, tmp_path: Path, device: Device
) -> None:
    write_random_model(tmp_path / "model", small_configs()[name], scale)
    rounded = scale == "fan-in" and name in ("gqa", "biases", "rope-llama3")
    dtypes = DTYPES if rounded else ("float64",)
    checks = check_model(tmp_path / "model", device, dtypes, QUICK)
    assert [check for check in checks if not check.passed] == []
    names = ["logits", "modules", "gradients", "decode torch", "decode flax", "greedy tokens"]
    assert [check.name for check in checks if check.dtype == "float64"] == names
    assert {check.dtype for check in checks} == set(dtypes)
    assert all(check.compared > 0 and check.device == device.name for check in checks)


def test_ragged_cached_decoding_equals_the_full_forward_over_320_positions(
    tmp_path: Path, device: Device
) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    with exact(device):
        pair = Pair(tmp_path / "model", "float64", device)
        decoding = Decoding.make(pair.config, (3, 200, 77), 320, seed=1)
        full = pair.full_logits(decoding.batch)
        for logits in cached_logits(pair, decoding).values():
            assert len(logits) == decoding.batch.lengths.sum() == 320 + 291 + 262
            for found, expected in zip(logits, full, strict=True):
                assert relative_l2(found, expected) <= 1e-12


def transposed(params: Any) -> None:
    path = ("model", "layers_1", "attention", "o_proj", "kernel")
    params[path] = params[path].T


def halves_interleaved(params: Any) -> None:
    path = ("model", "layers_0", "attention", "q_proj", "kernel")
    kernel = np.asarray(params[path])
    heads = kernel.reshape(len(kernel), 6, 2, -1).swapaxes(2, 3)
    params[path] = heads.reshape(kernel.shape)


def one_weight_moved(params: Any) -> None:
    path = ("model", "layers_1", "feedforward_norm", "scale")
    params[path] = np.asarray(params[path]) * (1 + 1e-9 * (np.arange(48) == 5))


FAULTS: dict[str, tuple[Callable[[Any], None], dict[str, Any], str]] = {
    "a transposed projection": (transposed, {}, "model.layers.1.attention.o_proj"),
    "halves interleaved": (halves_interleaved, {}, "model.layers.0.attention.q_proj"),
    "one norm scale off by 1e-9": (one_weight_moved, {}, "model.layers.1.feedforward_norm"),
    "another eps": (lambda p: None, {"rms_norm_eps": 1.0001e-5}, "model.layers.0.attention_norm"),
    "another rope theta": (
        lambda p: None,
        {"rope_theta": 10000.1},
        "model.layers.0.attention.o_proj",
    ),
    "groups of another size": (
        lambda p: None,
        {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 4},
        "model.layers.0.attention.o_proj",
    ),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_twin_is_caught_at_its_first_wrong_module(
    name: str, scale: str, tmp_path: Path, device: Device
) -> None:
    damage, changes, culprit = FAULTS[name]
    write_random_model(tmp_path / "model", small_configs()["gqa"], scale)
    with exact(device):
        pair = Pair(tmp_path / "model", "float64", device)
        batch = make_batch(pair.config, Plan(sequence=40))
        flat = flatten(pair.params)
        damage(flat)
        pair.params = unflatten(flat)
        truth = pair.observe_torch(batch, gradients=False)
        broken = dataclasses.replace(pair.config, **changes)
        pair.flax = pair.flax.clone(config=broken)
        found = pair.observe_flax(batch, gradients=False)
    check = worst_tensor("modules", truth.activations, found.activations, 1e-12, "float64", "cpu")
    assert not check.passed
    assert check.where == culprit


def test_a_norm_in_bfloat16_is_caught_by_the_rounding_check() -> None:
    truth = {"model.norm": np.linspace(0.5, 2.0, 4096)}
    good = {"model.norm": truth["model.norm"].astype(np.float32)}
    bad = {"model.norm": truth["model.norm"] * (1 + 1e-3)}
    for one, other in ((good, bad), (bad, good)):
        options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "control": (1.0, 1.0)}
        assert not rounding("modules", truth, one, other, **options).passed
        assert rounding("modules", truth, good, good, **options).passed


def test_the_control_widens_the_bound_only_for_the_side_whose_library_is_less_exact() -> None:
    truth = {"logits": np.ones(1000)}
    one, other = {"logits": np.full(1000, 1 + 1e-6)}, {"logits": np.full(1000, 1 + 3e-6)}
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    assert not rounding("x", truth, one, other, control=(1.0, 1.0), **options).passed
    assert rounding("x", truth, one, other, control=(1.0, 2.0), **options).passed
    assert not rounding("x", truth, one, other, control=(2.0, 1.0), **options).passed


def test_nothing_vacuous_passes() -> None:
    some, zero, nan = np.ones(3), np.zeros(3), np.array([1.0, np.nan, 1.0])
    for truth in (zero, nan, np.ones(0)):
        with pytest.raises(ValueError, match=r"nothing to compare|no reference"):
            relative_l2(truth, truth)
    with pytest.raises(ValueError, match="shape"):
        relative_l2(some, np.ones((3, 1)))
    assert relative_l2(nan, some) == np.inf
    with pytest.raises(ValueError, match="do not hold the same tensors"):
        worst_tensor("modules", {}, {}, 1e-12, "float64", "cpu")
    with pytest.raises(ValueError, match="do not hold the same tensors"):
        worst_tensor("modules", {"a": some}, {"b": some}, 1e-12, "float64", "cpu")
    assert not worst_tensor("m", {"a": some}, {"a": nan}, 1e-12, "float64", "cpu").passed
    assert not passed([])
    good = Check("x", "float64", "cpu", 1, 0.0, 1e-12, True)
    assert passed([good])
    assert not passed([good, dataclasses.replace(good, passed=False)])


def test_pools_are_what_they_say() -> None:
    truths = {"a": np.ones(4), "b": np.full(4, 100.0)}
    values = {"a": np.full(4, 1.1), "b": np.full(4, 100.0)}
    assert pooled_outputs(values, truths, ["a", "b"]) == pytest.approx(0.1 / np.sqrt(2))
    whole = np.sqrt(4 * 0.01) / np.sqrt(4 + 4e4)
    assert pooled_gradients(values, truths, ["a", "b"]) == pytest.approx(whole)


def test_outputs_of_every_module_are_compared(tmp_path: Path, device: Device) -> None:
    write_random_model(tmp_path / "model", small_configs()["untied"], "fan-in")
    with exact(device):
        pair = Pair(tmp_path / "model", "float64", device)
        batch = make_batch(pair.config, Plan(sequence=40))
        one, other = pair.observe_torch(batch, False), pair.observe_flax(batch, False)
    assert set(one.activations) == set(other.activations)
    layer = {name for name in one.activations if name.startswith("model.layers.1")}
    parts = [
        *("", ".attention_norm", ".attention", ".feedforward_norm", ".feedforward"),
        *(f".attention.{name}_proj" for name in "qkvo"),
        *(f".feedforward.{name}_proj" for name in ("gate", "up", "down")),
    ]
    assert layer == {f"model.layers.1{part}" for part in parts}
    assert {"model.embed_tokens", "model.norm", "model", LOGITS} <= set(one.activations)


def test_a_choice_that_cannot_be_had_says_so(tmp_path: Path, device: Device) -> None:
    with pytest.raises(ValueError, match=r"float8.*choose one of"):
        check_model(tmp_path, device, ("float8",))
    with pytest.raises(ValueError, match="choose one of auto, cpu, gpu"):
        choose_device("tpu")  # type: ignore[arg-type]
    if choose_device().name == "cpu":
        with pytest.raises(ValueError, match="sees no GPU"):
            choose_device("gpu")
