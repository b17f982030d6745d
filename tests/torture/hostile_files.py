"""Every kind of file that a command reads, and the commands and doors that read it.

All of it is small, so that a case takes some milliseconds: what is looked for is what is said of a
damaged file, not how fast an intact one is read.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import io
import json
import lzma
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from backports import zstd

from tests.torture.headers import prepare
from tests.torture.hostile_damage import (
    damage_any,
    damage_lines,
    damage_template,
    damage_tokenizer,
    damage_yaml,
)
from tests.torture.mutations import (
    damage_bytes,
    damage_config,
    damage_gguf,
    damage_index,
    damage_json,
    damage_safetensors,
)

Damage = Callable[[random.Random, bytes], bytes]
WORDS = "the he she then there"


@dataclasses.dataclass(frozen=True)
class Reading:
    """A command, or a door in Python, that is given something to read.

    Attributes:
        program: `parity`, `diy-torch`, `diy-jax`, or the name of one of `DOORS`.
        words: of its command line, or the arguments of the door. IT is what was damaged, OUT is
            where something is written, and a word with a / in front is the name of what is whole.
        codes: what it may end with.
        weight: how often it is drawn, beside the others; those that compile are slow.
    """

    program: str
    words: tuple[str, ...]
    codes: tuple[int, ...] = (0, 2)
    weight: float = 1.0

    def __str__(self) -> str:
        return " ".join((self.program, *self.words))


@dataclasses.dataclass(frozen=True)
class Target:
    """What is damaged: files of one thing, by a pattern ("" is the thing itself)."""

    thing: str
    pattern: str
    damage: Damage
    readings: tuple[Reading, ...]


def make(folder: Path) -> None:
    """Write everything that `TARGETS` names, whole."""
    prepare(folder)
    chat = folder / "chat"
    (chat / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.7}')
    (chat / "special_tokens_map.json").write_text('{"eos_token": "<end>"}')
    (chat / "added_tokens.json").write_text('{"<end>": 0}')
    (chat / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    _sources(folder)
    _configs(folder)
    for words in (
        ["parity", "convert", "chat", "orbax", "--to", "orbax"],
        [
            "diy-torch",
            "data",
            "d.jsonl",
            "--out",
            "data",
            "--tokenizer",
            "bytes",
            "--workers",
            "1",
            "--validation",
            "0.2",
        ],
        ["diy-torch", "train", "--config", "torch.yaml", "--device", "cpu"],
        ["diy-jax", "train", "--config", "jax.yaml", "--device", "cpu"],
    ):
        said = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stderr(said):
            assert program(words[0])(words[1:]) == 0, f"{words}: {said.getvalue()}"


def _sources(folder: Path) -> None:
    lines = [{"text": f"{WORDS} {i} and {i * i}"} for i in range(60)]
    jsonl = "".join(json.dumps(line) + "\n" for line in lines).encode()
    turns = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "he"}]
    (folder / "d.jsonl").write_bytes(jsonl)
    (folder / "chats.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 9)
    (folder / "d.json").write_bytes(jsonl)
    (folder / "d.txt").write_text("\n\n".join(line["text"] for line in lines))
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(jsonl, mtime=0))
    (folder / "d.jsonl.bz2").write_bytes(bz2.compress(jsonl))
    (folder / "d.jsonl.xz").write_bytes(lzma.compress(jsonl))
    (folder / "d.jsonl.zst").write_bytes(zstd.compress(jsonl))
    table = pyarrow.table({"text": [line["text"] for line in lines]})
    pyarrow.parquet.write_table(table, folder / "d.parquet", row_group_size=20)


def _configs(folder: Path) -> None:
    model = dict.fromkeys(("hidden_size", "intermediate_size"), 8) | {
        "vocab_size": 257,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    values: dict[str, Any] = {
        "model": model,
        "data": {"train": "d.jsonl", "validation": 0.2, "tokenizer": "bytes"},
        "steps": 4,
        "stop_at": 2,
        "batch_size": 2,
        "sequence_length": 16,
        "eval_every": 2,
        "optimizer": {"learning_rate": 1e-3},
    }
    for twin in ("torch", "jax"):
        run_dir = {"run_dir": f"{twin}-run"}
        (folder / f"{twin}.yaml").write_text(yaml.safe_dump(values | run_dir))


def program(name: str) -> Callable[[list[str]], int]:
    """The `main` of a program."""
    if name == "parity":
        from parity.__main__ import main
    elif name == "diy-torch":
        from diy_torch.__main__ import main
    else:
        from diy_jax.__main__ import main
    return main


def _torch_model(path: str) -> None:
    import parity
    from diy_torch import DIYForCausalLM

    model = DIYForCausalLM.from_pretrained(path)
    parity.to_flax(model, model.config)


def _flax_model(path: str) -> None:
    import parity
    from diy_jax import DIYForCausalLM

    model, params = DIYForCausalLM.from_pretrained(path)
    parity.to_torch(params, model.config)


def _convert(path: str, out: str) -> None:
    import parity

    parity.convert_checkpoint(path, out, to="hf")


def _tokenizer(path: str) -> None:
    from diy_core.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(path)
    ids = tokenizer.encode(f"{WORDS}\n\tit's 20 <end>")
    tokenizer.decode([one for one in ids if one < 1 << 31])  # it may have put others around them
    if tokenizer.chat_templates:
        tokenizer.chat([{"role": "user", "content": WORDS}])


def _data(path: str) -> None:
    from diy_core.data.token_data import TokenData

    TokenData(path).verify()


DOORS: dict[str, Callable[..., None]] = {
    "torch from_pretrained": _torch_model,
    "jax from_pretrained": _flax_model,
    "convert_checkpoint": _convert,
    "Tokenizer": _tokenizer,
    "TokenData": _data,
}


def _command(line: str, *, codes: tuple[int, ...] = (0, 2), weight: float = 1.0) -> Reading:
    name, *words = line.split()
    return Reading(name, tuple(words), codes, weight)


_CPU = "--device cpu"
_MODEL = (
    _command("parity inspect IT"),
    _command("parity inspect IT --json -"),
    _command("parity diff IT /WHOLE", codes=(0, 1, 2)),
    _command("parity convert IT OUT --to hf"),
    _command("parity convert IT OUT --to orbax"),
    _command("parity convert IT OUT.gguf --to gguf"),
    Reading("convert_checkpoint", ("IT", "OUT")),
)
_COMPUTING = (
    _command(
        f"parity check IT --checks logits --dtype float32 {_CPU}", codes=(0, 1, 2), weight=0.3
    ),
    _command(f"parity trace IT --no-backward --tokens 8 {_CPU}", codes=(0, 1, 2), weight=0.3),
)
_TWINS = (
    Reading("torch from_pretrained", ("IT",)),
    Reading("jax from_pretrained", ("IT",)),
)
_GENERATE = (
    _command(f"diy-torch generate IT {WORDS.split()[-1]} --max-new-tokens 1 {_CPU}"),
    _command(f"diy-jax generate IT {WORDS.split()[-1]} --max-new-tokens 1 {_CPU}", weight=0.5),
)
_CHAT = (
    _command(f"diy-torch generate IT he --chat --max-new-tokens 1 {_CPU}"),
    _command(f"diy-jax generate IT he --chat --max-new-tokens 1 {_CPU}", weight=0.5),
)
_CHATS = _command("diy-jax data /chats.jsonl --out OUT --tokenizer IT --workers 1")
_TOKENIZER = (
    *(*_GENERATE, *_CHAT, _CHATS),
    Reading("Tokenizer", ("IT",), weight=4.0),
    _command("parity convert IT OUT.gguf --to gguf"),
    _command("diy-torch data /d.jsonl --out OUT --tokenizer IT --workers 1"),
)
_SOURCE = (
    _command("diy-torch data IT --out OUT --tokenizer bytes --workers 1"),
    _command("diy-jax data IT --out OUT --tokenizer bytes --workers 1 --json"),
)
_CHAT_SOURCE = (_command("diy-torch data IT --out OUT --tokenizer /chat --workers 1"),)
_PREPARED = (
    Reading("TokenData", ("IT",), weight=3.0),
    *(
        _command(f"{twin} train --config /{file} --data.train IT --run-dir OUT {_CPU}")
        for twin, file in (("diy-torch", "torch.yaml"), ("diy-jax", "jax.yaml"))
    ),
)


def _configured(twin: str) -> tuple[Reading, ...]:
    return (
        _command(f"diy-{twin} train --config IT --run-dir OUT --print-config", weight=3.0),
        _command(f"diy-{twin} train --config IT --run-dir OUT --stop-at 1 {_CPU}"),
    )


def _run(twin: str) -> tuple[Reading, ...]:
    # What a run ends with where training fails is 1.
    resume = f"train --config IT/config.yaml --run-dir IT --resume auto --stop-at 4 {_CPU}"
    return (
        _command(f"diy-{twin} {resume}", codes=(0, 1, 2)),
        _command(f"diy-{twin} export IT --out OUT"),
        _command("parity inspect IT --verify"),
        _command("parity diff IT /WHOLE", codes=(0, 1, 2)),
        _command("parity switch IT OUT"),
    )


TARGETS = {
    "config.json": Target("chat", "config.json", damage_config, (*_MODEL, *_TWINS, *_GENERATE)),
    "tokenizer.json": Target("chat", "tokenizer.json", damage_tokenizer, _TOKENIZER),
    "tokenizer_config.json": Target("chat", "tokenizer_config.json", damage_json, _TOKENIZER),
    "generation_config.json": Target("chat", "generation_config.json", damage_json, _TOKENIZER),
    "special_tokens_map.json": Target("chat", "special_tokens_map.json", damage_json, _TOKENIZER),
    "added_tokens.json": Target("chat", "added_tokens.json", damage_json, _TOKENIZER),
    "chat template": Target("chat", "*.jinja", damage_template, (*_CHAT, _CHATS)),
    "index": Target("shards", "*.index.json", damage_index, (*_MODEL, *_TWINS)),
    "manifest": Target("single", "diy_manifest.json", damage_json, (*_MODEL, *_TWINS)),
    "safetensors": Target(
        "single", "model.safetensors", damage_safetensors, (*_MODEL, *_TWINS, *_COMPUTING)
    ),
    "GGUF": Target("ours.gguf", "", damage_gguf, (*_MODEL, *_GENERATE, *_COMPUTING)),
    "GGUF, foreign": Target("foreign.gguf", "", damage_gguf, (*_MODEL, *_GENERATE)),
    "Orbax": Target("orbax", "**/*", damage_any, (*_MODEL, *_GENERATE[1:], *_COMPUTING)),
    "YAML, torch": Target("torch.yaml", "", damage_yaml, _configured("torch")),
    "YAML, jax": Target("jax.yaml", "", damage_yaml, _configured("jax")),
    "run, torch": Target("torch-run", "**/*", damage_any, _run("torch")),
    "run, jax": Target("jax-run", "**/*", damage_any, _run("jax")),
    "prepared data": Target("data", "**/*", damage_any, _PREPARED),
    "JSONL": Target("d.jsonl", "", damage_lines, _SOURCE),
    "chats": Target("chats.jsonl", "", damage_lines, _CHAT_SOURCE),
    "JSON": Target("d.json", "", damage_lines, _SOURCE),
    "text": Target("d.txt", "", damage_bytes, _SOURCE),
    "gzip": Target("d.jsonl.gz", "", damage_bytes, _SOURCE),
    "bzip2": Target("d.jsonl.bz2", "", damage_bytes, _SOURCE),
    "xz": Target("d.jsonl.xz", "", damage_bytes, _SOURCE),
    "zstandard": Target("d.jsonl.zst", "", damage_bytes, _SOURCE),
    "parquet": Target("d.parquet", "", damage_bytes, _SOURCE),
}


def files_of(path: Path, pattern: str) -> list[Path]:
    """The files of a thing that a pattern names."""
    return sorted(f for f in path.glob(pattern) if f.is_file()) if pattern else [path]


def copied(whole: Path, path: Path) -> None:
    """Put the thing in place of what is left of the last case."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if whole.is_dir():
        shutil.copytree(whole, path, symlinks=True)
    else:
        shutil.copyfile(whole, path)
