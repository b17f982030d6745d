"""The options of `diy-torch train` and `diy-jax train`: the fields of the config, and a few."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from diy_core.notes import add_strict
from diy_core.system.arguments import EXIT_BAD_INPUT, did_you_mean, option_name, print_help, spelled
from diy_core.system.held import real
from diy_core.system.standard_error import complain
from diy_core.training.config import DataConfig, TrainConfig, as_dict
from diy_core.training.run.allowed_changes import Allowed
from diy_core.training.run.resume import MAY_DIFFER
from diy_core.training.run.yaml_file import read_yaml
from diy_core.training.start.option_errors import PARTS, plain, shown


def build_parser(program: str, argv: Sequence[str] = ()) -> Any:
    """The parser: an option for each field of the config, `--config`, `--print-config`, `--resume`.

    Args:
        program: what usage messages call it, such as `diy-jax train`.
        argv: what it will parse, for its errors.
    """
    from jsonargparse import ArgumentParser  # late: only training needs it

    from diy_core.training.start.help import HelpFormatter, explain, spelled_out

    class Parser(ArgumentParser):
        """Errors without the usage, which would fill the screen, and in plain words."""

        def error(self, message: str, error: Exception | None = None) -> Any:
            complain(f"{self.prog}: {plain(message, self.prog, argv)}")
            raise SystemExit(EXIT_BAD_INPUT)

        def _print_message(self, message: str, file: Any = None) -> None:
            if file is sys.stderr:
                super()._print_message(message, file)
            else:
                print_help(message, self.prog)

        def format_help(self, formatter: Any = None) -> str:
            return spelled_out(super().format_help(formatter), program)

    parser = Parser(
        prog=program,
        description="Train a model. What the command line says goes over what the config file "
        "says. Exit codes: 0 done, 1 failed, 2 bad input, 130 (Ctrl-C), 143 (SIGTERM) and 129 "
        "(SIGHUP) saved and left.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="a YAML file of the options below, such as examples/tiny.yaml",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        choices=["auto"],
        metavar="auto",
        help="go on from the newest whole checkpoint of the run, or begin where there is none; the "
        "word auto may be left out (default: begin a new run)",
    )
    parser.add_argument(
        "--allow_changes",
        type=str | None,
        metavar="KEY[,KEY]",
        help="with --resume: options that may have another value than the newest checkpoint was "
        "made with, such as optimizer.learning_rate; a change is recorded in all later checkpoints "
        "(default: none)",
    )
    parser.add_argument(
        "--device",
        type=str | None,
        help="where to train: cpu, gpu, cuda:1 (PyTorch) or tpu (JAX) (default: a GPU or TPU, "
        "where the framework sees one, else cpu)",
    )
    add_strict(parser, "a model or tokenizer")
    parser.add_class_arguments(TrainConfig)
    explain(parser)
    return parser


class UnknownOption(ValueError):
    """An option that there is not."""


def parse(program: str, argv: Sequence[str]) -> tuple[TrainConfig, bool, str | None, bool, Allowed]:
    """Config, whether to resume, device, whether to be strict, and changes that are meant.

    Raises:
        ValueError: an unknown name, with the nearest known one, a value out of range, or a model
            that cannot be built.
        SystemExit: after `--help` or `--print-config` (0), or a value of another type (2).
    """
    parser = build_parser(program, argv)
    argv = _as_fields(spelled(argv, parser._option_string_actions))
    _refuse_unknown(parser, argv)
    # What is printed is checked first, as if it were run.
    checked = [word for word in argv if word.partition("=")[0] != "--print_config"]
    values: dict[str, Any] = parser.instantiate(parser.parse_args(checked)).as_dict()
    file = values.pop("config")
    resume, device = values.pop("resume") == "auto", values.pop("device")
    strict = values.pop("strict")
    if device is not None and not device.strip():
        raise ValueError(f"--device must be a text that is not empty, got {device!r}")
    allowed = _allowed(values.pop("allow_changes"))
    if resume and not any(word.partition("=")[0] == "--run_dir" for word in argv):
        values["run_dir"] = _moved(file, values["run_dir"])
    config = TrainConfig(**values)
    if not isinstance(config.model, str):  # a directory may be on the machine that shall train
        from diy_core.training.run.model import model_config  # late: `--help` does without

        model_config(config)
    if checked != list(argv):
        parser.parse_args(list(argv))  # prints, and leaves
    return config, resume, device, strict, allowed


def _allowed(words: str | None) -> Allowed:
    """The options whose change is meant.

    Raises:
        ValueError: one that no config has.
    """
    keys = [] if words is None else [word.strip().replace("-", "_") for word in words.split(",")]
    known = [name for name in _names() if name not in MAY_DIFFER]
    for key in keys:
        if key not in known and not key.startswith("model."):
            raise ValueError(f"--allow-changes: {key!r} is not known{did_you_mean(key, known)}")
    return Allowed(keys)


def _moved(files: Any, run_dir: str) -> str:
    """The run directory that the config file lies in, whatever name it had; else `run_dir`."""
    for file in reversed(files or []):
        folder = Path(str(file)).parent
        is_run = (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file()
        if Path(str(file)).name == "config.yaml" and is_run:
            return run_dir if _same_place(folder, run_dir) else str(folder)
    return run_dir


def _same_place(one: Path, other: str) -> bool:
    return real(one) == real(other)


def from_dict(values: Mapping[str, Any], where: object = "config") -> TrainConfig:
    """A config from nested dicts, as `config.yaml` of a run holds them.

    Raises:
        ValueError: an unknown or missing name, or a value out of range.
    """
    _refuse_keys(values, where)
    try:
        built = {name: part(**values[name]) for name, part in PARTS.items() if name in values}
        return TrainConfig(**{**values, **built})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _refuse_unknown(parser: Any, argv: Sequence[str]) -> None:
    """Raise for a name that no field has; argparse would not say which one was meant."""
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    for i, word in enumerate(argv):
        name, given, value = word.partition("=")
        value = value if given or i + 1 == len(argv) else argv[i + 1]
        if name == "--config" and not value and (given or i + 1 < len(argv)):
            raise ValueError(f"{name} needs a file, got ''")
        if name == "--config" and value:
            _refuse_keys(read_yaml(Path(value)), value)
        elif name[2:] in PARTS and name.startswith("--"):
            if not Path(value).is_file():
                example = f"{name}.{next(iter(get_type_hints(PARTS[name[2:]])))}"
                raise ValueError(
                    f"{name} must be a YAML file of options such as {shown(example)}, got {value!r}"
                )
            _refuse_keys({name[2:]: read_yaml(Path(value))}, value)
        elif option_name(word) and name not in (*known, "-h") and not name.startswith("--model."):
            near = (
                did_you_mean(name, map(shown, known)) or f": {parser.prog} --help lists the options"
            )
            raise UnknownOption(f"{name} is not known{near}")


def _as_fields(words: Sequence[str]) -> list[str]:
    """The words with `--model.hidden-size` as `--model.hidden_size`: config.json has no dashes."""
    result = []
    for word in words:
        name = option_name(word) or ""
        entry = name.startswith("--model.")
        result.append("--" + name[2:].replace("-", "_") + word[len(name) :] if entry else word)
    return result


def _names() -> list[str]:
    """Of all fields, those of a part as `optimizer.beta1`."""
    example = TrainConfig(
        run_dir="-", model="-", data=DataConfig(train="-"), steps=1, batch_size=1, sequence_length=1
    )
    fields = as_dict(example)
    return [*fields, *(f"{part}.{name}" for part in PARTS for name in fields[part])]


def _refuse_keys(values: Mapping[str, Any], where: object) -> None:
    """Raise for a key of a config that no field has."""
    names = _names()
    given = [str(name) for name in values]
    for part in PARTS:
        if part not in values:
            continue
        if not isinstance(values[part], Mapping):
            raise ValueError(
                f"{where}: {part} must hold names and values, such as "
                f"{next(iter(get_type_hints(PARTS[part])))}, got {values[part]!r:.100}"
            )
        given += [f"{part}.{name}" for name in values[part]]
    for name in given:
        if name not in (*names, "resume", "device", "strict", "allow_changes"):
            raise ValueError(f"{where}: {name} is not known{did_you_mean(name, names)}")
