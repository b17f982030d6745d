"""Between the two twins in memory, and between a Hugging Face directory and Orbax on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import diy_jax.checkpoint
import diy_torch.checkpoint
from diy_core import hf_directory
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import TIED_HEAD, flatten, match, match_flax, tensors
from diy_jax import orbax_store


def to_flax(state_dict: Mapping[str, torch.Tensor], config: DIYConfig) -> dict[str, Any]:
    """The PyTorch twin's `state_dict()` as params of the Flax twin, dtypes kept.

    Raises:
        CheckpointError: tensors missing, extra or misshapen, or a tied head that is not the
            embedding; all faults at once.
        ValueError: float64 tensors while JAX's 64-bit mode is off.
    """
    rows = tensors(config)
    wanted = {tensor.torch: tensor.shape for tensor in rows}
    found = {name: tuple(value.shape) for name, value in state_dict.items()}
    if config.tie_word_embeddings and TIED_HEAD in found:
        wanted[TIED_HEAD] = rows[0].shape
    faults = match(found, wanted)
    if not faults and config.tie_word_embeddings and TIED_HEAD in found:
        head, embedding = state_dict[TIED_HEAD], state_dict[rows[0].torch]
        if head.data_ptr() != embedding.data_ptr() and not torch.equal(head, embedding):
            faults.append(
                f"tie_word_embeddings is true, but {TIED_HEAD} differs from the embedding"
            )
    if faults:
        raise CheckpointError("state_dict", faults)
    return diy_jax.checkpoint.build_params(
        ((t, diy_torch.checkpoint.to_numpy(state_dict[t.torch].detach())) for t in rows), None
    )


def to_torch(params: Mapping[str, Any], config: DIYConfig) -> dict[str, torch.Tensor]:
    """The Flax twin's params as a `state_dict` for the PyTorch twin, dtypes kept.

    A tied head is in it twice, under both of its names, as in the twin's own `state_dict()`.

    Raises:
        CheckpointError: parameters missing, extra or misshapen; all faults at once.
    """
    rows, flat = tensors(config), flatten(params)
    faults = match_flax(flat, config)
    if faults:
        raise CheckpointError("params", faults)
    state_dict = {
        tensor.torch: diy_torch.checkpoint.to_tensor(
            tensor.to_flax.inverse(diy_jax.checkpoint.to_numpy(flat[tensor.flax])).copy()
        )
        for tensor in rows
    }
    if config.tie_word_embeddings:
        state_dict[TIED_HEAD] = state_dict[rows[0].torch]
    return state_dict


def kind_of(path: str | Path) -> str:
    """`hf` for a Hugging Face directory, `orbax` for a checkpoint of the JAX side.

    Raises:
        CheckpointError: it is neither; the message says what was looked for.
    """
    path = Path(path)
    if orbax_store.is_store(path):
        return "orbax"
    if (path / hf_directory.CONFIG).is_file():
        return "hf"
    raise CheckpointError(
        path,
        f"is neither a Hugging Face directory ({hf_directory.CONFIG} and safetensors) nor an "
        f"Orbax checkpoint ({orbax_store.STATE}/ and {hf_directory.CONFIG})",
    )


def convert(source: str | Path, destination: str | Path, *, overwrite: bool = False) -> str:
    """Hugging Face directory to Orbax checkpoint, or back, bit for bit, dtypes kept.

    Args:
        source: either kind; it is recognised.
        destination: becomes the other kind, whole or not at all.
        overwrite: replace an existing destination of that kind.

    Returns:
        The kind that was written, `hf` or `orbax`.

    Raises:
        CheckpointError: a source that is damaged, or a destination that is in the way.
    """
    source, destination = Path(source), Path(destination)
    kind = kind_of(source)
    if source.resolve() == destination.resolve():
        raise CheckpointError(destination, "is the source itself")
    if destination.exists() and not overwrite:
        raise CheckpointError(destination, "exists already; --overwrite replaces it")
    if kind == "hf":
        directory = hf_directory.HFDirectory(source)
        by_name = {tensor.hf: tensor for tensor in tensors(directory.config)}
        params = {
            by_name[name].flax: by_name[name].to_flax(array) for name, array in directory.read_all()
        }
        orbax_store.save_store(destination, directory.config, params, directory.copy_side_files)
        return "orbax"
    config, params = orbax_store.load_store(source)
    named = ((t.hf, t.to_flax.inverse(params[t.flax])) for t in tensors(config))

    def side_files(to: Path) -> None:
        hf_directory.copy_side_files(source, to)

    hf_directory.write_hf_directory(destination, config, named, side_files)
    return "hf"
