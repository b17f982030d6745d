"""A checkpoint that is replaced while it is read would be a mixture: every door refuses it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diy_jax
import diy_torch
from diy_core.checkpoints.interface import Reader
from diy_core.errors import CheckpointError
from diy_core.text.tokenizer import Tokenizer
from parity.check.identity import identify
from parity.check.model import check_model
from parity.check.plan import Plan
from parity.convert.formats import convert
from parity.environment import choose_device
from parity.inspect.models import diff, inspect
from parity.twin_tracer import trace_twins
from tests.oracles import tiny
from tests.tiny_checkpoints import put, put_tokenizer, weights

CONFIG = tiny(vocab_size=270)
CHANGED = "was changed or replaced while it was read"
KINDS = ("hf", "orbax", "m.gguf")
WRITTEN = {"hf": "out", "orbax": "out", "gguf": "out.gguf"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of each kind, in `one` and `two`."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        source = put(folder / name / "hf", weights(CONFIG, seed=seed), CONFIG)
        put_tokenizer(source)
        for kind in ("orbax", "m.gguf"):
            convert(source, folder / name / kind)
    return folder


@pytest.fixture
def links(models: Path, tmp_path: Path) -> Path:
    """A folder with `latest`, a link to copies of the first ones."""
    for name in ("one", "two"):
        shutil.copytree(models / name, tmp_path / name)
    (tmp_path / "latest").symlink_to("one")
    (tmp_path / "next").symlink_to("two")
    return tmp_path


@pytest.fixture(params=["file", "folder", "link"])
def replace(request: pytest.FixtureRequest, links: Path) -> Callable[[str], None]:
    """Puts the second model of a kind in place of the first, in one of three ways."""

    def run(kind: str) -> None:
        old, new = links / "one" / kind, links / "two" / kind
        if request.param == "link":
            os.replace(links / "next", links / "latest")
        elif request.param == "folder" or old.is_file():
            old.rename(links / "one" / "aside")
            new.rename(old)
        else:
            for file in [f for f in new.rglob("*") if f.is_file()]:
                (old / file.relative_to(new)).parent.mkdir(parents=True, exist_ok=True)
                file.replace(old / file.relative_to(new))

    return run


def after_the_first_read(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have something happen once, when a reader gave the first of its tensors."""
    happened = []
    for name in ("read_group", "sum_of"):
        usual: Callable[..., Any] = getattr(Reader, name)

        def then(self: Reader, *arguments: Any, _usual: Any = usual, **options: Any) -> Any:
            found = _usual(self, *arguments, **options)
            if not happened:
                happened.append(True)
                act()
            return found

        monkeypatch.setattr(Reader, name, then)


@pytest.mark.parametrize("to", WRITTEN)
@pytest.mark.parametrize("kind", KINDS)
def test_no_conversion_mixes_two_models(
    links: Path,
    replace: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    to: str,
) -> None:
    after_the_first_read(monkeypatch, lambda: replace(kind))
    with pytest.raises(CheckpointError, match=CHANGED):
        convert(links / "latest" / kind, links / WRITTEN[to], to=to)
    assert not (links / WRITTEN[to]).exists()


DOORS: dict[str, Callable[[Path], Any]] = {
    "diy_torch": lambda path: diy_torch.DIYForCausalLM.from_pretrained(path),
    "diy_jax": lambda path: diy_jax.DIYForCausalLM.from_pretrained(path, None),
    "diff": lambda path: diff(path, path, lambda *_: None),
    "certificate": identify,
    "check": lambda path: check_model(
        path, choose_device("cpu"), ("float32",), Plan(kinds=("logits",))
    ),
    "trace": lambda path: trace_twins(path, path, choose_device("cpu"), tokens=4, backward=False),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_takes_a_model_that_changes(
    links: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    after_the_first_read(monkeypatch, lambda: os.replace(links / "next", links / "latest"))
    with pytest.raises(CheckpointError, match=CHANGED):
        DOORS[door](links / "latest" / "hf")


@pytest.mark.parametrize("kind", ["orbax", "m.gguf"])
def test_inspection_takes_none(links: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    after_the_first_read(monkeypatch, lambda: os.replace(links / "next", links / "latest"))
    with pytest.raises(CheckpointError, match=CHANGED):
        inspect(links / "latest" / kind, verify=True, progress=lambda *_: None)


def test_no_tokenizer_mixes_two(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def later(*arguments: Any) -> Any:
        os.replace(links / "next", links / "latest")
        return usual(*arguments)

    from diy_core.text import tokenizer as module

    usual = module.read_ends
    monkeypatch.setattr(module, "read_ends", later)
    with pytest.raises(CheckpointError, match=CHANGED):
        Tokenizer.from_pretrained(links / "latest" / "hf")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_stays_is_read(links: Path, kind: str) -> None:
    convert(links / "latest" / kind, links / "out", to="hf")
    assert diff(links / "out", links / "one" / "hf", lambda *_: None)["equal"]
