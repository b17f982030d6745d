"""The parser of `diy-torch`, `diy-jax` and `parity`.

An option may be written with dashes or with underscores; help and messages show dashes. What is
mistyped is answered with the nearest thing there is, and with the usage of its own command.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from diy_core.errors import echoed, shorten
from diy_core.system.disk import described
from diy_core.system.requirements import versions
from diy_core.system.standard_error import complain
from diy_core.system.standard_output import show

EXIT_BAD_INPUT = 2
_KINDS: dict[Any, str] = {int: "an integer", float: "a number"}
_TEXTS = ("PROMPT", "TEXT")
_TOO_LONG = re.compile(r"[+-]?\d{19,}")  # no count here has more than 18 digits
_NEGATIVE = re.compile(r"-\.?\d")


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that takes both spellings and helps with wrong words.

    Options are not abbreviated: a script that did so would break when a longer one is added.
    Parsers of subcommands are of this class too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **({"allow_abbrev": False} | options))

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse; unlike argparse's, what is not known is an error here, in the command's parser.

        argparse hands unknown words of a command up to the program, and looks for missing ones
        first: `--tokenzier` would be told that --tokenizer is required.
        """

        words = spelled(sys.argv[1:] if args is None else args, self._option_string_actions)
        self._refuse_unknown_options(words)
        namespace, extras = super().parse_known_args(words, namespace)
        if extras:
            self.error(
                f"too many arguments: {echoed(' '.join(extras))} (text of several words needs "
                "quotes)"
            )
        return namespace, []

    def _refuse_unknown_options(self, words: Sequence[str]) -> None:
        for word in words:
            if word == "--":
                return
            name = option_name(word)
            if name is None and self._subparsers is not None:
                return  # the rest belongs to the command
            if name is not None and name not in self._option_string_actions:
                self.error(f"{name} is not known{did_you_mean(name, self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        commands = isinstance(action, argparse._SubParsersAction)
        name = action.option_strings[0] if action.option_strings else action.metavar
        what = "the command" if commands else name
        self.error(
            f"{what} must be one of {', '.join(choices)}, "
            f"got {echoed(str(value))}{did_you_mean(str(value), choices)}"
        )

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # As an unset $VARIABLE comes to be. An empty text is refused where it is used.
        plain = action.type is None and action.choices is None
        if not arg_string and plain and action.metavar not in _TEXTS:
            optional = action.nargs == "?" or (action.option_strings and not action.required)
            hint = ", or leave it out" if optional else ""
            raise argparse.ArgumentError(action, f"is empty: give a value{hint}")
        if action.type in (int, positive) and _TOO_LONG.fullmatch(arg_string):
            message = f"must have at most 18 digits, got {echoed(arg_string)}"
            raise argparse.ArgumentError(action, message)
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if action.type not in _KINDS:
                raise
            message = f"must be {_KINDS[action.type]}, got {echoed(arg_string)}"
            raise argparse.ArgumentError(action, message) from error

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stderr:
            super()._print_message(message, file)
        else:  # argparse's own says nothing where it cannot be written
            print_help(message, self.prog)

    def error(self, message: str) -> NoReturn:
        """Say how this command is used and what is wrong, and leave with 2."""
        complain(f"{self.format_usage()}{self.prog}: error: {shorten(message)}")
        raise SystemExit(EXIT_BAD_INPUT)


class Version(argparse.Action):
    """`--version`: the versions of diy-lm and of the packages named in `const`."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: Iterable[str]) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, const=const, help="show versions and exit"
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print and leave."""
        print_help(f"{parser.prog} ({versions(self.const)})\n", parser.prog)
        raise SystemExit(0)


def print_help(text: str, program: str) -> None:
    """Print the text that `--help` and `--version` ask for.

    Args:
        text: with its last newline.
        program: as an error names it.

    Raises:
        SystemExit: it cannot be written; standard error says why.
    """
    try:
        show(text.removesuffix("\n"))
    except OSError as error:
        complain(f"{program}: {described(error)}")
        raise SystemExit(EXIT_BAD_INPUT) from error


def in_shell_words(text: str, parser: argparse.ArgumentParser, command: str) -> str:
    """An error of a function, told to somebody who gave options and no arguments.

    `overwrite=True` becomes `--overwrite`, `to='hf'` becomes `--to hf`, and `max_new_tokens (9)`
    becomes `--max-new-tokens (9)`, where the command has that option; all else stays. `field`, `to`
    and `tokens` are words too: without `=` such a name is an option only where it begins the error,
    or in `leave config out`. Where an argument has no option, it is what the usage calls it:
    `destination is empty` becomes `DST is empty`.

    Args:
        text: the error.
        parser: of the program.
        command: the one that was given.
    """
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    actions = commands.choices[command]._actions
    options = {a.dest: a.option_strings[-1] for a in actions if a.option_strings}
    text = with_settings(text, options)
    names = {a.dest: a.metavar for a in actions if isinstance(a.metavar, str)} | options
    for name, shown in names.items():
        text = re.sub(rf"\A{re.escape(name)}(?= must | is empty| \()", shown, text)
    for name, option in options.items():
        argument = option.lstrip("-").replace("-", "_")
        text = re.sub(rf"\bleave {argument} out\b", f"leave {option} out", text)
        if "_" in name:  # no word
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?= \()", option, text)
    return text


def with_settings(text: str, options: Mapping[str, str]) -> str:
    """An error with `to='hf'` as `--to hf`, `json=True` as `--json`.

    Args:
        text: the error.
        options: by the name of the argument.
    """
    for argument, option in options.items():
        name = rf"(?<![\w.-]){re.escape(argument)}"
        text = re.sub(rf"pass {name}=False\b", f"leave out {option}", text)
        text = re.sub(rf"{name}=True\b", option, text)
        text = re.sub(rf"{name}=(['\"]?)([^\s'\"():,;]+)\1", rf"{option} \2", text)
    return text


def positive(text: str) -> int:
    """A count of at least 1, as argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not text.strip("0"):
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {echoed(text)}")
    return int(text)


def option_name(word: str) -> str | None:
    """`--steps` of `--steps=5`; None for a word that is not an option, such as a number."""
    name = word.partition("=")[0]
    if len(word) < 2 or word[0] != "-" or word == "--" or " " in name or _NEGATIVE.match(word):
        return None
    return name


def spelled(words: Sequence[str], known: Collection[str]) -> list[str]:
    """The words with each option as `known` spells it: `--max_new_tokens`, `--max-new-tokens`."""
    spellings = {name.replace("_", "-"): name for name in known if name.startswith("--")}
    result = list(words)
    for i, word in enumerate(words):
        if word == "--":
            break
        name = option_name(word)
        if name is not None and name.replace("_", "-") in spellings:
            result[i] = spellings[name.replace("_", "-")] + word[len(name) :]
    return result


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`: did you mean --steps?`, or nothing where no known name is near.

    Near is a name that begins so, one with those initials (`lr`), one that is spelled alike, or
    one whose last part is (`--learning-rate` for `--optimizer.learning-rate`).
    """
    names = {_plain(other): other for other in known}
    last = {plain.rpartition(".")[2]: other for plain, other in names.items()}
    wanted = _plain(name)
    part = wanted.rpartition(".")[2]
    nearest = (
        [other for plain, other in names.items() if len(wanted) > 2 and plain.startswith(wanted)]
        or [other for word, other in last.items() if "-" in word and _initials(word) == part]
        or [names[match] for match in difflib.get_close_matches(wanted, names, 1)]
        or [last[match] for match in difflib.get_close_matches(part, last, 1)]
    )
    return f": did you mean {nearest[0]}?" if nearest else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("-"))
