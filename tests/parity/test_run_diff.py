"""Two training runs compared, and a run with a model."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diy_core.errors import CheckpointError
from diy_jax.train import assemble as assemble_jax
from diy_torch.train import assemble as assemble_torch
from parity.convert.formats import convert
from parity.environment import Device
from parity.inspect.run_checkpoint import RunCheckpoint
from parity.inspect.run_diff import diff_runs
from tests.jax_cache import compiled_once
from tests.tiny_checkpoints import put
from tests.training_runs import Runs
from tests.written_runs import (
    CONFIG,
    STORES,
    State,
    add_checkpoint,
    line,
    moved,
    snapshot,
    state,
    write_run,
)

NORM, MEAN = "model/model.norm.weight", "mean/model.embed_tokens.weight"
LINES = [line(step, 3.0 - step / 10) for step in range(1, 10)]


def a_pair(folder: Path, one: dict[int, State], other: dict[int, State], **changes: Any) -> Any:
    return (
        write_run(folder / "one", "torch", one, LINES),
        write_run(folder / "other", "jax", other, changes.pop("lines", LINES), **changes),
    )


def test_the_same_state_of_both_twins_is_equal(tmp_path: Path) -> None:
    pair = a_pair(tmp_path, {4: state(4), 8: state(8)}, {4: state(4), 8: state(8)})
    before = snapshot(tmp_path)
    record = diff_runs(*pair, verify=True)
    assert snapshot(tmp_path) == before
    assert record["equal"] is True
    assert record["compared"] == 3 * 20
    assert [record[side]["program"] for side in ("one", "other")] == ["diy-torch", "diy-jax"]
    assert [record[side]["step"] for side in ("one", "other")] == [8, 8]
    assert record["checkpoints"] == {"both": [4, 8], "equal": 8, "first": None}
    assert record["logs"]["metrics.jsonl"]["compared"] == 9
    assert (record["tensors"], record["position"], record["config"]) == ([], {}, {})
    for found in record["kinds"].values():
        assert found == {"compared": 20, "differ": 0, "worst": None, "tensor": None}


def test_what_differs_worst_first_and_where_it_began(tmp_path: Path) -> None:
    one = {step: state(step) for step in (2, 4, 6, 8)}
    other = one | {6: moved(one[6], MEAN), 8: moved(moved(one[8], NORM, 1e-4), MEAN, 1e-2)}
    record = diff_runs(*a_pair(tmp_path, one, other))
    assert record["equal"] is False
    assert record["checkpoints"] == {"both": [2, 4, 6, 8], "equal": 4, "first": 6}
    assert [fault["name"] for fault in record["tensors"]] == [MEAN, NORM]
    for fault, wanted in zip(record["tensors"], (1e-2, 1e-4), strict=True):
        assert fault["relative_l2"] == pytest.approx(wanted, rel=1e-2)
    assert record["kinds"]["mean"]["tensor"] == "model.embed_tokens.weight"
    assert record["kinds"]["model"]["worst"] == record["tensors"][1]["relative_l2"]
    assert record["kinds"]["square"]["differ"] == 0
    assert diff_runs(tmp_path / "one", tmp_path / "other", step=4)["equal"] is True


def test_states_that_meet_again_have_parted(tmp_path: Path) -> None:
    one = {step: state(step) for step in (2, 4, 6)}
    record = diff_runs(*a_pair(tmp_path, one, one | {4: moved(one[4], NORM)}))
    assert record["tensors"] == []
    assert record["checkpoints"] == {"both": [2, 4, 6], "equal": 2, "first": 4}
    assert record["equal"] is False


def test_every_array_counts(tmp_path: Path) -> None:
    """One value of one array, whichever it is, in its last bit."""
    one, arrays = state(), state()
    write_run(tmp_path / "one", "torch", {1: one})
    for number, name in enumerate(arrays):
        changed = arrays[name].copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(np.inf))
        run = write_run(tmp_path / str(number), "torch", {1: arrays | {name: changed}})
        (fault,) = diff_runs(tmp_path / "one", run)["tensors"]
        assert (fault["name"], fault["values"]) == (name, 1)


@pytest.mark.parametrize(
    ("change", "key", "values"),
    [
        ({"tokens": 99}, "tokens", [400, 99]),
        ({"skipped_steps": 1}, "skipped_steps", [0, 1]),
        ({"seed": 4}, "seed", [3, 4]),
        ({"data": {"next_index": 5}}, "data.next_index", [4, 5]),
    ],
)
def test_the_position_counts(
    tmp_path: Path, change: dict[str, Any], key: str, values: list[Any]
) -> None:
    one, other = a_pair(tmp_path, {4: state()}, {})
    add_checkpoint(other, "jax", 4, state(), **change)
    record = diff_runs(one, other)
    assert record["position"] == {key: values}
    assert record["equal"] is False
    assert record["checkpoints"]["first"] == 4


def test_configs_count_where_they_decide_about_the_numbers(tmp_path: Path) -> None:
    states = {4: state()}
    one = write_run(tmp_path / "one", "torch", states)
    as_often = write_run(tmp_path / "two", "torch", states, checkpoint_every=3, keep_last=9)
    assert diff_runs(one, as_often)["equal"] is True
    config = dataclasses.replace(CONFIG, rope_theta=5e5)
    other = write_run(tmp_path / "three", "torch", states, config=config, batch_size=8)
    record = diff_runs(one, other)
    assert record["config"]["batch_size"] == [4, 8]
    assert record["config"]["model.rope_theta"] == [1e4, 5e5]
    assert record["equal"] is False


def test_logs_count(tmp_path: Path) -> None:
    lines = [*LINES[:6], line(7, 2.31), *LINES[7:]]
    record = diff_runs(*a_pair(tmp_path, {4: state()}, {4: state()}, lines=lines))
    assert record["logs"]["metrics.jsonl"]["loss"]["step"] == 7
    assert record["logs"]["metrics.jsonl"]["rounding"]["explains"] is False
    assert record["equal"] is False


def test_rounding_is_no_reason_where_configs_differ(tmp_path: Path) -> None:
    lines = [line(1, 2.9 * (1 + 1e-7)), *LINES[1:]]
    pair = a_pair(tmp_path, {4: state()}, {4: state()}, lines=lines)
    assert diff_runs(*pair)["logs"]["metrics.jsonl"]["rounding"]["explains"] is True
    shutil.rmtree(pair[1])
    write_run(pair[1], "jax", {4: state()}, lines, seed=4)
    assert diff_runs(*pair)["logs"]["metrics.jsonl"]["rounding"] is None


def test_the_newest_that_both_have_or_the_one_that_is_named(tmp_path: Path) -> None:
    one, other = a_pair(
        tmp_path, {2: state(2), 4: state(4), 6: state(6)}, {2: state(2), 4: state(4), 8: state(8)}
    )

    def steps(*words: Any, **options: Any) -> list[int]:
        record = diff_runs(*words, **options)
        return [record["one"]["step"], record["other"]["step"]]

    assert steps(one, other) == [4, 4]
    assert steps(one, other, step=2) == [2, 2]
    assert steps(one / "checkpoints" / "00000002", other) == [2, 2]
    assert steps(one / "checkpoints" / "00000006", other / "checkpoints" / "00000008") == [6, 8]
    with pytest.raises(CheckpointError, match="other: has no checkpoint of step 6, only of 2"):
        diff_runs(one / "checkpoints" / "00000006", other)
    for run in (one, other):
        for step in (2, 4):
            shutil.rmtree(run / "checkpoints" / f"{step:08d}")
    assert steps(one, other) == [6, 8]  # and what is said names both
    assert diff_runs(one, other)["checkpoints"] == {"both": [], "equal": None, "first": None}


def test_models_of_other_shapes_are_compared_where_they_can_be(tmp_path: Path) -> None:
    wide = dataclasses.replace(CONFIG, intermediate_size=16, num_hidden_layers=1)
    one = write_run(tmp_path / "one", "torch", {4: state()})
    other = write_run(tmp_path / "other", "torch", {4: state(0, wide)}, config=wide)
    record = diff_runs(one, other)
    what = {fault["name"]: fault["what"] for fault in record["tensors"]}
    assert what["mean/model.layers.0.mlp.up_proj.weight"] == "shape (12, 8) in A, (16, 8) in B"
    assert what["model/model.layers.1.mlp.up_proj.weight"] == "not in B"
    assert record["config"]["model.intermediate_size"] == [12, 16]
    back = {fault["name"]: fault["what"] for fault in diff_runs(other, one)["tensors"]}
    assert back["model/model.layers.1.mlp.up_proj.weight"] == "not in A"
    assert back.keys() == what.keys()


@pytest.mark.parametrize("kind", ["hf", "orbax"])
def test_a_run_and_a_model_are_compared_by_their_weights(tmp_path: Path, kind: str) -> None:
    arrays = state()
    weights = {n.removeprefix("model/"): a for n, a in arrays.items() if n.startswith("model/")}
    model = convert_to(put(tmp_path / "source", weights, CONFIG), tmp_path / "model", kind)
    run = write_run(tmp_path / "run", "jax", {4: arrays})
    record = diff_runs(run, model, verify=True)
    assert record["equal"] is True
    assert record["compared"] == len(weights)
    assert list(record["kinds"]) == ["model"]
    assert (record["checkpoints"], record["logs"]) == (None, None)
    add_checkpoint(run, "jax", 6, moved(arrays, NORM))
    record = diff_runs(model, run)
    assert record["one"]["kind"] == kind
    assert [fault["name"] for fault in record["tensors"]] == [NORM]
    assert diff_runs(model, run, step=4)["equal"] is True
    if kind == "hf":
        file = model / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 0x80  # the sign of the last value
        file.write_bytes(content)
        assert diff_runs(model, run, step=4)["equal"] is False
        with pytest.raises(CheckpointError, match=r"model: tensor .* does not have the SHA-256"):
            diff_runs(model, run, step=4, verify=True)
    if kind == "orbax":  # as another program leaves it
        (model / "config.json").rename(tmp_path / "config.json")
        config = tmp_path / "config.json"
        assert diff_runs(model, run, step=4, config=config)["equal"] is True


def convert_to(source: Path, path: Path, kind: str) -> Path:
    convert(source, path, to=kind)
    return path


def test_a_damaged_checkpoint_is_named_and_not_compared(tmp_path: Path) -> None:
    one, other = a_pair(tmp_path, {2: state(2), 4: state(4)}, {2: state(2), 4: state(4)})
    file = one / "checkpoints" / "00000002" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert diff_runs(one, other)["equal"] is True  # by its sums, which is all that is read of it
    for options in ({"verify": True}, {"step": 2}):
        with pytest.raises(CheckpointError, match=r"00000002: tensor .* does not have the SHA-256"):
            diff_runs(one, other, **options)
    (other / "checkpoints" / "00000004" / "diy_manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"other/.*00000004.* is not a manifest"):
        diff_runs(one, other)


def test_a_checkpoint_that_goes_while_others_are_compared_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = a_pair(tmp_path, {2: state(2), 4: state(4)}, {2: state(3), 4: state(4)})
    opened = RunCheckpoint.open

    def deleting(run: Path, step: int | None) -> RunCheckpoint:
        if step == 2:
            shutil.rmtree(other / "checkpoints" / "00000002", ignore_errors=True)
        return opened(run, step)

    monkeypatch.setattr("parity.inspect.run_diff.RunCheckpoint.open", deleting)
    assert diff_runs(one, other)["checkpoints"] == {"both": [4], "equal": 4, "first": None}


def test_neither_is_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a training run, and neither is the other"):
        diff_runs(tmp_path, tmp_path)


def test_progress_comes_to_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    pair = a_pair(tmp_path, {4: state()}, {4: state()})
    diff_runs(*pair, progress=lambda *words: seen.append(words))
    total = sum(array.nbytes for array in state().values())
    assert seen[0] == ("comparing", 0, total)
    assert seen[-1] == ("comparing", total, total)


def test_one_config_trained_by_both_twins_parts_by_rounding(tmp_path: Path, device: Device) -> None:
    """In float32: the same batches and positions, and every tensor within rounding."""
    plain = {"attention_dropout": 0.0, "residual_dropout": 0.0, "num_hidden_layers": 1}
    changes: dict[str, Any] = {"dtype": "float32", "stop_at": 4, "checkpoint_every": 2}
    changes |= {"model": plain, "accumulation_steps": 1, "eval_every": 0}
    Runs(assemble_torch, STORES["torch"], tmp_path, device.torch.type).train("one", **changes)
    with compiled_once():
        Runs(assemble_jax, STORES["jax"], tmp_path, device.name).train("other", **changes)
    record = diff_runs(tmp_path / "one", tmp_path / "other")
    assert (record["position"], record["config"]) == ({}, {})
    assert record["checkpoints"] == {"both": [2, 4], "equal": None, "first": 2}
    assert record["logs"]["metrics.jsonl"]["compared"] == 4
    assert record["logs"]["metrics.jsonl"]["rounding"]["explains"] is True
    assert 0 < record["kinds"]["model"]["worst"] < 1e-5
    assert 0 < record["kinds"]["mean"]["worst"] < 1e-4
