"""What one optimizer step has to do: passes, packing, remat, skipping, precision.

The same for both twins, each of which gives its own `training`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from diy_core.config import DIYConfig
from diy_core.training.config import TrainConfig
from tests.oracles import CONFIGS as TWO_LAYERS
from tests.oracles import Array, NumpyModel, random_weights
from tests.training_oracles import IGNORED, random_batch, token_losses, train_config

# One layer, which XLA compiles in half the time; where the depth matters, two.
CONFIGS = {name: dataclasses.replace(c, num_hidden_layers=1) for name, c in TWO_LAYERS.items()}
DROPPING = dataclasses.replace(CONFIGS["untied"], attention_dropout=0.2, residual_dropout=0.1)
UNCLIPPED = {"clip_norm": 0.0}


class StepTests:
    """To be inherited from."""

    def training(
        self, model: DIYConfig, config: TrainConfig, weights: Any = None, watch: Any = ()
    ) -> Any:
        """A model of these weights (None: `random_weights`), its optimizer and its step.

        It has `run(batch, number, seed)`, with learning rate 1e-2; `parameters()` and
        `moments("mean" or "square")` by Hugging Face name, in its layout; and
        `set_first_norm(value)`, which writes to the first element of `model.norm.weight`.
        """
        raise NotImplementedError

    @pytest.mark.parametrize("name", ["gqa", "untied"])
    def test_the_loss_is_the_mean_over_the_counted_tokens_of_each_document_alone(
        self, name: str
    ) -> None:
        weights, batch = random_weights(TWO_LAYERS[name]), random_batch(23, passes=2)
        result = self.training(
            TWO_LAYERS[name], train_config(accumulation_steps=2, loss={"z_loss": 0.1})
        ).run(batch)
        model, losses = NumpyModel(TWO_LAYERS[name], weights), []
        ids, labels, segments = (array.reshape(4, 12) for array in batch.values())
        for row in range(4):
            for document in (1, 2):
                own = segments[row] == document
                losses += [*token_losses(model.logits(ids[row][own]), labels[row][own], 0.1)]
        counted = int((labels != IGNORED).sum())
        assert int(result.tokens) == counted
        assert float(result.loss) == pytest.approx(sum(losses) / counted, rel=1e-13)
        assert not result.skipped

    @pytest.mark.parametrize("name", ["gqa", "untied", "biases"])
    def test_the_gradient_is_that_of_finite_differences(self, name: str) -> None:
        config = train_config(optimizer=UNCLIPPED, accumulation_steps=2, loss={"z_loss": 0.1})
        weights, batch = random_weights(CONFIGS[name]), random_batch(23, passes=2)
        found = _gradients(self.training(CONFIGS[name], config), batch)
        for seed in range(3):
            generator, size = np.random.default_rng(seed), 1e-6
            direction = {n: generator.standard_normal(a.shape) for n, a in weights.items()}
            losses = [
                float(
                    self.training(
                        CONFIGS[name], config, {n: weights[n] + s * direction[n] for n in weights}
                    )
                    .run(batch)
                    .loss
                )
                for s in (size, -size)
            ]
            slope = sum(float((found[n] * direction[n]).sum()) for n in weights)
            assert (losses[0] - losses[1]) / (2 * size) == pytest.approx(slope, rel=1e-6)

    def test_the_norm_is_that_of_the_gradient_before_it_is_clipped(self) -> None:
        batch = random_batch(23)
        found = _gradients(self.training(CONFIGS["gqa"], train_config(optimizer=UNCLIPPED)), batch)
        norm = float(np.sqrt(sum((g**2).sum() for g in found.values())))
        training = self.training(CONFIGS["gqa"], train_config(optimizer={"clip_norm": 0.01}))
        assert norm > 0.1
        assert float(training.run(batch).grad_norm) == pytest.approx(norm, rel=1e-13)
        clipped = {name: mean / (1 - 0.9) for name, mean in training.moments("mean").items()}
        for name, gradient in found.items():
            expected = gradient * 0.01 / (norm + 1e-6)
            np.testing.assert_allclose(clipped[name], expected, rtol=1e-12, atol=1e-15)

    def test_a_gradient_whose_squares_overflow_is_clipped(self) -> None:
        config = train_config(dtype="float32", optimizer={"clip_norm": 1.0}, loss={"z_loss": 1e22})
        training = self.training(CONFIGS["gqa"], config)
        result = training.run(random_batch(23))
        assert 1e20 < float(result.grad_norm) < 1e30
        assert not bool(result.skipped)
        clipped = [
            mean.astype(np.float64) / (1 - 0.9) for mean in training.moments("mean").values()
        ]
        assert np.sqrt(sum((g**2).sum() for g in clipped)) == pytest.approx(1, rel=1e-5)

    def test_a_gradient_that_the_second_moment_cannot_hold_is_skipped(self) -> None:
        config = train_config(dtype="float32", optimizer=UNCLIPPED, loss={"z_loss": 1e22})
        training = self.training(CONFIGS["gqa"], config)
        before = training.parameters()
        result = training.run(random_batch(23))
        assert bool(result.skipped)
        assert 1e20 < float(result.grad_norm) < 1e30
        _same(before, training.parameters(), 0.0)

    def test_what_is_watched_is_what_the_step_went_through(self) -> None:
        config = train_config(accumulation_steps=2, optimizer={"clip_norm": 0.01})
        batch, watch = random_batch(23, passes=2), ("token_losses", "gradients", "clipped")
        training = self.training(CONFIGS["gqa"], config, watch=watch)
        result = training.run(batch)
        assert result.watched.keys() == set(watch)
        losses = np.asarray(result.watched["token_losses"])
        assert losses.shape == (2, 2, 12)
        assert not losses[batch["labels"] == IGNORED].any()
        assert losses.sum() / int(result.tokens) == pytest.approx(float(result.loss), rel=1e-13)
        norms = [
            np.sqrt(sum((g**2).sum() for g in training.by_name(result.watched[name]).values()))
            for name in ("gradients", "clipped")
        ]
        assert norms == pytest.approx([float(result.grad_norm), 0.01], rel=1e-3)
        clipped, means = training.by_name(result.watched["clipped"]), training.moments("mean")
        _same({name: 0.1 * gradient for name, gradient in clipped.items()}, means, 1e-15)

    def test_nothing_is_watched_unless_it_is_asked_for(self) -> None:
        assert not self.training(CONFIGS["gqa"], train_config()).run(random_batch(23)).watched
        with pytest.raises(ValueError, match=r"some of token_losses, gradients, .* got 'logits'"):
            self.training(CONFIGS["gqa"], train_config(), watch=("logits",))

    @pytest.mark.parametrize("passes", [2, 4])
    def test_passes_are_one_large_batch(self, passes: int) -> None:
        """Though they count other numbers of tokens."""
        one = self.training(CONFIGS["untied"], train_config())
        other = self.training(CONFIGS["untied"], train_config(accumulation_steps=passes))
        for number in range(3):
            results = [
                training.run(random_batch(23, number, count), number)
                for training, count in ((one, 1), (other, passes))
            ]
            assert float(results[0].loss) == pytest.approx(float(results[1].loss), rel=1e-13)
        _same(one.parameters(), other.parameters(), 1e-13)

    def test_packed_documents_are_rows_of_their_own(self) -> None:
        packed, ids = random_batch(23), np.zeros((1, 8, 12), np.int32)
        labels, segments = np.full_like(ids, IGNORED), np.zeros_like(ids)
        for index in range(8):
            own = packed["segment_ids"][0, index // 2] == index % 2 + 1
            size = int(own.sum())
            ids[0, index, :size] = packed["input_ids"][0, index // 2][own]
            labels[0, index, :size] = packed["labels"][0, index // 2][own]
            segments[0, index, :size] = 1
        one, other = (self.training(CONFIGS["gqa"], train_config()) for _ in range(2))
        found = (
            one.run(packed),
            other.run({"input_ids": ids, "labels": labels, "segment_ids": segments}),
        )
        assert float(found[0].loss) == pytest.approx(float(found[1].loss), rel=1e-13)
        _same(one.parameters(), other.parameters(), 1e-13)

    def test_computing_again_changes_nothing(self) -> None:
        """Dropout included: the same keys draw the same numbers."""
        one, other = (self.training(DROPPING, train_config(remat=remat)) for remat in (False, True))
        for number in range(2):
            one.run(random_batch(23, number), number)
            other.run(random_batch(23, number), number)
        _same(one.parameters(), other.parameters(), 1e-14)

    def test_dropout_is_drawn_anew_for_each_seed_step_and_pass(self) -> None:
        batch = random_batch(23, passes=2)
        twice = {name: array[[0, 0]] for name, array in batch.items()}
        config = train_config(accumulation_steps=2)
        losses = [
            float(self.training(DROPPING, config).run(given, number, seed).loss)
            for given, number, seed in (
                (batch, 0, 3),
                (batch, 0, 3),
                (batch, 1, 3),
                (batch, 0, 4),
                (twice, 0, 3),
            )
        ]
        assert losses[0] == losses[1]
        assert len(set(losses)) == 4
        first = {name: array[:1] for name, array in batch.items()}
        alone = self.training(DROPPING, train_config()).run(first)
        assert float(alone.loss) != pytest.approx(losses[4], rel=1e-6)

    def test_a_step_that_is_not_finite_changes_nothing_and_says_so(self) -> None:
        one, other = (self.training(CONFIGS["gqa"], train_config()) for _ in range(2))
        for training in (one, other):
            training.run(random_batch(23, 0))
        value = float(one.parameters()["model.norm.weight"][0])
        one.set_first_norm(np.inf)
        before = one.parameters(), one.moments("mean"), one.moments("square")
        result = one.run(random_batch(23, 1))
        assert bool(result.skipped)
        assert not np.isfinite(float(result.loss))
        after = one.parameters(), one.moments("mean"), one.moments("square")
        for was, now in zip(before, after, strict=True):
            for name in was:
                np.testing.assert_array_equal(was[name], now[name])
        one.set_first_norm(value)
        for training in (one, other):
            assert not bool(training.run(random_batch(23, 2)).skipped)
        _same(one.parameters(), other.parameters(), 0.0)  # the count of steps was kept too

    def test_a_step_without_a_counted_token_is_skipped(self) -> None:
        training = self.training(CONFIGS["gqa"], train_config())
        before, batch = training.parameters(), random_batch(23)
        result = training.run(batch | {"labels": np.full_like(batch["labels"], IGNORED)})
        assert bool(result.skipped)
        assert int(result.tokens) == 0
        _same(before, training.parameters(), 0.0)

    def test_a_pass_without_a_counted_token_is_not(self) -> None:
        batch = random_batch(23, passes=2)
        batch["labels"][1] = IGNORED
        one = self.training(CONFIGS["gqa"], train_config(accumulation_steps=2))
        other = self.training(CONFIGS["gqa"], train_config())
        assert not bool(one.run(batch).skipped)
        other.run({name: array[:1] for name, array in batch.items()})
        _same(one.parameters(), other.parameters(), 1e-13)

    def test_bfloat16_computes_on_float32(self) -> None:
        batch = random_batch(23)
        wide = _gradients(
            self.training(CONFIGS["untied"], train_config(optimizer=UNCLIPPED)), batch
        )
        training = self.training(
            CONFIGS["untied"], train_config(dtype="bfloat16", optimizer=UNCLIPPED, remat=True)
        )
        found = _gradients(training, batch)
        for arrays in (training.parameters(), found, training.moments("square")):
            assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
        error = sum(((found[n] - wide[n]) ** 2).sum() for n in wide) / sum(
            (wide[n] ** 2).sum() for n in wide
        )
        assert 1e-4 < np.sqrt(error) < 3e-2  # not 0: that would not be bfloat16

    def test_the_gradient_of_a_frequent_token_is_not_summed_in_bfloat16(self) -> None:
        """1000 documents begin alike: equal terms, of which bfloat16 would sum up 256."""
        ids = np.tile(np.array([5, 7], np.int32), (1, 500, 2))
        labels = np.where(ids == 5, 7, IGNORED)
        segments = np.tile(np.array([1, 1, 2, 2], np.int32), (1, 500, 1))
        batch = {"input_ids": ids, "labels": labels, "segment_ids": segments}
        short = {name: array[:, :1] for name, array in batch.items()}
        config = train_config(dtype="bfloat16", optimizer=UNCLIPPED)
        name = "model.embed_tokens.weight"
        one = _gradients(self.training(CONFIGS["untied"], config), short)[name][5]
        many = _gradients(self.training(CONFIGS["untied"], config), batch)[name][5]
        np.testing.assert_allclose(many, one, rtol=2e-2, atol=1e-2 * abs(one).max())

    def test_other_batches_are_refused(self) -> None:
        training = self.training(CONFIGS["gqa"], train_config(accumulation_steps=2))
        with pytest.raises(
            ValueError, match=r"one shape \(2, rows, sequence\), got .*\(1, 4, 12\)"
        ):
            training.run(random_batch(23))
        for name, value, words in (
            ("input_ids", 23, "input_ids must"),
            ("labels", -1, "labels must"),
        ):
            batch = random_batch(23, passes=2)
            batch[name][1, 0, 0] = value
            with pytest.raises(ValueError, match=words):
                training.run(batch)


def _gradients(training: Any, batch: Any) -> dict[str, Array]:
    """The first moment after one unclipped step is a tenth of the gradient."""
    training.run(batch)
    return {name: mean / (1 - 0.9) for name, mean in training.moments("mean").items()}


def _same(one: dict[str, Array], other: dict[str, Array], bound: float) -> None:
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=bound)
