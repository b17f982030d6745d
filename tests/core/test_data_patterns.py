"""Patterns match what `glob` matches, and end where links lead in circles."""

from __future__ import annotations

import glob
import os
import random
from pathlib import Path

import pytest

from diy_core.data import DataError
from diy_core.data.finding import survey
from diy_core.data.found import AGAIN, NOWHERE, Found
from diy_core.data.patterns import matches
from diy_core.data.walking import Walk

PATTERNS = [
    *("*", "*.txt", "**", "**/*.txt", "**/*", "*/*.txt", "a*/**/*.txt", "**/b/*", "**/**/c.txt"),
    *("?", "[ab]/*", "[!a]/**", ".*", "**/.*", ".h/**/*.txt", "a/**/b/**/*", "a/../*", "./*/*.txt"),
    *("a//*", "*/", "**/", "**.txt", "a/b*/", "**/[[]x].txt", "gone/*", "c.txt/*", "**/c.txt/*"),
]


def match(pattern: str) -> list[str]:
    walk = Walk(Found())
    found = matches(pattern, walk)
    assert not walk.faults
    return found


def grow(top: Path, chance: random.Random, depth: int = 0) -> None:
    """A tree of folders and files, some of them hidden, and links to files."""
    top.mkdir()
    for name in chance.sample(["a", "b", "c.txt", "d.txt", ".h", ".i.txt", "[x].txt", "bb"], 4):
        path = top / name
        if name.endswith(".txt") or depth == 3 or chance.random() < 0.3:
            path.write_text(name)
        else:
            grow(path, chance, depth + 1)
    if files := sorted(path.name for path in top.iterdir() if path.is_file()):
        (top / "l.txt").symlink_to(chance.choice(files))


@pytest.mark.parametrize("seed", range(30))
def test_the_same_as_glob(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    grow(tmp_path / "tree", chance)
    monkeypatch.chdir(tmp_path / "tree")
    for pattern in PATTERNS:
        for whole in (pattern, f"{tmp_path}/tree/{pattern}"):
            expected = {Path(name) for name in glob.glob(whole, recursive=True)}
            found = match(whole)
            assert {*map(Path, found)} == expected, whole
            assert found == sorted(found)


def test_links_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text("c")
    for name in ("up", "here"):
        (tmp_path / "b" / name).symlink_to(tmp_path)
    (tmp_path / "here").symlink_to(".")
    for pattern, names in (
        ("**/*.txt", ["a.txt", "b/c.txt"]),
        ("**", ["a.txt", "b/c.txt"]),
        ("**/b/**/*.txt", ["b/c.txt", "b/here/a.txt"]),
    ):
        found = survey(f"{tmp_path}/{pattern}")
        assert found.paths == [f"{tmp_path}/{name}" for name in names], pattern
        assert f"{tmp_path}/here/" in found.passed_over[AGAIN]
    # 3**30 ways of that length lead to two files.
    files = survey(f"{tmp_path}/" + "/".join(["*"] * 30)).paths
    assert sorted(map(os.path.realpath, files)) == [f"{tmp_path}/a.txt", f"{tmp_path}/b/c.txt"]
    # 3**30 ways of that length lead to two files.
    files = survey(f"{tmp_path}/" + "/".join(["*"] * 30)).paths
    assert sorted(map(os.path.realpath, files)) == [f"{tmp_path}/a.txt", f"{tmp_path}/b/c.txt"]


def test_a_folder_is_found_by_each_of_its_names_for_other_parts(tmp_path: Path) -> None:
    """What a pattern looks for in a folder differs by how it came there."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x").mkdir()
    (tmp_path / "x" / "x" / "a.txt").write_text("a")
    assert match(f"{tmp_path}/**/x/*.txt") == [f"{tmp_path}/x/x/a.txt"]


def test_a_link_that_leads_nowhere_may_have_been_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.csv").symlink_to("gone")
    found = survey(f"{tmp_path}/**/*.txt")
    assert found.paths == [f"{tmp_path}/a.txt"]
    assert found.passed_over == {NOWHERE: [f"{tmp_path}/b.csv"]}
    (tmp_path / "more").symlink_to("/disk/that/is/not/mounted")
    for pattern in ("**/*.txt", "*/*.txt", "**"):
        with pytest.raises(DataError, match=r"more is a link to /disk/.*, which cannot be reached"):
            survey(f"{tmp_path}/{pattern}")
