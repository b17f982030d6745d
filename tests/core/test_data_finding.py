"""What a directory, a pattern and a name stand for, and what is passed over with its reason."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diy_core.data import DataError, prepare
from diy_core.data.contents import Ahead
from diy_core.data.finding import survey
from diy_core.data.found import (
    ABOUT,
    AGAIN,
    ARCHIVE,
    FOLDER,
    HIDDEN,
    LEFT_BEHIND,
    NO_FILE,
    OTHER_KIND,
    PREPARED,
    REVISION,
    RUN,
)
from diy_core.data.json_files import form_of_json
from diy_core.data.sources import NO_LINES
from tests.data_files import jsonl, texts


def put(top: Path, *names: str) -> None:
    for name in names:
        file = top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            file.mkdir()
        else:
            file.write_text(json.dumps({"text": name}) + "\n")


def relative(top: Path, names: list[str]) -> list[str]:
    return [name.removeprefix(f"{top}/") for name in names]


def passed(top: Path) -> dict[str, list[str]]:
    return {why: relative(top, names) for why, names in survey(top).passed_over.items()}


def test_a_name_that_is_not_utf_8_is_shown_with_its_bytes(tmp_path: Path) -> None:
    top, odd = tmp_path / "corpus", "b\udcfc"  # a file system gives bytes that are not UTF-8 so
    put(top, "a.jsonl", f"{odd}.csv", f".{odd}/c.jsonl")
    report = prepare(top, tmp_path / "out", tokenizer="bytes").report
    assert report is not None
    assert report["passed_over"] == {
        HIDDEN: {"count": 1, "names": [f"{top}/.b\\udcfc/"]},
        OTHER_KIND: {"count": 1, "names": [f"{top}/b\\udcfc.csv"]},
    }
    put(top, f"{odd}.jsonl")
    with pytest.raises(DataError, match=r"b\\udcfc.jsonl has a name that is not UTF-8: rename it"):
        prepare(top, tmp_path / "other", tokenizer="bytes")


def test_what_is_no_data_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    top = tmp_path / "corpus"
    put(top, "00.jsonl", "01.JSONL", "b/02.ndjson", "b/c.txt", "d.jsonl.gz", "README.md")
    put(top, "b/e.jsonlines", "b/f.pq", "b/g.txt.zstd")
    put(top, "._00.jsonl", ".ipynb_checkpoints/00-checkpoint.jsonl", ".git/x.txt", ".DS_Store")
    put(top, ".cache/huggingface/a.jsonl", "~$c.txt", "__MACOSX/00.jsonl", "_temporary/0/a.jsonl")
    put(top, "00.jsonl~", "b/#c.txt#", "Thumbs.db", "_SUCCESS", "a.csv", "a.jsonl.bak", "e.csv.gz")
    put(top, "b/f.zip", "g.tar.gz", "h.7z", "LICENSE.txt", "b/License.md", "code/README.md")
    os.mkfifo(top / "i.jsonl")
    found = survey(top)
    assert relative(top, found.paths) == [
        *("00.jsonl", "01.JSONL", "b/02.ndjson", "b/c.txt", "b/e.jsonlines", "b/f.pq"),
        *("b/g.txt.zstd", "code/README.md", "d.jsonl.gz"),
    ]
    assert {why: sorted(names) for why, names in passed(top).items()} == {
        HIDDEN: [".DS_Store", "._00.jsonl", ".cache/", ".git/", ".ipynb_checkpoints/", "~$c.txt"],
        LEFT_BEHIND: ["00.jsonl~", "Thumbs.db", "__MACOSX/", "_temporary/", "b/#c.txt#"],
        OTHER_KIND: ["_SUCCESS", "a.csv", "a.jsonl.bak", "e.csv.gz"],
        ARCHIVE: ["b/f.zip", "g.tar.gz", "h.7z"],
        ABOUT: ["LICENSE.txt", "README.md", "b/License.md"],
        NO_FILE: ["i.jsonl"],
    }
    # Named itself, a file is read whatever it is called; and so is a folder.
    for name in ("._00.jsonl", "README.md", ".git", "a.jsonl.bak", "_temporary"):
        assert len(survey(top / name).paths) == 1


def test_texts_about_themselves_are_texts(tmp_path: Path) -> None:
    put(tmp_path, "README.md", "a/NOTICE.txt", "a/b.txt", "b/README.md", "c.md")
    put(tmp_path, "terms of a trade.txt", "a/vocab of whales.txt", "urls/e.txt")
    assert passed(tmp_path) == {}
    put(tmp_path, "licences/LICENSE-MIT.txt", "licences/COPYING.txt")
    assert len(survey(tmp_path / "licences").paths) == 2


NO_DOCUMENTS = [
    *("LICENSE.txt", "license-apache-2.0.txt", "EULA.txt", "TERMS.md", "terms_of_use.txt"),
    *("merges.txt", "vocab.txt", "urls.txt", "robots.txt", "requirements.txt", "COPYING.txt"),
    *("requirements-dev.txt", "checksums.txt", "vocab.txt.gz"),
]


@pytest.mark.parametrize("name", NO_DOCUMENTS)
def test_a_text_that_is_in_no_collection_is_passed_over_by_its_name(
    tmp_path: Path, name: str
) -> None:
    put(tmp_path, name, "in/a.txt")
    assert passed(tmp_path) == {ABOUT: [name]}
    put(tmp_path, f"in/{name}", f"other/{name}")
    assert sorted(passed(tmp_path)[ABOUT]) == sorted([f"in/{name}", name, f"other/{name}"])
    assert len(survey(tmp_path / name).paths) == 1


def test_texts_of_another_ending_may_be_about_texts(tmp_path: Path) -> None:
    put(tmp_path, "README_zh.md", "Dataset-Card.md", "a.txt", "b/readme.md", "b/c/d.txt.gz")
    put(tmp_path, "readmes.txt", "readme.txt")
    assert passed(tmp_path) == {ABOUT: ["Dataset-Card.md", "README_zh.md", "b/readme.md"]}
    put(tmp_path, "b/c.md")  # now there are documents with that ending
    assert passed(tmp_path) == {}


def test_of_a_cache_of_the_hub_the_current_revision_is_read(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--a--b"
    for name in ("old", "new"):
        put(cache, f"blobs/{name}", f"snapshots/{name}/")
        (cache / "snapshots" / name / "data.jsonl").symlink_to(f"../../blobs/{name}")
    assert len(survey(cache).paths) == 2  # nothing says which
    put(cache, "refs/")
    (cache / "refs" / "main").write_text("new\n")
    found = survey(tmp_path)
    assert relative(cache, found.paths) == ["snapshots/new/data.jsonl"]
    assert relative(cache, found.passed_over[REVISION]) == ["snapshots/old/"]


def test_a_link_to_a_picture_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl")
    (tmp_path / "b.png").symlink_to("gone")
    assert passed(tmp_path) == {OTHER_KIND: ["b.png"]}


@pytest.mark.parametrize("data", ["a.csv", "a.zip"])
def test_texts_about_what_is_not_read_are_no_data(tmp_path: Path, data: str) -> None:
    put(tmp_path, "README.md", data)
    with pytest.raises(DataError, match=r"README\.md: about the data"):
        survey(tmp_path)


def test_folders_on_the_way_of_a_pattern_are_not_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a/b/c.txt")
    found = survey(f"{tmp_path}/**")
    assert relative(tmp_path, found.paths) == ["a/b/c.txt"]
    assert not found.passed_over


def test_a_directory_without_data_says_what_is_there(tmp_path: Path) -> None:
    put(tmp_path, "README.md", "a.csv", "b.csv", "c.csv", "d.csv", ".hidden.txt", "e.zip")
    message = (
        rf"no file ending in .txt, .* at {tmp_path}; .*a.csv.* and 1 more: of a kind that is not "
        rf"read; .*e.zip: archives, to be unpacked first; .*README.md: about the data"
    )
    with pytest.raises(DataError) as caught:
        survey(tmp_path)
    assert all(re.search(part, str(caught.value)) for part in message.split("; "))


def test_links_are_followed_once(tmp_path: Path) -> None:
    top, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    put(top, "a.txt", "deep/b.txt")
    put(elsewhere, "c.txt", "more/d.txt")
    (top / "linked").symlink_to(elsewhere)  # part of the corpus lies on another disk
    (elsewhere / "more" / "up").symlink_to(top)
    (top / "deep" / "here").symlink_to(".")
    (top / "e.txt").symlink_to("a.txt")
    os.link(top / "a.txt", top / "f.txt")
    found = survey(top)
    assert relative(top, found.paths) == [
        "a.txt",
        "deep/b.txt",
        "linked/c.txt",
        "linked/more/d.txt",
    ]
    assert relative(top, found.passed_over[AGAIN]) == [
        "deep/here/",
        "linked/more/up/",
        "e.txt",
        "f.txt",
    ]
    shutil.copy(top / "a.txt", top / "g.txt")  # two files of the same content are both read
    data = prepare(top, tmp_path / "out", tokenizer="bytes")
    assert data.report is not None
    assert data.report["same_content"] == [[f"{top}/a.txt", f"{top}/g.txt"]]
    assert len(data) == 5


@pytest.mark.parametrize("target", ["gone.txt", "b.txt"])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, target: str) -> None:
    put(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to(target)
    for source in (tmp_path, tmp_path / "b.txt"):
        with pytest.raises(DataError, match=rf"b\.txt is a link to {target}, which cannot be"):
            survey(source)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, as pytest's may be its user's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_what_may_not_be_read_is_an_error(open_folder: Path) -> None:
    put(open_folder, "corpus/a.txt", "corpus/private/b.txt", "corpus/c.txt")
    program = (
        "import os, sys\n"
        "from diy_core.data import preparation, encoding\n"
        "os.chmod('corpus/private', 0), os.chmod('corpus/c.txt', 0)\n"
        "if not os.geteuid(): os.setresuid(65534, 65534, 65534)\n"
        "for source in ('corpus', 'corpus/c.txt'):\n"
        "    try: preparation.prepare(source, 'out', tokenizer='bytes')\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=open_folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    (open_folder / "corpus" / "private").chmod(0o700)
    assert done.stdout == (
        "sources: corpus/private cannot be read: Permission denied\n"
        "sources: corpus/c.txt: cannot be read: Permission denied\n"
    ), done.stderr


def test_patterns_name_files_and_say_which_folders_they_matched(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "b/c.txt", "d.csv")
    found = survey(f"{tmp_path}/*")
    assert relative(tmp_path, found.paths) == ["a.txt", "d.csv"]
    assert {why: relative(tmp_path, names) for why, names in found.passed_over.items()} == {
        FOLDER: ["b/"]
    }
    assert relative(tmp_path, survey(f"{tmp_path}/**").paths) == ["a.txt", "b/c.txt", "d.csv"]
    with pytest.raises(DataError, match="what it matches are folders, to be named themselves"):
        survey(f"{tmp_path}/b*")


def test_what_was_prepared_among_the_sources_is_none_of_them(tmp_path: Path) -> None:
    """The same command again makes the same of them, also where OUT lies among them."""
    top, out = tmp_path / "corpus", tmp_path / "corpus" / "b" / "out"
    put(top, "a.jsonl", "b/c.jsonl")
    (top / "b" / "d.jsonl").write_text('{"text": "another"}\n')
    first = prepare(top, out, tokenizer="bytes", validation=0.4)
    before = {file: (out / file).read_bytes() for file in ("tokens.bin", "validation/tokens.bin")}
    again = prepare(top, out, tokenizer="bytes", validation=0.4, overwrite=True)
    assert first.report is not None
    assert again.report is not None
    assert first.report["passed_over"] == {}
    assert list(again.report["passed_over"]) == [PREPARED]
    assert passed(top) == {PREPARED: ["b/out/"]}
    assert {file: (out / file).read_bytes() for file in before} == before
    found = survey(f"{top}/**")
    assert relative(top, found.paths) == ["a.jsonl", "b/c.jsonl", "b/d.jsonl"]
    assert set(found.passed_over) == {PREPARED}
    assert f"{out}/tokens.bin" in found.passed_over[PREPARED]
    with pytest.raises(DataError, match=rf"no file at {out}/\*: what it matches is prepared data"):
        survey(f"{out}/*")
    for folder in (out, out / "validation"):
        with pytest.raises(
            DataError, match=rf"no file ending in .* at {folder}; .*: prepared data"
        ):
            survey(folder)
    (out / "tokens.bin").unlink()  # then its data.json is a file like others
    assert relative(top, survey(top).paths) == [
        *("a.jsonl", "b/c.jsonl", "b/d.jsonl"),
        "b/out/data.json",
    ]


def test_a_training_run_among_the_sources_is_none_of_them(tmp_path: Path) -> None:
    """Nor are its logs and its model's config."""
    put(tmp_path, "a.jsonl", "run/metrics.jsonl", "run/model/config.json", "other/metrics.jsonl")
    put(tmp_path, "other/config.yaml")
    put(tmp_path, "run/config.yaml", "run/checkpoints/00000003/position.json")
    assert relative(tmp_path, survey(tmp_path).paths) == ["a.jsonl", "other/metrics.jsonl"]
    assert passed(tmp_path) == {RUN: ["run/"], OTHER_KIND: ["other/config.yaml"]}


def test_sources_may_be_named_twice(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "b/c.txt")
    names = ["a.txt", "b/c.txt"]
    for sources in ((".", "b"), (".", "."), (".", "a.txt", "b/c.txt"), (".", "*.txt")):
        found = survey([tmp_path / source for source in sources])
        assert relative(tmp_path, found.paths) == names
        assert set(found.passed_over) <= {AGAIN}
    found = survey([tmp_path / "b", tmp_path])
    assert relative(tmp_path, found.paths) == names[::-1]


def test_json_is_read_where_it_holds_lines(tmp_path: Path) -> None:
    jsonl(tmp_path / "lines.json", [{"text": "one"}, {"text": "two"}])  # as in C4
    (tmp_path / "dataset_info.json").write_text('{\n  "features": {}\n}\n')
    (tmp_path / "list.json").write_text('[{"text": "x"},\n {"text": "y"}]')
    (tmp_path / "one.json").write_text('{"text": "three"}\n')
    (tmp_path / "vocab.json").write_text('{"the": 1}')
    (tmp_path / "two.json").write_text('{\n "text": "x"\n}\n{\n "text": "y"\n}')
    data = prepare(tmp_path, tmp_path / "out", tokenizer="bytes")
    assert texts(data) == ["one", "two", "three"]
    assert data.report is not None
    passed_over = data.report["passed_over"][NO_LINES]["names"]
    assert relative(tmp_path, passed_over) == [
        "dataset_info.json",
        "list.json",
        "two.json",
        "vocab.json",
    ]
    (tmp_path / "lines.json").unlink()
    (tmp_path / "one.json").unlink()
    for source in (tmp_path, tmp_path / "list.json"):
        with pytest.raises(DataError, match=r"list\.json: is one JSON value, and not an obj"):
            prepare(source, tmp_path / "out2", tokenizer="bytes")


@pytest.mark.parametrize(
    ("content", "field", "read"),
    [
        (b'{"text": "one"}', None, ["one"]),
        (b'\xef\xbb\xbf{"text": "one"}\r\n\r\n', None, ["one"]),
        (b'{"body": "one", "id": 3}', "body", ["one"]),
        (b'{"prompt": "o", "completion": "ne"}', None, ["one"]),
        (b'{\n  "text": "one"\n}\n', None, ["one"]),
        (b'\xef\xbb\xbf\r\n{\r\n\t"id": {"a": [\r\n1]}, "body": "one"}', "body", ["one"]),
        (b'{"text":\n"one"}', None, ["one"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_json_file_may_hold_one_record(
    tmp_path: Path, content: bytes, field: str | None, read: list[str], packed: bool
) -> None:
    file = tmp_path / ("a.json.gz" if packed else "a.json")
    file.write_bytes(gzip.compress(content) if packed else content)
    assert texts(prepare(file, tmp_path / "out", tokenizer="bytes", field=field)) == read


def test_a_readme_beside_parquet_is_no_document(tmp_path: Path) -> None:
    put(tmp_path, "README.md")
    (tmp_path / "data").mkdir()
    table = pyarrow.table({"text": ["one"], "id": [1]})
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train.parquet")
    assert texts(prepare(tmp_path, tmp_path / "out", tokenizer="bytes")) == ["one"]
    assert passed(tmp_path)[ABOUT] == ["README.md"]


def test_a_directory_of_metadata_alone_names_what_is_not_read(tmp_path: Path) -> None:
    """As `save_to_disk` of datasets writes one."""
    (tmp_path / "state.json").write_text('{\n "_split": "train"\n}')
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, tmp_path / "out", tokenizer="bytes")
    assert "state.json: is one JSON value" in str(caught.value)
    assert "data-00000-of-00001.arrow: of a kind that is not read" in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_json_is_looked_at_as_far_as_something_follows_its_first_line(size: int) -> None:
    content = b' \n\n{"a": 1}\n \n{"b": 2}\n' + b"x" * 9000
    read: list[bytes] = []

    def blocks() -> Iterator[bytes]:
        for i in range(0, len(content), size):
            read.append(content[i : i + size])
            yield read[-1]

    stream = Ahead(blocks())
    assert form_of_json(stream, None) == "jsonl"
    assert len(b"".join(read)) < content.index(b'{"b"') + 1 + size
    assert b"".join(stream) == content
    assert form_of_json(Ahead(iter([b'{"a": 1}\n', b"\n"])), None) is None
