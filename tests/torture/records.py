"""A training run in which every file is damaged in every line, and every value is another one.

python -m tests.torture records --trials 400 --seed 0

Nothing that reads a run may end in a traceback, or change a file where it only reads; what goes on
comes to the end, or is refused with a line that says of what.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.torture.common import Figures, snapshot

_STEPS, _STOP = 8, 6
_GONE = "gone, with its key"
_ODD: list[Any] = [
    *(_GONE, None, True, -1, 0, 10**30, 2**63, 1.5, float("nan"), float("inf"), 10**400),
    *("", "a", "a" * 1000, "\u0000", [], {}, [[]], {"a": {}}, [None] * 3),
]
_LINES: dict[str, Callable[[bytes], bytes]] = {
    "a line is gone": lambda line: b"",
    "a line is there twice": lambda line: line + line,
    "a byte is zero": lambda line: line[: len(line) // 2] + b"\0" + line[len(line) // 2 + 1 :],
    "a byte is not a UTF-8": lambda line: b"\xff" + line,
    "a line is cut": lambda line: line[: len(line) // 2],
    "a line is nested deeply": lambda line: b"[" * 100_000 + b"\n",
    "a line has another digit": lambda line: line.translate(bytes.maketrans(b"123", b"987")),
    "a line is a list": lambda line: b"- 1\n",
}
_Command = Callable[[Path, Path], int]
Keys = tuple[Any, ...]
_Target = tuple[str, int, Keys | None]


def run(trials: int, seed: int, folder: Path) -> list[Figures]:
    """Damage every line, and so many of the values, and read the run by every command.

    Each command meets every line with a damage of its own. Lines of older checkpoints, which no
    command reads here, are drawn from with the values.

    Raises:
        AssertionError: a command ended in a traceback, or changed what it only reads.
    """
    whole = _make(folder)
    draw, targets = random.Random(seed), _targets(whole)
    newest = sorted((whole / "checkpoints").iterdir())[-1].relative_to(whole)
    older = f"{newest.parent}/"
    lines, others = [], []
    for target in targets:
        file, _, keys = target
        is_older = file.startswith(older) and not file.startswith(f"{newest}/")
        (lines if keys is None and not is_older else others).append(target)
    draw.shuffle(others)
    cases = [*lines, *itertools.islice(itertools.cycle(others), trials)]
    workers = os.cpu_count() or 1
    figures = {name: Figures(f"a damaged run: {name}") for name in _COMMANDS}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        parts = [(whole, folder / str(i), seed + i, cases[i::workers]) for i in range(workers)]
        for found in pool.map(_work, *zip(*parts, strict=True)):
            for name, outcomes in found.items():
                figures[name].outcomes.update(outcomes)
    return list(figures.values())


def _work(whole: Path, folder: Path, seed: int, cases: list[_Target]) -> dict[str, Counter[str]]:
    """A share of the cases, in a folder and a process of its own."""
    draw, found = random.Random(seed), {name: Counter[str]() for name in _COMMANDS}
    shutil.copytree(whole, folder / "whole")
    for (file, at, keys), (name, command) in itertools.product(cases, _COMMANDS.items()):
        what, content = _damaged(whole / file, file, at, keys, draw)
        run_dir, out = folder / "run", folder / "out"
        shutil.copytree(whole, run_dir)
        (run_dir / file).write_bytes(content)
        found[name][_outcome(name, command, run_dir, out, f"{file}, {what}")] += 1
        for path in (run_dir, out):
            shutil.rmtree(path, ignore_errors=True)
    return found


def _make(folder: Path) -> Path:
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"Document {i} says {i * 7919 % 1000} words." for i in range(60)))
    values = {
        "run_dir": str(folder / "whole"),
        "model": {
            "vocab_size": 257,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
        "data": {
            "train": str(text),
            "separator": "\\n\\n",
            "validation": 0.2,
            "tokenizer": "bytes",
        },
        "steps": _STEPS,
        "stop_at": _STOP,
        "batch_size": 2,
        "sequence_length": 16,
        "checkpoint_every": 2,
        "eval_every": 2,
        "keep_last": 9,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    code, said = _said(lambda: _train("--config", str(folder / "run.yaml")))
    assert code == 0, said
    return folder / "whole"


def _targets(whole: Path) -> list[_Target]:
    """Every line of every file of a run, and every value: name, line, and the keys to the value."""
    found: list[_Target] = []
    for path in sorted(whole.rglob("*")):
        if path.suffix not in (".json", ".jsonl", ".yaml") and path.name != ".lock":
            continue
        file = str(path.relative_to(whole))
        lines = path.read_bytes().splitlines()
        found += [(file, i, None) for i in range(len(lines))]
        if path.suffix in (".json", ".yaml"):
            found += [(file, -1, keys) for keys in _paths(_loader(file)(path.read_text()))]
        elif path.suffix == ".jsonl":
            found += [
                (file, i, keys) for i, line in enumerate(lines) for keys in _paths(json.loads(line))
            ]
    return found


def _damaged(
    file: Path, name: str, at: int, keys: Keys | None, draw: random.Random
) -> tuple[str, bytes]:
    """What was done, in words, and the content of the file after it."""
    lines = file.read_bytes().splitlines(keepends=True)
    if keys is None:
        what, damage = draw.choice(list(_LINES.items()))
        line = damage(lines[at])
    else:
        odd = draw.choice(_ODD)
        text = file.read_bytes() if at < 0 else lines[at]
        what = f"{'.'.join(map(str, keys))} is {odd!r:.30}"
        line = _with_value(name, text.decode(), keys, odd).encode()
    if at < 0:
        return what, line
    return f"line {at + 1}: {what}", b"".join([*lines[:at], line, *lines[at + 1 :]])


def _with_value(name: str, text: str, keys: Keys, odd: Any) -> str:
    values = _loader(name)(text)
    owner = values
    for key in keys[:-1]:
        owner = owner[key]
    if odd == _GONE:
        del owner[keys[-1]]
    else:
        owner[keys[-1]] = odd
    if name.endswith("position.json") and keys[0] == "position":  # as a run would seal it
        sealed = json.dumps(values.get("position"), sort_keys=True).encode()
        values["sha256"] = hashlib.sha256(sealed).hexdigest()
    return yaml.safe_dump(values) if name.endswith(".yaml") else json.dumps(values) + "\n"


def _loader(name: str) -> Callable[[str], Any]:
    return yaml.safe_load if name.endswith(".yaml") else json.loads


def _paths(values: Any, path: Keys = ()) -> Iterator[Keys]:
    items: Any = ()
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list):
        items = enumerate(values)
    for key, value in items:
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _train(*words: str) -> int:
    from diy_torch.__main__ import main

    return main(["train", *words, "--device", "cpu"])


def _go_on(run_dir: Path, out: Path) -> int:
    words = ("--resume", "auto", "--stop-at", "null", "--run-dir", str(run_dir))
    return _train("--config", str(run_dir / "config.yaml"), *words)


def _export(run_dir: Path, out: Path) -> int:
    from diy_torch.__main__ import main

    return main(["export", str(run_dir), "--out", str(out)])


def _parity(*words: str) -> _Command:
    from parity.__main__ import main

    def act(run_dir: Path, out: Path) -> int:
        whole = run_dir.with_name("whole")
        places = {"RUN": run_dir, "OUT": out, "WHOLE": whole}
        return main([str(places.get(word, word)) for word in words])

    return act


_COMMANDS: dict[str, _Command] = {
    "train --resume": _go_on,
    "export": _export,
    "inspect": _parity("inspect", "RUN", "--verify"),
    "diff": _parity("diff", "RUN", "WHOLE"),
    "switch": _parity("switch", "RUN", "OUT"),
}
_READING = ("export", "inspect", "diff")


def _said(act: Callable[[], int]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = act()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    return code, said.getvalue()


def _outcome(name: str, command: _Command, run_dir: Path, out: Path, what: str) -> str:
    before = snapshot(run_dir) if name in _READING else {}
    try:
        code, said = _said(lambda: command(run_dir, out))
    except BaseException as error:
        raise AssertionError(f"{name} of a run with {what}: {error!r:.500}") from error
    assert code in (0, 1, 2), f"{name} of a run with {what}: exit code {code}: {said[-500:]}"
    assert "Traceback" not in said, f"{name} of a run with {what}: {said[-2000:]}"
    assert code != 2 or said.strip(), f"{name} of a run with {what}: exit code 2, and no word"
    if name in _READING:
        assert snapshot(run_dir) == before, f"{name} of a run with {what} changed it"
    return f"exit code {code}"
