"""What the checkpoints of a training run must do, whichever twin's they are."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.training_run import checkpoint_path
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.system import workplaces
from diy_core.training.checkpoints.store import CheckpointStore
from diy_core.training.state import Position, state_shapes

CONFIG = DIYConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
EXTRA = Position(seed=1, step=7, tokens=90, skipped_steps=2, data={"next_index": 7}).to_json()


class FakeTrainer:
    """A state that changes at once."""

    def __init__(
        self, config: DIYConfig = CONFIG, dtype: str = "float32", seed: int | None = 0
    ) -> None:
        self.model_config, self.master = config, np.dtype(dtype)
        self.updates: int | None = None
        rng = np.random.default_rng(seed)
        self.arrays: dict[str, NDArray[Any]] = {
            name: rng.standard_normal(shape).astype(dtype) if seed is not None else np.zeros(shape)
            for name, shape in state_shapes(config).items()
        }

    def snapshot(self) -> dict[str, NDArray[Any]]:
        return {name: array.copy() for name, array in self.arrays.items()}

    def assign(self, arrays: Iterable[tuple[str, NDArray[Any]]], updates: int) -> None:
        self.arrays, self.updates = dict(arrays), updates


class StoreTests:
    """A test class of a twin inherits these."""

    store: type[CheckpointStore]
    most_beside_arrays = 100_000  # bytes of a small checkpoint

    def make(self, folder: Path, **changes: Any) -> tuple[FakeTrainer, CheckpointStore]:
        trainer = FakeTrainer(**changes)
        return trainer, self.store(trainer, folder)

    def saved(self, folder: Path) -> dict[str, NDArray[Any]]:
        """A checkpoint of step 7 in the folder; its arrays."""
        trainer, store = self.make(folder)
        store.save(7, EXTRA)
        store.wait()
        return trainer.arrays

    def is_refused(
        self, store: CheckpointStore, trainer: FakeTrainer, wanted: dict[str, NDArray[Any]]
    ) -> bool:
        """Whether step 7 cannot be restored; where it can, it is what was saved."""
        try:
            assert store.restore(7) == EXTRA
        except CheckpointError:
            return True
        assert all(trainer.arrays[name].tobytes() == wanted[name].tobytes() for name in wanted)
        return False

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_what_was_saved_comes_back_to_the_bit(self, tmp_path: Path, dtype: str) -> None:
        trainer, store = self.make(tmp_path, dtype=dtype)
        wanted = trainer.snapshot()
        store.save(7, EXTRA)
        for array in trainer.arrays.values():
            array += 1  # what training does meanwhile
        store.wait()
        other, again = self.make(tmp_path, dtype=dtype, seed=None)
        assert again.steps() == [7]
        assert again.restore(7) == EXTRA
        assert other.updates == 5
        assert {n: (a.dtype, a.tobytes()) for n, a in other.arrays.items()} == {
            n: (a.dtype, a.tobytes()) for n, a in wanted.items()
        }
        size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        beside = size - store.nbytes()
        assert 0 <= beside <= self.most_beside_arrays, f"{beside} bytes beside the arrays"

    def test_a_relative_folder_will_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("here").mkdir()
        wanted = self.saved(Path("here"))
        other, store = self.make(Path("here"), seed=None)
        store.restore(7)
        assert all(other.arrays[name].tobytes() == wanted[name].tobytes() for name in wanted)

    def test_a_checkpoint_of_the_same_step_is_replaced(self, tmp_path: Path) -> None:
        self.saved(tmp_path)
        trainer, store = self.make(tmp_path, seed=1)
        store.save(7, EXTRA)
        store.wait()
        other, again = self.make(tmp_path, seed=None)
        again.restore(7)
        name = "mean/model.norm.weight"
        assert other.arrays[name].tobytes() == trainer.arrays[name].tobytes()
        assert [item.name for item in tmp_path.iterdir()] == ["00000007"]

    def test_every_damaged_byte_of_the_arrays_is_noticed(self, tmp_path: Path) -> None:
        """One bit of each file is turned in turn; what is read then is right, or refused."""
        wanted = self.saved(tmp_path)
        path, rng, refused = checkpoint_path(tmp_path, 7), np.random.default_rng(0), 0
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
        for file in files:
            content = file.read_bytes()
            for _ in range(4):
                damaged = bytearray(content)
                damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
                file.write_bytes(damaged)
                trainer, store = self.make(tmp_path, seed=None)
                refused += self.is_refused(store, trainer, wanted)
            file.write_bytes(content)
        assert refused > 4

    def test_every_missing_file_is_noticed(self, tmp_path: Path) -> None:
        wanted, refused = self.saved(tmp_path), 0
        path = checkpoint_path(tmp_path, 7)
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            aside = file.rename(tmp_path / "aside")
            trainer, store = self.make(tmp_path, seed=None)
            refused += self.is_refused(store, trainer, wanted)
            aside.rename(file)
        assert refused >= 3

    def test_an_array_that_the_manifest_does_not_list_is_refused_by_name(
        self, tmp_path: Path
    ) -> None:
        self.saved(tmp_path)
        trainer, store = self.make(tmp_path)
        layout = {name: Stored(a.shape, a.dtype) for name, a in trainer.arrays.items()}
        more = {"model/model.layers.0.self_attn.q_proj.bias": np.ones(8, np.float32)}
        layout |= {name: Stored(array.shape, array.dtype) for name, array in more.items()}
        path = checkpoint_path(tmp_path, 7)
        (path / self.store.form).rename(tmp_path / "aside")
        self.store.write_arrays(path, layout, [trainer.arrays | more])
        before = trainer.snapshot()
        with pytest.raises(CheckpointError, match=f"unexpected tensor {next(iter(more))}, not in"):
            store.restore(7)
        assert all(trainer.arrays[name].tobytes() == before[name].tobytes() for name in before)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"config": dataclasses.replace(CONFIG, vocab_size=12)}, r"\(11, 8\), expected \(12,"),
            ({"config": dataclasses.replace(CONFIG, num_hidden_layers=3)}, "missing tensor mo"),
            ({"config": dataclasses.replace(CONFIG, tie_word_embeddings=True)}, "unexpected t"),
            ({"dtype": "float64"}, "holds float32, this run keeps its state in float64"),
        ],
    )
    def test_the_state_of_another_model_is_refused(
        self, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        self.saved(tmp_path)
        trainer, store = self.make(tmp_path, **changes)
        before = trainer.snapshot()
        with pytest.raises(CheckpointError, match=words):
            store.restore(7)
        assert all(trainer.arrays[name].tobytes() == before[name].tobytes() for name in before)

    def test_a_position_that_is_none_is_refused(self, tmp_path: Path) -> None:
        _, store = self.make(tmp_path)
        store.save(7, {"step": 7})
        store.wait()
        with pytest.raises(CheckpointError, match="holds no position of a run"):
            store.restore(7)

    def test_values_that_are_not_finite_are_not_saved(self, tmp_path: Path) -> None:
        trainer, store = self.make(tmp_path)
        trainer.arrays["square/model.norm.weight"][3] = np.inf
        store.save(7, EXTRA)
        with pytest.raises(CheckpointError, match=r"square/model\.norm\.weight has 1 value"):
            store.wait()
        assert not store.steps()

    def test_an_error_of_the_disk_shows_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.saved(tmp_path)
        _, store = self.make(tmp_path, seed=1)

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("os.fsync", full)
        store.save(9, EXTRA)
        with pytest.raises(OSError, match="No space left") as caught:
            store.wait()
        monkeypatch.undo()
        assert caught.value.errno == errno.ENOSPC
        assert [item.name for item in tmp_path.iterdir()] == ["00000007"]
        store.save(9, EXTRA)
        store.wait()
        assert store.steps() == [7, 9]

    def test_what_somebody_put_into_a_checkpoint_is_not_deleted_with_it(
        self, tmp_path: Path
    ) -> None:
        self.saved(tmp_path)
        _, store = self.make(tmp_path)
        notes = checkpoint_path(tmp_path, 7) / "notes"
        notes.write_text("mine")
        with pytest.raises(CheckpointError, match="holds notes, which no run wrote"):
            store.delete(7)
        assert notes.read_text() == "mine"
        store.save(7, EXTRA)  # once more, as after going back
        store.wait()
        assert notes.read_text() == "mine"
        notes.unlink()
        store.delete(7)
        assert not list(tmp_path.iterdir())

    def test_deleting_takes_the_name_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.saved(tmp_path)
        _, store = self.make(tmp_path)
        seen = []

        def watched(path: Path) -> None:
            seen.append(store.steps())
            raise KeyboardInterrupt  # as if it were killed here

        with monkeypatch.context() as patched:
            patched.setattr(workplaces, "remove_tree", watched)
            with pytest.raises(KeyboardInterrupt):
                store.delete(7)
        assert seen == [[]]
        assert list(tmp_path.iterdir())
        self.make(tmp_path)  # the next start removes what is left
        assert not list(tmp_path.iterdir())
