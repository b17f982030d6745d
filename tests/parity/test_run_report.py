"""`parity diff` on training runs, as people and machines read it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from diy_core.data import Batches, TokenData, prepare
from parity.__main__ import main
from tests.tiny_checkpoints import put
from tests.written_runs import CONFIG, State, add_checkpoint, line, moved, state, write_run

Capture = pytest.CaptureFixture[str]
NORM, MEAN = "model/model.norm.weight", "mean/model.embed_tokens.weight"
LINES = [line(step, 3.0 - step / 10) for step in range(1, 10)]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def said(capsys: Capture, *words: str, code: int = 1) -> list[str]:
    """The lines on standard output, and nothing on standard error."""
    assert main(["diff", *words]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return [text.rstrip() for text in out.splitlines()]


def a_pair(
    one: dict[int, State], other: dict[int, State], lines: Any = LINES, **changes: Any
) -> Any:
    write_run(Path("one"), "torch", one, LINES)
    write_run(Path("other"), "jax", other, lines, **changes)
    return "one", "other"


def test_equal_runs(capsys: Capture) -> None:
    states = {4: state(4), 8: state(8)}
    assert said(capsys, *a_pair(states, states), code=0) == [
        "equal to the bit at step 8: 60 arrays, and the losses of 9 steps",
        "A  one: a run of diy-torch, here at step 8 of 20",
        "B  other: a run of diy-jax, here at step 8 of 20",
        "metrics.jsonl: 9 steps in both, 1 to 9, all the same",
        "evaluations.jsonl: no step in both",
        "checkpoints: 4, 8 in both, all the same",
        "weights: 20 arrays, all the same",
        "mean: 20 arrays, all the same",
        "square: 20 arrays, all the same",
    ]


def test_runs_that_part(capsys: Capture) -> None:
    one = {4: state(4), 8: state(8)}
    other = one | {8: moved(moved(one[8], NORM, 1e-4), MEAN, 1e-2)}
    lines = [*LINES[:5], *(line(row["step"], row["loss"] * (1 + 2e-7)) for row in LINES[5:])]
    lines[7]["loss"] *= 1.5
    text = said(capsys, *a_pair(one, other, lines))
    assert text[0] == (
        "equal to the bit up to step 4; first part at step 6: loss 2.0e-07 relative, within the "
        "rounding of float32 (4.8e-07)"
    )
    assert text[3:6] == [
        "metrics.jsonl: 9 steps in both, 1 to 9; the loss first differs at step 6 (2.4 and "
        "2.40000048, 2.0e-07 relative), most at step 8 (5.0e-01)",
        "evaluations.jsonl: no step in both",
        "checkpoints: 4, 8 in both; 8 is the first that differs",
    ]
    assert text[6].startswith(
        "weights: 1 of 20 arrays differ, 1.0e-04 relative at most (model.norm"
    )
    assert text[7].startswith("mean: 1 of 20 arrays differ, 1.0e-02 relative at most (model.embed")
    assert text[8] == "square: 20 arrays, all the same"
    assert [row.split() for row in text[9:]] == [
        ["relative", "L2", "weights", "mean"],
        ["model.norm.weight", "1.0e-04", "same"],
        ["model.embed_tokens.weight", "same", "1.0e-02"],
    ]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"loss": 2.5}, "first part at step 6: loss 4.2e-02 relative, more than the rounding of"),
        ({"tokens": 9}, "first part at step 6: tokens is 100 in A, 9 in B, more than the rounding"),
        ({"loss": None}, "first part at step 6: loss is 2.4 in A, not finite in B, more"),
        ({"loss": math.nan}, "first part at step 6: loss is 2.4 in A, not finite in B, more than"),
    ],
)
def test_a_step_that_rounding_does_not_explain(
    capsys: Capture, change: dict[str, Any], first: str
) -> None:
    lines = [*LINES[:5], LINES[5] | change, *LINES[6:]]
    pair = a_pair({4: state(4)}, {4: moved(state(4), NORM)}, lines)
    # The checkpoint before it differs already, though no loss did.
    assert said(capsys, *pair)[0] == (
        "first part at the checkpoint of step 4, after the same losses: weights 1.0e-03 relative"
    )
    write_run(Path("third"), "jax", {4: state(4)}, lines)
    text = said(capsys, "one", "third")[0]
    assert text.startswith(f"equal to the bit up to step 4; {first}")


def test_a_log_with_the_same_losses_and_steps_of_its_own(capsys: Capture) -> None:
    lines = [*LINES[:2], LINES[2] | {"grad_norm": 9.0}, *LINES[3:-2]]
    text = said(capsys, *a_pair({4: state(4)}, {4: state(4)}, lines))
    assert (
        f"metrics.jsonl: {len(lines)} steps in both, 1 to {len(lines)}; the losses are the same; "
        "step 3 is the first that differs; 2 more in A"
    ) in text


def test_logs_that_part_before_an_equal_checkpoint(capsys: Capture) -> None:
    lines = [line(1, 7.0), *LINES[1:]]
    text = said(capsys, *a_pair({4: state(4)}, {4: state(4)}, lines))[0]
    assert text.startswith("equal to the bit at step 4, but the logs part at step 1: loss 1.4e+00")


def test_what_is_not_finite_is_said_in_words(capsys: Capture) -> None:
    lines = [line(1, 0.0), line(2, math.nan), *LINES[2:]]
    arrays = state(4)
    zeros = arrays | {MEAN: arrays[MEAN] * 0}
    text = said(capsys, *a_pair({4: arrays}, {4: zeros}, lines))
    assert text[3].endswith(
        "the loss first differs at step 1 (2.9 and 0, 1.0e+00 relative), most at step 1 (1.0e+00)"
    )
    text = said(capsys, "other", "one")
    assert text[3].endswith("the loss first differs at step 1 (0 and 2.9)")
    assert (
        "mean: 1 of 20 arrays differ, without a relation (zero in A) (model.embed_tokens.weight)"
        in text
    )


def test_data_that_only_their_description_tells_apart(capsys: Capture) -> None:
    """The same tokens, prepared from files of other names, and of a report of its own."""
    runs = [write_run(Path(name), "torch", {}, LINES) for name in ("one", "other")]
    text, moved_text, more = (Path(name) for name in ("a.txt", "b.txt", "c.txt"))
    text.write_text("the text of both\n")
    moved_text.write_text("the text of both\n")
    more.write_text("the text of both, and more\n")
    for run, source in zip(runs, (text, moved_text), strict=True):
        add_checkpoint(run, "torch", 4, state(4), data=position_in(prepared(run, source)))
    found = said(capsys, "one", "other", code=0)
    assert found[0] == "equal to the bit at step 4: 60 arrays, and the losses of 9 steps"
    assert found[3] == "data: the same tokens; their data.json differs in sources"
    third = write_run(Path("third"), "torch", {}, LINES)
    add_checkpoint(third, "torch", 4, state(4), data=position_in(prepared(third, more)))
    found = said(capsys, "one", "third")
    assert found[0] == "first part at the checkpoint of step 4, after the same losses"
    assert found[3].startswith(
        "data: other tokens: tokens (18 in A, 28 in B), counted (17 in A, 27"
    )
    assert found[3].endswith("sources, tokens.bin, documents.bin")
    shutil.rmtree("other/data")
    found = said(capsys, "one", "other")
    assert found[3] == (
        "data: data.json differs, and that of B is not where the config names the data: whether "
        "the tokens are the same is not known"
    )
    found = said(capsys, "one/checkpoints/00000004", "third/checkpoints/00000004")
    assert found[0] == "the same arrays at step 4, to the bit; data differ"


def prepared(run: Path, source: Path) -> TokenData:
    return prepare(source, run / "data", tokenizer="bytes")


def position_in(data: TokenData) -> dict[str, Any]:
    batches = Batches(data, batch_size=2, sequence_length=8, seed=0)
    return iter(batches).state()


def test_configs_that_differ_are_said_at_once(capsys: Capture) -> None:
    states = {4: state(4)}
    text = said(capsys, *a_pair(states, states, seed=4))
    assert text[0] == "the same arrays at step 4, to the bit; config differs"
    assert text[3] == "config: seed is 3 in A, 4 in B"
    write_run(Path("third"), "jax", {4: moved(state(4), NORM)}, LINES, seed=4)
    text = said(capsys, "one", "third")
    assert text[0].startswith("first part at the checkpoint of step 4, after the same losses: weig")
    assert text[0].endswith("; the configs differ")


def test_other_shapes_are_folded_by_their_kind(capsys: Capture) -> None:
    wide = dataclasses.replace(CONFIG, intermediate_size=16)
    write_run(Path("one"), "torch", {4: state()})
    write_run(Path("other"), "jax", {4: state(0, wide)}, config=wide)
    text = said(capsys, "one", "other")
    assert "config: model.intermediate_size is 12 in A, 16 in B" in text
    shapes = [line for line in text if ": shape (" in line]
    assert "mean/model.layers.0-1.mlp.up_proj.weight: shape (12, 8) in A, (16, 8) in B" in shapes
    assert len(shapes) == 3 * 3


def test_two_steps_of_one_run(capsys: Capture) -> None:
    write_run(Path("one"), "torch", {4: state(4), 8: moved(state(4), NORM, 1e-2)}, LINES)
    text = said(capsys, "one/checkpoints/00000004", "one/checkpoints/00000008")
    assert text[0] == "different between step 4 of A and step 8 of B: weights 1.0e-02 relative"
    assert "position: step is 4 in A, 8 in B" in text


def test_a_run_and_a_model(capsys: Capture) -> None:
    arrays = state()
    weights = {n.removeprefix("model/"): a for n, a in arrays.items() if n.startswith("model/")}
    put(Path("model"), weights, CONFIG)
    write_run(Path("one"), "torch", {4: arrays, 8: moved(arrays, NORM)}, LINES)
    text = said(capsys, "one", "model")
    assert text[0] == "different at step 8: weights 1.0e-03 relative"
    assert text[2] == "B  model: Hugging Face directory"
    assert said(capsys, "model", "one", "--step", "4", code=0)[0] == (
        "equal to the bit at step 4: 20 arrays"
    )


def test_a_record_for_machines(capsys: Capture) -> None:
    pair = a_pair({4: state(4)}, {4: moved(state(4), NORM)})
    record = json.loads("\n".join(said(capsys, *pair, "--json", "-")))
    assert (record["one"]["kind"], record["other"]["program"]) == ("run", "diy-jax")
    assert [fault["name"] for fault in record["tensors"]] == [NORM]
    assert record["logs"]["metrics.jsonl"]["compared"] == 9
    said(capsys, *pair, "--json", "record.json")
    assert json.loads(Path("record.json").read_text()) == record


def test_what_cannot_be_compared(capsys: Capture) -> None:
    write_run(Path("one"), "torch", {4: state(4)})
    write_run(Path("empty"), "torch", {})
    write_run(Path("other"), "jax", {4: state(4)})
    (Path("other") / "checkpoints" / "00000004" / "position.json").write_text("{}")
    for words, message in (
        (["one", "empty"], "empty: is a training run that has saved no checkpoint yet: it saves"),
        (["one", "other"], "00000004/position.json: is damaged"),
        (["one", "one", "--step", "5"], "one: has no checkpoint of step 5, only of 4"),
        (["one", "nowhere"], "nowhere: does not exist"),
        (["nowhere", "nowhere", "--step", "5"], "--step is of training runs: neither A nor B is"),
        (["one", "one", "--config", "one"], "which have configs of their own: leave --config out"),
    ):
        assert main(["diff", *words]) == 2
        assert message in capsys.readouterr().err


def test_states_that_part_without_a_log_or_before_what_is_compared(capsys: Capture) -> None:
    write_run(Path("one"), "torch", {4: state(4), 8: state(8)})
    write_run(Path("other"), "jax", {4: moved(state(4), NORM), 8: moved(state(8), NORM, 1e-1)})
    assert said(capsys, "one", "other")[0] == "first part at the checkpoint of step 4"
    for path in ("one", "other"):
        (Path(path) / "checkpoints" / "00000008").rename(f"{path}-8")
    assert said(capsys, "one", "other")[0] == (
        "first part at the checkpoint of step 4: weights 1.0e-03 relative"
    )


def test_position_and_config_of_the_same_arrays(capsys: Capture) -> None:
    write_run(Path("one"), "torch", {4: state(4)}, LINES[:1])
    write_run(Path("other"), "jax", {}, LINES[:1], seed=4)
    add_checkpoint(Path("other"), "jax", 4, state(4), tokens=9)
    text = said(capsys, *(f"{name}/checkpoints/00000004" for name in ("one", "other")))
    assert text[0] == "the same arrays at step 4, to the bit; position and config differ"
    assert "metrics.jsonl: 1 step in both, 1 to 1, all the same" in text


def test_lines_that_cannot_be_read_are_named_with_their_side(capsys: Capture) -> None:
    pair = a_pair({4: state(4)}, {4: state(4)})
    for name, damaged in zip(pair, ((2, 3, 4, 5, 6, 7), (8,)), strict=True):
        rows = (Path(name) / "metrics.jsonl").read_text().splitlines()
        rows = ["{" if number in damaged else row for number, row in enumerate(rows, 1)]
        (Path(name) / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    text = said(capsys, *pair, code=0)
    (log,) = [line for line in text if line.startswith("metrics.jsonl")]
    assert log.startswith("metrics.jsonl: 2 steps in both, 1 to 9, all the same; ")
    assert "; line 2, 3, 4, 5, 6 of A cannot be read; line 8 of B cannot be read" in log


def test_many_differences_are_the_worst_of_them(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity.inspect.run_report.SHOWN", 3)
    one, other = state(4), state(4)
    names = [name for name in one if name.startswith("model/")]
    for number, name in enumerate(names, 1):
        other = moved(other, name, number / 1e3)
    text = said(capsys, *a_pair({4: one}, {4: other}))
    head = next(i for i, row in enumerate(text) if row.startswith("relative L2"))
    assert text[head].split() == ["relative", "L2", "(the", "worst", "3", "of", "20)", "weights"]
    worst = [name.removeprefix("model/") for name in names[:-4:-1]]
    assert [row.split()[0] for row in text[head + 1 :]] == worst
