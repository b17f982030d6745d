"""The JAX side's checkpoint: an Orbax tree of params, with the config and tokenizer beside it.

    DIR/              is an Orbax checkpoint: `orbax.checkpoint.v1.load(DIR)` reads the params
    DIR/state/        the params in the Flax layout; Orbax v0 reads this folder
    DIR/config.json   and tokenizer.json, ... as in a Hugging Face directory

The one place that calls Orbax, through its v1 interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from orbax.checkpoint import v1 as ocp

from diy_core import hf_directory
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.files import atomic_directory, recover
from diy_core.mapping import flatten, match_flax, unflatten

STATE = "state"
_OWN = {STATE, "_CHECKPOINT_METADATA", "orbax.checkpoint", "commit_success.txt"}
Flat = dict[tuple[str, ...], NDArray[Any]]


def is_store(path: str | Path) -> bool:
    """True for a directory that `save_store` wrote."""
    path = Path(path)
    return (path / STATE).is_dir() and (path / hf_directory.CONFIG).is_file()


def save_store(
    path: str | Path,
    config: DIYConfig,
    params: Mapping[tuple[str, ...], Any],
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Write params, given as `{path: array}`, whole or not at all.

    Args:
        path: where; an existing checkpoint is replaced.
        config: goes to `config.json`.
        params: every parameter of the config, in the Flax layout.
        write_more: called with the directory before it moves into place, for further files.

    Raises:
        CheckpointError: params that are not those of the config, or a `path` that holds something
            else.
    """
    path = Path(path).absolute()  # Orbax finds nothing at a relative path, in silence
    _check(path, config, params)
    recover(path)
    _refuse_foreign(path)
    with atomic_directory(path) as temporary:
        arrays = {name: np.ascontiguousarray(array) for name, array in params.items()}
        # Orbax wants a directory of its own making, so its files move up from one.
        ocp.save(temporary / "orbax", unflatten(arrays))
        for item in (temporary / "orbax").iterdir():
            item.rename(temporary / item.name)
        (temporary / "orbax").rmdir()
        dtypes = sorted({str(array.dtype) for array in arrays.values()})
        hf_directory.write_json(
            temporary / hf_directory.CONFIG, hf_directory.with_dtype(config.to_dict(), dtypes)
        )
        if write_more is not None:
            write_more(temporary)


def load_store(path: str | Path) -> tuple[DIYConfig, Flat]:
    """The config, and params as `{path: numpy array}` in the dtypes of the file.

    Raises:
        CheckpointError: not a checkpoint, or its params are not those of its config.
    """
    path = Path(path).absolute()  # Orbax finds nothing at a relative path, in silence
    if not path.exists():
        recover(path)
    if not is_store(path):
        raise CheckpointError(path, f"is no Orbax checkpoint: it needs {STATE}/ and config.json")
    config = DIYConfig.from_pretrained(path)
    try:
        metadata = ocp.metadata(path).metadata
        if not isinstance(metadata, Mapping):
            raise CheckpointError(path, f"Orbax finds no params in it: {metadata!r}")
        _check(path, config, flatten(metadata))
        # Asked for as numpy in the dtype of the file: Orbax would cast to another one in silence.
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
        tree = ocp.load(path, wanted)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"Orbax cannot read it: {error}") from error
    return config, {name: np.asarray(array) for name, array in flatten(tree).items()}


def load_params(path: str | Path, dtype: Any = None) -> tuple[DIYConfig, dict[str, Any]]:
    """The config, and params as JAX arrays for `model.apply({"params": params}, ...)`.

    Args:
        path: a directory that `save_store` wrote.
        dtype: of the params; None keeps the dtype of the file.

    Raises:
        CheckpointError: not a checkpoint, or its params are not those of its config.
    """
    from diy_jax.checkpoint import to_array

    config, flat = load_store(path)
    return config, unflatten({name: to_array(array, dtype) for name, array in flat.items()})


def _refuse_foreign(path: Path) -> None:
    """Raise where the directory holds what no checkpoint of ours has: it would be lost."""
    own = {*_OWN, hf_directory.CONFIG, *hf_directory.SIDE_FILES}
    other = (
        sorted(item.name for item in path.iterdir() if item.name not in own)
        if path.is_dir()
        else []
    )
    if other:
        raise CheckpointError(
            path,
            f"holds {', '.join(other[:3])}, which is no part of an Orbax checkpoint: choose "
            "another place, or remove it",
        )


def _check(path: Path, config: DIYConfig, params: Mapping[tuple[str, ...], Any]) -> None:
    faults = match_flax(params, config)
    if faults:
        raise CheckpointError(path, faults)
