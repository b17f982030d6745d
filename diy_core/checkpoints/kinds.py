"""What kind of checkpoint stands at a path. Nothing is imported that could read it."""

from __future__ import annotations

from pathlib import Path

from diy_core.checkpoints import hf_directory
from diy_core.checkpoints.atomic import recover
from diy_core.checkpoints.training_run import refuse_training_run
from diy_core.errors import CheckpointError

KINDS = {"hf": "Hugging Face directory", "orbax": "Orbax checkpoint", "gguf": "GGUF file"}
ORBAX_STATE = "state"  # the folder of the parameters in an Orbax checkpoint of ours


def is_orbax(path: str | Path) -> bool:
    """True for a directory that `diy_jax.orbax_store.OrbaxWriter` wrote."""
    path = Path(path)
    return (path / ORBAX_STATE).is_dir() and (path / hf_directory.CONFIG).is_file()


def kind_of(path: str | Path) -> str:
    """`hf` for a Hugging Face directory, `orbax` for an Orbax checkpoint, `gguf` for a GGUF file.

    Raises:
        CheckpointError: it is none of them; the message says what was looked for.
    """
    path = Path(path)
    if not path.exists():
        recover(path)
    refuse_training_run(path)
    if is_orbax(path):
        return "orbax"
    if (path / hf_directory.CONFIG).is_file():
        return "hf"
    if path.is_file() and path.suffix in (".safetensors", ".json"):
        raise CheckpointError(path, "is one file of a model directory: give the directory")
    if path.is_file():
        return "gguf"  # or the reader will say what is wrong with it
    if not path.exists():
        raise CheckpointError(path, "does not exist")
    if is_orbax(path.parent):
        raise CheckpointError(path, f"is a part of the Orbax checkpoint {path.parent}: give that")
    raise CheckpointError(
        path,
        f"is neither a Hugging Face directory ({hf_directory.CONFIG} and safetensors) nor an "
        f"Orbax checkpoint ({ORBAX_STATE}/ and {hf_directory.CONFIG}) nor a GGUF file",
    )
