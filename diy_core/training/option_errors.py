"""Errors of a training command as its user knows things: by the options that were given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from diy_core.arguments import did_you_mean, option_name, with_settings
from diy_core.checkpoints.training_run import program_of
from diy_core.shell import command
from diy_core.system.outside import is_there
from diy_core.training.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig

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
    return error


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
    return as_given(f"{name[1]} must be {_type_words(hint)}, got {value[1]}{near}", argv)


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
