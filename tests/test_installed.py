"""What a user has after `pip install`: the wheel with few extras, an editable install with mypy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments import Environment, build
from tests.oracles import tiny
from tests.tiny_checkpoints import PIECES, put, put_tokenizer, read, same, weights


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny(vocab_size=len(PIECES) + 1)
    path = put(tmp_path_factory.mktemp("model") / "hf", weights(config), config)
    put_tokenizer(path)
    return path


def answers(environment: Environment, *installed: str) -> None:
    """Help and versions of parity, and what it says of commands that need both frameworks."""
    code, out, _ = environment.run("parity", "--help")
    assert (code, out[:6]) == (0, "usage:")
    code, out, _ = environment.run("parity", "--version")
    assert code == 0
    for name in ("torch", "jax"):
        assert (f", {name} not installed" in out) == (name not in installed)
    missing = next(name for name in ("torch", "jax") if name not in installed)
    lacks(environment, missing, "parity", "check", "model")


def generates(environment: Environment, program: str, model: Path) -> None:
    words = ("generate", str(model), "the", "--max-new-tokens", "3", "--json", "--device", "cpu")
    code, out, error = environment.run(program, *words)
    assert code == 0, error
    assert 1 <= len(json.loads(out)["new_ids"]) <= 3


def lacks(environment: Environment, module: str, program: str, *words: str) -> None:
    """The command says in one line that the module is missing."""
    code, out, error = environment.run(program, *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1), error
    assert f"needs {module}, which is not installed: pip install 'diy-lm[" in error


def test_without_a_framework_checkpoints_are_converted_inspected_and_compared(
    wheel: Path, model: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv", wheel)
    answers(environment)
    gguf, back = tmp_path / "model.gguf", tmp_path / "back"
    for words in (
        ("convert", str(model), str(gguf), "--to", "gguf"),
        ("convert", str(gguf), str(back)),
        ("inspect", str(gguf), "--verify"),
        ("diff", str(model), str(back)),
    ):
        code, _, error = environment.run("parity", *words)
        assert code == 0, error
    assert same(read(model), read(back))
    code, out, error = environment.run("parity", "faults", "--list")
    assert (code, error, "eps-outside" in out) == (0, "", True)
    lacks(environment, "jax", "parity", "convert", str(model), str(tmp_path / "orbax"))
    assert not (tmp_path / "orbax").exists()
    lacks(environment, "torch", "diy-torch", "generate", str(model), "the")
    lacks(environment, "jax", "diy-jax", "generate", str(model), "the")
    for program in ("diy-torch", "diy-jax"):
        for words in (("--help",), ("--version",), ("generate", "--help")):
            code, out, error = environment.run(program, *words)
            assert (code, error, program in out) == (0, "", True)
        package = program.replace("-", "_")
        code, out, error = environment.run("python", "-m", package, "--help")
        assert (code, error, program in out) == (0, "", True)
        code, _, error = environment.run("python", "-c", f"import {package}")
        needs = f"{package} needs {package[4:]}, which is not installed: pip install 'diy-lm["
        assert (code, needs in error.splitlines()[-1]) == (1, True)
    code, _, error = environment.run("parity", "chekc")
    assert (code, "did you mean check?" in error) == (2, True)
    lacks(environment, "jsonargparse", "diy-jax", "train", "--help")


def test_with_jax_alone_orbax_is_written_read_compared_and_run(
    wheel: Path, model: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv", wheel, "jax")
    answers(environment, "jax")
    orbax = tmp_path / "orbax"
    for words in (("convert", str(model), str(orbax)), ("diff", str(orbax), str(model))):
        code, _, error = environment.run("parity", *words)
        assert code == 0, error
    generates(environment, "diy-jax", model)
    lacks(environment, "torch", "diy-torch", "generate", str(model), "the")


def test_with_torch_alone_it_runs_and_orbax_is_told_what_it_needs(
    wheel: Path, model: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv", wheel, "torch")
    answers(environment, "torch")
    generates(environment, "diy-torch", model)
    lacks(environment, "jax", "diy-jax", "generate", str(model), "the")
    lacks(environment, "jax", "parity", "convert", str(model), str(tmp_path / "orbax"))


_SCRIPT = """
from diy_core.text.tokenizer import Tokenizer
import diy_jax, diy_torch, parity
reveal_type(diy_torch.DIYForCausalLM.from_pretrained("x"))
reveal_type(diy_jax.DIYForCausalLM.from_pretrained("x")[0])
reveal_type(diy_torch.DIYConfig.from_pretrained("x").hidden_size)
reveal_type(Tokenizer.from_pretrained("x").encode("x"))
reveal_type(parity.to_flax({}, diy_torch.DIYConfig()))
diy_torch.DIYConfig(hiden_size=3)
parity.to_falx
"""


def test_mypy_sees_the_types_of_an_editable_install_in_a_script_elsewhere(tmp_path: Path) -> None:
    """Not behind an import hook, which mypy does not follow."""
    environment = Environment(tmp_path / "venv", build(tmp_path / "built", "editable"))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "script.py").write_text(_SCRIPT)
    skipped = "torch", "jax", "flax", "jaxtyping", "numpy", "tokenizers", "jinja2", "gguf"
    sections = "".join(
        f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = True\n"
        for name in skipped
    )
    (folder / "mypy.ini").write_text(f"[mypy]\n{sections}")
    mypy = [sys.executable, "-m", "mypy", "--python-executable", str(environment.bin / "python")]
    done = subprocess.run([*mypy, "script.py"], cwd=folder, capture_output=True, text=True)
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert revealed == [
        "diy_torch.model.DIYForCausalLM",
        "diy_jax.model.DIYForCausalLM",
        "int",
        "list[int]",
        "dict[str, Any]",
    ], done.stdout
    assert 'Unexpected keyword argument "hiden_size" for "DIYConfig"' in done.stdout
    assert 'Module has no attribute "to_falx"' in done.stdout
