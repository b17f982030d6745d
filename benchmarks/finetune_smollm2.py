"""Fine-tune SmolLM2-135M with both twins and with plain transformers, and compare the figures.

    python benchmarks/finetune_smollm2.py [--steps 50] [--out curves.png] [--work DIR]

The text is Python's own help (`builtin:pydoc`), a part of it held out. Each stage is a process of
its own, one after the other; the twins train and export with their own command lines. Needs 6 GB of
memory, 6 GB of disk, and about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = {"PyTorch": "diy_torch", "JAX": "diy_jax"}
WITNESS_STEPS = 20
CONFIG: dict[str, Any] = {
    "seed": 0,
    "dtype": "float32",
    "batch_size": 2,
    "sequence_length": 256,
    "log_every": 1,
    "keep_best": False,
    "data": {"train": "builtin:pydoc", "validation": 0.1},
    "optimizer": {"learning_rate": 5e-5, "schedule": "cosine"},
}


def command(*words: str) -> float:
    """Run a command of ours in a process of its own; its peak memory in GB."""
    print("$ python -m", *words, flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", *words], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)} ended with {code}")
    return usage.ru_maxrss * 1024 / 1e9


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    print(f"- {function.__name__}", *arguments, flush=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def import_model(destination: Path) -> None:
    from diy_core.checkpoints.gguf.conversion import find_smollm2, import_gguf

    import_gguf(find_smollm2(), destination)


def evaluate_plainly(model_path: Path, data: Path, length: int) -> tuple[float, int]:
    """The same of transformers: every window of every document by itself, nothing packed.

    The files are read as docs/data.md describes them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kind = json.loads((data / "data.json").read_text())["dtype"]
    tokens = np.fromfile(data / "tokens.bin", kind).astype(np.int64)
    ends = np.fromfile(data / "documents.bin", "<i8")
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    total, counted = 0.0, 0
    for document in np.split(torch.from_numpy(tokens), ends[:-1]):
        text = tokenizer.decode(document[:-1])  # the last ends the document
        assert tokenizer(text).input_ids == document[:-1].tolist(), "another tokenizer"
        for start in range(0, len(document) - 1, length):
            window = document[start : start + length + 1]
            with torch.no_grad():
                logits = model(window[None, :-1]).logits[0]
            loss = torch.nn.functional.cross_entropy(logits.double(), window[1:], reduction="sum")
            total, counted = total + float(loss), counted + len(window) - 1
    return total / counted, counted


def train_plainly(run: Path, model_path: Path, steps: int) -> list[float]:
    """The first losses of a run, by transformers and a plain loop on the same batches."""
    import itertools

    import torch
    from transformers import AutoModelForCausalLM

    from diy_core.data import Batches, TokenData
    from tests.parity import transformers_trainer

    config = yaml.safe_load((run / "config.yaml").read_text())
    names = ("batch_size", "sequence_length", "seed")
    batches = Batches(TokenData(run / "data"), **{name: config[name] for name in names})
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    found = transformers_trainer.train(model, itertools.islice(batches, steps), config)
    return [loss for loss, _ in found]


def read_run(run: Path) -> dict[str, Any]:
    """Losses, validation losses by step, their tokens, seconds of a step (the lower quartile)."""
    rows, evaluations, timings = (
        [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        for name in ("metrics", "evaluations", "timings")
    )
    seconds = [row["seconds_per_step"] for row in timings if row["seconds_per_step"] is not None]
    return {
        "losses": np.array([row["loss"] for row in rows]),
        "evaluations": {row["step"]: row["loss"] for row in evaluations},
        "tokens": {row["tokens"] for row in evaluations},
        "seconds": float(np.quantile(seconds, 0.25)),
    }


def measure(work: Path, steps: int, witness_steps: int) -> dict[str, Any]:
    """All stages. What they return is printed, drawn, and kept as `figures.json`."""
    model, config_file = work / "SmolLM2-135M-Instruct", work / "config.yaml"
    if not (model / "config.json").is_file():
        apart(import_model, model)
    config = CONFIG | {
        "model": str(model),
        "run_dir": str(work / "run"),
        "steps": steps,
        "checkpoint_every": steps,
        "eval_every": max(1, steps // 5),
        "optimizer": CONFIG["optimizer"] | {"warmup_steps": min(5, steps)},
    }
    config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    length, held_out = config["sequence_length"], work / "PyTorch" / "data" / "validation"

    twins: dict[str, Any] = {}
    for name, package in PACKAGES.items():
        run, exported, begun = work / name, work / f"{name}-exported", time.monotonic()
        words = "train", f"--config={config_file}", f"--run_dir={run}", "--device=cpu"
        memory = command(package, *words)
        found = read_run(run) | {"memory": memory, "minutes": (time.monotonic() - begun) / 60}
        command(package, "export", str(run), f"--step={steps}", f"--out={exported}")
        found["exported"], counted = apart(evaluate_plainly, exported, held_out, length)
        assert found["tokens"] == {counted}
        twins[name] = found | {"tokens": counted}
    plain_first, _ = apart(evaluate_plainly, model, held_out, length)
    losses = apart(train_plainly, work / "PyTorch", model, min(steps, witness_steps))
    return twins | {"transformers": {"losses": np.array(losses), "evaluations": {0: plain_first}}}


def report(found: dict[str, Any]) -> None:
    torch, jax, plain = found["PyTorch"], found["JAX"], found["transformers"]
    gap = np.abs(torch["losses"] - jax["losses"])
    print(f"\n{len(gap)} losses, from {torch['losses'][0]:.4f} to {torch['losses'][-1]:.4f}")
    print(f"PyTorch - JAX: at most {gap.max():.1e}, at step {gap.argmax() + 1}")
    for name in PACKAGES:
        gap = np.abs(found[name]["losses"][: len(plain["losses"])] - plain["losses"])
        print(f"{name} - transformers, first {len(gap)} steps: at most {gap.max():.1e}")
    print(f"perplexity on {torch['tokens']} tokens that were held out:")
    last = max(torch["evaluations"])
    for name in PACKAGES:
        before, after = (found[name]["evaluations"][step] for step in (0, last))
        exported = found[name]["exported"]
        print(f"  {name}: {math.exp(before):.6f} before, {math.exp(after):.6f} after", end="; ")
        print(f"its export in transformers {math.exp(exported):.6f}", end="")
        print(f" (losses {abs(after - exported):.1e} apart)")
    print(f"  transformers: {math.exp(plain['evaluations'][0]):.6f} before")
    for name in PACKAGES:
        memory, seconds = found[name]["memory"], found[name]["seconds"]
        print(f"{name}: {memory:.2f} GB at peak, {seconds:.2f} s a step (lower quartile)")


def draw(found: dict[str, Any], path: Path) -> None:
    """Curves above, their differences below; training left, held-out text right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    rows = figure.subplots(2, 2, sharex="col", height_ratios=(2, 1))
    torch, jax, plain = found["PyTorch"], found["JAX"], found["transformers"]
    styles = {
        "PyTorch": {"color": "#f5b78a", "linewidth": 6, "solid_capstyle": "round"},
        "JAX": {"color": "#12426b", "linewidth": 1.5},
        "transformers": {"color": "black", "linestyle": "none", "marker": ".", "markersize": 4},
    }
    for name, style in styles.items():
        losses = found[name]["losses"]
        rows[0, 0].plot(range(1, len(losses) + 1), losses, label=name, **style)
    for name in PACKAGES:
        points = found[name]["evaluations"]
        rows[0, 1].plot([*points], np.exp([*points.values()]), label=name, **styles[name])
    shown = {0: plain["evaluations"][0], max(torch["evaluations"]): torch["exported"]}
    label = "transformers (the export)"
    rows[0, 1].plot(
        [*shown],
        np.exp([*shown.values()]),
        label=label,
        **styles["transformers"] | {"markersize": 9},
    )
    gaps = {
        "PyTorch - JAX": (torch["losses"], jax["losses"], "#12426b"),
        "PyTorch - transformers": (torch["losses"], plain["losses"], "black"),
    }
    for label, (one, other, colour) in gaps.items():
        gap = np.abs(one[: len(other)] - other)
        steps = np.arange(1, len(gap) + 1)
        rows[1, 0].plot(
            steps[gap > 0], gap[gap > 0], ".-", color=colour, linewidth=0.7, label=label
        )
    steps = np.array([*torch["evaluations"]])
    before, after = (np.exp([*twin["evaluations"].values()]) for twin in (torch, jax))
    gap = np.abs(before - after)
    rows[1, 1].plot(steps[gap > 0], gap[gap > 0], "o-", color="#12426b", label="PyTorch - JAX")
    for axes, label in zip(
        rows.flat,
        ("training loss (nats/token)", "held-out perplexity", "|difference|", "|difference|"),
        strict=True,
    ):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for axes in rows[1]:
        axes.set_yscale("log")
        axes.set_xlabel("step")
    figure.savefig(path, format="png", dpi=80)
    print(path, f"{path.stat().st_size / 1e3:.0f} kB")


def plain_numbers(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--witness-steps", type=int, default=WITNESS_STEPS)
    parser.add_argument("--out", type=Path, default=Path("finetune_smollm2.png"))
    parser.add_argument("--work", type=Path, help="what the runs leave is kept here")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        found = measure(work, options.steps, options.witness_steps)
        (work / "figures.json").write_text(json.dumps(found, default=plain_numbers, indent=1))
    report(found)
    draw(found, options.out)


if __name__ == "__main__":
    main()
