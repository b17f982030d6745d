"""Both spellings of options, and the nearest name for a wrong word, in all three programs."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diy_core.commands.command_line import build_parser
from diy_core.system.arguments import ArgumentParser, did_you_mean, in_shell_words, spelled
from diy_core.training import options
from parity.__main__ import build_parser as parity_parser

Capture = pytest.CaptureFixture[str]
PARSERS: dict[str, Callable[[], ArgumentParser]] = {
    "diy-torch": lambda: build_parser("diy-torch"),
    "diy-jax": lambda: build_parser("diy-jax"),
    "parity": parity_parser,
}


def said(program: str, words: list[str], capsys: Capture) -> str:
    """What a wrong command line is told."""
    with pytest.raises(SystemExit) as done:
        PARSERS[program]().parse_args(words)
    assert done.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


@pytest.mark.parametrize(
    ("program", "words", "usage", "message"),
    [
        ("diy-torch", ["generate", "d", "p", "--caht"], "generate", "did you mean --chat?"),
        ("diy-jax", ["generate", "--caht"], "generate", "--caht is not known: did you mean --chat"),
        ("diy-jax", ["generate", "d", "p", "--max_tokens=3"], "generate", "mean --max-new-tokens?"),
        ("diy-torch", ["generate", "d", "p", "--max-new", "3"], "generate", "--max-new-tokens?"),
        ("diy-torch", ["data", "x", "--tokenzier", "b"], "data", "did you mean --tokenizer?"),
        ("diy-torch", ["export", "r", "--outt", "b"], "export", "did you mean --out?"),
        ("parity", ["convert", "a", "b", "--max-shard"], "convert", "mean --max-shard-size?"),
        ("parity", ["check", "a", "--dtypes", "float32"], "check", "did you mean --dtype?"),
        ("parity", ["trace", "a", "--qqq"], "trace", "--qqq is not known\n"),
        ("parity", ["check", "a", "-n"], "check", "-n is not known\n"),
        ("parity", ["chekc", "a"], "", "got 'chekc': did you mean check?"),
        ("parity", ["--device", "cpu", "check"], "", "--device is not known\n"),
        ("diy-jax", ["generat", "a", "--chat"], "", "'generat': did you mean generate?"),
        ("diy-jax", ["generate", "d", "p", "--dtype", "flaot64"], "generate", "mean float64?"),
        ("parity", ["chekc"], "", "error: the command must be one of "),
        ("diy-jax", ["generate", "d", "p", "--dtype", "x"], "generate", "--dtype must be one of f"),
        ("diy-jax", ["generate", "d", "two", "words"], "generate", "too many arguments: 'words'"),
        ("diy-jax", ["generate", "d", "p", "--max-new-tokens", "0"], "generate", "got '0'"),
        ("diy-jax", ["export", "r", "--step", "x"], "export", "--step: must be an integer, got"),
        ("diy-jax", ["data", "s", "--validation", "x"], "data", "must be a number, got 'x'\n"),
        ("diy-jax", ["generate", "d"], "generate", "are required: PROMPT"),
        ("parity", ["inspect", "r", "--step", "9" * 19], "inspect", "--step: must have at most 18"),
    ],
)
def test_a_wrong_word_is_told_the_nearest_and_the_usage_of_its_command(
    program: str, words: list[str], usage: str, message: str, capsys: Capture
) -> None:
    told = said(program, words, capsys)
    assert told.startswith(f"usage: {program} {usage}".rstrip())
    assert f"\n{program} {usage}".rstrip() + ": error: " in told
    assert message in told


# What may be empty here: it is refused where it is used, or its type has words for it.
_TEXTS = {"PROMPT", "TEXT"}


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "d", "p", "--max-new-tokens", "9" * 5000],
        ["generate", "d", "p", "--max-new-tokens", "9" * 4000],
        ["generate", "d", "p", "--max-new-tokens", "x" * 5000],
        ["generate", "d", "p", "--dtype", "x" * 5000],
        ["generate", "d", "p", "x" * 5000],
        ["generate", "d", "p", "--" + "x" * 50_000],
        ["export", "r", "--step", "9" * 5000],
        ["data", "s", "--validation", "x" * 5000],
        ["x" * 5000],
    ],
)
def test_of_a_long_word_the_beginning_is_repeated(words: list[str], capsys: Capture) -> None:
    printed = said("diy-torch", words, capsys)
    assert len(printed) < 3000
    assert words[-1][:100] in printed


@pytest.mark.parametrize("program", PARSERS)
def test_a_value_that_is_empty_is_refused_and_does_not_count_as_none(
    program: str, capsys: Capture
) -> None:
    (commands,) = [a for a in PARSERS[program]()._actions if a.dest == "command"]
    assert isinstance(commands.choices, dict)
    tried = 0
    for name, command in commands.choices.items():
        places = [a for a in command._actions if not a.option_strings]
        for action in command._actions:
            if action.nargs == 0 or action.metavar in _TEXTS:
                continue
            words = ["" if other is action else "x" for other in places]
            words += [f"{action.option_strings[0]}="] if action.option_strings else []
            told = said(program, [name, *words], capsys)
            what = action.option_strings[0] if action.option_strings else action.metavar
            assert re.search(rf"error: (argument )?{what}(:| must) .*", told), told
            tried += 1
    assert tried > 6


def test_an_empty_value_is_told_whether_it_may_be_left_out(capsys: Capture) -> None:
    told = said("parity", ["check", "m", "--checks", ""], capsys)
    assert told.endswith("error: argument --checks: is empty: give a value, or leave it out\n")
    told = said("parity", ["check", ""], capsys)
    assert told.endswith("error: argument MODEL: is empty: give a value, or leave it out\n")
    assert said("parity", ["diff", "", "b"], capsys).endswith(
        "argument A: is empty: give a value\n"
    )


def test_an_option_may_be_written_with_underscores() -> None:
    for word in ("--max-new-tokens", "--max_new_tokens", "--max_new-tokens"):
        parser = build_parser("diy-torch")
        assert parser.parse_args(["generate", "d", "p", word, "3"]).max_new_tokens == 3
        assert parser.parse_args(["generate", f"{word}=4", "d", "p"]).max_new_tokens == 4
    convert = parity_parser().parse_args(
        ["convert", "a", "b", "--no_verify", "--max_shard_size=1MB"]
    )
    assert (convert.no_verify, convert.max_shard_size) == (True, 10**6)


def test_a_value_is_left_as_it_is() -> None:
    parse = build_parser("diy-torch").parse_args
    assert parse(["generate", "d", "--", "--max_new_tokens"]).prompt == "--max_new_tokens"
    assert parse(["generate", "d", "--a_b is what?"]).prompt == "--a_b is what?"
    assert parse(
        ["data", "s", "--out", "o", "--tokenizer", "t", "--separator=--a_b"]
    ).separator == ("--a_b")
    assert spelled(["--a_b", "--", "--a_b"], ["--a-b"]) == ["--a-b", "--", "--a_b"]
    for word in ("-5", "-.5", "-"):
        assert parse(["generate", "d", word]).prompt == word


def every_help(program: str, capsys: Capture) -> dict[str, str]:
    texts = {"": PARSERS[program]().format_help()}
    for command in re.findall(r"^    (\w+) ", texts[""], re.MULTILINE):
        if (program, command) != ("parity", "train") and command != "train":
            with pytest.raises(SystemExit):
                PARSERS[program]().parse_args([command, "--help"])
            texts[command] = capsys.readouterr().out
    if program != "parity":
        texts["train"] = options.build_parser(f"{program} train").format_help()
    return texts


@pytest.mark.parametrize("program", PARSERS)
def test_help_shows_one_spelling_and_a_text_for_each_option(program: str, capsys: Capture) -> None:
    texts = every_help(program, capsys)
    assert len(texts) >= 5
    for command, text in texts.items():
        assert not re.findall(r"--[\w.-]*_[\w.-]*", text), command
    parser = PARSERS[program]()
    (commands,) = [action for action in parser._actions if action.dest == "command"]
    assert isinstance(commands.choices, dict)
    for name, command in commands.choices.items():
        for action in command._actions:
            assert action.help, f"{program} {name} {action.dest}"
            if action.default not in (None, False, "==SUPPRESS=="):
                assert "default" in action.help, f"{program} {name} {action.dest}"


@pytest.mark.parametrize("program", PARSERS)
def test_the_version_names_what_is_installed(program: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as done:
        PARSERS[program]().parse_args(["--version"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert re.fullmatch(rf"{program} \(diy-lm \d+\.\d+.*, Python 3\.\d+\.\d+\)\n", shown)
    assert ("torch " in shown) == (program != "diy-jax")
    assert ("jax " in shown) == (program != "diy-torch")


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("--lr", ["--steps", "--optimizer.learning-rate"], "--optimizer.learning-rate"),
        ("--learning_rate", ["--optimizer.learning-rate"], "--optimizer.learning-rate"),
        ("warmup", ["optimizer.warmup_steps", "steps"], "optimizer.warmup_steps"),
        ("--STEPS", ["--steps"], "--steps"),
        ("--foo", ["--out", "--to"], None),
        ("--x", ["--max-new-tokens"], None),
        ("--s", ["--steps"], None),
        ("optimzer.rate", ["optimizer.rate", "data.rate"], "optimizer.rate"),
    ],
)
def test_what_is_near(name: str, known: list[str], meant: str | None) -> None:
    assert did_you_mean(name, known) == (f": did you mean {meant}?" if meant else "")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("max_new_tokens (9) make 14", "--max-new-tokens (9) make 14"),
        ("max_new_tokens must be positive", "--max-new-tokens must be positive"),
        ("dtype='bfloat16' is too small", "--dtype bfloat16 is too small"),
        ("choose one (chat_template=NAME)", "choose one (--chat-template NAME)"),
        ("its chat_template in x.json", "its chat_template in x.json"),
        ("json=True will do", "--json will do"),
        ("config.dtype (9), my_dtype must", "config.dtype (9), my_dtype must"),
        ("overwrite=True replaces it", "overwrite=True replaces it"),
        ("the model's dtype (--dtype)", "the model's dtype (--dtype)"),
        ("that device must go", "that device must go"),
        ("dtype (9) is too small", "--dtype (9) is too small"),
        ("pass json=False", "leave out --json"),
        ("has its own: leave dtype out", "has its own: leave --dtype out"),
        ("leave it out, leave dtypes out", "leave it out, leave dtypes out"),
        ("model is empty: give a path", "MODEL is empty: give a path"),
        ("the model is empty", "the model is empty"),
    ],
)
def test_an_error_names_options_where_options_were_given(error: str, words: str) -> None:
    assert in_shell_words(error, build_parser("diy-torch"), "generate") == words


def _sentences() -> Iterator[str]:
    """What the packages may say: every text in their code, with 9 where a value stands."""
    for package in ("diy_core", "diy_torch", "diy_jax", "parity"):
        for file in (Path(__file__).parents[2] / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "9"
                        for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@pytest.mark.parametrize("program", ["diy-torch", "parity"])
def test_no_word_of_a_sentence_is_taken_for_an_option(program: str) -> None:
    parser = PARSERS[program]()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    actions = [a for c in commands.choices.values() for a in c._actions]
    names = "|".join({a.dest for a in actions})
    options = "|".join({s.lstrip("-").replace("-", "_") for a in actions for s in a.option_strings})
    # As an argument only these can be meant; a sentence that has none of them stays as it is.
    meant = re.compile(
        rf"\b({names})=|\A({names}) must |\A({names}) \(|\b[a-z]+_[a-z_]+ \("
        rf"|\bleave ({options}) out\b"
    )
    sentences = set(_sentences())
    plain = [text for text in sentences if not meant.search(text)]
    assert len(sentences) > len(plain) > 3000
    for command in commands.choices:
        assert [t for t in plain if in_shell_words(t, parser, command) != t] == []
        for text in sentences:
            said = in_shell_words(text, parser, command)
            assert said == text or not re.search(r"\b(a|an|the|its|no|\w+'s) --", said), said
