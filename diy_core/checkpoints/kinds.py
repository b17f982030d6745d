"""What kind of checkpoint a path holds, and what to do with one that nothing here reads.

Every command and both twins ask `kind_of`, so that each kind is recognised, and refused, in the
same words everywhere. Names of files are looked at, and of a `.bin` file how it begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from diy_core.checkpoints.atomic import refuse_left_aside
from diy_core.checkpoints.orbax.layout import STATE, config_directory, is_orbax, is_whole
from diy_core.checkpoints.pickles import PICKLES, is_pickle
from diy_core.checkpoints.training_run import place_in_run, refuse_training_run
from diy_core.errors import CheckpointError
from diy_core.system.hub_cache import snapshots_below
from diy_core.system.shell import command

KINDS = {"hf": "Hugging Face directory", "orbax": "Orbax checkpoint", "gguf": "GGUF file"}
CONFIG, ADAPTER = "config.json", "adapter_config.json"
_GGUF, _SAFETENSORS = ".gguf", ".safetensors"
_PREPARED = {"data.json", "tokens.bin"}  # what `diy-torch data` writes
_MOST_BELOW, _SHOWN = 100, 3  # directories that are looked into, and named
_ON_PREPARED = "prepared token data, to train on (data.train), and no model"
_PICKLED = (
    "which can run any code when they are read: convert them to safetensors first, where you trust "
    "them (in transformers: from_pretrained(...).save_pretrained(DIR))"
)
_OTHERS = {  # of other frameworks, by the ending of a file
    ".msgpack": "holds Flax weights of transformers 4: load them there, with "
    "AutoModelForCausalLM.from_pretrained(..., from_flax=True), and save_pretrained(DIR)",
    ".h5": "holds TensorFlow weights of transformers 4: load them there, with "
    "AutoModelForCausalLM.from_pretrained(..., from_tf=True), and save_pretrained(DIR)",
    ".onnx": "holds an ONNX graph and no checkpoint: take the Hugging Face directory that it was "
    "exported from",
    ".npz": "holds numpy arrays and no checkpoint: write them as safetensors with a config.json",
}

# Of quantised weights, by the ending of a tensor's name, the first that is there.
_QUANTISED = {
    ".qweight": "GPTQ and AWQ",
    ".W_q": "HQQ checkpoints",
    ".weight._data": "quanto checkpoints",
    ".weight._packed": "quanto checkpoints",
    ".weight._data._data": "quanto checkpoints",
    ".weight._scale": "quanto checkpoints",
    ".weight_scales": "EETQ checkpoints",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 checkpoints",
    ".weight_scale_inv": "FP8 checkpoints",
    ".q_weight": "EXL2 checkpoints",
    ".trellis": "EXL3 checkpoints",
    ".codebooks": "AQLM checkpoints",
    ".Qidxs": "QuIP# checkpoints",
    ".centroids": "VPTQ checkpoints",
    "_blocks": "MXFP4 checkpoints",
    "_weight_qdata": "torchao checkpoints",
    ".tables2": "HIGGS checkpoints",
    ".scales": "MLX",
    ".B": "Marlin checkpoints",
}


class UnknownKind(CheckpointError):
    """A path at which there is nothing that is known."""


def kind_of(path: str | Path) -> str:
    """`hf` for a Hugging Face directory, `orbax` for an Orbax checkpoint, `gguf` for a GGUF file.

    Raises:
        UnknownKind: it is nothing that is known.
        CheckpointError: it is none of them; the message says what it is, and what to do.
    """
    path = Path(path)
    refuse_left_aside(path)
    refuse_training_run(path)
    if not path.exists() and path.is_symlink():
        raise CheckpointError(path, f"is a link to {os.readlink(path)}, which cannot be reached")
    if not path.exists():
        raise CheckpointError(
            path,
            "does not exist: it is not a directory or a file here, and names of a model hub are "
            "not downloaded",
        )
    kind = _kind_of_directory(path) if path.is_dir() else _kind_of_file(path)
    if kind is None:
        raise UnknownKind(
            path,
            f"is neither a Hugging Face directory ({CONFIG} and safetensors) nor an Orbax "
            f"checkpoint nor a GGUF file nor a training run{_what_is_below(path)}",
        )
    return kind


def _what_is_below(path: Path) -> str:
    """What of a known kind lies in a directory that is of none, such as `runs`."""
    folders = snapshots_below(path) or sorted(item for item in path.iterdir() if item.is_dir())
    folders = folders[:_MOST_BELOW]
    found = [f"{folder} is {what}" for folder in folders if (what := _known(folder)) is not None]
    if not found:
        return ""
    more = f", and {len(found) - _SHOWN} more" if found[_SHOWN:] else ""
    advice = "one of them" if found[1:] else "that"
    return f", but {', '.join(found[:_SHOWN])}{more}: give {advice}"


def _known(folder: Path) -> str | None:
    place = place_in_run(folder)
    if place is not None and not place.room:
        return "a training run"
    try:
        kind = _kind_of_directory(folder)
    except (CheckpointError, OSError):  # what it is would be said of it, if it were given
        return None
    return None if kind is None else f"{article(KINDS[kind])} {KINDS[kind]}"


def refuse_others(path: Path) -> None:
    """Raise for a directory that is known to hold something else than a Hugging Face model.

    Raises:
        CheckpointError: it does; the message says what it is, and what to do.
    """
    refuse_training_run(path)
    refuse_kind(path, _kind_of_directory(path) or "hf", ("hf",))


def _kind_of_file(path: Path) -> str:
    if path.suffix in (".bin", ".json") and _is_prepared(path.parent):
        raise CheckpointError(path, f"is one file of {_ON_PREPARED}")
    if path.suffix in (_SAFETENSORS, ".json"):
        raise CheckpointError(path, "is one file of a model directory: give the directory")
    if is_pickle(path):
        raise CheckpointError(path, f"is a file of pickled weights, {_PICKLED}")
    if path.suffix in _OTHERS:
        raise CheckpointError(path, _OTHERS[path.suffix])
    return "gguf"  # or the reader will say what is wrong with it


def _kind_of_directory(path: Path) -> str | None:
    if is_whole(path):
        return "orbax"
    if is_whole(path.parent) and path.name == STATE:
        raise CheckpointError(path, f"is a part of the Orbax checkpoint {path.parent}: give that")
    names = sorted(item.name for item in path.iterdir())
    if ADAPTER in names and not _ending(names, _SAFETENSORS, without="adapter_model"):
        raise CheckpointError(
            path,
            "is a PEFT adapter and no model by itself: merge it into its base model first "
            "(AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload() and "
            "save_pretrained(DIR))",
        )
    if _ending(names, _SAFETENSORS) or f"model{_SAFETENSORS}.index.json" in names:
        return "hf"
    if is_orbax(path):
        return "orbax"
    if files := _ending(names, _GGUF):
        raise CheckpointError(path, f"holds GGUF files: give one of them, as {path / files[0]}")
    if _is_prepared(path):
        raise CheckpointError(path, f"is {_ON_PREPARED}")
    if files := [name for name in names if is_pickle(path / name)]:
        raise CheckpointError(path, f"has only pickled weights ({files[0]}), {_PICKLED}")
    for suffix, words in _OTHERS.items():
        if files := _ending(names, suffix):
            raise CheckpointError(path / files[0], words)
    if CONFIG in names:
        return "hf"  # or the reader will say what it lacks
    return None


def _is_prepared(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _PREPARED)


def _ending(names: Iterable[str], suffix: str, without: str = "\0") -> list[str]:
    return [name for name in names if name.endswith(suffix) and not name.startswith(without)]


def refuse_quantised(path: Path, names: Iterable[str]) -> None:
    """Raise where tensors are called as those of quantised weights.

    Args:
        path: of the directory.
        names: of its tensors.

    Raises:
        CheckpointError: they are; the message says by what, as far as a name tells.
    """
    names = list(names)
    for suffix, by in _QUANTISED.items():
        if (name := next((name for name in names if name.endswith(suffix)), None)) is not None:
            raise CheckpointError(
                path,
                f"holds quantised weights ({name}, as {by} have it), which are not read: take the "
                "model that it was made from, or dequantise it with what quantised it",
            )


def lacks_config(path: Path) -> bool:
    """True for an Orbax checkpoint without a config.json: somebody has to name one."""
    if kind_of(path) != "orbax":
        return False
    try:
        config_directory(path)
    except CheckpointError:
        return True
    return False


def refuse_gguf_file(path: Path) -> None:
    """Raise for a GGUF file where a Hugging Face directory was meant.

    Raises:
        CheckpointError: it is one; the message has the command that converts it.
    """
    if path.suffix == _GGUF and path.is_file():
        refuse_kind(path, "gguf", ("hf",))


def refuse_kind(
    path: Path, kind: str, reads: Iterable[str], config: str | Path | None = None
) -> None:
    """Raise for a kind of checkpoint that is known and is not read here.

    Args:
        path: what was given.
        kind: what it is.
        reads: the kinds that are read.
        config: where its config was said to be; None: nowhere.

    Raises:
        CheckpointError: `kind` is not among them; the message has the command that converts it.
    """
    if kind in reads:
        return
    lacking = kind == "orbax" and lacks_config(path)
    options = ["--config", Path(config) if config else "CONFIG_DIR"] if lacking else []
    making = command("parity", "convert", path, "DIR", "--to", "hf", *options)
    raise CheckpointError(
        path,
        f"is {article(KINDS[kind])} {KINDS[kind]}, which is not read here: `{making}` makes a "
        "Hugging Face directory of it",
    )


def article(name: str) -> str:
    """`an` or `a`, as one of `KINDS` wants it."""
    return "an" if name.startswith("O") else "a"


def require_name(path: Path, kind: str) -> None:
    """Raise for a new checkpoint that is named as a file of another kind, and would be taken so.

    Raises:
        CheckpointError: it is; a directory that has such a name already may keep it.
    """
    files = (_SAFETENSORS, ".json", *PICKLES, *_OTHERS)
    if path.suffix not in files or (path.is_dir() and kind != "gguf"):
        return
    advice = "end its name in .gguf" if kind == "gguf" else "give the name of a directory"
    raise CheckpointError(
        path,
        f"is named as a {path.suffix} file, and becomes {article(KINDS[kind])} {KINDS[kind]}: "
        f"{advice}",
    )
