"""`parity check` on healthy models, and on damaged ones that it has to catch."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import diy_jax.inputs
import diy_jax.optimizer
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten, unflatten
from diy_core.notes import CheckpointNote
from parity.check.compare import worst_tensor
from parity.check.decoding import Decoding, cached_logits
from parity.check.measures import relative_l2
from parity.check.model import DTYPES, KINDS, Plan, check_model, left_out, make_batch, plan_for
from parity.check.training import flax_step
from parity.convert.optimizer_state import optimizer_state_to_optax
from parity.environment import Device, choose_device, exact
from parity.random_models import SCALES, small_configs, write_random_model
from parity.twin_tracer import trace_twins
from parity.twins import LOGITS, Pair
from tests.tiny_checkpoints import put, weights

QUICK = Plan(
    kinds=("logits", "blocks", "gradients", "decode"),
    sequence=40,
    decode_prompts=(5, 60),
    decode_positions=100,
    greedy_tokens=8,
)
BOTH_SCALES = ("gqa", "biases", "rope-llama3")  # the witnesses have all models at both
SMALLEST = DIYConfig(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=12,
)


@pytest.mark.parametrize("name", small_configs())
def test_the_twins_are_equal_on_every_small_model(
    name: str, tmp_path: Path, device: Device
) -> None:
    """Scales share a test: what is compiled for the first serves the second."""
    for scale in SCALES if name in BOTH_SCALES else ["fan-in"]:
        write_random_model(tmp_path / scale, small_configs()[name], scale)
        rounded = scale == "fan-in" and name in ("gqa", "biases")
        dtypes = DTYPES if rounded else ("float64",)
        checks = check_model(tmp_path / scale, device, dtypes, QUICK).checks
        assert [check for check in checks if not check.passed] == []
        names = ["logits", "blocks", "gradients", "decode torch", "decode flax", "greedy tokens"]
        assert [check.name for check in checks if check.dtype == "float64"] == names
        assert {check.dtype for check in checks} == set(dtypes)
        assert all(check.compared > 0 and check.device == device.name for check in checks)


def test_every_kind_of_check_is_made_also_where_positions_are_few(
    tmp_path: Path, device: Device
) -> None:
    """All of them on the smallest model: each line, what it counted, and its control or metrics."""
    write_random_model(tmp_path / "model", SMALLEST, "fan-in")
    plan = Plan(training_steps=20, greedy_tokens=4)
    result = check_model(tmp_path / "model", device, plan=plan)
    assert [check for check in result.checks if not check.passed] == []
    names = [[check.name for check in result.checks if check.dtype == dtype] for dtype in DTYPES]
    rounded = ["logits", "blocks", "gradients", "decode"]
    twins = ("torch", "flax")
    twice = [f"{kind} {twin}" for kind in ("chunked", "ragged", "kept", "packed") for twin in twins]
    decoded = ["decode torch", "decode flax", "greedy tokens"]
    cached = [f"cache-gradients{what} {t}" for what in ("", " prefix") for t in ("torch", "flax")]
    whole = ["context flax", "rotations torch", "rotations flax", "embeddings flax"]
    assert names == [
        [*rounded[:3], *decoded, *twice, *whole, *cached, "step", "optimizer", "training"],
        [*rounded, "rotations", "training"],
        [*rounded, "rotations"],
    ]
    for check in result.checks:
        assert check.compared > 0
        assert re.search(r"^([0-9]+ (rows?|documents|steps)|positions 0|ids 0)", check.reach)
        assert (check.control is not None) == (check.name == "training")
        assert bool(check.tensors) == (check.name != "greedy tokens")
        sides = {one.side for one in check.agreement}
        if check.name.split()[0] in (
            "logits",
            "decode",
            "chunked",
            "ragged",
            "kept",
            "packed",
            "context",
        ):
            one_twin = check.dtype == "float64"
            assert sides == ({check.name.split()[-1]} - {"logits"} or {"flax"}) or not one_twin
            assert len(sides) == (1 if one_twin else 2)
            assert all(one.kl_mean <= one.kl_max < 1e-2 for one in check.agreement)
            assert all(0.9 < one.top5 <= 1 for one in check.agreement)
    drawn = {(curve.figure, curve.dtype, curve.side) for curve in result.curves}
    for figure in ("forward by layer", "backward by layer", "forward by position"):
        wanted = {(figure, d, side) for d in DTYPES for side in twins}
        assert {one for one in drawn if one[0] == figure} == wanted - {(figure, "float64", "torch")}
    for dtype, sides in (("float64", ("flax", "control")), ("float32", (*twins, "control"))):
        assert {("training loss error", dtype, side) for side in sides} <= drawn
    decoding = [curve for curve in result.curves if curve.figure == "decode by position"]
    assert len(decoding) == 6
    assert all(curve.x == tuple(range(12)) for curve in decoding)
    loss = next(curve for curve in result.curves if curve.figure == "training loss")
    assert len(loss.y) == 20
    assert np.mean(loss.y[-5:]) < np.mean(loss.y[:5])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_can_be_had_alone(kind: str, tmp_path: Path, device: Device) -> None:
    write_random_model(tmp_path / "model", SMALLEST, "small")
    plan = Plan(kinds=(kind,), training_steps=2, greedy_tokens=0)
    checks = check_model(tmp_path / "model", device, ("float64",), plan).checks
    assert {check.name.split()[0] for check in checks} == {kind}
    assert all(check.passed for check in checks)


def padding_seen(patch: pytest.MonkeyPatch) -> None:
    """Every token sees every other, so that a row depends on what pads it."""
    for twin in ("diy_torch", "diy_jax"):
        module = f"{twin}.model.attention_mask_from_positions"
        patch.setattr(
            module, lambda queries, keys, *rest: keys[:, None, :] >= 0 * queries[..., None]
        )


def positions_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Rotations begin anew in every call."""
    for twin in ("diy_torch", "diy_jax"):
        true = importlib.import_module(f"{twin}.rope").rope_tables
        patch.setattr(
            f"{twin}.model.rope_tables",
            lambda config, positions, dtype, true=true: true(
                config, positions - positions[:, :1], dtype
            ),
        )


def clipped_as_optax_does(patch: pytest.MonkeyPatch) -> None:
    def clip(gradients: Any, max_norm: float) -> tuple[Any, Any]:
        limit = optax.clip_by_global_norm(max_norm)
        return limit.update(gradients, limit.init(gradients))[0], optax.tree.norm(gradients)

    patch.setattr("diy_jax.optimizer.clip_by_global_norm", clip)


def steps_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The state is carried over without its count of updates."""
    true = optimizer_state_to_optax

    def carried(*arguments: Any, **options: Any) -> Any:
        return optax.tree.set(true(*arguments, **options), count=jnp.zeros((), jnp.int32))

    patch.setattr("parity.check.optimizers.optimizer_state_to_optax", carried)


def another_beta(patch: pytest.MonkeyPatch) -> None:
    true = diy_jax.optimizer.build_optimizer
    patch.setattr(
        "diy_jax.optimizer.build_optimizer",
        lambda model, options: true(model, dataclasses.replace(options, beta2=0.9687501)),
    )


def step_that_does_not_clip(twin: str) -> Callable[[pytest.MonkeyPatch], None]:
    def damage(patch: pytest.MonkeyPatch) -> None:
        true = importlib.import_module(f"{twin}.optimizer").clip_by_global_norm
        patch.setattr(f"{twin}.step.clip_by_global_norm", lambda found, limit: true(found, 0.0))

    return damage


def step_that_counts_other_tokens(twin: str) -> Callable[[pytest.MonkeyPatch], None]:
    """So that its loss and its gradient are divided by another number."""
    return lambda patch: patch.setattr(f"{twin}.step.IGNORED", 0)


def others_that_decay(twin: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(
        f"{twin}.optimizer.decays", lambda tensor, options: tensor.kind != "projection"
    )


def segments_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("diy_jax.inputs.prepare_segments", lambda segments, ids, cached: None)


def far_positions_moved(twin: str) -> Callable[[pytest.MonkeyPatch], None]:
    """From the 62nd position on every token is rotated by one too many."""

    def damage(patch: pytest.MonkeyPatch) -> None:
        true = importlib.import_module(f"{twin}.rope").rope_tables
        patch.setattr(
            f"{twin}.model.rope_tables",
            lambda config, positions, dtype: true(config, positions + (positions >= 61), dtype),
        )

    return damage


def third_row_moved(patch: pytest.MonkeyPatch) -> None:
    """From the third row of a batch on every token but the first is rotated by one too many."""
    true = importlib.import_module("diy_jax.rope").rope_tables

    def tables(config: DIYConfig, positions: Any, dtype: Any) -> Any:
        third = jnp.arange(len(positions))[:, None] >= 2
        return true(config, positions + third * (positions > 0), dtype)

    patch.setattr("diy_jax.model.rope_tables", tables)


def some_positions_moved(twin: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Three positions alone, which no token of the other kinds stands at."""

    def damage(patch: pytest.MonkeyPatch) -> None:
        true = importlib.import_module(f"{twin}.rope").rope_tables
        patch.setattr(
            f"{twin}.model.rope_tables",
            lambda config, at, dtype: true(config, at + (at >= 41) * (at < 44), dtype),
        )

    return damage


def one_id_misread(patch: pytest.MonkeyPatch) -> None:
    true = diy_jax.inputs.prepare_input_ids
    patch.setattr(
        "diy_jax.inputs.prepare_input_ids",
        lambda ids, config: (found := true(ids, config)) + (found == 17),
    )


def segments_cut(patch: pytest.MonkeyPatch) -> None:
    """Numbers of documents lose their upper bits."""
    true = diy_jax.inputs.prepare_segments
    patch.setattr(
        "diy_jax.inputs.prepare_segments",
        lambda segments, ids, cached: (
            None if segments is None else true(segments, ids, cached).astype(jnp.int16)
        ),
    )


def documents_come_back(patch: pytest.MonkeyPatch) -> None:
    """A document sees an earlier one of the same number."""
    true = importlib.import_module("diy_jax.model").attention_mask_from_positions

    def mask(queries: Any, keys: Any, own: Any = None, other: Any = None) -> Any:
        if own is None:
            return true(queries, keys)
        return true(queries, keys, own % 2, other % 2)  # numbers from 0 on: every second is one

    patch.setattr("diy_jax.model.attention_mask_from_positions", mask)


def sixth_document_sees_the_fifth(patch: pytest.MonkeyPatch) -> None:
    true = importlib.import_module("diy_jax.model").attention_mask_from_positions

    def mask(queries: Any, keys: Any, own: Any = None, other: Any = None) -> Any:
        few = [None if one is None else jnp.minimum(one, 4) for one in (own, other)]
        return true(queries, keys, *few)

    patch.setattr("diy_jax.model.attention_mask_from_positions", mask)


def fourth_row_of_packed_documents(patch: pytest.MonkeyPatch) -> None:
    true = diy_jax.inputs.prepare_segments

    def segments(given: Any, ids: Any, cached: bool) -> Any:
        found = true(given, ids, cached)
        return found if found is None else found.at[3:].set(0)

    patch.setattr("diy_jax.inputs.prepare_segments", segments)


def waiting_rows_advance(patch: pytest.MonkeyPatch) -> None:
    true = importlib.import_module("diy_jax.cache").update_cache

    def update(cached: Any, position: Any, key: Any, value: Any, lengths: Any) -> Any:
        slots, _ = true(cached, position, key, value, lengths)
        return slots, position + jnp.maximum(lengths, 1)

    patch.setattr("diy_jax.attention.update_cache", update)


def masks_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("diy_jax.inputs.lengths_from_mask", lambda mask, lengths, ids, has_cache: lengths)


def positions_returned_are_cut(patch: pytest.MonkeyPatch) -> None:
    true = importlib.import_module("diy_jax.cache").update_cache

    def update(*arguments: Any) -> Any:
        slots, position = true(*arguments)
        return slots, position % 62

    patch.setattr("diy_jax.attention.update_cache", update)


FAULTY: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None], set[str]]] = {
    "padding is seen": ("ragged", padding_seen, {"ragged torch", "ragged flax"}),
    "positions begin anew": ("chunked", positions_forgotten, {"chunked torch", "chunked flax"}),
    "decoding forgets positions": ("decode", positions_forgotten, {"decode torch", "decode flax"}),
    "a third row": ("ragged", third_row_moved, {"ragged flax"}),
    "segments are ignored": ("packed", segments_ignored, {"packed flax"}),
    "numbers of documents are cut": ("packed", segments_cut, {"packed flax"}),
    "numbers of documents come back": ("packed", documents_come_back, {"packed flax"}),
    "a sixth document": ("packed", sixth_document_sees_the_fifth, {"packed flax"}),
    "a fourth packed row": ("packed", fourth_row_of_packed_documents, {"packed flax"}),
    "rows that wait": ("chunked", waiting_rows_advance, {"chunked flax"}),
    "masks of chunks": ("chunked", masks_forgotten, {"chunked flax"}),
    "positions after a call": ("context", positions_returned_are_cut, {"context flax"}),
    "far out, in Flax": ("context", far_positions_moved("diy_jax"), {"context flax"}),
    "far out, in PyTorch": ("context", far_positions_moved("diy_torch"), {"context flax"}),
    "some positions, in Flax": (
        "rotations",
        some_positions_moved("diy_jax"),
        {"rotations flax"},
    ),
    "some positions, in PyTorch": (
        "rotations",
        some_positions_moved("diy_torch"),
        {"rotations torch"},
    ),
    "one id of many": ("embeddings", one_id_misread, {"embeddings flax"}),
    "clipping without 1e-6": ("optimizer", clipped_as_optax_does, {"optimizer"}),
    "a state without its step": ("optimizer", steps_forgotten, {"optimizer"}),
    "another beta2": ("training", another_beta, {"training"}),
    "other tensors decay, in Flax": ("optimizer", others_that_decay("diy_jax"), {"optimizer"}),
    "other tensors decay, in PyTorch": ("optimizer", others_that_decay("diy_torch"), {"optimizer"}),
    "a step does not clip": ("training", step_that_does_not_clip("diy_jax"), {"training"}),
    "a step counts other tokens": (
        "training",
        step_that_counts_other_tokens("diy_torch"),
        {"training"},
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_what_each_kind_is_for_is_caught_by_it(
    name: str, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, damage, failing = FAULTY[name]
    config = dataclasses.replace(SMALLEST, max_position_embeddings=64)
    write_random_model(tmp_path / "model", config, "fan-in")
    damage(monkeypatch)
    plan = Plan(kinds=(kind,), chunks=(20, 7, 9), training_steps=30, greedy_tokens=0)
    _forget_compiled()
    try:
        checks = check_model(tmp_path / "model", device, ("float64",), plan).checks
    finally:
        _forget_compiled()
    assert {check.name for check in checks if not check.passed} == failing


def test_a_model_whose_output_projections_are_zero_is_checked_by_what_is_left(
    tmp_path: Path, device: Device
) -> None:
    """As many begin training: the gradients of all other projections are then zero."""
    write_random_model(tmp_path / "model", SMALLEST, "fan-in")
    zero_weights(tmp_path / "model", "o_proj", "down_proj")
    plan = Plan(kinds=("blocks", "gradients"))
    checks = check_model(tmp_path / "model", device, plan=plan).checks
    assert all(check.passed for check in checks)
    gradients = [check for check in checks if check.name == "gradients"]
    parts = {"q_proj", "k_proj", "v_proj", "up_proj", "gate_proj"}
    for check in gradients:
        assert {name.split(".")[-2] for name in check.vacuous} >= parts
        assert check.compared > 0
        assert {error.name for error in check.tensors}.isdisjoint(check.vacuous)
    assert checks[0].record()["vacuous"] == list(checks[0].vacuous)


def test_a_check_that_can_prove_nothing_fails_and_says_why_and_others_are_made(
    tmp_path: Path, device: Device
) -> None:
    config = dataclasses.replace(SMALLEST, tie_word_embeddings=False)
    write_random_model(tmp_path / "model", config, "fan-in")
    zero_weights(tmp_path / "model", "lm_head")
    plan = Plan(kinds=("logits", "blocks", "decode", "packed"), greedy_tokens=0)
    checks = check_model(tmp_path / "model", device, ("float64", "float32"), plan).checks
    assert {check.name for check in checks if check.passed} == {"blocks"}
    failed = [check for check in checks if not check.passed]
    assert {check.name.split()[0] for check in failed} == {"logits", "decode", "packed"}
    assert all("nothing can be told from" in check.where for check in failed)


def zero_weights(model: Path, *parts: str) -> None:
    weights = safetensors.numpy.load_file(model / "model.safetensors")
    for name in weights:
        if any(part in name for part in parts):
            weights[name] = np.zeros_like(weights[name])
    safetensors.numpy.save_file(weights, model / "model.safetensors")
    (model / "diy_manifest.json").unlink(missing_ok=True)


def _forget_compiled() -> None:
    """What was traced with a damaged function, or before it was damaged."""
    jax.clear_caches()
    flax_step.cache_clear()


def test_large_models_are_checked_by_the_kinds_that_take_minutes(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALLEST, vocab_size=1_300_000)
    tmp_path.joinpath("config.json").write_text(json.dumps(config.to_dict()))
    plan = plan_for(tmp_path)
    assert set(KINDS) - set(plan.kinds) == {"step", "optimizer", "training"}
    assert re.search(
        "left out, since the model is large: step, optimizer, training", left_out(plan)
    )
    assert left_out(Plan()) == ""


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
    with pytest.raises(
        ValueError, match=r"check 'logit' is not supported.*of logits, blocks.*did you mean logits"
    ):
        check_model(tmp_path, device, plan=Plan(kinds=("decode", "logit")))
    with pytest.raises(ValueError, match=r"nothing to check in bfloat16.*ragged in float64"):
        check_model(tmp_path, device, ("bfloat16",), Plan(kinds=("ragged",)))
    with pytest.raises(ValueError, match="choose one of auto, cpu, gpu"):
        choose_device("tpu")  # type: ignore[arg-type]
    if choose_device().name == "cpu":
        with pytest.raises(ValueError, match="sees no GPU"):
            choose_device("gpu")


def test_an_odd_checkpoint_is_refused_where_that_is_asked_for(
    tmp_path: Path, device: Device
) -> None:
    put(tmp_path, weights(), pretraining_tp=2)
    with pytest.raises(CheckpointError, match=r"pretraining_tp 2 .*refused: strict"):
        check_model(tmp_path, device, strict=True)
    with pytest.raises(CheckpointError, match=r"pretraining_tp 2 .*refused: strict"):
        trace_twins(tmp_path, tmp_path, device, strict=True)
    with pytest.warns(CheckpointNote, match="pretraining_tp 2"):
        trace_twins(tmp_path, tmp_path, device, tokens=4)
