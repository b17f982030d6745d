"""One flipped bit anywhere in the weights: verifying finds it, in every format.

python -m tests.torture bits --trials 100 --seed 0
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np

from diy_core.checkpoints.transfer import check
from diy_core.errors import CheckpointError
from parity.convert.formats import convert, open_checkpoint
from tests.torture.common import (
    KINDS,
    MEDIUM,
    Figures,
    content,
    remains,
    remove,
    shards,
    target_of,
    write_model,
)
from tests.torture.forks import ForkServer

Ranges = list[tuple[Path, int, int]]  # a file, and the bytes of it from start to end
# The norms of a bfloat16 model are float32 in a GGUF file, with bits that bfloat16 does not have.
FORMATS = ("hf", "hf, shards", "orbax", "gguf", "gguf, bfloat16", "gguf, bfloat16 norms")


def run(trials: int, seed: int, folder: Path, formats: Sequence[str] = FORMATS) -> list[Figures]:
    """Flip that many bits, one at a time, in a checkpoint of each format.

    In Orbax's files a bit may hold no weight (metadata among the data, padding) and be flipped
    without an effect: then the load must be right to the bit, and another bit is drawn.

    Raises:
        AssertionError: a flipped bit that was not found; it names what reproduces it.
    """
    return [_run_format(name, trials, seed, folder / name) for name in formats]


def run_messages(
    trials: int, seed: int, folder: Path, server: ForkServer, kinds: Sequence[str] = KINDS
) -> list[Figures]:
    """`parity convert` from a checkpoint with a flipped bit: one clear error, and no target.

    Raises:
        AssertionError: anything else; it names what reproduces it.
    """
    return [_run_kind(kind, trials, seed, folder / kind, server) for kind in kinds]


def _run_kind(kind: str, trials: int, seed: int, folder: Path, server: ForkServer) -> Figures:
    figures = Figures(f"converted with a flipped bit, {kind}")
    folder.mkdir(parents=True)
    source, target = target_of(kind, folder), folder / "copy"
    convert(write_model(folder / "source", MEDIUM, 3), source, to=kind)
    ranges = _ranges(kind, source, False)
    sizes = [end - start for _, start, end in ranges]
    for trial in range(trials):
        case = f"bits seed {seed}, convert from {kind}, trial {trial}"
        rng = random.Random(case)
        # Half of them in any file alike: Orbax has small ones, by which it finds the large ones.
        file, start, end = rng.choices(ranges, sizes if trial % 2 else None)[0]
        at, bit = rng.randrange(start, end), rng.randrange(8)
        _flip(file, at, bit)
        done = server.convert(source, target, "hf", overwrite=False)
        _flip(file, at, bit)
        if done.code == 0 and kind == "orbax":  # the bit held no weight
            figures.outcomes["no weight"] += 1
            assert content(open_checkpoint(target)) == content(open_checkpoint(source)), case
            remove(target)
            continue
        figures.outcomes["refused"] += 1
        assert done.code == 2, f"{case}: exit code {done.code}: {done.errors}"
        assert not target.exists(), f"{case}: a target of a damaged source"
        assert not remains(target), f"{case}: it left {remains(target)}"
        first, *more = done.errors.splitlines()
        assert first.startswith("parity convert: "), f"{case}: {done.errors}"
        assert source.name in first, f"{case}: it does not say where: {done.errors}"
        faults = all(line.startswith("  - ") for line in more)
        assert faults, f"{case}: no clear error: {done.errors}"
    return figures


def _run_format(name: str, trials: int, seed: int, folder: Path) -> Figures:
    figures = Figures(f"flipped bit, {name}")
    folder.mkdir(parents=True)
    dtype = ml_dtypes.bfloat16 if "bfloat16" in name else np.float32
    source = write_model(folder / "source", MEDIUM, 3, dtype)
    kind = name.split(",")[0]
    path = target_of(kind, folder)
    convert(source, path, to=kind, **(shards(kind) if "shards" in name else {}))
    expected, ranges = content(open_checkpoint(source)), _ranges(kind, path, "norms" in name)
    sizes = [end - start for _, start, end in ranges]
    idle, found, draw = 0, 0, 0
    while found < trials:
        case = f"bits seed {seed}, {name}, draw {draw}"
        draw += 1
        rng = random.Random(case)
        file, start, end = rng.choices(ranges, sizes)[0]
        at, bit = rng.randrange(start, end), rng.randrange(8)
        _flip(file, at, bit)
        try:
            how = _judge(path, expected)
        except AssertionError as error:
            raise AssertionError(f"{case}, bit {bit} of byte {at} of {file}: {error}") from error
        finally:
            _flip(file, at, bit)
        if how is None:
            idle += 1
            assert kind == "orbax", f"{case}: bit {bit} of byte {at} of {file} was not found"
            assert idle <= 10 * trials, f"{case}: hardly any bit holds a weight"
        else:
            found += 1
            figures.outcomes[how] += 1
    assert _judge(path, expected) is None, f"{name}: it is not found whole without a flipped bit"
    figures.note = f"{idle} further bits held no weight" if idle else ""
    return figures


def _ranges(kind: str, path: Path, norms: bool) -> Ranges:
    """Where the weights lie."""
    if kind == "gguf":
        tensors = [t for t in gguf.GGUFReader(path).tensors if not norms or len(t.shape) == 1]
        return [(path, int(t.data_offset), int(t.data_offset + t.n_bytes)) for t in tensors]
    if kind == "hf":
        files = sorted(path.glob("*.safetensors"))
        starts = [8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files]
        return [(file, a, file.stat().st_size) for file, a in zip(files, starts, strict=True)]
    files = sorted(file for file in (path / "state").rglob("d/*") if file.is_file())
    return [(file, 0, file.stat().st_size) for file in files]


def _flip(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 1 << bit]))


def _judge(path: Path, expected: dict[str, str]) -> str | None:
    """How the damage was found; None where the load is right to the bit."""
    try:
        reader = open_checkpoint(path)
    except CheckpointError:
        return "on opening"
    try:
        found = content(reader)  # with the sums
    except CheckpointError as error:
        return "by the sums" if _also_checked(path) else _fail(f"only read_all finds it: {error}")
    assert not _also_checked(path), "transfer.check finds what read_all does not"
    assert found == expected, "the weights changed, and the sums agree"
    return None


def _also_checked(path: Path) -> bool:
    """Whether `transfer.check`, as `parity inspect --verify`, finds a fault, too."""
    reader = open_checkpoint(path)
    try:
        check(reader, reader.require_manifest(), lambda what, done, total: None)
    except CheckpointError:
        return True
    return False


def _fail(message: str) -> str:
    raise AssertionError(message)
