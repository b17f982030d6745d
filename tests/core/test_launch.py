"""Programs whose framework takes seconds to import, and Ctrl-C in them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_checkpoints import put, put_tokenizer, weights

PROGRAMS = {"diy_torch": "torch", "diy_jax": "jax"}


def start(program: str, *words: str, before: str = "") -> subprocess.Popen[str]:
    """The console script, with a line on standard error for each module that was imported."""
    source = (
        f"import sys\n{before}\nfrom diy_core.commands.launch import {program} as p\nsys.exit(p())"
    )
    return subprocess.Popen(
        [sys.executable, "-X", "importtime", "-c", source, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("importing", ["the framework", "jsonargparse"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_before_a_run_begins_ends_at_once_and_in_silence(
    program: str, importing: str, tmp_path: Path
) -> None:
    """While the framework is imported, and later, when the config is about to be read."""
    run = tmp_path / "run"
    process = start(program, "train", "--config", "examples/tiny.yaml", "--run_dir", str(run))
    assert process.stderr is not None
    package = PROGRAMS[program] if importing == "the framework" else importing
    assert any(f" {package}." in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in rest
    assert "KeyboardInterrupt" not in rest
    assert not run.exists()


@pytest.mark.parametrize(("program", "framework"), PROGRAMS.items())
def test_a_program_without_its_framework_says_what_to_install(
    program: str, framework: str, tmp_path: Path
) -> None:
    put_tokenizer(put(tmp_path / "model", weights()))
    name = program.replace("_", "-")
    for words in (["generate", str(tmp_path / "model"), "hi"], ["export", "run", "--out", "out"]):
        process = start(program, *words, before=f"sys.modules[{framework!r}] = None")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2
        expected = f"needs {framework}, which is not installed: pip install 'diy-lm[{framework}]'"
        assert f"{name} {words[0]} {expected}\n" in said


@pytest.mark.parametrize(("program", "framework"), PROGRAMS.items())
def test_a_package_without_its_framework_says_what_to_install(program: str, framework: str) -> None:
    """Where it is imported; `python -m` of it is a program, whose help needs no framework."""

    def python(code: str) -> subprocess.CompletedProcess[str]:
        hidden = f"import sys; sys.modules[{framework!r}] = None; {code}"
        return subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)

    expected = f"needs {framework}, which is not installed: pip install 'diy-lm[{framework}]'"
    done = python(f"import {program}")
    assert done.stderr.splitlines()[-1].endswith(f"NotInstalled: {program} {expected}")
    assert "During handling" not in done.stderr
    module = (
        "sys.argv = ['-m']; import runpy, {0}; sys.argv = ['{0}', *{1}]; "
        "runpy.run_module('{0}', run_name='__main__', alter_sys=True)"
    )
    done = python(module.format(program, ["--help"]))
    assert (done.returncode, done.stderr, done.stdout[:6]) == (0, "", "usage:")
    done = python(module.format(program, ["export", "run", "--out", "out"]))
    name = program.replace("_", "-")
    assert (done.returncode, done.stderr) == (2, f"{name} export {expected}\n")


HEAVY = {"numpy", "torch", "jax", "flax", "orbax", "transformers", "rich", "gguf", "tokenizers"}


@pytest.mark.parametrize(
    ("words", "code", "also"),
    [
        (["--help"], 0, ()),
        (["--version"], 0, ()),
        (["generate", "--help"], 0, ()),
        (["data", "--help"], 0, ()),
        (["export", "--help"], 0, ()),
        (["generate", "--caht"], 2, ()),
        (["genrate"], 2, ()),
        (["train", "--help"], 0, ()),
        (["train", "--stpes", "3"], 2, ()),
        (
            ["train", "--config", "examples/tiny.yaml", "--print-config"],
            0,
            ("numpy", "rich", "tokenizers"),
        ),
    ],
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_needs_no_framework_imports_none(
    program: str, words: list[str], code: int, also: tuple[str, ...]
) -> None:
    """It answers in a tenth of a second, where the framework takes seconds to import."""
    process = start(program, *words)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", said, re.MULTILINE))
    assert "argparse" in imported
    assert imported & (HEAVY - set(also)) == set()
