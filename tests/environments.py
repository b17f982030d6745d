"""Virtual environments that hold a built wheel and just what the metadata asks for, offline.

Packages are links into this environment: each is as pip installed it, and all others are absent.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("diy_core", "diy_torch", "diy_jax", "parity")


def build(folder: Path, kind: str) -> Path:
    """The `wheel` of this project, or the `editable` one, built from a copy in `folder`/source."""
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    program = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


class Environment:
    """An environment in which `pip install 'diy-lm[extras]'` was run."""

    def __init__(self, folder: Path, wheel: Path, *extras: str) -> None:
        venv.create(folder, with_pip=False)
        self.bin = folder / "bin"
        (site,) = folder.glob("lib/python*/site-packages")
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        options = [
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--disable-pip-version-check",
        ]
        subprocess.run([*pip, "install", *options, str(wheel)], check=True)
        (metadata,) = site.glob("diy_lm-*.dist-info")
        installed = importlib.metadata.Distribution.at(metadata)
        for distribution in required(installed, extras):
            for name in {file.parts[0] for file in distribution.files or []}:
                there = Path(str(distribution.locate_file(name)))
                if name != ".." and there.exists() and not (site / name).exists():
                    (site / name).symlink_to(there)

    def run(self, program: str, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a program of this environment."""
        done = subprocess.run(
            [self.bin / program, *words],
            capture_output=True,
            text=True,
            cwd=self.bin,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        )
        return done.returncode, done.stdout, done.stderr


def required(
    distribution: importlib.metadata.Distribution, extras: tuple[str, ...]
) -> Iterator[importlib.metadata.Distribution]:
    """What an installed package with these extras requires, and what that requires."""
    seen: set[tuple[str, str]] = set()
    waiting = [(distribution, extra) for extra in ("", *extras)]
    while waiting:
        package, extra = waiting.pop()
        for text in package.requires or []:
            wanted = Requirement(text)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue
            for inner in ("", *wanted.extras):
                if (wanted.name, inner) in seen:
                    continue
                seen.add((wanted.name, inner))
                own = wanted.name == distribution.name
                found = distribution if own else importlib.metadata.distribution(wanted.name)
                waiting.append((found, inner))
                if not own and inner == "":
                    yield found
