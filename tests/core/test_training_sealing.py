"""What a checkpoint was made with is compared when its run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from diy_core.errors import CheckpointError
from diy_core.training.checkpoints.files import position_text
from diy_core.training.config import OptimizerConfig, TrainConfig
from diy_core.training.options import parse
from diy_core.training.protocols import Pieces
from diy_core.training.run.allowed_changes import Allowed
from diy_core.training.run.directory import RunDirectory
from diy_core.training.run.model import keep_model
from diy_core.training.run.seal import (
    changes_between,
    made_anew,
    newest_seal,
    place_in_data,
    require_same_model,
    seal_of,
)
from diy_core.training.start.begin import train_config
from diy_core.training.state import Position
from tests.core.training_fake import MODEL, FakeStore, Runner, assemble
from tests.oracles import tiny
from tests.tiny_checkpoints import put, put_tokenizer

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")
FAST = OptimizerConfig(learning_rate=0.05, warmup_steps=3)


def edit_config(runner: Runner) -> None:
    file = runner.path / "config.yaml"
    text = file.read_text()
    assert "learning_rate: 0.01\n" in text
    file.write_text(text.replace("learning_rate: 0.01\n", "learning_rate: 0.05\n"))


def going_on(runner: Runner, *keys: str, **changes: Any) -> int:
    config = runner.config(**changes)
    return train_config(
        config,
        assemble,
        FakeStore.verify,
        program="diy train",
        resume=True,
        allowed=Allowed(keys),
    )


def changes_of(runner: Runner, step: int) -> list[dict[str, Any]]:
    extra = json.loads((runner.path / f"checkpoints/{step:08d}/extra.json").read_text())
    found: list[dict[str, Any]] = extra["made_with"]["changes"]
    return found


def test_a_config_that_was_edited_in_place_is_found(runner: Runner) -> None:
    runner(stop_at=5)
    edit_config(runner)
    metrics = runner.metrics
    with pytest.raises(ValueError) as caught:
        going_on(runner, optimizer=FAST)
    assert str(caught.value) == (
        f"{runner.path}/checkpoints/00000005 was made with something else than this run has now, "
        "and would go on as another run:\n"
        "  config.yaml: optimizer.learning_rate: 0.01, now 0.05\n"
        "Put back what was there, or, where the change is meant, add --allow-changes "
        "optimizer.learning_rate"
    )
    assert runner.metrics == metrics


@pytest.mark.parametrize("key", ["optimizer", "optimizer.learning_rate"])
def test_a_change_that_is_meant_is_recorded_in_all_later_checkpoints(
    runner: Runner, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runner(stop_at=5)
    with pytest.raises(ValueError, match="was started with another config"):
        going_on(runner, "seed", optimizer=FAST)
    assert going_on(runner, key, optimizer=FAST, stop_at=8) == 0
    change = "config.yaml: optimizer.learning_rate: 0.01, now 0.05"
    assert f"changed on purpose at step 5: {change}\n" in capsys.readouterr().err
    assert going_on(runner, optimizer=FAST) == 0
    assert changes_of(runner, 12) == [
        {"step": 5, "key": "optimizer.learning_rate", "old": 0.01, "new": 0.05}
    ]
    with pytest.raises(ValueError, match=r"learning_rate: 0\.05, now 0\.01"):
        going_on(runner)


@pytest.mark.parametrize(
    ("file", "key", "words"),
    [
        ("model/config.json", "model.x", "model/config.json: model.x: not given, now 1"),
        ("data/data.json", "data.train", "the training data (SHA-256): data.train: not given"),
    ],
)
def test_files_of_the_run_that_were_edited_in_place_are_found(
    runner: Runner, file: str, key: str, words: str
) -> None:
    runner(stop_at=5)
    (runner.path / file).parent.mkdir()
    (runner.path / file).write_text('{"x": 1}')
    with pytest.raises(ValueError) as caught:
        going_on(runner)
    assert words in str(caught.value)
    assert str(caught.value).endswith(f"add --allow-changes {key}")
    assert going_on(runner, key.partition(".")[0]) == 0
    assert [change["key"] for change in changes_of(runner, 12)] == [key]


def test_what_follows_from_a_change_is_refused_before_anything_is_made_again(
    runner: Runner, tmp_path: Path
) -> None:
    """Another model brings another tokenizer, and that other tokens."""
    sizes = tiny(max_position_embeddings=64, vocab_size=400)
    for name in ("first", "other"):
        put_tokenizer(put(tmp_path / name, {}, sizes))
    other = json.loads((tmp_path / "other/tokenizer.json").read_text())
    other["model"]["merges"].pop()
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(other))
    anew: list[set[str]] = []

    def assemble_kept(config: TrainConfig, directory: RunDirectory, device: str | None) -> Pieces:
        anew.append(directory.made_anew)
        keep_model(config, directory.model)
        return assemble(dataclasses.replace(config, model=MODEL), directory, device)

    def run(name: str, *keys: str, **changes: Any) -> int:
        config = dataclasses.replace(runner.config(**changes), model=str(tmp_path / name))
        options = {"resume": True, "program": "diy train", "allowed": Allowed(keys)}
        return train_config(config, assemble_kept, FakeStore.verify, **options)

    assert run("first", stop_at=5) == 0
    checkpoint = runner.path / "checkpoints/00000005"
    position = json.loads((checkpoint / "extra.json").read_text())
    (checkpoint / "position.json").write_text(position_text(position))
    before = {path: path.read_bytes() for path in runner.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError) as caught:
        run("other", "model")
    words = str(caught.value)
    assert "the tokenizer in model/ (SHA-256): data.tokenizer: " in words
    assert words.endswith("add --allow-changes model,data.tokenizer")
    after = {path: path.read_bytes() for path in runner.path.rglob("*") if path.is_file()}
    assert after == before
    assert run("other", "model", "data.tokenizer", stop_at=8) == 0
    assert anew[-1] == {"model", "data"}


def test_a_seed_that_is_meant_to_change_goes_on(runner: Runner) -> None:
    runner(stop_at=5)
    assert going_on(runner, "seed", seed=3) == 0
    extra = json.loads((runner.path / "checkpoints/00000012/extra.json").read_text())
    assert extra["seed"] == 3
    assert going_on(runner, seed=3) == 0


def test_checkpoints_of_earlier_versions_go_on(runner: Runner) -> None:
    runner(stop_at=5)
    file = runner.path / "checkpoints/00000005/extra.json"
    extra = json.loads(file.read_text())
    del extra["made_with"]
    file.write_text(json.dumps(extra))
    assert going_on(runner) == 0
    assert changes_of(runner, 12) == []


def test_a_place_in_other_data_is_that_of_the_same_batch() -> None:
    old = {"next_index": 7, "data": "a", "seed": 0, "batch_size": 4}
    now = {"next_index": 0, "data": "b", "seed": 1, "batch_size": 8}
    assert place_in_data(old, now, Allowed()) == old
    assert place_in_data(old, now, Allowed(["data"])) == old | {"data": "b"}
    assert place_in_data(old, now, Allowed(["seed", "batch_size"])) == now | {
        "next_index": 7,
        "data": "a",
    }


def test_what_follows_from_an_option_is_made_anew() -> None:
    assert made_anew(["optimizer.beta1", "data.packing"]) == set()
    assert made_anew(["data.separator"]) == {"data"}
    assert made_anew(["data.tokenizer"]) == {"data", "model"}
    assert made_anew(["model.rms_norm_eps"]) == made_anew(["model"]) == {"model"}


def test_a_change_that_is_meant_stands_for_its_parts_alone() -> None:
    assert "model.rope_theta" in Allowed(["model"])
    assert "log_every" not in Allowed(["log"])
    assert "data.train" in Allowed(["data.field"])  # other tokens are what follows from it
    assert "data.packing" not in Allowed(["data.field"])


def test_a_tokenizer_that_is_gone_is_a_change_and_data_that_are_gone_are_said_elsewhere() -> None:
    old = {"config": {}, "model": {}} | dict.fromkeys(SUMS, "a")
    (change,) = changes_between(old, old | dict.fromkeys(SUMS))
    assert str(change).endswith("(SHA-256): data.tokenizer: 'a', now not given")


def test_a_key_that_no_config_has_is_refused() -> None:
    words = ["--config", "examples/tiny.yaml", "--allow-changes"]
    assert "optimizer.beta1" in parse("diy train", [*words, "seed,optimizer.beta1"])[4]
    assert "model.rms_norm_eps" in parse("diy train", [*words, "model"])[4]
    with pytest.raises(ValueError, match=r"'optimizer\.lr' is not known: did you mean") as caught:
        parse("diy train", [*words, "optimizer.lr"])
    assert "--allow-changes" in str(caught.value)
    with pytest.raises(ValueError, match="'run_dir' is not known"):  # may differ anyway
        parse("diy train", [*words, "run_dir"])


@pytest.mark.parametrize(
    "made_with",
    [
        3,
        [],
        {},
        {"config": {}, "model": None, "changes": []},
        {"config": {}, "model": {}},
        {"config": {}, "model": {}, "changes": [], "data": 5},
    ],
)
def test_a_seal_of_another_form_is_refused(made_with: Any) -> None:
    values = Position(seed=0).to_json() | {"made_with": made_with}
    with pytest.raises(CheckpointError, match="here: does not say what it was made with"):
        Position.from_json(values, "here")


def test_a_model_of_another_config_is_refused_where_it_is_read(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints/00000010"
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"rms_norm_eps": 0.1}')
    require_same_model(checkpoint, None)
    require_same_model(checkpoint, {"model": {"rms_norm_eps": 0.1}})
    with pytest.raises(CheckpointError) as caught:
        require_same_model(checkpoint, {"model": {"rms_norm_eps": 1e-6}})
    assert str(caught.value) == (
        f"{tmp_path}/model/config.json: rms_norm_eps is 0.1, and was 1e-06 when checkpoint 10 was "
        "made: put that back"
    )


def test_the_newest_checkpoint_that_can_be_read_says_what_it_was_made_with(tmp_path: Path) -> None:
    seals = {
        step: {"config": {"step": step}, "model": {}, "changes": []} | dict.fromkeys(SUMS)
        for step in (5, 9, 12)
    }
    for step, seal in seals.items():
        (tmp_path / f"{step:08d}").mkdir()
        position = Position(seed=0, made_with=None if step == 5 else seal)
        text = json.dumps(position.to_json(), sort_keys=True)
        sealed = {"position": json.loads(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        (tmp_path / f"{step:08d}/position.json").write_text(json.dumps(sealed))
    assert newest_seal(tmp_path, [5, 9, 12]) == (tmp_path / "00000012", seals[12])
    (tmp_path / "00000012/position.json").write_text("{}")
    assert newest_seal(tmp_path, [5, 9, 12]) == (tmp_path / "00000009", seals[9])
    assert newest_seal(tmp_path, [5, 12]) is None


SUMS = ("tokenizer", "data", "validation")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"train": "builtin:pydoc"}, [None, "data", None]),
        ({"train": "builtin:pydoc", "validation": 0.1}, [None, "data", "data/validation"]),
        ({"train": "x.txt", "validation": "y.txt"}, [None, "data", "validation"]),
        ({"train": "before"}, [None, "before", None]),
        ({"train": "before", "validation": True}, [None, "before", "before/validation"]),
        ({"train": "x.txt", "validation": "before"}, [None, "data", "before"]),
        ({"train": "before", "validation": "empty"}, [None, "before", "validation"]),
    ],
)
def test_the_tokens_that_a_run_takes_are_those_that_are_sealed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: dict[str, Any],
    found: list[str | None],
) -> None:
    """Those that it keeps, and of what was prepared before those that lie there."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    sums = {}
    for name in ("run/data", "run/data/validation", "run/validation", "before/validation", "empty"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("run/data", "run/data/validation", "run/validation", "before/validation"):
        (tmp_path / name / "data.json").write_text(json.dumps(name))
        sums[name.removeprefix("run/")] = hashlib.sha256(json.dumps(name).encode()).hexdigest()
    (tmp_path / "before/data.json").write_text("{}")
    sums["before"] = hashlib.sha256(b"{}").hexdigest()
    (run / "model").mkdir()
    (run / "model/config.json").write_text('{"hidden_size": 8}')
    seal = seal_of(run, {"seed": 3, "run_dir": "run", "data": data})
    assert [seal[name] for name in SUMS] == [name and sums[name] for name in found]
    assert seal["config"] == {"seed": 3, "data": data}
    assert seal["model"] == {"hidden_size": 8}
