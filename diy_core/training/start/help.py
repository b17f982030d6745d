"""`diy-torch train --help` and `diy-jax train --help`: what each option takes, and its default."""

from __future__ import annotations

import argparse
import re
from typing import Any

from jsonargparse import DefaultHelpFormatter

from diy_core.training.start.option_errors import PARTS, shown

# Of what the parser calls by the first line of a docstring.
_TITLES = {
    "A whole training run": "the run",
    "where the tokens come from": "data: where the tokens come from",
    "AdamW and its schedule": "optimizer: AdamW and its schedule",
    "what is minimised": "loss: what is minimised",
}
# What an option takes, where its type is a text; numbers are an N or an X.
_VALUES = {
    "config": "FILE",
    "device": "DEVICE",
    "run_dir": "DIR",
    "model": "MODEL",
    "stop_at": "N",
    "data.train": "SOURCE",
    "data.validation": "SHARE",
    "data.tokenizer": "DIR",
    "data.separator": "TEXT",
    "data.field": "NAME",
    **dict.fromkeys(PARTS, "FILE"),
}
# A line of the file that `--data`, `--optimizer` or `--loss` takes.
_LINES = {
    "data": "train: corpus.txt",
    "optimizer": "learning_rate: 0.0005",
    "loss": "z_loss: 0.0001",
}
_PRINT_CONFIG = (
    "print the config that all options together make, and exit; =skip_default leaves out what has "
    "its default value"
)
_IN_YAML = {"None": "null", "True": "true", "False": "false"}
_MODEL_ENTRY = """\
  --model.NAME VALUE    one entry of the model's config.json, such as
                        --model.hidden-size 192 (default: what --config says)
"""
_EXAMPLES = """
for machines: a line of JSON a step in RUN_DIR/metrics.jsonl (losses, norms, tokens), for each
evaluation in RUN_DIR/evaluations.jsonl, and of speed in RUN_DIR/timings.jsonl; nothing is printed
on standard output

examples:
  PROGRAM --config examples/tiny.yaml --optimizer.learning-rate 1e-3
  PROGRAM --config examples/tiny.yaml --run-dir runs/wide --model.hidden-size 192
  PROGRAM --config runs/tiny/config.yaml --resume auto
"""


class HelpFormatter(DefaultHelpFormatter):
    """Each option with its text and its default, without the types of Python."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").removesuffix(".")
        notes = ["required"] if action.required else []
        if not action.required and action.default != argparse.SUPPRESS and "default:" not in text:
            notes.append("default: %(default)s")
        return f"{text} ({notes[0]})" if notes else text

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kinds: dict[Any, str] = {int: "N", float: "X"}
        return kinds.get(getattr(action, "_typehint", None), action.dest.upper())


def explain(parser: Any) -> None:
    """Give each option of a parser of `TrainConfig` its text, and the name of what it takes."""
    for group in parser._action_groups:
        group.title = _TITLES.get(group.title, group.title)
    for action in parser._actions:
        if action.dest in _VALUES:
            action.metavar = _VALUES[action.dest]
        if action.dest in PARTS:
            action.help = (
                f"a YAML file of the options of this group, a line of it such as "
                f"{_LINES[action.dest]!r} (default: what --config says)"
            )
        if action.option_strings == ["--print_config"]:
            action.metavar, action.help = "\b[=skip_default]", _PRINT_CONFIG


def spelled_out(text: str, program: str) -> str:
    """The help as a parser formats it, as its readers know things: YAML, dashes, and examples.

    Args:
        text: of the parser.
        program: such as `diy-jax train`.
    """
    text = re.sub(r"(?m)^  --steps", f"{_MODEL_ENTRY}\\g<0>", text, count=1)
    text += _EXAMPLES.replace("PROGRAM", program)
    text = re.sub(r"\b(None|True|False)\b", lambda value: _IN_YAML[value[0]], text)
    return re.sub(r"--[\w.]+", lambda option: shown(option[0]), text)
