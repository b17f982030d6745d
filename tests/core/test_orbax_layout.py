"""Which of the folders in a directory are the steps of a run, told by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from diy_core.checkpoints.kinds import kind_of
from diy_core.checkpoints.orbax.layout import locate
from diy_core.errors import CheckpointError


def tree(path: Path, config: bool = False) -> None:
    """The files that Orbax is told by, of a checkpoint that is a tree by itself."""
    path.mkdir(parents=True)
    for name in ("_METADATA", "_CHECKPOINT_METADATA"):
        (path / name).touch()
    if config:
        (path / "config.json").write_text("{}")


def whole(path: Path) -> None:
    """A checkpoint as `parity convert` writes it."""
    tree(path / "state")
    (path / "config.json").write_text("{}")


@pytest.mark.parametrize("name", ["llama-3", "llama3", "my_model_v2", "misstep2", "8b-1"])
@pytest.mark.parametrize("beside", [(), ("other",)])
def test_a_model_whose_name_ends_in_a_number_is_no_step(
    tmp_path: Path, name: str, beside: tuple[str, ...]
) -> None:
    for model in (name, *beside):
        whole(tmp_path / model)
    with pytest.raises(CheckpointError, match=rf"/{name} is an Orbax checkpoint.*: give "):
        kind_of(tmp_path)
    assert kind_of(tmp_path / name) == "orbax"


@pytest.mark.parametrize(
    "name",
    [
        *("100", "step_100", "step100", "ckpt-00000100", "checkpoint_100", "Epoch 3"),
        *("global_step100", "llama-3_step_100", "iter_0000100"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_a_step_is_read_without_a_note(tmp_path: Path, name: str, config: bool) -> None:
    tree(tmp_path / name, config)
    assert kind_of(tmp_path) == "orbax"
    assert (locate(tmp_path).tree, locate(tmp_path).notes) == (tmp_path / name, ())


def test_a_name_that_may_be_that_of_a_step_is_noted(tmp_path: Path) -> None:
    tree(tmp_path / "llama-3")
    (note,) = locate(tmp_path).notes
    assert note.startswith(f"{tmp_path / 'llama-3'} was read, as its name ends in a number")


def test_steps_of_one_run_have_one_name(tmp_path: Path) -> None:
    for name in ("llama_3", "qwen_2", "step_1"):
        tree(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"qwen_2 is an Orbax.*: give one of them"):
        kind_of(tmp_path)
    with pytest.raises(CheckpointError, match="is not an Orbax checkpoint"):
        locate(tmp_path)
