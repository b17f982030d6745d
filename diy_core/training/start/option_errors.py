"""Errors of a training command as its user knows things: by the options that were given."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from diy_core.checkpoints.training_run import program_of
from diy_core.system.arguments import did_you_mean, option_name, with_settings
from diy_core.system.outside import is_there, read_text
from diy_core.system.parsing import line_in_yaml
from diy_core.system.shell import command
from diy_core.training.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig
from diy_core.training.run.yaml_file import read_yaml

PARTS: Mapping[str, Any] = {"optimizer": OptimizerConfig, "loss": LossConfig, "data": DataConfig}
_TYPES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}


def shown(option: str) -> str:
    """`--optimizer.learning-rate` for `--optimizer.learning_rate`."""
    return option.replace("_", "-")


def as_given(error: str, argv: Sequence[str]) -> str:
    """An error with each field as the option that set it, and with its part where a file did.

    `beta1 must be ...` becomes `--optimizer.beta1 must be ...` or `optimizer.beta1 must be ...`.

    Args:
        error: of a config, or of what it names.
        argv: the words that were given.
    """
    parts = {name: f"{part}.{name}" for part, of in PARTS.items() for name in get_type_hints(of)}
    error = with_settings(error, {name: f"--{shown(field)}" for name, field in parts.items()})
    for name, field in parts.items():
        error = re.sub(rf"\A{name}(?= must | \()", field, error)
    for option in filter(None, map(option_name, argv)):
        name = option.lstrip("-").replace("-", "_")
        error = re.sub(rf"\A{re.escape(name)}(?= must )", f"--{shown(name)}", error)
        error = re.sub(rf"(?<![\w.-]){re.escape(name)}(?= \([\d-])", f"--{shown(name)}", error)
    return _in_its_file(error, argv)


def _in_its_file(error: str, argv: Sequence[str]) -> str:
    """An error that begins with a field, with the file and the line that set it, if one did."""
    found = re.match(r"(model: )?([\w.]+)(?= must | \()", error)
    if found is None:
        return error
    names = [*(["model"] if found[1] else []), *found[2].split(".")]
    given = [(option_name(word) or "").lstrip("-").replace("-", "_") for word in argv]
    if ".".join(names) in given:
        return error
    for file in reversed(_configs(argv)):
        with contextlib.suppress(ValueError):  # it is gone, or another one by now
            if line := line_in_yaml(read_text(file, "yaml_bytes"), file, names):
                return f"{file}, line {line}: {error}"
    return error


def _configs(argv: Sequence[str]) -> list[Path]:
    """The config files that were given."""
    return [Path(value) for name, value in _pairs(argv) if name == "--config" and value]


def _pairs(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Options with their values, however they are joined; and what looks like them."""
    words = (*argv, *map("=".join, pairwise(argv)))
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def plain(message: str, program: str, argv: Sequence[str]) -> str:
    """An error of the parser as `--steps must be an integer, got 1000.0`; others as they are."""
    if found := re.fullmatch(r"unrecognized arguments: (.*)", message, re.IGNORECASE | re.DOTALL):
        file = next((w for w in argv if w in found[1] and w.endswith((".yaml", ".yml"))), None)
        hint = (
            f"{program} --help lists the options"
            if file is None
            else f"did you mean {command('--config', Path(file))}?"
        )
        return f"{found[1]} belongs to no option: {hint}"
    if found := re.fullmatch(r"argument (--[\w.]+): expected one argument", message):
        return f"{shown(found[1])} needs a value"
    if found := re.fullmatch(r'Invalid option "(.*)" for --print_config', message):
        return (
            f"--print-config must stand alone, or be skip_default or skip_unset, got {found[1]!r}"
        )
    if found := re.fullmatch(r"argument --resume: invalid choice: (.*) \(choose .*", message):
        return (
            f"--resume must be auto, or stand alone, got {found[1]}: it goes on from the newest "
            "whole checkpoint"
        )
    if found := re.fullmatch(r"the following arguments are required: ([\w., ]+)", message):
        missing = ", ".join(f"--{shown(name)}" for name in found[1].split(", "))
        return f"the config lacks {missing}: {_where_they_are(program, argv)}"
    name = re.search(r'key "([\w.]+)"', message)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if name is None or value is None:
        return message
    part, _, field = name[1].rpartition(".")
    hints = get_type_hints(PARTS.get(part, TrainConfig))
    if field not in hints:
        return message
    hint = hints[field]
    near = did_you_mean(value[1], get_args(hint)) if get_origin(hint) is Literal else ""
    if _is_of_a_file(name[1], value[1], argv):  # the option of that name is without fault
        argv = [word for word in argv if shown(option_name(word) or "") != f"--{shown(name[1])}"]
    return as_given(f"{name[1]} must be {_type_words(hint)}, got {value[1]}{near}", argv)


def _is_of_a_file(field: str, value: str, argv: Sequence[str]) -> bool:
    """Whether a config file gives a field this value, and the command line another one or none."""
    given = [word for name, word in _pairs(argv) if shown(name) == f"--{shown(field)}"]
    for file in _configs(argv):
        found: Any = read_yaml(file)
        for name in field.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is not None and str(found) == value not in given:
            return True
    return False


def _where_they_are(program: str, argv: Sequence[str]) -> str:
    """What to do where options are missing: those of a run are in its directory."""
    joined = [f"{word}={value}" for word, value in pairwise(argv)]
    for word in (*argv, *joined):
        name, _, run = word.partition("=")
        file = Path(run) / "config.yaml"
        if shown(name) == "--run-dir" and run and is_there(file):
            return f"those of the run are in {file}: {_going_on(program, Path(run), argv)}"
    return "give --config FILE, or an option for each"


def _going_on(program: str, run: Path, argv: Sequence[str]) -> str:
    """The command that goes on with a run, by the twin that the run is of, with what was given."""
    words: list[str | Path] = [program_of(run) or program.split()[0], *program.split()[1:]]
    words += ["--config", run / "config.yaml", *map(_dashed, argv)]
    given = [option_name(word) for word in argv]
    return command(*words, *([] if "--resume" in given else ["--resume", "auto"]))


def _dashed(word: str) -> str:
    name = option_name(word)
    return word if name is None else shown(name) + word[len(name) :]


def _type_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    kinds = get_args(hint) if hint not in _TYPES else (hint,)
    return " or ".join(_TYPES.get(kind, str(kind)) for kind in kinds)
