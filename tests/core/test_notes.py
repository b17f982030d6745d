"""Notes are warned of one by one, or refused all at once."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

import pytest

from diy_core import CheckpointError, CheckpointNote
from diy_core.commands.command_line import build_parser, run
from diy_core.notes import notes_of_command, refuse, settle
from diy_core.training.config import DataConfig, TrainConfig
from diy_core.training.run.directory import RunDirectory
from diy_core.training.run.model import keep_model
from tests.oracles import tiny
from tests.tiny_checkpoints import put, put_tokenizer, weights

NOTES = ["two buffers were passed over", "the head is the embedding"]


def test_each_note_is_a_warning_that_names_the_place() -> None:
    with pytest.warns(CheckpointNote) as caught:
        settle("some/model", NOTES)
    assert [str(warning.message) for warning in caught] == [f"some/model: {n}" for n in NOTES]
    assert {warning.filename for warning in caught} != {settle.__code__.co_filename}


def test_a_warning_stands_where_the_checkpoint_is_opened() -> None:
    def opening() -> None:
        settle("some/model", NOTES[:1])

    with pytest.warns(CheckpointNote) as caught:
        opening()
    line = sys._getframe().f_lineno - 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_strict_refuses_all_of_them_at_once() -> None:
    with pytest.raises(CheckpointError) as refused:
        settle("some/model", NOTES, strict=True)
    assert all(note in str(refused.value) for note in NOTES)


def test_a_note_with_a_flood_in_it_is_cut() -> None:
    with pytest.warns(CheckpointNote) as said:
        settle("model", ["odd" * 10**6])
    assert len(str(said[0].message)) < 3000


@pytest.mark.parametrize(
    ("count", "last"),
    [
        (100, "model: note 99"),
        (101, "model: and one more such note"),
        (200_000, "model: and 199,900 more such notes"),
    ],
)
def test_of_very_many_notes_the_first_are_said_and_how_many_more(count: int, last: str) -> None:
    notes = [f"note {i}" for i in range(count)]
    with pytest.warns(CheckpointNote) as said:
        settle("model", notes)
    assert len(said) == min(count, 101)
    assert [str(said[i].message) for i in (0, 99)] == ["model: note 0", "model: note 99"]
    assert str(said[-1].message) == last


@pytest.mark.parametrize("strict", [False, True])
def test_without_notes_nothing_is_said(strict: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settle("some/model", [], strict=strict)


def test_a_command_prints_each_note_once(capsys: pytest.CaptureFixture[str]) -> None:
    with notes_of_command():
        settle("some/model", NOTES)
        settle("some/model", NOTES)
        refuse("some/model", NOTES)
    assert capsys.readouterr().err.splitlines() == [f"note: some/model: {n}" for n in NOTES]
    with pytest.warns(CheckpointNote):  # behind it, all is as before
        settle("some/model", NOTES)


def test_a_strict_command_is_strict_wherever_a_checkpoint_is_opened() -> None:
    for say in (settle, refuse):
        with notes_of_command(strict=True), pytest.raises(CheckpointError) as refused:
            say("some/model", NOTES)
        assert len(refused.value.faults) == 2


@pytest.mark.parametrize("strict", [False, True])
def test_a_twin_prepares_data_with_an_odd_tokenizer_unless_it_is_strict(
    tmp_path: Path, strict: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(vocab_size=270)
    put(tmp_path / "m", weights(config), config, eos_token_id=[0, 400])
    put_tokenizer(tmp_path / "m")
    (tmp_path / "text.txt").write_text("the 2020")
    words = ["data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), "--workers", "1"]
    words += ["--tokenizer", str(tmp_path / "m"), *(["--strict"] if strict else [])]
    code = run(build_parser("diy-torch"), words, lambda: pytest.fail("nothing is loaded"))
    err = capsys.readouterr().err
    assert (code, (tmp_path / "out").exists()) == ((2, False) if strict else (0, True))
    assert err.count("eos_token_id 400 was left out") == 1
    assert ("(refused: strict)" in err) == strict
    assert err.startswith("note: ") != strict


@pytest.mark.parametrize("strict", [False, True])
def test_a_run_tells_of_its_model_before_it_keeps_it(
    tmp_path: Path, strict: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "m", weights(), pretraining_tp=2)
    config = TrainConfig(
        run_dir=str(tmp_path / "run"),
        model=str(tmp_path / "m"),
        data=DataConfig(train="x", tokenizer="bytes"),
        steps=1,
        batch_size=1,
        sequence_length=8,
    )
    refused = pytest.raises(CheckpointError, match="pretraining_tp 2 was passed over")
    with (
        notes_of_command(strict=strict),
        refused if strict else contextlib.nullcontext(),
        RunDirectory(config.run_dir, lambda text: None) as directory,
    ):
        keep_model(config, directory.model)
    assert (tmp_path / "run" / "model").exists() != strict
    assert ("note: " in capsys.readouterr().err) != strict
