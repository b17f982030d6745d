"""What CONTRIBUTING.md names exists, and the tools are everywhere those that the project pins."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
_PATH = re.compile(r"`((?:diy_core|diy_torch|diy_jax|parity|tests|docs|examples)/[\w./]+)`")
# What may be added, each with the first and the last place that it touches.
SECTIONS = dict(re.findall(r"^### An? ([\w ]+)\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE))
ADDITIONS = [
    "switch of the model",
    "file format",
    "kind of check",
    "suspect of the tracer",
    "training option",
]


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile, without where its programs lie."""
    (text,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [line.strip().removeprefix("$(BIN)/") for line in text.splitlines()]


@pytest.mark.parametrize("addition", ADDITIONS)
def test_every_place_that_an_addition_touches_exists(addition: str) -> None:
    assert list(SECTIONS) == ADDITIONS
    bullets = SECTIONS[addition].split("\n* ")[1:]
    assert len(bullets) >= 5
    paths = _PATH.findall(SECTIONS[addition])
    assert all(_PATH.match(bullet) for bullet in bullets), "a bullet begins with a place"
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    assert any(path.startswith("tests/") for path in paths)
    twins = {path.removeprefix("diy_torch") for path in paths if path.startswith("diy_torch")}
    assert twins == {path.removeprefix("diy_jax") for path in paths if path.startswith("diy_jax")}


def test_links_and_commands_of_the_page_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert links
    assert all((ROOT / link).is_file() for link in links)
    commands = set(re.findall(r"(?:`|^ +)make ([a-z]+)", PAGE, re.MULTILINE))
    assert {"setup", "format", "quick", "test", "lint", "docs"} <= commands
    assert all(re.search(rf"^{name}:", MAKEFILE, re.MULTILINE) for name in commands)


def test_the_import_rule_is_said_in_the_same_words_everywhere() -> None:
    rule = "`diy_core <- diy_torch, diy_jax <- parity`"
    assert rule in PAGE
    assert rule in (ROOT / "docs" / "layout.md").read_text()


def test_the_makefile_explains_each_of_its_targets() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    explained = re.findall(r"^# make (\w+) ", MAKEFILE, re.MULTILINE)
    assert sorted(explained) == sorted(set(phony.split()) - {"clean"})


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_a_tool_has_one_version(tool: str) -> None:
    pins = re.findall(rf"^{tool}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pins == [importlib.metadata.version(tool)]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in extras["optional-dependencies"]["dev"]]
    (requirement,) = [each for each in wanted if each.name == tool]
    assert pins[0] in requirement.specifier


def test_the_hooks_are_what_make_lint_runs_from_the_same_environment() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local", "another repository brings versions of its own"
    hooks = [shlex.split(hook["entry"]) for hook in repository["hooks"]]
    assert all(hook["language"] == "system" for hook in repository["hooks"])
    assert {words[0] for words in hooks} == {".venv/bin/ruff", ".venv/bin/mypy"}
    names = [[word for word in words if word[0] not in "-."] for words in hooks]
    linted = [[w for w in line.split()[1:] if w[0] not in "-."] for line in recipe("lint")]
    assert names == linted == [["format"], ["check"], []]


def test_ci_lints_before_it_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^make (\w+)$", script, re.MULTILINE) == ["lint", "test"]
    assert "set -euo pipefail" in script


def test_the_quick_tests_exist_and_are_few() -> None:
    lines = (ROOT / "tests" / "quick.txt").read_text().splitlines()
    tests = [line for line in lines if line and not line.startswith("#")]
    assert tests == sorted(set(tests))
    files = {test.partition("::")[0] for test in tests}
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert 30 <= len(files) < len(list((ROOT / "tests").rglob("test_*.py"))) / 1.5
    known = "".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    names = {name.partition("[")[0] for test in tests for name in test.split("::")[1:]}
    assert [name for name in names if not re.search(rf"(?:class|def) {name}\b", known)] == []
    assert recipe("quick")[-1].endswith("$(shell grep -v '^#' tests/quick.txt)")
