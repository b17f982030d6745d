"""`import parity`: what it offers, before anything of it is imported."""

from __future__ import annotations

import importlib
import subprocess
import sys
import typing

import pytest

import parity


def test_the_public_names_are_listed_and_lead_somewhere() -> None:
    source = (
        "import sys, parity; print(*(n for n in dir(parity) if n[0] != '_')); "
        "print(*({'torch', 'jax', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    names, frameworks = done.stdout.splitlines()
    assert names.split() == sorted(parity.__all__)
    assert {"trace", "to_flax", "to_torch", "convert_checkpoint"} < set(parity.__all__)
    assert not {"torch", "jax"} & set(frameworks.split())
    for name in parity.__all__:
        assert getattr(parity, name).__doc__
    assert typing.get_type_hints(parity.convert_checkpoint)["overwrite"] is bool
    with pytest.raises(AttributeError, match="has no attribute 'to_falx'"):
        parity.to_falx  # type: ignore[attr-defined]  # noqa: B018


def test_without_a_framework_a_name_that_needs_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    words = r"parity\.to_flax needs torch, which is not installed: pip install 'diy-lm\[all\]'"
    with pytest.raises(ModuleNotFoundError, match=words):
        parity.to_flax  # noqa: B018
    assert parity.convert_checkpoint


@pytest.mark.parametrize("package", ["diy_core", "diy_core.data", "diy_torch", "diy_jax", "parity"])
def test_a_package_lists_its_public_names_alone(package: str) -> None:
    module = importlib.import_module(package)
    shown = [name for name in dir(module) if not name.startswith("_")]
    assert shown == sorted(module.__all__)
    assert all(hasattr(module, name) for name in shown)
    assert "__doc__" in dir(module)


@pytest.mark.parametrize(
    ("known", "lives"),
    [
        ("diy_core.tokenizer.Tokenizer", "diy_core.text.tokenizer"),
        ("diy_core.chat_template.render", "diy_core.text.chat.template"),
        ("diy_core.checkpoints.hf_directory.HFReader", "diy_core.checkpoints.hf.directory"),
        ("diy_core.checkpoints.gguf_reader.GGUFReader", "diy_core.checkpoints.gguf.reader"),
        ("parity.convert.convert", "parity.convert.formats"),
        ("parity.convert.open_checkpoint", "parity.convert.formats"),
        ("parity.check.KINDS", "parity.check.kinds"),
    ],
)
def test_names_that_programs_import_are_there(known: str, lives: str) -> None:
    module, _, name = known.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(lives), name)
