"""Damaged headers, indices, configs, manifests and metadata: refused, or read as the file says.

    python -m tests.torture headers --trials 10000 --seed 0

Each case is one file of a small checkpoint with damage drawn from its seed. Opening and reading it
must end in a CheckpointError (or in the ValueError of a config) of at most CHARACTERS, or in a
correct load, in at most SECONDS and NBYTES more memory, and must open no file outside of the
checkpoint. Cases run in a worker process: one that crashes or hangs is found by it, and memory is
measured as the kernel counts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors
import tokenizers

from diy_core.checkpoints.dtypes import FLOATS
from diy_core.checkpoints.gguf.reader import GGUFReader
from diy_core.checkpoints.gguf.writer import GGUFWriter
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.checkpoints.interface import Reader
from diy_core.checkpoints.transfer import transfer
from diy_core.errors import CheckpointError
from tests.torture.common import LLAMA3, ROOT, TINY, Arrays, Figures, put, write_model
from tests.torture.mutations import (
    GGUFPieces,
    damage_bytes,
    damage_config,
    damage_gguf,
    damage_index,
    damage_json,
    damage_safetensors,
)

SECONDS, NBYTES, CHARACTERS = 1.0, 64 << 20, 50_000  # the last of a message
_HANGS = 30  # seconds, after which a case is killed
_INDEX, _SHARD = "model.safetensors.index.json", "model-00001-of-00004.safetensors"
_BAIT = "bait.safetensors"

Damage = Callable[[random.Random, bytes], bytes]


@dataclasses.dataclass(frozen=True)
class Target:
    """What is damaged: files of one checkpoint, `share` of all trials."""

    checkpoint: str
    files: tuple[str, ...]
    damage: Damage
    share: float


TARGETS = {
    "safetensors header": Target("single", ("model.safetensors",), damage_safetensors, 0.28),
    "header of a shard": Target("shards", (_SHARD,), damage_safetensors, 0.04),
    "shard index": Target("shards", (_INDEX,), damage_index, 0.16),
    "config.json": Target("single", ("config.json",), damage_config, 0.14),
    "diy_manifest.json": Target("single", ("diy_manifest.json",), damage_json, 0.08),
    "GGUF metadata": Target("ours.gguf", ("",), damage_gguf, 0.12),
    "GGUF metadata, foreign": Target("foreign.gguf", ("",), damage_gguf, 0.12),
    "Orbax config": Target("orbax", ("config.json",), damage_config, 0.02),
    "Orbax manifest": Target("orbax", ("diy_manifest.json",), damage_json, 0.01),
    "Orbax metadata": Target(
        "orbax",
        ("_CHECKPOINT_METADATA", "state/_METADATA", "state/array_metadatas/*", "state/*.ocdbt"),
        damage_json,
        0.03,
    ),
}


def run(
    trials: int, seed: int, folder: Path, targets: Sequence[str] = tuple(TARGETS)
) -> list[Figures]:
    """That many cases in all, over all targets.

    Raises:
        AssertionError: a case with another outcome; it names what reproduces it.
    """
    place = folder / "a" / "b"  # room for files beside the directories, which must not be read
    place.mkdir(parents=True)
    prepare(place)
    for outside in (folder, folder / "a", place):
        put(place / "single" / "model.safetensors", outside / _BAIT)
    return [
        _run_target(name, max(1, round(trials * TARGETS[name].share)), seed, place)
        for name in targets
    ]


def prepare(place: Path) -> None:
    """Write a small checkpoint of each kind, and one with a tokenizer."""
    write_model(place / "single", TINY, 1)
    source = HFReader(place / "single")

    def shards(*arguments: Any) -> HFWriter:
        return HFWriter(place / "shards", *arguments, max_shard_size=20_000)

    transfer(source, shards)
    (place / "shards" / "folder").symlink_to("..")  # a name in an index leads nowhere through it
    tokens = _write_tokenizer(place / "chat")
    config = dataclasses.replace(TINY, vocab_size=tokens, rope_scaling=LLAMA3)
    write_model(place / "chat", config, 2)
    transfer(HFReader(place / "chat"), lambda *more: GGUFWriter(place / "ours.gguf", *more))
    # As llama.cpp's own converter would write it: without our entries.
    pieces = GGUFPieces((place / "ours.gguf").read_bytes())
    pieces.entries = [entry for entry in pieces.entries if not entry[0].startswith(b"diy_lm.")]
    pieces.entry_count = len(pieces.entries)
    (place / "foreign.gguf").write_bytes(pieces.joined())


def _write_tokenizer(folder: Path) -> int:
    """A byte-level tokenizer of a few tokens; returns how many."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")  # so that a model may be written here
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<end>", *alphabet, "he", "Ġt", "Ġthe"])}
    merges = [("h", "e"), ("Ġ", "t"), ("Ġt", "he")]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return len(vocabulary)


def _run_target(name: str, trials: int, seed: int, place: Path) -> Figures:
    figures = Figures(f"damaged {name}", seconds=0.0, nbytes=0)
    program = [sys.executable, "-m", "tests.torture.headers"]
    log = place / "worker.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*program, str(place), name, str(seed), str(trials)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        ) as worker,
    ):
        assert worker.stdout is not None
        done, longest = 0, 0
        for line in worker.stdout:
            case = json.loads(line)
            if case["violation"]:
                worker.kill()
                raise AssertionError(_case_name(name, seed, done) + f": {case['violation']}")
            figures.outcomes[case["outcome"]] += 1
            figures.seconds = max(figures.seconds or 0.0, case["seconds"])
            figures.nbytes = max(figures.nbytes or 0, case["nbytes"])
            longest = max(longest, case["message"])
            done += 1
    if worker.returncode or done < trials:
        how = "hung" if worker.returncode == -signal.SIGALRM else f"ended with {worker.returncode}"
        raise AssertionError(_case_name(name, seed, done) + f": {how}\n{log.read_text()[-2000:]}")
    figures.note = f"longest message {longest} characters"
    return figures


def _case_name(name: str, seed: int, trial: int) -> str:
    return f"headers seed {seed}, {name}, trial {trial}"


# In the worker.


def _serve(place: Path, name: str, seed: int, trials: int) -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills, also where no Python runs
    target = TARGETS[name]
    if target.checkpoint == "orbax":
        from parity.convert.formats import convert

        shutil.rmtree(place / "orbax", ignore_errors=True)
        convert(place / "single", place / "orbax", to="orbax")
    else:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    worker = _Worker(place, target)
    for trial in range(trials):
        print(json.dumps(worker.case(_case_name(name, seed, trial))), flush=True)


class _Worker:
    """Damages files, loads them, measures and judges."""

    def __init__(self, place: Path, target: Target) -> None:
        self.place, self.target = place, target
        self.path = place / target.checkpoint
        self.open = _reader_of(target.checkpoint)
        self.expected = dict(self.open(self.path).read_all(verify="foreign" not in str(self.path)))
        self.expected = {name: array.copy() for name, array in self.expected.items()}
        self.files = sorted(f for pattern in target.files for f in _matching(self.path, pattern))
        self.libc = ctypes.CDLL(None)
        self.baits = _watch([p / _BAIT for p in (place, place.parent, place.parent.parent)])
        self.opened: list[str] | None = None
        sys.addaudithook(self._audit)
        for trial in range(5):  # what is imported or allocated once
            self.case(f"warm-up {trial}")

    def _audit(self, event: str, arguments: Any) -> None:
        if event == "open" and self.opened is not None and not isinstance(arguments[0], int):
            self.opened.append(os.fsdecode(arguments[0]))

    def case(self, name: str) -> dict[str, Any]:
        rng = random.Random(name)
        file = rng.choice(self.files)
        whole = file.read_bytes()
        damage = damage_bytes if file.suffix == ".ocdbt" else self.target.damage  # it is not JSON
        damaged = damage(rng, whole)
        try:
            file.write_bytes(damaged)
            result = self._measured()
            for _ in range(2):  # another process may have had the processor
                if result["seconds"] > SECONDS:
                    result["seconds"] = min(result["seconds"], self._measured()["seconds"])
            result |= self._judged(result)
        finally:
            file.write_bytes(whole)
        for key in ("arrays", "verified", "error", "reader"):
            del result[key]
        return result

    def _measured(self) -> dict[str, Any]:
        result: dict[str, Any] = dict.fromkeys(("arrays", "verified", "error", "reader"))
        self.libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before = status("VmRSS")
        signal.alarm(_HANGS)
        self.opened = []
        start = time.perf_counter()
        try:
            result["reader"] = self.open(self.path)
            result["arrays"] = dict(result["reader"].read_all())
            result["verified"] = False
            with contextlib.suppress(CheckpointError):
                result["verified"] = len(dict(result["reader"].read_all(verify=True))) > 0
        except BaseException as error:
            result["error"] = error
        result["seconds"] = time.perf_counter() - start
        result["opened"], self.opened = self.opened, None
        signal.alarm(0)
        result["nbytes"] = max(0, status("VmHWM") - before)
        return result

    def _judged(self, result: dict[str, Any]) -> dict[str, Any]:
        outcome, violation = "refused", None
        error = result["error"]
        message = "" if error is None else str(error)
        opened = result.pop("opened")
        if outside := [path for path in opened if self._is_outside(path)]:
            violation = f"it opened {outside[0]}"
        elif select.select([self.baits], [], [], 0)[0]:
            violation = "it opened a file beside the checkpoint"
        elif result["seconds"] > SECONDS:
            violation = f"it took {result['seconds']:.2f} s"
        elif result["nbytes"] > NBYTES:
            violation = f"it took {result['nbytes'] >> 20} MB"
        elif len(message) > CHARACTERS:
            violation = f"it raised a message of {len(message)} characters"
        elif error is None:
            outcome, violation = self._judge_load(result)
        elif not isinstance(error, CheckpointError):
            config = isinstance(error, ValueError) and "config.json" in message[:500]
            violation = None if config else f"it raised {error!r:.300}"
        return {"outcome": outcome, "violation": violation, "message": len(message)}

    def _is_outside(self, name: str) -> bool:
        path = Path(os.path.realpath(name))
        if path.is_relative_to(self.path):
            return False
        known = (ROOT, Path(sys.prefix), Path(sys.base_prefix), Path("/proc"), Path("/sys"))
        return not any(path.is_relative_to(parent) for parent in known)

    def _judge_load(self, result: dict[str, Any]) -> tuple[str, str | None]:
        arrays, same = result["arrays"], _same(result["arrays"], self.expected)
        if same:
            return ("loaded", None) if result["verified"] else ("loaded, sums refused", None)
        if result["verified"]:
            return "", "other weights than before, and the sums say that they are the same"
        if self.target.checkpoint == "orbax":
            return "others, found by the sums", None
        try:
            oracle = self._oracle(result["reader"])
        except Exception as error:
            return "", f"other weights than before, and the reference reader says {error!r:.300}"
        if not _same(arrays, {name: oracle[name] for name in arrays}):
            return "", "it is not what the reference reader reads"
        return "others, as the file says", None

    def _oracle(self, reader: Reader) -> Arrays:
        """What another library finds in the file, by Hugging Face name."""
        if self.path.suffix == ".gguf":
            return _gguf_oracle(self.path, reader)
        found: Arrays = {}
        for file in sorted(self.path.glob("model*.safetensors")):
            for name, entry in safetensors.deserialize(file.read_bytes()):
                flat = np.frombuffer(entry["data"], FLOATS[entry["dtype"]])
                found[name] = flat.reshape(entry["shape"])
        return found


def _reader_of(checkpoint: str) -> Callable[[Path], Reader]:
    if checkpoint == "orbax":
        from diy_jax.orbax_store import OrbaxReader

        return OrbaxReader
    return GGUFReader if checkpoint.endswith(".gguf") else HFReader


def _matching(path: Path, pattern: str) -> list[Path]:
    return list(path.glob(pattern)) if pattern else [path]


def _gguf_oracle(path: Path, reader: Reader) -> Arrays:
    """The gguf library's own reading, with the rows of q and k as Hugging Face has them."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: int(tensor.data_offset)):
        if tensor.data_offset < end:
            raise ValueError(f"{tensor.name} overlaps another tensor")
        end = int(tensor.data_offset + tensor.n_bytes)
    config, found = reader.config, {}
    for name in reader.stored:
        tensor = tensors[reader.called(name)]
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        role = name.split(".")[-2]
        if role in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if role == "q_proj" else config.kv_heads
            array = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
            array = array.swapaxes(1, 2)
        dtype, shape = reader.stored[name].dtype, reader.stored[name].shape
        found[name] = np.ascontiguousarray(array).reshape(shape).astype(dtype)
    return found


def _same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        array.dtype == other[name].dtype
        and array.shape == other[name].shape
        and array.tobytes() == other[name].tobytes()
        for name, array in one.items()
    )


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) << 10


def _watch(files: list[Path]) -> int:
    """A descriptor that is readable once one of the files was opened, by any library (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.inotify_init1(os.O_NONBLOCK))
    for file in files:
        if libc.inotify_add_watch(descriptor, os.fsencode(file), 0x20) < 0:  # IN_OPEN
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
    return descriptor


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
