"""Folders that are deep, or may not be read, or whose names show nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diy_core.data import DataError
from diy_core.data.finding import survey
from diy_core.data.found import HIDDEN, shown


def dig(top: Path, depth: int, name: str = "d") -> None:
    """Folders in each other, the innermost with a file, also where no path is long enough."""
    here = os.open(top, os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("a.txt", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.fixture
def deep_folder() -> Iterator[Path]:
    """A folder that pytest need not remove, which calls itself for each level."""
    folder = tempfile.mkdtemp()
    yield Path(folder)
    subprocess.run(["rm", "-rf", folder], check=True)


def test_folders_may_be_deep(deep_folder: Path) -> None:
    dig(deep_folder, 1200)  # more than Python calls
    for source in (f"{deep_folder}", f"{deep_folder}/**/*.txt"):
        assert survey(source).paths == [f"{deep_folder}/" + "d/" * 1200 + "a.txt"]


@pytest.mark.parametrize("pattern", ["", "/**/*.txt"])
def test_a_path_that_is_too_long_is_an_error(
    deep_folder: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (deep_folder / "b.txt").write_text("b")
    name = "d" * 100
    dig(deep_folder, 50, name)
    with pytest.raises(DataError) as caught:
        survey(f"{deep_folder}{pattern}")
    assert len(str(caught.value)) < 600
    assert f"{deep_folder}/ddd" in str(caught.value)
    assert "bytes, more than the system takes. Start in a folder" in str(caught.value)
    monkeypatch.chdir(deep_folder / "/".join([name] * 30))  # as the message says
    assert survey(f"{name}{pattern}").paths == ["/".join([name] * 20) + "/a.txt"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, as pytest's may be its user's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize(
    "source", ["corpus", "corpus/**/*.txt", "corpus/*/*.txt", "corpus/p*/b.txt"]
)
def test_a_folder_that_may_not_be_read_is_an_error(open_folder: Path, source: str) -> None:
    private = open_folder / "corpus" / "private"
    private.mkdir(parents=True)
    for file in (private / "b.txt", private.parent / "a.txt"):
        file.write_text("text")
    program = (
        "import os, sys\n"
        "from diy_core.data.finding import survey\n"
        "os.chmod('corpus/private', 0)\n"
        "if not os.geteuid(): os.setresuid(65534, 65534, 65534)\n"
        "try: print(survey(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, source],
        cwd=open_folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    private.chmod(0o700)
    name = "corpus/private/b.txt" if source.endswith("b.txt") else "corpus/private"
    assert done.stdout == f"sources: {name} cannot be read: Permission denied\n", done.stderr


def test_names_are_shown_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".one\ntwo\x1b[2J").mkdir()
    assert survey(tmp_path).passed_over == {HIDDEN: [f"{tmp_path}/.one\\ntwo\\x1b[2J/"]}
    assert shown("/a" * 1000) == "/a" * 75 + " ... " + "/a" * 75
    assert shown("/Straße/日本") == "/Straße/日本"
