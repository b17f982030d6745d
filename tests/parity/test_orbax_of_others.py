"""Orbax checkpoints as other programs write them, by the real Orbax, v0 and v1."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as v0
import pytest
from flax import nnx
from flax.training.checkpoints import save_checkpoint
from flax.training.train_state import TrainState
from orbax.checkpoint import v1

import diy_jax
import diy_torch
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.errors import CheckpointError
from diy_core.mapping import tensors, unflatten
from diy_core.notes import CheckpointNote
from diy_jax.orbax_store import OrbaxReader
from parity.convert.formats import convert
from tests.tiny_checkpoints import CONFIG, put, put_tokenizer, same, weights

Tree = dict[str, Any]
Save = Callable[[Path, Any], None]


def params(seed: int = 0) -> Tree:
    arrays = weights(seed=seed)
    return unflatten({t.flax: jnp.asarray(t.to_flax(arrays[t.hf])) for t in tensors(CONFIG)})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    directory = put(tmp_path / "hf", weights())
    put_tokenizer(directory)
    return directory


def by_manager(path: Path, tree: Any, *steps: int, **options: Any) -> None:
    with v0.CheckpointManager(path, options=v0.CheckpointManagerOptions(**options)) as manager:
        for step in steps:
            manager.save(step, args=v0.args.StandardSave(tree))


def by_standard(path: Path, tree: Any) -> None:
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def by_training(path: Path, tree: Any) -> None:
    with v1.training.Checkpointer(path) as checkpointer:
        checkpointer.save(3, tree)


def by_items(path: Path, tree: Any) -> None:
    with v0.CheckpointManager(path) as manager:
        arguments = v0.args.Composite(
            params=v0.args.StandardSave(tree["params"]), counters=v0.args.StandardSave(tree["n"])
        )
        manager.save(5, args=arguments)


SAVES: dict[str, Save] = {
    "v0 StandardCheckpointer": by_standard,
    "v0 PyTreeCheckpointer": lambda path, tree: v0.PyTreeCheckpointer().save(path, tree),
    "v0 without OCDBT": lambda path, tree: v0.PyTreeCheckpointer(use_ocdbt=False).save(path, tree),
    "v0 with zarr 3": lambda path, tree: v0.PyTreeCheckpointer(use_zarr3=True).save(path, tree),
    "flax": lambda path, tree: save_checkpoint(path, tree, 3),
    "v0 CheckpointManager": lambda path, tree: by_manager(path, tree, 100),
    "v0 named steps": lambda path, tree: by_manager(
        path, tree, 7, step_prefix="ckpt", step_format_fixed_length=8
    ),
    "v1 save": lambda path, tree: v1.save(path, tree),
    "v1 training": by_training,
}


@pytest.mark.parametrize("name", SAVES)
def test_what_orbax_writes_is_read_with_a_config(tmp_path: Path, config: Path, name: str) -> None:
    SAVES[name](tmp_path / "o", {"params": params()})
    reader = OrbaxReader(tmp_path / "o", config=config)
    assert same(dict(reader.read_all()), weights())
    assert reader.config == HFReader(config).config
    assert reader.notes == []
    (tmp_path / "side").mkdir()
    reader.copy_side_files(tmp_path / "side")
    assert (tmp_path / "side" / "tokenizer.json").is_file()


STATE = TrainState.create(apply_fn=print, params=params(), tx=optax.adamw(1e-3))
TREES: dict[str, tuple[Any, str | None]] = {
    "bare": (params(), None),
    "params": ({"params": params()}, None),
    "twice": ({"params": {"params": params()}}, None),
    "a TrainState": (STATE, "only params was read, and opt_state, step left out"),
    "a TrainState of variables": (
        TrainState.create(apply_fn=print, params={"params": params()}, tx=optax.sgd(1e-3, 0.9)),
        "only params/params was read, and opt_state, step left out",
    ),
    "an average beside": (
        {"params": params(), "ema_params": params(1), "step": jnp.zeros((), jnp.int32)},
        "only params was read, and ema_params, step left out",
    ),
    "variables with statistics": (
        {
            "params": {"params": params(), "batch_stats": {"mean": jnp.ones(3)}},
            "step": jnp.ones(()),
        },
        "only params/params was read, and params/batch_stats, step left out",
    ),
    "an nnx.State": (nnx.State(jax.tree.map(nnx.Param, params())), None),
}


@pytest.mark.parametrize("name", TREES)
def test_the_parameters_are_found_in_the_tree(tmp_path: Path, config: Path, name: str) -> None:
    tree, note = TREES[name]
    by_standard(tmp_path / "o", tree)
    reader = OrbaxReader(tmp_path / "o", config=config)
    assert same(dict(reader.read_all()), weights())
    assert reader.notes == ([] if note is None else [note])


def test_the_newest_step_is_read_and_another_can_be_named(tmp_path: Path, config: Path) -> None:
    path = tmp_path / "steps"
    with v0.CheckpointManager(path) as manager:
        for step in (9, 10, 100):
            manager.save(step, args=v0.args.StandardSave(params(seed=step)))
    shutil.copytree(path / "9", path / "200.orbax-checkpoint-tmp-999")  # of a killed save
    reader = OrbaxReader(path, config=config)
    assert same(dict(reader.read_all()), weights(seed=100))
    (note,) = reader.notes
    assert note.startswith("step 100 was read, the newest of 3: give ")
    assert reader.files == [path / "100" / "default"]
    for named in (path / "9", path / "9" / "default"):
        reader = OrbaxReader(named, config=config / "config.json")
        assert same(dict(reader.read_all()), weights(seed=9))
        assert reader.notes == []


def cut(folder: Path) -> None:
    """All that follows the first bytes of each file with values is lost."""
    for file in folder.glob("**/d/*"):
        file.write_bytes(file.read_bytes()[:10])


def without(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            without("manifest.ocdbt"),
            "has no manifest.ocdbt, without which Orbax cannot read it: it",
        ),
        (without("_METADATA"), "has no _METADATA, without which Orbax cannot read it: it was"),
        (cut, "Orbax cannot read it: "),
    ],
)
def test_a_newest_step_that_is_not_whole_names_an_older_one(
    tmp_path: Path, config: Path, damage: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "run"
    by_manager(path, params(), 1, 2, 3)
    damage(path / "3" / "default")
    (path / "2" / "default" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError) as refused:
        dict(OrbaxReader(path, config=config).read_all())
    (fault,) = refused.value.faults
    assert words in fault
    advice = f"The newest step before it that has its manifest is {path / '1'}: give that"
    assert fault.endswith(advice)
    assert same(dict(OrbaxReader(path / "1", config=config).read_all()), weights())
    with pytest.raises(CheckpointError) as alone:
        dict(OrbaxReader(path / "3", config=config).read_all())
    assert words in str(alone.value)
    assert "give that" not in str(alone.value)


def test_a_newer_step_that_was_not_finished_is_noted(tmp_path: Path, config: Path) -> None:
    path = tmp_path / "run"
    by_manager(path, params(), 1, 2)
    shutil.rmtree(path / "2" / "default")
    (path / "logs_9").mkdir()
    reader = OrbaxReader(path, config=config)
    assert same(dict(reader.read_all()), weights())
    assert reader.notes == [
        f"{path / '2'} was passed over: it is named like a newer step, but was never finished"
    ]


def test_a_git_lfs_pointer_among_the_files_is_named(tmp_path: Path, config: Path) -> None:
    by_standard(tmp_path / "o", params())
    file = max((tmp_path / "o").glob("**/d/*"))
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 98765\n")
    with pytest.raises(CheckpointError, match=f"{file}: is a Git LFS pointer to a file of 98,765"):
        OrbaxReader(tmp_path / "o", config=config)


def test_what_is_missing_beside_the_arrays_can_be_named_in_python(tmp_path: Path) -> None:
    by_standard(tmp_path / "o", params())
    with pytest.raises(CheckpointError, match=r"and so does config='DIR' in from_pretrained of"):
        diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "o")


def test_where_finished_steps_are_marked_the_others_are_not_read(
    tmp_path: Path, config: Path
) -> None:
    by_manager(tmp_path / "run", params(), 1)
    by_manager(tmp_path / "run", params(seed=1), 2)
    for step in "12":
        (tmp_path / "run" / step / "commit_success.txt").touch()
    (tmp_path / "run" / "2" / "commit_success.txt").unlink()  # as one that is still being uploaded
    reader = OrbaxReader(tmp_path / "run", config=config)
    assert same(dict(reader.read_all()), weights())
    (tmp_path / "run" / "1" / "commit_success.txt").unlink()
    reader = OrbaxReader(tmp_path / "run", config=config)
    assert same(dict(reader.read_all()), weights(seed=1))


def test_of_several_items_the_parameters_are_read(tmp_path: Path, config: Path) -> None:
    by_items(tmp_path / "o", {"params": params(), "n": {"seen": jnp.zeros(())}})
    reader = OrbaxReader(tmp_path / "o", config=config)
    assert same(dict(reader.read_all()), weights())
    assert reader.notes == ["params was read, and counters left out"]
    (tmp_path / "o" / "5" / "params").rename(tmp_path / "o" / "5" / "weights")
    with pytest.raises(CheckpointError, match="holds several trees, counters, weights: give the"):
        OrbaxReader(tmp_path / "o", config=config)


@pytest.mark.parametrize("place", [".", "100"])
def test_a_config_beside_the_steps_is_taken(tmp_path: Path, config: Path, place: str) -> None:
    by_manager(tmp_path / "o", params(), 100)
    shutil.copy(config / "config.json", tmp_path / "o" / place / "config.json")
    for given in (tmp_path / "o", tmp_path / "o" / "100"):
        assert same(dict(OrbaxReader(given).read_all()), weights())


def test_a_relative_path_is_named_as_it_was_given(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_manager(tmp_path / "o", params(), 1, 2)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"^o: is an Orbax .*`parity convert o DST --config"):
        OrbaxReader("o")
    (note,) = OrbaxReader("o", config="hf").notes
    assert note.startswith("step 2 was read, the newest of 2: give o/1, or another")
    monkeypatch.chdir(tmp_path / "o" / "2" / "default")
    assert same(dict(OrbaxReader(".", config="../../../hf").read_all()), weights())


# What is refused.


def test_without_a_config_the_error_asks_for_one(tmp_path: Path, config: Path) -> None:
    by_standard(tmp_path / "o", params())
    command = r"`parity convert .*/o DST --config DIR` takes that of DIR"
    with pytest.raises(CheckpointError, match=f"without a config.json, .*{command}"):
        OrbaxReader(tmp_path / "o")
    with pytest.raises(CheckpointError, match=r"is neither a config\.json nor a directory"):
        OrbaxReader(tmp_path / "o", config=tmp_path)
    with pytest.raises(CheckpointError, match=r"without a config.json"):
        diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "o")


def stacked() -> Tree:
    """As nn.scan over layers leaves them: one array for all, the layer first."""
    tree = params()
    layers = [tree["model"].pop(f"layers_{i}") for i in range(CONFIG.num_hidden_layers)]
    tree["model"]["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return tree


def renamed() -> Tree:
    return {"transformer": {"wte": {"embedding": jnp.ones((4, 3))}}}


def numbered() -> Tree:
    tree = params()
    layers = {str(i): tree["model"].pop(f"layers_{i}") for i in range(CONFIG.num_hidden_layers)}
    tree["model"]["layers"] = layers
    return tree


FAULTS: dict[str, tuple[Callable[[], Tree], str]] = {
    "stacked layers": (
        stacked,
        r"all layers stacked in one array, as nn\.scan leaves them \(model",
    ),
    "layers under another name": (numbered, r"missing tensor model/layers_0/attention"),
    "other names": (renamed, r"holds transformer/wte/embedding, \.\.\., and not the parameters of"),
    "two sets": (
        lambda: {"a": params(), "b": params()},
        "holds several sets of parameters, a, b: save one alone",
    ),
    "another model": (
        lambda: {"params": {**params(), "lm_head": {"kernel": jnp.ones((16, 23))}}},
        r"unexpected tensor lm_head/kernel \(16, 23\)",
    ),
    "integers": (
        lambda: jax.tree.map(lambda leaf: leaf.astype(jnp.int32), params()),
        "is int32, and weights are floats",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_other_trees_are_refused_by_name(tmp_path: Path, config: Path, name: str) -> None:
    build, words = FAULTS[name]
    by_standard(tmp_path / "o", build())
    with pytest.raises(CheckpointError, match=words):
        OrbaxReader(tmp_path / "o", config=config)


def test_the_twin_reads_what_has_a_config(tmp_path: Path, config: Path) -> None:
    by_manager(tmp_path / "o", STATE, 1, 2)
    shutil.copy(config / "config.json", tmp_path / "o" / "config.json")
    with pytest.warns(CheckpointNote) as notes:
        model, found = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "o", None)
    assert dataclasses.replace(model.config, extra={}) == CONFIG
    assert len(notes) == 2
    wanted, treedef = jax.tree.flatten(params())
    assert jax.tree.structure(found) == treedef
    assert all(map(np.array_equal, jax.tree.leaves(found), wanted))


def test_the_lines_of_the_docs_read_what_is_written(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(config, tmp_path / "o")
    docs = (Path(__file__).parents[2] / "docs" / "convert.md").read_text()
    block = next(b for b in docs.split("```")[1::2] if "v1.load" in b)
    lines = block.removeprefix("python\n").replace('"DIR"', '"o"')
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(lines, found)
    leaves = jax.tree.leaves(found["params"])
    assert all(map(np.array_equal, leaves, jax.tree.leaves(params())))
    assert len(leaves) == len(tensors(CONFIG))


@pytest.mark.parametrize("name", ["v0 StandardCheckpointer", "v0 CheckpointManager", "v1 save"])
def test_the_jax_twin_reads_what_orbax_wrote_and_the_other_has_the_command(
    tmp_path: Path, config: Path, name: str
) -> None:
    path = tmp_path / "o"
    SAVES[name](path, {"params": params()})
    for place in (config, config / "config.json", str(config)):
        model, read = diy_jax.DIYForCausalLM.from_pretrained(path, config=place)
        assert model.config == HFReader(config).config
        assert jax.tree.all(jax.tree.map(np.array_equal, read, params()))
    with pytest.raises(CheckpointError, match=r"without a config\.json"):
        diy_jax.DIYForCausalLM.from_pretrained(path)
    with pytest.raises(CheckpointError) as refused:
        diy_torch.DIYForCausalLM.from_pretrained(path, config=config)
    command = f"parity convert {path} DIR --to hf --config {config}"
    assert f"which is not read here: `{command}` makes" in str(refused.value)
