"""`parity convert` beside what people do today, in one run.

    python benchmarks/convert_speed.py HF_DIR WORK_DIR [--repeat 2]

    HF to Orbax      safetensors.numpy.load_file, then ocp.save of everything
    Orbax to HF      ocp.load of everything, then safetensors.numpy.save_file
    HF to HF         cp -r, then sync (ours with another shard size)

Ours is measured as it comes (sums, synced to the disk, read back and compared) and with
--no-verify. The order changes from round to round; the best of each is printed. Every run is a
process of its own and counts from after its imports.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

_SETUP = """
import shutil, subprocess, sys, time
from pathlib import Path
from parity.convert.formats import convert
import jax, torch
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file
from diy_core.mapping import flatten, unflatten
source, target = map(Path, sys.argv[1:])
"""
_RUNS = {
    "HF to Orbax": {
        "load_file + ocp.save": """
arrays = {}
for file in sorted(source.glob("*.safetensors")):
    arrays |= load_file(file)
ocp.save(target, unflatten({tuple(name.split(".")): a for name, a in arrays.items()}))
""",
        "parity": "convert(source, target, to='orbax')",
        "parity --no-verify": "convert(source, target, to='orbax', verify=False)",
    },
    "Orbax to HF": {
        "ocp.load + save_file": """
import numpy as np
shapes = ocp.metadata(source).metadata
wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
arrays = flatten(ocp.load(source, wanted))
target.mkdir()
named = {".".join(path): np.ascontiguousarray(array.T) for path, array in arrays.items()}
save_file(named, target / "model.safetensors")
""",
        "parity": "convert(source, target, to='hf')",
        "parity --no-verify": "convert(source, target, to='hf', verify=False)",
    },
    "HF to HF": {
        "cp -r + sync": """
subprocess.run(["cp", "-r", source, target], check=True)
subprocess.run(["sync"], check=True)
""",
        "parity": "convert(source, target, to='hf', max_shard_size=10**9)",
        "parity --no-verify": """
convert(source, target, to='hf', max_shard_size=10**9, verify=False)
""",
    },
}


def seconds(program: str, source: Path, target: Path) -> float:
    """How long a program takes after its imports; what it wrote is removed."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    code = f"{_SETUP}\nbegun = time.monotonic()\n{program}\nprint(time.monotonic() - begun)"
    run = subprocess.run(
        [sys.executable, "-c", code, str(source), str(target)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    shutil.rmtree(target, ignore_errors=True)
    return float(run.stdout.splitlines()[-1])


def main() -> None:
    """Run every way `--repeat` times and print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hf", type=Path, metavar="HF_DIR")
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--only", choices=list(_RUNS), action="append")
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    orbax = (options.work / "orbax").absolute()
    if not orbax.is_dir():
        subprocess.run(
            [sys.executable, "-m", "parity", "convert", options.hf, orbax, "--to", "orbax"],
            check=True,
        )
    table = Table("conversion", "way", "seconds", "against the first")
    for name in options.only or _RUNS:
        source = orbax if name == "Orbax to HF" else options.hf.absolute()
        best: dict[str, float] = {}
        for turn in range(options.repeat):
            ways = list(_RUNS[name].items())
            for way, program in ways if turn % 2 == 0 else reversed(ways):
                took = seconds(program, source, options.work.absolute() / "target")
                best[way] = min(best.get(way, took), took)
        first = best[next(iter(_RUNS[name]))]
        for way in _RUNS[name]:
            table.add_row(name, way, f"{best[way]:.1f}", f"{best[way] / first:.2f} x")
    Console().print(table)


if __name__ == "__main__":
    main()
