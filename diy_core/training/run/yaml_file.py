"""Config files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.errors import CheckpointError
from diy_core.system.outside import read_text
from diy_core.system.parsing import parse_yaml


def read_yaml(file: Path) -> Mapping[str, Any]:
    """Names and values of a YAML file.

    Raises:
        ValueError: no file there, no YAML, something else than names and values, a name that is
            given twice, of which YAML would take the last, or more than a config has.
    """
    if not file.exists() and not file.is_symlink():  # of a link, reading says where it leads
        raise ValueError(f"--config: there is no file {file}")
    if file.is_dir():
        raise ValueError(f"--config: {file} is a directory: give one file")
    values, twice = parse_yaml(read_text(file, "yaml_bytes"), file)
    if twice is not None:
        raise ValueError(f"{file}, line {twice[1]}: {twice[0]} is given twice: keep one of them")
    if not isinstance(values, Mapping):
        raise ValueError(f"{file} must hold names and values, got {values!r:.100}")
    return values


def read_config_of_run(file: Path) -> dict[str, Any]:
    """What the `config.yaml` of a run holds.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    values, _ = parse_yaml(read_text(file, "yaml_bytes"), file)
    if not isinstance(values, dict):
        raise CheckpointError(file, f"holds no config, but {values!r:.200}")
    return values
