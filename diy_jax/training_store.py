"""Training checkpoints of the JAX twin: arrays as an Orbax tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.checkpoints.interface import Stored
from diy_core.training.checkpoints.files import Arrays
from diy_core.training.checkpoints.store import CheckpointStore
from diy_jax.orbax_files import load_tree, names_in_tree, save_tree


class TrainingStore(CheckpointStore):
    """Checkpoints whose arrays are `orbax/`: `orbax.checkpoint.v1.load` gives

    {"model": {"model.embed_tokens.weight": ..., ...}, "mean": {...}, "square": {...}}
    """

    form = "orbax"

    @staticmethod
    def write_arrays(folder: Path, layout: Mapping[str, Stored], parts: Iterable[Arrays]) -> None:
        """Write the arrays of `layout` into a new folder as they come.

        Raises:
            OSError: the disk is full, ...
        """
        save_tree(folder / TrainingStore.form, (_tree(part) for part in parts))

    @staticmethod
    def names_of_arrays(folder: Path) -> Sequence[str]:
        """The names of all arrays in the tree.

        Raises:
            CheckpointError: Orbax cannot read it.
        """
        return ["/".join(path) for path in names_in_tree(folder / TrainingStore.form)]

    @staticmethod
    def read_arrays(folder: Path, layout: Mapping[str, Stored]) -> dict[str, NDArray[Any]]:
        """Read the arrays that `layout` names, in the dtype that it says.

        Raises:
            CheckpointError: Orbax cannot read them.
        """
        tree = load_tree(folder / TrainingStore.form, _tree(layout))
        return {name: tree[kind][hf] for name in layout for kind, hf in [_split(name)]}


def _tree(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        kind, hf = _split(name)
        tree.setdefault(kind, {})[hf] = array
    return tree


def _split(name: str) -> tuple[str, str]:
    kind, _, hf = name.partition("/")
    return kind, hf
