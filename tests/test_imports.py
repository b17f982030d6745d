"""diy_core <- diy_torch, diy_jax <- parity, and no twin needs the other's framework."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from parity.__main__ import main

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {
    "torch": {"torch"},
    "jax": {"jax", "flax", "optax", "orbax", "jaxlib"},
}
FORBIDDEN = {
    "diy_core": {*FRAMEWORKS["torch"], *FRAMEWORKS["jax"], "diy_torch", "diy_jax", "parity"},
    "diy_torch": {*FRAMEWORKS["jax"], "diy_jax", "parity", "transformers"},
    "diy_jax": {*FRAMEWORKS["torch"], "diy_torch", "parity", "transformers"},
    "parity": {"transformers"},
}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_stands_below_it(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): imported(f) & FORBIDDEN[package] for f in files}
    assert not {file: names for file, names in wrong.items() if names}


_WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
config = dict(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
              num_attention_heads=2)
"""
_TORCH = """
import diy_torch
model = diy_torch.DIYForCausalLM(diy_torch.DIYConfig(**config), seed=0)
model.save_pretrained({path!r})
model = diy_torch.DIYForCausalLM.from_pretrained({path!r})
print(diy_torch.generate(model, [[1, 2, 3]], max_new_tokens=4).sequences.tolist())
"""
_JAX = """
import diy_jax
model, config = diy_jax.DIYForCausalLM(diy_jax.DIYConfig(**config)), diy_jax.DIYConfig(**config)
model.save_pretrained({path!r}, diy_jax.init_params(config, seed=0))
model, params = diy_jax.DIYForCausalLM.from_pretrained({path!r})
print(diy_jax.generate(model, params, [[1, 2, 3]], max_new_tokens=4).sequences.tolist())
"""


def run_without(absent: set[str], program: str, path: Path) -> str:
    source = _WITHOUT.format(absent=absent) + program.format(path=str(path))
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_twin_loads_saves_and_generates_where_the_other_framework_is_absent(
    tmp_path: Path,
) -> None:
    one = run_without({*FRAMEWORKS["jax"], "transformers"}, _TORCH, tmp_path / "torch")
    other = run_without({*FRAMEWORKS["torch"], "transformers"}, _JAX, tmp_path / "jax")
    assert one == other


@pytest.mark.parametrize("absent", ["torch", "jax"])
@pytest.mark.parametrize(
    "words",
    [["check", "x"], ["trace", "x"], ["faults"], ["switch", "x", "y"], ["demo"]],
    ids=lambda words: words[0],
)
def test_a_command_that_needs_both_frameworks_says_which_is_missing(
    absent: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"parity {words[0]} needs {absent}, which is not installed: pip install 'diy-lm[all]'\n"
    )


def test_parity_loads_no_framework_before_it_needs_one() -> None:
    """`parity --help` answers at once, and Ctrl-C in the first seconds is one line."""
    source = (
        "import sys, parity, parity.__main__; parity.__main__.build_parser().format_help(); "
        "print({'torch', 'jax', 'flax', 'orbax'} & set(sys.modules), parity.to_flax.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout == "set() to_flax\n", done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "nowhere"], "nowhere: does not exist"),
        (["check", "--checks", "logts"], "did you mean logits?"),
        (["check", "--checks", "training", "--dtype", "bfloat16"], "nothing to check in bfloat16"),
        (["trace", "nowhere"], "nowhere: does not exist"),
        (["trace", "nowhere", "--tokens", "0"], "--tokens must be at least 1"),
        (["convert", "nowhere", "x"], "nowhere: does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_with_a_command_is_said_before_a_framework_is_loaded(
    words: list[str], said: str, tmp_path: Path
) -> None:
    source = (
        "import sys; from parity.__main__ import main; code = main(sys.argv[1:]); "
        "print(code, {'torch', 'jax', 'flax', 'orbax'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "2 set()\n", done.stderr
    assert said in done.stderr
