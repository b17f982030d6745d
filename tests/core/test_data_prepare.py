"""From sources to token files: the tokens, the split, the workers, and what survives a kill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from diy_core.data import DataError, TokenData, preparation, prepare
from diy_core.data import sources as cutting
from diy_jax.__main__ import main
from tests.data_files import END, files, jsonl, texts, tokenizer
from tests.other_user import root_alone, run_as_nobody


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 64)


def test_an_interrupted_start_leaves_no_empty_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        assert (tmp_path / "new" / ".out.parts").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "begin_or_go_on", interrupted)
    source = jsonl(tmp_path / "a.jsonl", [{"text": "he"}])
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "new" / "out", tokenizer="bytes")
    assert os.listdir(tmp_path) == ["a.jsonl"]


@root_alone
def test_a_place_that_may_not_be_written_is_an_error_of_its_parent() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "a.txt").write_text("he")
        said = run_as_nobody(
            "for out in ('old', 'new', 'deep/er/new'):\n"
            "    try:\n"
            "        prepare(folder / 'a.txt', folder / out, tokenizer='bytes', overwrite=True)\n"
            "    except DataError as error:\n"
            "        print(error)",
            folder,
            "from diy_core.data import DataError, prepare\n"
            "prepare(folder / 'a.txt', folder / 'old', tokenizer='bytes')",
        )
        why = f"{folder} may not be changed (Permission denied): change its permissions, or choose"
        assert said.splitlines() == [
            f"{folder}/old: cannot be written: {why} another place",
            f"{folder}/new: cannot be written: {why} another place",
            f"{folder}/deep/er: cannot be made: {why} another place",
        ]
        assert sorted(os.listdir(folder)) == ["a.txt", "old"]


def test_a_tokenizer_ends_each_document_once(tmp_path: Path) -> None:
    directory = tokenizer(tmp_path / "model")
    source = jsonl(tmp_path / "a.jsonl", [{"text": "he the"}, {"text": f"x{END}"}])
    data = prepare(source, tmp_path / "out", tokenizer=directory)
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    end = backend.token_to_id(END)
    assert [data[i].tolist() for i in range(2)] == [
        [*backend.encode("he the").ids, end],
        backend.encode(f"x{END}").ids,
    ]
    content = (directory / "tokenizer.json").read_bytes()
    told = data.description
    assert told["tokenizer"] == hashlib.sha256(content).hexdigest()
    assert (told["vocab_size"], told["end_token_ids"]) == (backend.get_vocab_size(), [end])
    assert told["sources"] == [
        {
            "path": source.as_posix(),
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "bytes": source.stat().st_size,
        }
    ]
    endless = prepare(source, tmp_path / "o2", tokenizer=tokenizer(tmp_path / "m2", end=None))
    assert endless[0].tolist() == backend.encode("he the").ids


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": "he the"}])
    small = prepare(source, tmp_path / "2", tokenizer=tokenizer(tmp_path / "m2", vocab_size=65536))
    large = prepare(source, tmp_path / "4", tokenizer=tokenizer(tmp_path / "m4", vocab_size=65537))
    assert (tmp_path / "2" / "tokens.bin").stat().st_size == 2 * small.tokens.size
    assert (tmp_path / "4" / "tokens.bin").stat().st_size == 4 * large.tokens.size
    assert small[0].tolist() == large[0].tolist()


def test_the_split_follows_the_documents_not_their_order(tmp_path: Path) -> None:
    rows = [f"text {i % 40}" for i in range(50)]  # ten of them twice
    one = prepare(
        jsonl(tmp_path / "a.jsonl", [{"text": t} for t in rows]),
        tmp_path / "one",
        tokenizer="bytes",
        validation=0.2,
    )
    two = prepare(
        jsonl(tmp_path / "b.jsonl", [{"text": t} for t in rows[::-1]]),
        tmp_path / "two",
        tokenizer="bytes",
        validation=0.2,
    )
    held_out = texts(TokenData(one.path / "validation"))
    assert sorted(texts(one) + held_out) == sorted(rows)
    assert not set(texts(one)) & set(held_out)
    assert 10 <= len(held_out) <= 11
    assert held_out == texts(TokenData(two.path / "validation"))[::-1]


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 2000)
    directory = tokenizer(tmp_path / "model")
    rng = np.random.default_rng(0)
    rows = [" the he".join("xyz"[: n % 4]) * n + str(n) for n in rng.integers(1, 60, 300)]
    source = jsonl(tmp_path / "a.jsonl", [{"text": t} for t in rows])
    (tmp_path / "b.txt").write_text("\n\n".join(rows))
    written = []
    for workers in (1, 3):
        data = prepare(
            [source, tmp_path / "b.txt"],
            tmp_path / str(workers),
            tokenizer=directory,
            validation=0.1,
            separator="\n\n",
            workers=workers,
        )
        data.verify()
        written.append(files(data.path))
    assert written[0] == written[1]
    monkeypatch.setattr(cutting, "SHARD_BYTES", 1 << 20)
    whole = prepare(
        [source, tmp_path / "b.txt"],
        tmp_path / "whole",
        tokenizer=directory,
        validation=0.1,
        separator="\n\n",
    )
    assert files(whole.path) == written[0]  # nor do the shards show
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_shards_of_other_sources_are_dropped(tmp_path: Path, small_shards: None) -> None:
    rows = [{"text": f"document number {i}"} for i in range(40)]
    rows[25] = {"txt": "wrong"}
    source, out = jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out"
    for _ in range(2):  # the second time it goes on, up to the same line
        with pytest.raises(DataError, match=re.escape(f"{source}, line 26: has no text in 'text'")):
            prepare(source, out, tokenizer="bytes")
        assert len(list((tmp_path / ".out.parts").glob("*.npz"))) > 3
    assert not out.exists()
    rows[0], rows[25] = {"text": "Document number 0"}, {"text": "mended"}
    jsonl(source, rows)
    assert texts(prepare(source, out, tokenizer="bytes")) == [row["text"] for row in rows]


def start(tmp_path: Path, source: Path, workers: int) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(
        "from diy_core.data import prepare, sources\n"
        "if __name__ == '__main__':\n"
        "    sources.SHARD_BYTES = 4000\n"
        f"    prepare({str(source)!r}, {str(tmp_path / 'out')!r}, "
        f"tokenizer={str(tmp_path / 'model')!r}, workers={workers})\n"
    )
    return subprocess.Popen(
        [sys.executable, str(program)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("workers", "end"), [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)]
)
def test_a_run_that_was_ended_leaves_no_process_and_goes_on(
    tmp_path: Path, workers: int, end: signal.Signals
) -> None:
    directory = tokenizer(tmp_path / "model")
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"he the {i} " * 30} for i in range(1500)])
    expected = prepare(source, tmp_path / "expected", tokenizer=directory)
    process = start(tmp_path, source, workers)
    parts = tmp_path / ".out.parts"
    # An interrupt comes as early as it can: one worker may still be starting.
    enough = 1 if end == signal.SIGINT else 5
    while process.poll() is None and len(list(parts.glob("*.npz"))) < enough:
        time.sleep(0.01)
    if end == signal.SIGINT:
        os.killpg(process.pid, end)  # as a terminal does
    else:
        process.kill()
    error = process.communicate(timeout=60)[1]  # until all that could write is gone
    assert process.returncode != 0
    assert error.count("Traceback") <= (end == signal.SIGINT), error
    assert not (tmp_path / "out").exists()
    for _ in range(1000):
        if not alive(process.pid):
            break
        time.sleep(0.01)
    assert not alive(process.pid)
    finished = {p: p.stat().st_mtime_ns for p in parts.glob("*.npz")}
    assert finished
    process = start(tmp_path, source, workers)
    assert process.wait() == 0, process.communicate()
    process.communicate()
    assert files(tmp_path / "out") == files(expected.path)
    assert not parts.exists()


def test_ids_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    directory = tokenizer(tmp_path / "model", vocab_size=261)
    source = jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "x the"}])
    with pytest.raises(DataError, match="line 2: token id 261 is beyond vocab_size 261"):
        prepare(source, tmp_path / "out", tokenizer=directory)


def test_options_out_of_range_and_targets_in_the_way(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "x"}])
    for options, message in (
        ({"validation": 1.0}, "validation must be a share"),
        ({"workers": 0}, "workers must be 1 or more, got 0"),
        ({"separator": ""}, "separator must not be empty"),
        ({"validation": 0.5}, "sources: 2 documents, 1 of them different: too few"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(source, tmp_path / "out", tokenizer="bytes", **options)  # type: ignore[arg-type]
    prepare(source, tmp_path / "out", tokenizer="bytes")
    with pytest.raises(DataError, match="exists already: overwrite=True"):
        prepare(source, tmp_path / "out", tokenizer="bytes")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for overwrite in (True, False):
        with pytest.raises(DataError, match=r"is not replaced: it has no data\.json"):
            prepare(source, tmp_path / "mine", tokenizer="bytes", overwrite=overwrite)
        with pytest.raises(DataError, match="is not a directory: choose another place"):
            prepare(source, tmp_path / "mine/thesis.txt", tokenizer="bytes", overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_command_prepares_and_says_what_it_made(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    arguments = ["data", f"{tmp_path}/a.txt", "--out", f"{tmp_path}/out", "--tokenizer", "bytes"]
    assert main([*arguments, "--separator", r"\n\n", "--validation", "0.3", "--workers", "1"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"out: 2 documents, \d+ tokens\n.*validation: 1 document, ", printed.out)
    assert main(arguments) == 2
    assert "exists already: --overwrite" in capsys.readouterr().err


def begin(tmp_path: Path, source: Path) -> subprocess.Popen[str]:
    """`diy-torch data` in two processes, which are being started or have begun."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from diy_core.commands.command_line import build_parser, run\n"
        "from diy_core.data import sources\n"
        "if __name__ == '__main__':\n"
        "    sources.SHARD_BYTES = 300_000\n"
        "    print('begun', flush=True)\n"
        "    sys.exit(run(build_parser('diy-torch'), None, None))\n"
    )
    options = ["--out", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "model")]
    process = subprocess.Popen(
        [sys.executable, str(program), "data", str(source), *options, "--workers", "2"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while not (tmp_path / ".out.parts" / "plan.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    time.sleep(0.3)
    return process


def interrupted(tmp_path: Path, source: Path, times: int) -> tuple[int, str]:
    """Its code and words after so many Ctrl-C's."""
    process = begin(tmp_path, source)
    assert process.stdout is not None
    said = process.stdout.readline()
    for number in range(times):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        if number == 0:
            said += process.stdout.readline() + process.stdout.readline()
        else:
            time.sleep(0.02)
            if process.poll() is not None:
                break
    said += process.communicate(timeout=100)[0]
    for _ in range(1000):
        if not alive(process.pid):
            break
        time.sleep(0.01)
    assert not alive(process.pid)
    return process.returncode, said


def test_an_interrupt_says_that_it_waits_and_a_second_one_does_not(tmp_path: Path) -> None:
    directory = tokenizer(tmp_path / "model")
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"he the {i} " * 2000} for i in range(200)])
    finishing = "\nfinishing the shards in hand; Ctrl-C again leaves at once\n"
    code, said = interrupted(tmp_path, source, 1)
    assert (code, said) == (130, f"begun\n{finishing}\ndiy-torch data: interrupted\n")
    parts = tmp_path / ".out.parts"
    assert list(parts.glob("*.npz"))
    for times in (2, 4):
        shutil.rmtree(parts)
        code, said = interrupted(tmp_path, source, times)
        assert (code, said) == (130, f"begun\n{finishing}\ndiy-torch data: interrupted\n")
        assert not list(parts.glob("*.npz"))  # it did not wait for a shard
    data = prepare(source, tmp_path / "out", tokenizer=directory)
    assert len(data) == 200


def test_an_interrupt_that_nobody_hears_of_keeps_the_shards_too(tmp_path: Path) -> None:
    """As in `... 2>&1 | tee log`, where Ctrl-C ends tee first."""
    tokenizer(tmp_path / "model")
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"he the {i} " * 2000} for i in range(200)])
    process = begin(tmp_path, source)
    assert process.stdout is not None
    process.stdout.close()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=100) == 130
    assert list((tmp_path / ".out.parts").glob("*.npz"))


@pytest.mark.parametrize(
    ("patched", "file", "size"),
    [
        ("parts.Path.write_bytes", ".out.parts/plan.json", "[0-9]{3,}"),
        ("shard_files.as_bytes", ".out.parts/00000000.npz", "[0-9]{3}"),
        ("preparation.merge", "out", "[0-9,]{4,}"),
    ],
)
def test_a_full_disk_is_told_with_the_file_and_what_is_needed(
    tmp_path: Path,
    small_shards: None,
    monkeypatch: pytest.MonkeyPatch,
    patched: str,
    file: str,
    size: str,
) -> None:
    source, out = jsonl(tmp_path / "a.jsonl", [{"text": "x" * 90}] * 20), tmp_path / "out"
    with monkeypatch.context() as patch:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(f"diy_core.data.{patched}", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            prepare(source, out, tokenizer="bytes")
    assert re.search(f"it takes {size} bytes, [0-9,]+ are free. Free some", str(caught.value))
    assert "then start again: the shards that are finished are kept" in str(caught.value)
    assert caught.value.filename == str(tmp_path / file)
    assert not list(tmp_path.rglob("*.tmp*"))
    assert len(prepare(source, out, tokenizer="bytes")) == 20


def test_a_place_where_nothing_can_be_made_is_named_as_it_was_given() -> None:
    with pytest.raises(OSError) as caught:
        prepare("builtin:pydoc", "/proc/out", tokenizer="bytes")
    assert caught.value.filename == "/proc/out"


@pytest.mark.parametrize(("moment", "workers"), [("survey", 1), ("begin_or_go_on", 2)])
def test_a_tokenizer_that_is_replaced_meanwhile_is_refused_and_its_shards_are_not_kept(
    tmp_path: Path,
    small_shards: None,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    workers: int,
) -> None:
    read = tokenizer(tmp_path / "tokenizer")
    file = read / "tokenizer.json"
    kept = file.read_text()
    values = json.loads(kept)
    vocab = values["model"]["vocab"]
    vocab["q"], vocab["z"] = vocab["z"], vocab["q"]
    other = json.dumps(values)
    act = getattr(preparation, moment)

    def act_and_replace(*arguments: Any) -> Any:
        (tmp_path / "next").write_text(other)
        (tmp_path / "next").replace(file)
        return act(*arguments)

    source, out = jsonl(tmp_path / "a.jsonl", [{"text": "quiz"}] * 20), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(preparation, moment, act_and_replace)
        with pytest.raises(DataError, match=r"tokenizer\.json: was changed or replaced"):
            prepare(source, out, tokenizer=read, workers=workers)
    assert not list(tmp_path.glob(".out*"))
    assert not out.exists()
    file.write_text(kept)
    assert prepare(source, out, tokenizer=read)[0].size
