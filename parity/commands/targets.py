"""Where a command shall write its record and its report: looked at before the work, not after."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from diy_core.system.places import is_stream, place


def require_targets(arguments: argparse.Namespace) -> None:
    """Raise where `--json` or `--report` of a command names a place that cannot be written.

    Raises:
        ValueError: it does; the message has the option, the place, and what to do.
    """
    if (file := getattr(arguments, "json", None)) is not None and file != "-":
        _require_file("--json", place(file, "--json"))
    if (folder := getattr(arguments, "report", None)) is not None:
        _require_folder("--report", place(folder, "--report"))


def _require_file(option: str, file: Path) -> None:
    if file.is_dir():
        raise ValueError(f"{option} {file} is a directory: give a file, as {file / 'record.json'}")
    if not file.parent.is_dir():
        raise ValueError(f"{option} {file}: there is no directory {file.parent}: make it first")
    _require_access(option, file if is_stream(file) else file.parent)


def _require_folder(option: str, folder: Path) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{option} {folder}: {there} is a file: give a directory, or a new name")
    _require_access(option, there)


def _require_access(option: str, place: Path) -> None:
    if not os.access(place, os.W_OK):
        raise ValueError(f"{option}: {place} may not be written by you: choose another place")
