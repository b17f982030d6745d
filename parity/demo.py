"""`parity demo`: a real model, loaded in both twins, checked, converted, and asked a question."""

from __future__ import annotations

import resource
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

import diy_jax
import diy_torch
from diy_core.checkpoints.gguf.conversion import find_smollm2, import_gguf
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.commands.generate import printer
from diy_core.mapping import tensors
from diy_core.system.held import real
from diy_core.system.places import made_directory
from diy_core.text.tokenizer import Tokenizer
from parity.check.compare import Check
from parity.check.model import Plan, check_model
from parity.convert.formats import convert
from parity.environment import Device, DeviceChoice, choose_device, describe, exact
from parity.report import table as report
from parity.twins import Pair

# Enough to prove equality and little enough for two cores: `parity check` compares more.
PLAN = Plan(
    kinds=("logits", "blocks", "gradients", "decode"),
    batch_size=4,
    sequence=32,
    decode_prompts=(40, 11),
    decode_positions=128,
    greedy_tokens=0,
)
DTYPES = ("float64", "float32")


def demo(
    *,
    model: str | None,
    prompt: str,
    max_new_tokens: int,
    out: Path,
    device_choice: DeviceChoice = "auto",
    json: str | None = None,
) -> int:
    """Run the whole path and print what was proven; 0 where everything was equal, else 1.

    Args:
        model: a Hugging Face directory; None: SmolLM2-135M-Instruct.
        prompt: what both twins are asked.
        max_new_tokens: of each answer at most.
        out: a directory for what is made.
        device_choice: where to compute.
        json: also write the record here; `-`: to standard output, and all else to standard error.

    Raises:
        ValueError: a model that cannot be loaded, or no place to write to.
    """
    device = choose_device(device_choice)
    with made_directory(out):
        return _demo(model, prompt, max_new_tokens, out, device, json)


def _demo(
    model: str | None, prompt: str, max_new_tokens: int, out: Path, device: Device, json: str | None
) -> int:
    begin, console = time.monotonic(), Console(stderr=json == "-")
    source = Path(model) if model else _import_smollm2(out, console)
    for made in (out / "orbax", out / "from-orbax"):
        if real(source) == real(made):
            raise ValueError(f"{made} is what the demo itself writes: choose another --out")
    directory, tokenizer = HFReader(source), Tokenizer.from_pretrained(source)
    count = sum(tensor.parameters for tensor in tensors(directory.config))
    _say(console, "1", f"{source}: {count / 1e6:.1f} M parameters, both twins on {device.name}")

    _say(console, "2", "parity check, float64 and float32 (about two minutes on two cores)")
    with console.status("") as status:
        checks = check_model(
            source, device, DTYPES, PLAN, lambda step: status.update(f"  {step} ...")
        ).checks

    _say(console, "3", "to Orbax and back, compared bit for bit")
    checks.append(_round_trip(source, out, device))

    _say(console, "4", "one question, both twins")
    console.print(f"[dim]{prompt}[/dim]")
    checks.append(_answer(source, tokenizer, prompt, max_new_tokens, device, console))

    console.print()
    console.print(report.table(checks, "What was proven", console))
    report.verdict(checks, console)
    record = out / "check.json"
    found = report.as_json(checks, describe(device))
    for target in filter(None, (str(record), json)):
        report.write_json(target, found)
    files = Table.grid(padding=(0, 2))
    files.add_row("model, Hugging Face directory", str(source))
    files.add_row("the same as an Orbax checkpoint", str(out / "orbax"))
    files.add_row("and back again", str(out / "from-orbax"))
    files.add_row("these numbers as JSON", str(record))
    console.print(files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(f"{time.monotonic() - begin:.0f} s, {peak:.1f} GB of memory at peak")
    return 0 if all(check.passed for check in checks) else 1


def _say(console: Console, number: str, text: str) -> None:
    console.print(f"[bold cyan]{number}[/bold cyan] {text}", highlight=False)


def _import_smollm2(out: Path, console: Console) -> Path:
    """SmolLM2-135M-Instruct out of its package, unless an earlier demo did it."""
    destination, gguf = out / "SmolLM2-135M-Instruct", find_smollm2()
    if not (destination / "config.json").is_file():
        _say(console, "0", f"importing {gguf.name}")
        import_gguf(gguf, destination)
    return destination


def _round_trip(source: Path, out: Path, device: Device) -> Check:
    """Convert to Orbax and back; every tensor must come back with the same bits."""
    convert(source, out / "orbax", overwrite=True)
    convert(out / "orbax", out / "from-orbax", overwrite=True)
    before, after = HFReader(source), HFReader(out / "from-orbax")
    compared, differing, where = 0, 0, ""
    for tensor in tensors(before.config):
        one, other = before.read(tensor.hf), after.read(tensor.hf)
        compared += one.size
        bits = f"u{one.dtype.itemsize}"
        same = one.dtype == other.dtype and np.array_equal(one.view(bits), other.view(bits))
        if not same:
            differing, where = differing + 1, where or tensor.hf
    dtype = str(before.read(tensors(before.config)[0].hf).dtype)
    return Check(
        "HF -> Orbax -> HF", dtype, device.name, compared, differing, 0, differing == 0, where
    )


def _answer(
    source: Path,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    device: Device,
    console: Console,
) -> Check:
    """Both twins answer at once, in two columns; their tokens must be the same."""
    # A base model has no chat template: it continues the question.
    messages = [{"role": "user", "content": prompt}]
    chat = tokenizer.chat_template is not None
    ids = [tokenizer.encode_chat(messages) if chat else tokenizer.encode(prompt)]
    pair = Pair(source, "float32", device)
    texts, outputs = {"PyTorch": "", "JAX": ""}, dict[str, Any]()
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": tokenizer.eos_token_ids or None,
    }

    def run(name: str) -> None:
        def write(text: str) -> None:
            texts[name] += text

        on_tokens = printer(tokenizer, write)
        if name == "PyTorch":
            outputs[name] = diy_torch.generate(pair.torch, ids, on_tokens=on_tokens, **options)
        else:
            with exact(device):  # JAX's settings are those of one thread
                params = jax.device_put(pair.params, device.jax)
                outputs[name] = diy_jax.generate(
                    pair.flax, params, ids, on_tokens=on_tokens, **options
                )

    def columns() -> Columns:
        width = max(20, (console.width - 4) // 2)
        return Columns([Panel(text, title=name, width=width) for name, text in texts.items()])

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in texts]
    with exact(device), Live(columns(), console=console, refresh_per_second=8) as live:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.1)
            live.update(columns())
        live.update(columns())
    if set(outputs) != set(texts):
        raise ValueError("a twin did not finish its answer: see the error above")
    one = outputs["PyTorch"].sequences[0].cpu().numpy()
    other = np.asarray(outputs["JAX"].sequences)[0]
    width = max(len(one), len(other))
    differing = sum(a != b for a, b in zip(_padded(one, width), _padded(other, width), strict=True))
    new = width - len(ids[0])
    return Check("chat tokens", "float32", device.name, new, differing, 0, differing == 0)


def _padded(tokens: Any, width: int) -> list[int]:
    return [*tokens.tolist(), *[-1] * (width - len(tokens))]
