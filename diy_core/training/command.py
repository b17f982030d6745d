"""`diy-torch train` and `diy-jax train`: one config, one command line, one set of exit codes.

0     all steps are done (or those up to `stop_at`), or were done before
1     the run cannot go on: steps that are not finite, or no room for the last checkpoint
2     a config, data or files that cannot be used
130   Ctrl-C, 143 SIGTERM: the step was finished and saved; `--resume auto` goes on from there
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diy_core.training.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig, as_dict
from diy_core.training.interfaces import Pieces, TrainingError
from diy_core.training.loop import train
from diy_core.training.progress import Report
from diy_core.training.restoring import Verify, is_done, restore
from diy_core.training.run_directory import RunDirectory, whole_checkpoints
from diy_core.training.signals import Interruption
from diy_core.training.standard_error import complain
from diy_core.training.state import Position

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2

# (config, run directory, device or None) -> the twin's pieces, at step 0. The run directory is
# entered; the store writes into its `checkpoints`.
Assemble = Callable[[TrainConfig, RunDirectory, str | None], Pieces]


def build_parser(program: str) -> Any:
    """The parser: an option for each field of the config, `--config`, `--print_config`, `--resume`.

    Args:
        program: what usage messages call it, such as `diy-jax train`.
    """
    from jsonargparse import ArgumentParser  # late: only training needs it

    class Parser(ArgumentParser):
        """Errors without the usage, which would fill the screen, and with the nearest name."""

        def error(self, message: str, error: Exception | None = None) -> Any:
            complain(f"{self.prog}: {message}")
            raise SystemExit(EXIT_BAD_INPUT)

    parser = Parser(
        prog=program,
        description="Train a model. What the config file says is replaced by what the command "
        "line says. Exit codes: 0 done, 1 failed, 2 bad input, 130 (Ctrl-C) and 143 (SIGTERM) "
        "saved and left.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file of the options below")
    parser.add_argument(
        "--resume",
        choices=["auto"],
        help="auto: go on from the newest whole checkpoint of run_dir, or begin if there is none",
    )
    parser.add_argument("--device", type=str | None, help="where to train; default: the best")
    parser.add_class_arguments(TrainConfig)
    return parser


def parse(program: str, argv: Sequence[str]) -> tuple[TrainConfig, bool, str | None]:
    """Config, whether to resume, and the device, from a command line.

    Raises:
        ValueError: an unknown name, with the nearest known one, or a value out of range.
        SystemExit: after `--help` or `--print_config` (0), or a value of another type (2).
    """
    parser = build_parser(program)
    _refuse_unknown(parser, argv)
    options = parser.parse_args(list(argv))
    values: dict[str, Any] = parser.instantiate(options).as_dict()
    del values["config"]
    resume, device = values.pop("resume"), values.pop("device")
    return TrainConfig(**values), resume == "auto", device


def from_dict(values: Mapping[str, Any], where: object = "config") -> TrainConfig:
    """A config from nested dicts, as `config.yaml` of a run holds them.

    Raises:
        ValueError: an unknown or missing name, or a value out of range.
    """
    _refuse_keys(values, where)
    parts = {"optimizer": OptimizerConfig, "loss": LossConfig, "data": DataConfig}
    try:
        built = {name: part(**values[name]) for name, part in parts.items() if name in values}
        return TrainConfig(**{**values, **built})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def run(program: str, argv: Sequence[str], assemble: Assemble, verify: Verify) -> int:
    """Run the command; returns the exit code.

    Args:
        program: such as `diy-jax train`.
        argv: what follows it.
        assemble: builds the twin's part.
        verify: reads a checkpoint of the twin.
    """
    try:
        config, resume, device = parse(program, argv)
        return train_config(config, assemble, verify, resume=resume, device=device)
    except TrainingError as error:
        complain(f"{program}: {error}")
        return EXIT_FAILED
    except (ValueError, OSError) as error:
        complain(f"{program}: {error}")
        return EXIT_BAD_INPUT


def train_config(
    config: TrainConfig,
    assemble: Assemble,
    verify: Verify,
    *,
    resume: bool = False,
    device: str | None = None,
) -> int:
    """Train; returns the exit code: 0, or 130 and 143 after a signal.

    Raises:
        TrainingError: the run cannot go on.
        ValueError: the run directory is in use, or holds another run; unusable data or checkpoints.
        OSError: a file cannot be read or written.
    """
    with (
        Report(config.last_step) as report,
        Interruption(report.say) as interruption,
        RunDirectory(config.run_dir, report.say) as directory,
    ):
        going_on = directory.begin(config, resume=resume)
        if going_on and is_done(config, directory, verify):
            done = whole_checkpoints(directory.checkpoints)[-1]
            report.say(
                f"{config.run_dir} is finished: step {done} of {config.steps}"
                if done >= config.steps
                else f"{config.run_dir} stands at step {done}, stop_at is {config.stop_at}"
            )
            return 0
        pieces = assemble(config, directory, device)
        position = Position(seed=config.seed)
        if going_on:
            position = restore(config, pieces, directory, report)
        elif resume:
            report.say(f"{config.run_dir} holds no whole checkpoint: beginning at step 0")
        position = train(config, pieces, directory, position, report, interruption)
        report.say(f"saved step {position.step} of {config.steps} in {directory.checkpoints}")
        return interruption.exit_code


def _refuse_unknown(parser: Any, argv: Sequence[str]) -> None:
    """Raise for a name that no field has; argparse would not say which one was meant."""
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    for i, word in enumerate(argv):
        name = word.partition("=")[0]
        if name == "--config":
            file = word.partition("=")[2] or (argv[i + 1] if i + 1 < len(argv) else "")
            if Path(file).is_file():
                _refuse_keys(_read_yaml(Path(file)), file)
        elif name.startswith("--") and name not in known and not name.startswith("--model."):
            raise ValueError(f"{name} is not known{_nearest(name, known)}")


def _read_yaml(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{file} must hold names and values, got {values!r:.100}")
    return values


def _refuse_keys(values: Mapping[str, Any], where: object) -> None:
    """Raise for a key of a config that no field has."""
    example = TrainConfig(
        run_dir="-", model="-", data=DataConfig(train="-"), steps=1, batch_size=1, sequence_length=1
    )
    fields = as_dict(example)
    names = [
        *fields,
        *(f"{part}.{name}" for part in ("optimizer", "loss", "data") for name in fields[part]),
    ]
    given = [str(name) for name in values]
    for part in ("optimizer", "loss", "data"):
        if isinstance(values.get(part), Mapping):
            given += [f"{part}.{name}" for name in values[part]]
    for name in given:
        if name not in (*names, "resume", "device"):
            raise ValueError(f"{where}: {name} is not known{_nearest(name, names)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    """`: did you mean x?`, by the whole name or by its last part."""
    last = {other.rpartition(".")[2].lstrip("-"): other for other in known}
    nearest = difflib.get_close_matches(name, known, 1) or [
        last[match]
        for match in difflib.get_close_matches(name.rpartition(".")[2].lstrip("-"), list(last), 1)
    ]
    return f": did you mean {nearest[0]}?" if nearest else ""
