"""Notes are warned of one by one, or refused all at once."""

from __future__ import annotations

import warnings

import pytest

from diy_core import CheckpointError, CheckpointNote
from diy_core.notes import notes_of_command, refuse, settle

NOTES = ["two buffers were passed over", "the head is the embedding"]


def test_each_note_is_a_warning_that_names_the_place() -> None:
    with pytest.warns(CheckpointNote) as caught:
        settle("some/model", NOTES)
    assert [str(warning.message) for warning in caught] == [f"some/model: {n}" for n in NOTES]
    assert {warning.filename for warning in caught} != {settle.__code__.co_filename}


def test_strict_refuses_all_of_them_at_once() -> None:
    with pytest.raises(CheckpointError) as refused:
        settle("some/model", NOTES, strict=True)
    assert all(note in str(refused.value) for note in NOTES)


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
