"""Peak memory of `parity convert` above the idle process, for every pair of formats.

    python benchmarks/convert_memory.py HF_DIR WORK_DIR [--dtype bfloat16]

Each conversion runs in a process of its own, which imports everything first; what is printed is the
highest resident memory after that, less the memory at that point.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

_PROGRAM = """
import json, sys
from parity.convert.formats import convert
import jax, torch
from parity.environment import choose_device
choose_device("cpu")
def memory(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
source, destination, to, verify = sys.argv[1:]
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts here
idle = memory("VmRSS")
done = convert(source, destination, to=to, overwrite=True, verify=verify == "True")
print(json.dumps({"peak": memory("VmHWM") - idle, "idle": idle, "seconds": done.seconds}))
"""
ENDINGS = {"hf": "hf", "orbax": "orbax", "gguf": "model.gguf"}


def peak_memory(source: Path, destination: Path, to: str, verify: bool = True) -> dict[str, float]:
    """Bytes above the idle process, and seconds, of one conversion."""
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(source), str(destination), to, str(verify)],
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return result


def every_pair(hf: Path, work: Path) -> dict[tuple[str, str], dict[str, float]]:
    """All nine pairs, from one Hugging Face directory."""
    work.mkdir(exist_ok=True)
    sources = {"hf": hf}
    found = {}
    for to in ("orbax", "gguf"):
        sources[to] = work / f"source-{ENDINGS[to]}"
        found["hf", to] = peak_memory(hf, sources[to], to)
    for kind, source in sources.items():
        for to, ending in ENDINGS.items():
            if (kind, to) not in found:
                target = work / f"to-{ending}"
                found[kind, to] = peak_memory(source, target, to)
                shutil.rmtree(target) if target.is_dir() else target.unlink()
    for to in ("orbax", "gguf"):
        shutil.rmtree(sources[to]) if sources[to].is_dir() else sources[to].unlink()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hf", type=Path, metavar="HF_DIR")
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    options = parser.parse_args()
    from parity.convert.formats import open_checkpoint

    sizes = [tensor.nbytes for tensor in open_checkpoint(options.hf).stored.values()]
    bound = 300e6 + 3 * max(sizes)
    table = Table(
        title=f"{sum(sizes) / 1e9:.2f} GB, largest tensor {max(sizes) / 1e6:.0f} MB, "
        f"bound {bound / 1e6:.0f} MB"
    )
    for column in ("from", "to", "peak MB", "seconds"):
        table.add_column(column)
    for (kind, to), figures in every_pair(options.hf, options.work).items():
        table.add_row(kind, to, f"{figures['peak'] / 1e6:.0f}", f"{figures['seconds']:.1f}")
    Console().print(table)
