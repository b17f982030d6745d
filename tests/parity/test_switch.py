"""A run that changes the framework on its way comes to the same weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from diy_core.errors import CheckpointError
from diy_core.training.run.directory import RunDirectory
from diy_jax.train import assemble as assemble_jax
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.train import assemble as assemble_torch
from diy_torch.training_store import TrainingStore as TorchStore
from parity.__main__ import main
from parity.convert.switch import switch
from parity.environment import Device, exact
from parity.inspect.run_diff import diff_runs
from tests.jax_cache import compiled_once
from tests.training_runs import STEPS, Runs, distance, losses, same_bits
from tests.written_runs import line, state, write_run


@pytest.fixture
def twins(tmp_path: Path, device: Device) -> dict[str, Runs]:
    return {
        "torch": Runs(assemble_torch, TorchStore, tmp_path, device.torch.type),
        "jax": Runs(assemble_jax, JaxStore, tmp_path, device.name),
    }


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_steps_here_and_then_there_are_the_steps_of_one(
    twins: dict[str, Runs], device: Device, first: str, second: str
) -> None:
    one, other = twins[first], twins[second]
    folder = one.folder
    with exact(device), compiled_once():
        one.train("whole")
        one.train("run", stop_at=9)
        assert switch(folder / "run", folder / "there") == f"diy-{second}"
        assert same_bits(one.state("run", 9), other.state("there", 9))
        assert one.position("run", 9) == other.position("there", 9)
        assert other.train("there", stop_at=14, resume=True) == 0
        assert switch(folder / "there", folder / "back") == f"diy-{first}"
        assert one.train("back", resume=True) == 0
        assert other.train("there", resume=True) == 0
    for runs, name in ((other, "there"), (one, "back")):
        assert distance(one.state("whole"), runs.state(name)) <= 1e-9
        assert losses(folder / name) == pytest.approx(losses(folder / "whole"), rel=1e-11, abs=0)
        assert len(losses(folder / name)) == STEPS
    assert one.position("back") == one.position("whole")


def test_there_and_back_is_the_same_to_the_bit(
    twins: dict[str, Runs], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of a few arrays each, as the state of a large model goes over."""
    monkeypatch.setattr("parity.convert.switch._PART", 20_000)
    runs, folder = twins["torch"], twins["torch"].folder
    with exact(device), compiled_once():
        runs.train("whole")
        runs.train("run", stop_at=6)
        runs.train("run", stop_at=9, resume=True)
        for name, new in (("run", "there"), ("there", "back")):
            switch(folder / name, folder / new, step=6 if name == "run" else None)
        assert runs.steps("back") == [6]
        assert runs.train("back", resume=True) == 0
    assert same_bits(runs.state("back"), runs.state("whole"))
    one, other = (folder / name / "metrics.jsonl" for name in ("back", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_the_other_twin_says_that_it_needs_a_switch(twins: dict[str, Runs], device: Device) -> None:
    with exact(device), compiled_once():
        for name, other in (("torch", "jax"), ("jax", "torch")):
            twins[name].train(name, stop_at=1)
            with pytest.raises(CheckpointError, match=f"written by diy-{name}.*parity switch"):
                twins[other].train(name, resume=True)


def test_what_cannot_be_switched_is_refused(
    twins: dict[str, Runs], device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, folder = twins["torch"], twins["torch"].folder
    with exact(device), compiled_once():
        runs.train("run", stop_at=2)
    run, new = str(folder / "run"), str(folder / "new")
    assert main(["switch", str(folder / "nowhere"), new]) == 2
    assert (
        "nowhere: does not exist: give the directory of a training run" in capsys.readouterr().err
    )
    assert not (folder / "nowhere").exists()
    assert main(["switch", run, new, "--step", "1"]) == 2
    assert "has no checkpoint of step 1, only of 2" in capsys.readouterr().err
    assert main(["switch", run, run]) == 2
    assert "exists already" in capsys.readouterr().err
    shutil.copytree(run, folder / "damaged")
    file = folder / "damaged" / "checkpoints" / "00000002" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert main(["switch", str(folder / "damaged"), new]) == 2
    assert "does not have the SHA-256" in capsys.readouterr().err
    assert not Path(new).exists()
    assert main(["switch", run, new]) == 0
    said = capsys.readouterr().out
    assert f"diy-jax train --config {new}/config.yaml --resume auto" in said
    for path in (run, new):  # neither is a model
        program = "diy-torch" if path == run else "diy-jax"
        for name, step in ((".", ""), ("checkpoints/00000002", " --step 2")):
            where = str(Path(path) / name)
            for words in (["check", where], ["convert", where, str(folder / "model")]):
                assert main(words) == 2
                command = f"`{program} export {path}{step} --out DIR` makes one"
                assert command in capsys.readouterr().err
    assert json.loads((Path(new) / "model" / "config.json").read_text())["vocab_size"] == 257


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, device: Device) -> Path:
    """A run with checkpoints of steps 1 and 2; tests leave it as it is."""
    runs = Runs(assemble_torch, TorchStore, tmp_path_factory.mktemp("switch"), device.torch.type)
    with exact(device):
        runs.train("run", stop_at=2, checkpoint_every=1)
    return runs.folder / "run"


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["switch", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def test_a_run_is_not_switched_into_itself(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    (tmp_path / "link").symlink_to(run)
    for new in (run / "new", run / "data" / "new", tmp_path / "link" / "data" / "new"):
        assert f"{new}: is inside of {run}: choose a NEW_RUN" in refusal(capsys, run, new)
    assert sorted(run.rglob("*")) == before


def test_what_is_in_the_way_is_left_and_no_option_is_promised(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for new in (tmp_path, tmp_path / "file", run):
        said = refusal(capsys, run, new)
        assert f"{new}: exists already: choose another NEW_RUN, or remove it first" in said
        assert new.exists()


@pytest.mark.parametrize("name", ["state.safetensors", "diy_manifest.json", "position.json"])
@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_damaged_checkpoint_names_the_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    damaged, new = tmp_path / "damaged", tmp_path / "new"
    shutil.copytree(run, damaged)
    file = damaged / "checkpoints" / "00000002" / name
    content = file.read_bytes()
    file.unlink()
    if how == "cut":
        file.write_bytes(content[:-50])
    assert main(["switch", str(damaged), str(new)]) == 2
    said = capsys.readouterr().err
    assert f"{damaged}/checkpoints/00000002" in said
    assert "take another checkpoint, of step 1: --step 1" in said
    assert not list(tmp_path.glob("*new*"))
    assert main(["switch", str(damaged), str(new), "--step", "1"]) == 0
    shutil.rmtree(damaged / "checkpoints" / "00000001")
    assert main(["switch", str(damaged), str(tmp_path / "again")]) == 2
    assert "there is no other checkpoint in this run" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["shutil.copyfileobj", "parity.convert.switch._compare"])
def test_a_full_disk_is_told_with_the_file_and_what_is_needed(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, full)
    said = refusal(capsys, run, tmp_path / "new")
    assert re.search(r"No space left on device: it takes [\d,]{6,} bytes, [\d,]+ are free", said)
    assert said.startswith(f"parity switch: {tmp_path}/new: ")
    assert said.endswith(" are free. Free some, or choose a NEW_RUN on another disk\n")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_refused_at_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=50_000))
    said = refusal(capsys, run, tmp_path / "new")
    assert re.search(r"it takes [\d,]{6,} bytes, 50,000 are free. Free some, or choose a NEW", said)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_one_line_and_nothing_half_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("parity.convert.switch._compare", interrupted)
    assert main(["switch", str(run), str(tmp_path / "new")]) == 130
    assert capsys.readouterr().err == "parity switch: interrupted\n"
    assert not list(tmp_path.iterdir())


# Runs that nobody trained, with all that a run may have.


@pytest.fixture
def written(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run", "torch", {n: state(n) for n in (1, 2, 3)}, [line(1)])
    for name in (
        "evaluations.jsonl",
        "timings.jsonl",
        "tensorboard/events",
        "model/tokenizer.json",
    ):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(f"{name}\n")
    for name in ("data/shards/0.bin", "validation/index"):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_bytes(name.encode() * 100)
    (run / "loss.png").write_text("drawn anew")
    return run


def test_machines_get_one_object_and_nothing_else(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = str(tmp_path / "new")
    assert main(["switch", str(written), new, "--step", "2", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record | {"next": []} == {"path": new, "program": "diy-jax", "step": 2, "next": []}
    assert record["next"][0].startswith("to continue: diy-jax train --config ")


def test_all_of_a_run_goes_over(written: Path, tmp_path: Path) -> None:
    new = tmp_path / "größer" / "deep" / "new"
    before = {path: path.read_bytes() for path in written.rglob("*") if path.is_file()}
    assert switch(written, new, step=2) == "diy-jax"
    for path, content in before.items():
        name = path.relative_to(written)
        assert path.read_bytes() == content
        if name.parts[0] not in ("checkpoints", "config.yaml", "loss.png"):
            assert (new / name).read_bytes() == content, name
    assert [path.name for path in (new / "checkpoints").iterdir()] == ["00000002"]
    assert not (new / "loss.png").exists()
    text = (new / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["run_dir"] == str(new)
    assert "größer" in text
    record = diff_runs(written, new)
    assert (record["tensors"], record["position"], record["config"]) == ([], {}, {})


def nowhere(place: Path) -> None:
    place.symlink_to("nowhere")


HINDRANCES = {
    "a link to nothing": (nowhere, "is a link to nowhere, which does not exist"),
    "a FIFO": (os.mkfifo, "it is a FIFO"),
}


@pytest.mark.parametrize("part", ["metrics.jsonl", "data", "model/tokenizer.json", "tensorboard/x"])
@pytest.mark.parametrize("kind", HINDRANCES)
def test_no_part_of_the_history_is_left_behind(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, kind: str
) -> None:
    place, (put, why) = written / part, HINDRANCES[kind]
    if os.path.lexists(place):
        place.rename(tmp_path / "away")
    put(place)
    said = refusal(capsys, written, tmp_path / "new")
    assert said.startswith(f"parity switch: {place}: ")
    assert why in said or (part == "data" and "Not a directory" in said)
    assert not (tmp_path / "new").exists()


def test_a_history_that_lies_elsewhere_goes_over_as_files(written: Path, tmp_path: Path) -> None:
    """Also with a link that leads back to where it lies."""
    (written / "data").rename(tmp_path / "elsewhere")
    (written / "data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    switch(written, tmp_path / "new")
    copied = tmp_path / "new" / "data"
    assert not copied.is_symlink()
    assert [path.name for path in copied.rglob("*")] == ["shards", "0.bin"]


def test_the_run_that_is_locked_is_the_one_that_is_switched(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run takes its name meanwhile."""
    other = write_run(tmp_path / "other", "torch", {7: state(7)}, [line(5)])
    enter = RunDirectory.__enter__

    def enter_and_replace(directory: RunDirectory) -> RunDirectory:
        entered = enter(directory)
        written.rename(tmp_path / "moved")
        other.rename(written)
        return entered

    monkeypatch.setattr(RunDirectory, "__enter__", enter_and_replace)
    switch(written, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new" / "checkpoints").iterdir()] == ["00000003"]
    for name in ("metrics.jsonl", "model/tokenizer.json", "data/shards/0.bin"):
        copied, kept = tmp_path / "new" / name, tmp_path / "moved" / name
        assert copied.read_bytes() == kept.read_bytes()


def test_a_link_to_nothing_is_in_the_way(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "link: exists already" in refusal(capsys, written, tmp_path / "link")


def test_the_newest_of_the_others_is_named(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (written / "checkpoints" / "00000003" / "state.safetensors").unlink()
    said = refusal(capsys, written, tmp_path / "new")
    assert said.endswith("take another checkpoint, of step 1, 2: --step 2\n")


def test_the_room_is_that_of_the_arrays_and_the_history(
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("metrics.jsonl", "evaluations.jsonl", "timings.jsonl", "tensorboard", "model", "data")
    parts = [written / name for name in (*names, "validation")]
    files = [file for part in parts for file in (part, *part.rglob("*")) if file.is_file()]
    needed = sum(file.stat().st_size for file in files)
    needed += sum(array.nbytes for array in state().values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10))
    assert f"it takes {needed:,} bytes, 10 are free" in refusal(capsys, written, tmp_path / "new")


def test_what_was_written_otherwise_is_not_kept(
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parity.convert.switch._parts", lambda checkpoint: iter([state(4)]))
    said = refusal(capsys, written, tmp_path / "new")
    assert "does not hold what was to be written" in said
    assert not (tmp_path / "new").exists()
