"""What others put into a place while it is written is kept, or the write is refused."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diy_core import CheckpointError
from diy_core.checkpoints.atomic import (
    atomic_directory,
    atomic_file,
    recover,
    refuse_left_aside,
    remove_directory,
    replacement,
)
from diy_core.system import leaving, renaming, replacing
from diy_core.system.leaving import Moved, identity
from diy_core.system.snapshots import snapshot
from diy_core.system.workplaces import Workplace, open_workplace
from tests.killed_writers import kill_between_moves
from tests.other_user import root_alone, run_as_nobody


def own(name: str) -> bool:
    return name in {"config", "weights"}


@pytest.fixture(params=["exchange", "two moves"])
def model(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A directory with an own file, to be replaced in one of two ways; no remains at the end."""
    if request.param == "two moves":
        monkeypatch.setattr(renaming, "_rename", lambda old, new, how: False)
    path = tmp_path / "model"
    path.mkdir()
    (path / "config").write_text("old")
    yield path
    assert os.listdir(tmp_path) == ["model"]


def read(path: Path) -> dict[str, str]:
    return {str(f.relative_to(path)): f.read_text() for f in path.rglob("*") if f.is_file()}


@pytest.mark.parametrize("owner", [own, None])
def test_what_comes_meanwhile_is_kept_however_deep(
    model: Path, owner: Callable[[str], bool] | None
) -> None:
    with atomic_directory(model, own=owner) as new:
        (new / "config").write_text("new")
        (model / "README").write_text("mine")
        (model / "results" / "deep").mkdir(parents=True)
        (model / "results" / "deep" / "1.json").write_text("mine")
        (model / "empty").mkdir(mode=0o750)
    assert read(model) == {"config": "new", "README": "mine", "results/deep/1.json": "mine"}
    assert (model / "empty").is_dir()


def test_what_is_not_the_writers_own_is_kept_as_it_is_at_the_end(model: Path) -> None:
    (model / "README").write_text("mine")
    (model / "log").write_text("one line\n")
    with replacement(model, own=own) as new:
        new.keep_others()
        assert read(new.folder) == {"README": "mine", "log": "one line\n"}
        (model / "README.new").write_text("mine, second edition")
        (model / "README.new").replace(model / "README")
        with (model / "log").open("a") as log:
            log.write("another\n")
        new.keep_others()
        (model / "README").unlink()
        (model / "README").mkdir()
        (model / "README" / "third").write_text("edition")
    assert read(model) == {"README/third": "edition", "log": "one line\nanother\n"}


def test_what_the_writer_writes_wins_over_what_would_be_kept(model: Path) -> None:
    (model / "README").write_text("mine")
    with replacement(model, own=own) as new:
        (new.folder / "README").write_text("of the new model")
        new.keep_others()
    assert read(model) == {"README": "of the new model"}


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "config").write_text("somebody else's"),
        lambda path: (path / "weights").write_text("somebody else's"),
        lambda path: (path.rename(path.with_name("aside")), path.mkdir()),
    ],
    ids=["changed", "added", "emptied"],
)
def test_own_files_that_somebody_changes_are_not_replaced(
    model: Path, change: Callable[[Path], object]
) -> None:
    def write() -> None:
        with atomic_directory(model, own=own) as new:
            (new / "config").write_text("new")
            change(model)

    if change.__code__.co_names.count("rename"):
        write()  # there is nothing to lose
        assert read(model) == {"config": "new"}
        (model.with_name("aside") / "config").unlink()
        model.with_name("aside").rmdir()
        return
    with pytest.raises(CheckpointError, match="was changed or added by somebody else"):
        write()
    assert "somebody else's" in read(model).values()


def test_a_change_in_the_last_moment_is_found_after_the_move(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = replacing.hand_on

    def late(*arguments: object) -> None:
        usual(*arguments)  # type: ignore[arg-type]
        written = Moved.write

        def write(self: Moved, work: Workplace) -> None:
            written(self, work)
            (model / change).write_text("mine")

        monkeypatch.setattr(Moved, "write", write)

    monkeypatch.setattr(replacing, "hand_on", late)

    def replace() -> None:
        with atomic_directory(model, own=own) as new:
            (new / "config").write_text("new")

    change = "config"
    with pytest.raises(CheckpointError, match=r"config: was changed or added by somebody else"):
        replace()
    assert read(model) == {"config": "mine"}
    monkeypatch.undo()
    monkeypatch.setattr(replacing, "hand_on", late)
    change = "notes"
    replace()
    assert read(model) == {"config": "new", "notes": "mine"}


def test_what_comes_to_the_old_one_while_it_is_removed_is_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, rounds = leaving.remove_entries, []

    def late(path: Path, seen: dict[str, tuple[int, ...]]) -> None:
        if len(rounds) < 3:
            (path / f"late-{len(rounds)}").write_text("mine")
        rounds.append(path)
        usual(path, seen)

    monkeypatch.setattr(leaving, "remove_entries", late)
    with atomic_directory(model, own=own) as new:
        (new / "config").write_text("new")
    assert read(model) == {"config": "new"} | {f"late-{i}": "mine" for i in range(3)}


def test_a_file_that_somebody_replaces_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"

    def write(before: str | None) -> None:
        with atomic_file(path) as new:
            new.write_text("new")
            if before:
                path.write_text(before)

    for text in ("first", "mine"):  # where nothing was, and in place of the old one
        with pytest.raises(CheckpointError, match="was changed or added by somebody else"):
            write(text)
        assert path.read_text() == text
    write(None)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_of_writers_at_the_same_time_the_last_one_stays_with_what_others_added(
    model: Path,
) -> None:
    with atomic_directory(model, own=own) as first:
        (first / "config").write_text("first")
        with atomic_directory(model, own=own) as second:
            (second / "config").write_text("second")
            (model / "notes").write_text("mine")
        assert read(model) == {"config": "second", "notes": "mine"}
        with atomic_directory(model, own=own) as third:
            (third / "weights").write_text("third")
    assert read(model) == {"config": "first", "notes": "mine"}


def test_of_writers_at_the_same_time_none_mixes_its_files_with_those_of_another(
    model: Path,
) -> None:
    with atomic_directory(model) as first:
        (first / "config").write_text("first")
        with atomic_directory(model) as second:
            (second / "config").write_text("second")
            (second / "weights").write_text("second")
    assert read(model) == {"config": "first"}


@pytest.mark.parametrize("owner", [own, None])
def test_of_writers_that_meet_in_the_last_moment_the_last_one_stays(
    model: Path, monkeypatch: pytest.MonkeyPatch, owner: Callable[[str], bool] | None
) -> None:
    usual = Moved.write

    def late(self: Moved, work: Workplace) -> None:
        usual(self, work)
        monkeypatch.setattr(Moved, "write", usual)
        with atomic_directory(model, own=owner) as other:
            (other / "weights").write_text("the other's")
        assert read(model) == {"weights": "the other's"}

    monkeypatch.setattr(Moved, "write", late)
    with atomic_directory(model, own=owner) as new:
        (new / "config").write_text("new")
    assert read(model) == {"config": "new"}


def test_a_writer_knows_what_another_has_just_put_there(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before that one could tell it."""
    usual, second = replacing.sync, contextlib.ExitStack()

    def look(path: Path) -> None:
        monkeypatch.setattr(replacing, "sync", usual)
        usual(path)
        assert read(model) == {"config": "first"}
        second.close()

    new = second.enter_context(atomic_directory(model, own=own))
    (new / "weights").write_text("second")
    monkeypatch.setattr(replacing, "sync", look)
    with atomic_directory(model, own=own) as first:
        (first / "config").write_text("first")
    assert read(model) == {"weights": "second"}


def test_a_writer_that_comes_between_two_moves_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renaming, "_rename", lambda old, new, how: False)
    path, usual = tmp_path / "model", Path.rename
    path.mkdir()
    (path / "config").write_text("old")

    def rename(self: Path, target: Path) -> Path:
        moved = usual(self, target)
        if self == path:
            monkeypatch.setattr(Path, "rename", usual)
            with atomic_directory(path) as other:
                (other / "weights").write_text("the other's")
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    with atomic_directory(path) as new:
        (new / "config").write_text("new")
    assert read(tmp_path) == {"model/config": "new"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_change_in_the_last_moment_of_what_another_writer_put_there_is_found(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Moved.write

    def late(self: Moved, work: Workplace) -> None:
        usual(self, work)
        (model / "config").write_text("mine")

    def write() -> None:
        with atomic_directory(model, own=own) as first:
            (first / "config").write_text("first")
            with atomic_directory(model, own=own) as second:
                (second / "config").write_text("second")
            monkeypatch.setattr(Moved, "write", late)

    with pytest.raises(CheckpointError, match="config: was changed or added by somebody else"):
        write()
    assert read(model) == {"config": "mine"}


def test_links_of_others_are_kept_as_links(model: Path) -> None:
    (model / "deep").mkdir()
    links = {"to a folder": "deep", "deep/to a file": "../config", "to nothing": "gone"}
    for name, to in links.items():
        (model / name).symlink_to(to)
    (model / "deep" / "1.json").write_text("mine")
    with atomic_directory(model, own=own) as new:
        (new / "config").write_text("new")
        (model / "late").symlink_to("deep")
    found = {name: os.readlink(model / name) for name in (*links, "late")}
    assert found == links | {"late": "deep"}
    assert read(model)["deep/1.json"] == "mine"


def test_a_file_is_replaced_in_one_step_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renaming, "_rename", lambda old, new, how: False)
    file, usual, moved = tmp_path / "model.gguf", Path.rename, []
    file.write_text("old")

    def rename(self: Path, target: Path) -> Path:
        moved.append(self)
        return usual(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with atomic_file(file) as new:
        new.write_text("new")
    assert file not in moved
    assert (file.read_text(), os.listdir(tmp_path)) == ("new", ["model.gguf"])


def test_what_is_kept_is_there_from_the_first_moment(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "README").write_text("mine")
    usual, seen = replacing.sync, []

    def look(path: Path) -> None:
        seen.append(read(model))
        usual(path)

    monkeypatch.setattr(replacing, "sync", look)
    with atomic_directory(model, own=own) as new:
        (new / "config").write_text("new")
    assert seen == [{"config": "new", "README": "mine"}]


def test_a_directory_that_moved_aside_is_named_by_readers_and_restored_by_writers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config").write_text("old")
    refuse_left_aside(path)
    old = kill_between_moves(path)
    before = read(tmp_path)
    with pytest.raises(CheckpointError, match=f"the old one is whole in {old}"):
        refuse_left_aside(path)
    assert read(tmp_path) == before
    with (
        pytest.raises(CheckpointError, match="exists already"),
        atomic_directory(path, overwrite=False),
    ):
        pytest.fail("entered")
    assert read(tmp_path) == {"model/config": "old"}


def test_remains_whose_place_somebody_took_are_kept_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config").write_text("old")
    with open_workplace(path) as work:  # killed between the moves
        work.new.mkdir()
        Moved(identity(work.new), snapshot(path), {}).write(work)
        path.rename(work.old)
    path.mkdir()
    (path / "mine").write_text("years")
    refuse_left_aside(path)  # somebody's is there
    recover(path)
    assert read(path) == {"mine": "years"}
    assert (work.old / "config").read_text() == "old"
    assert f"{work.path} is kept: it has files of somebody else" in capfd.readouterr().err


def test_a_directory_is_removed_name_first(tmp_path: Path) -> None:
    path = tmp_path / "00000004"
    (path / "deep").mkdir(parents=True)
    remove_directory(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("below", ["", "deep"])
def test_the_current_directory_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "model" / below)
    for path in (tmp_path / "model", "." if not below else ".."):
        with pytest.raises(CheckpointError, match="holds the current"), atomic_directory(path):
            pytest.fail("entered")
    with atomic_directory("new"):
        pass


@root_alone
@pytest.mark.parametrize("exists", [True, False])
def test_a_parent_that_may_not_be_changed_is_named(folder_of_all: Path, exists: bool) -> None:
    if exists:
        (folder_of_all / "model").mkdir()
        (folder_of_all / "model").chmod(0o777)
    said = run_as_nobody(
        "try:\n"
        "    with atomic_directory(folder / 'model'):\n"
        "        print('entered')\n"
        "except ValueError as error:\n"
        "    print(error)",
        folder_of_all,
    )
    words = f"and {folder_of_all} may not be changed (Permission denied): change its permissions"
    assert words in said


@root_alone
def test_a_file_of_somebody_else_that_may_not_be_read_is_kept(folder_of_all: Path) -> None:
    folder_of_all.chmod(0o777)
    program = (
        "with atomic_directory(folder / 'model', own=lambda name: name == 'config') as new:\n"
        "    (new / 'config').write_text('new')"
    )
    run_as_nobody(program, folder_of_all)
    (folder_of_all / "model" / "deep").mkdir(mode=0o777)
    (folder_of_all / "model" / "deep").chmod(0o777)
    for name in ("diary", "deep/diary"):
        (folder_of_all / "model" / name).write_text("of root")
        (folder_of_all / "model" / name).chmod(0o600)
    assert run_as_nobody(program, folder_of_all) == ""
    assert read(folder_of_all) == {
        "model/config": "new",
        "model/diary": "of root",
        "model/deep/diary": "of root",
    }
    assert (folder_of_all / "model" / "diary").stat().st_uid == 0
    assert os.listdir(folder_of_all) == ["model"]


@root_alone
def test_a_parent_that_may_be_written_and_not_read_will_do(folder_of_all: Path) -> None:
    (folder_of_all / "drop").mkdir()
    (folder_of_all / "drop").chmod(0o733)
    program = (
        "for text in ('old', 'new'):\n"
        "    with atomic_directory(folder / 'drop/model') as new:\n"
        "        (new / 'config').write_text(text)"
    )
    assert run_as_nobody(program, folder_of_all) == ""
    assert read(folder_of_all / "drop") == {"model/config": "new"}


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for make in (atomic_directory, atomic_file):
        with pytest.raises(CheckpointError, match="leads back to itself"), make(tmp_path / "loop"):
            pytest.fail("entered")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular"), atomic_file(tmp_path / "pipe"):
        pytest.fail("entered")


@pytest.mark.parametrize("name", ["config", "weights"])
def test_an_own_name_that_is_a_directory_with_others_files_is_refused_at_once(
    model: Path, name: str
) -> None:
    (model / "config").unlink()
    (model / name / "deep").mkdir(parents=True)
    (model / name / "deep" / "thesis").write_text("years")
    with (
        pytest.raises(CheckpointError, match=f"{name}: would be replaced, but holds deep"),
        atomic_directory(model, own=own),
    ):
        pytest.fail("entered")
    assert read(model) == {f"{name}/deep/thesis": "years"}
    (model / name / "deep" / "thesis").unlink()
    (model / name / "deep").rmdir()
    with atomic_directory(model, own=own) as new:
        (new / "config").write_text("new")
    assert read(model) == {"config": "new"}


def test_a_written_file_does_not_replace_a_directory_that_comes_meanwhile(model: Path) -> None:
    def write() -> None:
        with atomic_directory(model, own=own) as new:
            (new / "README").write_text("of the new model")
            (model / "README").mkdir()
            (model / "README" / "thesis").write_text("years")

    with pytest.raises(CheckpointError, match=r"README: would be replaced, but holds thesis"):
        write()
    assert read(model) == {"config": "old", "README/thesis": "years"}


def test_all_of_a_directory_that_goes_as_a_whole_may_be_directories(model: Path) -> None:
    (model / "deep").mkdir()
    (model / "deep" / "er").write_text("old")
    with atomic_directory(model) as new:
        (new / "deep").write_text("new")
    assert read(model) == {"deep": "new"}
