"""What a checkpoint holds, and where two of them differ: `parity inspect` and `parity diff`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from diy_core.checkpoints.dtypes import same_bits
from diy_core.checkpoints.gguf.names import gguf_name
from diy_core.checkpoints.interface import Reader, Stored
from diy_core.checkpoints.kinds import lacks_config
from diy_core.checkpoints.memory_reader import MemoryReader
from diy_core.checkpoints.transfer import Progress, check
from diy_core.mapping import tensors
from diy_core.norms import power_of_two
from parity.convert.formats import KINDS, open_checkpoint
from parity.inspect.config_differences import config_differences

_PIECE = 1 << 20  # elements compared at a time
SHOWN = 20  # differing tensors in the table; the record has all
_PLAIN = {"F64", "F32", "F16", "BF16"}  # other words for a dtype, in some files


def inspect(
    path: str | Path,
    *,
    verify: bool = False,
    config: str | Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """A record of a checkpoint: kind, config, tensors under their four names, totals, sums.

    Args:
        path: a Hugging Face directory, an Orbax checkpoint or a GGUF file.
        verify: read all weights and compare them with their sums.
        config: of an Orbax checkpoint that has none.
        progress: called while verifying.

    Raises:
        CheckpointError: it is none of them, it is damaged, or, with `verify`, changed.
    """
    reader = open_checkpoint(path, config=config)
    manifest = reader.manifest
    if verify:
        check(reader, reader.require_manifest(), progress)
    reader.sources.require_unchanged()
    sums = manifest.tensors if manifest else {}
    rows: list[dict[str, Any]] = [
        {
            "name": tensor.hf,
            "torch": tensor.torch,
            "flax": "/".join(tensor.flax),
            "gguf": gguf_name(tensor.hf),
            "shape": list(tensor.shape),
            "dtype": str(reader.stored[tensor.hf].dtype),
            "stored_as": reader.stored[tensor.hf].form,
            "bytes": reader.stored[tensor.hf].nbytes,
            "sha256": sums[tensor.hf].sha256 if tensor.hf in sums else None,
        }
        for tensor in tensors(reader.config)
    ]
    return {
        "path": str(path),
        "kind": reader.kind,
        "config": reader.config.to_dict(),
        "tensors": rows,
        "total": {
            "tensors": len(rows),
            "parameters": sum(tensor.parameters for tensor in tensors(reader.config)),
            "bytes": sum(tensor.nbytes for tensor in reader.stored.values()),
            "bytes_on_disk": sum(bytes_on_disk(file) for file in reader.files),
        },
        "manifest": None
        if manifest is None
        else {"source": manifest.source, "versions": dict(manifest.versions)},
        "verified": verify,
        "notes": list(reader.notes),
    }


def bytes_on_disk(path: Path) -> int:
    """The size of a file, or of all files below a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def show(record: dict[str, Any], console: Console) -> None:
    """Print what `inspect` found."""
    total = record["total"]
    console.print(f"[bold]{escape(record['path'])}[/]: {KINDS[record['kind']]}", highlight=False)
    settings = Table(show_header=False, box=None, pad_edge=False)
    for key, value in record["config"].items():
        settings.add_row(escape(key), escape(str(value)))
    console.print(settings)
    console.print(tensor_table(record["tensors"], gguf=record["kind"] == "gguf"))
    console.print(
        f"{total['tensors']} tensors, {total['parameters']:,} parameters, "
        f"{decimal(total['bytes'])} as arrays, {decimal(total['bytes_on_disk'])} on disk",
        highlight=False,
    )
    if record["manifest"] is None:
        console.print("no checksums: `parity convert` and save_pretrained write them")
    else:
        state = "all match" if record["verified"] else "present, not checked (--verify checks them)"
        console.print(f"checksums: {state}{_origin(**record['manifest'])}", highlight=False)


def _origin(source: str, versions: Mapping[str, str]) -> str:
    """What a checkpoint was written from; of a model in memory, what wrote it."""
    kind, _, name = source.partition(" ")
    if name and kind != MemoryReader.kind:
        return f"; written from {escape(source)}"
    return f"; written by diy-lm {escape(versions['diy-lm'])}" if "diy-lm" in versions else ""


def tensor_table(rows: list[dict[str, Any]], gguf: bool) -> Table:
    """All tensors; those of layers that are alike are one line, with how many they are."""
    worlds = {"name": "Hugging Face", "torch": "torch", "flax": "flax"}
    worlds |= {"gguf": "GGUF"} if gguf else {}
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        names = [re.sub(r"(layers[._]|blk\.)\d+", r"\1*", row[world]) for world in worlds]
        shape = " x ".join(str(n) for n in row["shape"])
        form = row["dtype"] if row["stored_as"] in _PLAIN else row["stored_as"]
        alike.setdefault((shape, form, *names), []).append(row)
    table = Table(box=None, pad_edge=False)
    table.add_column(", ".join(worlds.values()), overflow="fold")
    for column in ("shape", "type", "x", "bytes"):
        right = column in ("x", "bytes")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for (shape, form, first, *others), same in alike.items():
        size = decimal(sum(row["bytes"] for row in same))
        count = str(len(same)) if "*" in first else ""
        cell = f"{first}\n[dim]" + "\n".join(others) + "[/]"
        table.add_row(cell, shape, form, count, size)
    return table


def diff(
    one: str | Path,
    other: str | Path,
    progress: Progress,
    *,
    verify: bool = False,
    config: str | Path | None = None,
) -> dict[str, Any]:
    """Compare two checkpoints of any kinds.

    Args:
        one: a Hugging Face directory, an Orbax checkpoint or a GGUF file.
        other: likewise.
        progress: called often, with what is done, and bytes of how many.
        verify: first compare the tensors of both with their sums.
        config: of those that are Orbax checkpoints without one.

    Returns:
        `equal`: the same tensors with the same bits, and configs that mean the same model.
        `tensors`: those that differ, worst first, each with `relative_l2`, `largest` and `values`,
        how many differ (None where shapes differ or one is missing), and both `dtypes` where they
        are two. `config`: the keys that change the function and differ, with both values.

    Raises:
        CheckpointError: one of them cannot be read, or, with `verify`, changed.
    """
    bare = [path for path in (one, other) if config is not None and lacks_config(Path(path))]
    if config is not None and not bare:
        raise ValueError("both have a config of their own: leave config out")
    left, right = (
        open_checkpoint(path, config=config if path in bare else None) for path in (one, other)
    )
    for reader in (left, right) if verify else ():
        check(reader, reader.require_manifest(), progress)
    names = list(dict.fromkeys([*left.stored, *right.stored]))
    total = sum(tensor.nbytes for tensor in left.stored.values())
    done, found = 0, []
    progress("comparing", 0, total)
    for name in names:
        fault = _compare(name, left, right)
        if fault is not None:
            found.append(fault)
        done += left.stored[name].nbytes if name in left.stored else 0
        progress("comparing", done, total)
    for reader in (left, right):
        reader.sources.require_unchanged()
    found.sort(key=lambda f: -math.inf if f["relative_l2"] is None else -f["relative_l2"])
    configs = config_differences(left.config, right.config)
    return {
        "one": {"path": str(one), "kind": left.kind, "notes": left.notes},
        "other": {"path": str(other), "kind": right.kind, "notes": right.notes},
        "equal": not found and not configs,
        "compared": len(names),
        "tensors": found,
        "config": configs,
    }


def _compare(name: str, left: Reader, right: Reader) -> dict[str, Any] | None:
    """What is different about one tensor, or None."""
    if fault := not_comparable(name, left.stored, right.stored):
        return fault
    return difference(name, left.read(name), right.read(name))


def not_comparable(
    name: str, left: Mapping[str, Stored], right: Mapping[str, Stored]
) -> dict[str, Any] | None:
    """The fault of a tensor that one of them lacks or has in another shape; None: it is in both."""
    fault: dict[str, Any] = {"name": name, "what": "", "dtypes": None, "values": None}
    fault |= {"relative_l2": None, "largest": None}
    for stored, where in ((left, "A"), (right, "B")):
        if name not in stored:
            return fault | {"what": f"not in {where}"}
    a, b = left[name].shape, right[name].shape
    return None if a == b else fault | {"what": f"shape {a} in A, {b} in B"}


def difference(name: str, one: NDArray[Any], other: NDArray[Any]) -> dict[str, Any] | None:
    """What is different about two arrays of one shape, as `diff` says it; None: nothing."""
    if same_bits(one, other):
        return None
    relative, largest, count = distance(one, other)
    dtypes = "" if one.dtype == other.dtype else f"{one.dtype} in A, {other.dtype} in B; "
    return {
        "name": name,
        "what": f"{dtypes}{count} of {one.size} values differ",
        "dtypes": None if one.dtype == other.dtype else [str(one.dtype), str(other.dtype)],
        "values": count,
        "relative_l2": relative,
        "largest": largest,
    }


def distance(one: NDArray[Any], other: NDArray[Any]) -> tuple[float, float, int]:
    """`|other - one| / |one|` in L2, the largest difference, and how many values differ.

    Summed in float64, a piece at a time. Where `one` is all zeros the L2 is infinite, or 0.
    """
    flat, against = one.reshape(-1), other.reshape(-1)
    # Of narrower values no square overflows or vanishes in float64.
    wide = [array for array in (flat, against) if array.dtype == np.float64]
    scale = power_of_two(*wide) if wide else 1.0
    squares, reference, largest, count = 0.0, 0.0, 0.0, 0
    for start in range(0, flat.size, _PIECE):
        a = flat[start : start + _PIECE].astype(np.float64)
        b = against[start : start + _PIECE].astype(np.float64)
        count += int(np.count_nonzero(a != b))
        with np.errstate(over="ignore"):  # and not scaled: a small one beside large values would go
            largest = max(largest, float(np.abs(b - a).max(initial=0.0)))
        a, b = a * scale, b * scale
        difference = b - a
        squares += float(difference @ difference)
        reference += float(a @ a)
    if squares == 0:
        return 0.0, largest, count
    return (math.sqrt(squares / reference) if reference else math.inf), largest, count
