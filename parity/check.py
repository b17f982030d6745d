"""`parity check`: eleven kinds of proof that the two twins are one function.

float64 is for the logic: relative L2 per tensor, position or parameter against the bounds below.
float32 and bfloat16 are for the rounding: each twin's error against the float64 truth, pooled,
neither more than twice the other's, beyond what already lies between the two libraries.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.mapping import flatten, tensors
from diy_core.notes import notes_refused
from diy_core.system.sources import unchanged_sources
from parity import cache_gradients, lines
from parity.adamw import run_optimizers
from parity.check_kinds import DTYPES, KINDS, require_supported
from parity.compare import Check
from parity.control import allowance
from parity.decoding import Decoding, cached_logits, greedy
from parity.environment import Device, exact
from parity.long_context import Far, far_logits
from parity.metrics import NothingProven
from parity.packing import Packed, packed_logits
from parity.pair import Batch, Observation, Pair, release_memory
from parity.plan import (
    Plan,
    left_out,
    make_batch,
    plan_for,
    random_batch,
)
from parity.series import (
    BACKWARD_POSITIONS,
    DECODE_POSITIONS,
    FORWARD_POSITIONS,
    Curve,
    layer_curves,
    loss_curves,
    position_curve,
)
from parity.training import Run, token_batches, train_flax, train_torch

__all__ = [
    "DTYPES",
    "KINDS",
    "Plan",
    "Result",
    "check_model",
    "left_out",
    "make_batch",
    "plan_for",
    "require_supported",
]
_OBSERVED = {"logits", "blocks", "gradients"}
Progress = Callable[[str], None]


@dataclasses.dataclass
class Result:
    """What a check found: its lines, and the curves that belong to them."""

    checks: list[Check]
    curves: list[Curve]


def check_model(
    path: str | Path,
    device: Device,
    dtypes: Sequence[str] = DTYPES,
    plan: Plan | None = None,
    progress: Progress = lambda message: None,
    *,
    strict: bool = False,
) -> Result:
    """Run the checks of the chosen dtypes on one Hugging Face directory.

    The float64 truth is computed whichever dtypes are chosen.

    Args:
        path: the directory.
        device: of both twins.
        dtypes: that are checked.
        plan: how much is computed; None: the default.
        progress: is told what goes on.
        strict: refuse a checkpoint that is odd but means the same; else it is read with a warning,
            a `CheckpointNote`.

    Raises:
        ValueError: an unknown dtype or kind, a choice of both that leaves nothing to check, or a
            directory that cannot be loaded; or, with `strict`, an odd one.
    """
    plan = plan or Plan()
    require_supported(dtypes, plan.kinds)
    with exact(device), notes_refused(strict), unchanged_sources(path):
        return _Run(path, device, dtypes, plan, progress).result()


class _Run:
    """One check from beginning to end; tensors are let go as soon as they are compared."""

    def __init__(
        self,
        path: str | Path,
        device: Device,
        dtypes: Sequence[str],
        plan: Plan,
        progress: Progress,
    ) -> None:
        self.path, self.device, self.plan, self.progress = path, device, plan, progress
        self.wanted = {d: {k for k in plan.kinds if d in dtypes and d in KINDS[k]} for d in DTYPES}
        self.kinds = set().union(*self.wanted.values())
        self.checks: list[Check] = []
        self.curves: list[Curve] = []
        self.config = config = DIYConfig.from_pretrained(path)
        limit = config.max_position_embeddings
        self.batch = make_batch(config, plan)
        self.ragged = random_batch(
            config, np.minimum(plan.ragged, limit).astype(np.int32), plan.seed + 1
        )
        self.decoding = Decoding.make(config, plan.decode_prompts, plan.decode_positions, plan.seed)
        columns = min(plan.training_sequence, limit)
        self.batches = token_batches(
            config.vocab_size, plan.training_steps, plan.training_rows, columns, plan.seed
        )
        self.truth: Observation | None = None
        self.full = np.zeros((0, 0))
        self.trained: Run | None = None

    def result(self) -> Result:
        """Everything that was asked for."""
        self._float64()
        for dtype in DTYPES[1:]:
            if self.wanted[dtype]:
                release_memory(self.config)
                self._rounding(dtype)
        return Result(self.checks, layer_curves(self.checks) + self.curves)

    def _float64(self) -> None:
        wanted = self.wanted["float64"]
        self.progress("float64: the truth")
        pair = Pair(self.path, "float64", self.device)
        if self.kinds & _OBSERVED:
            self.truth = pair.observe_torch(self.batch, "gradients" in self.kinds)
        if self.kinds & {"decode", "chunked"}:
            self.full = pair.full_logits(self.decoding.batch)
        if wanted & _OBSERVED:
            self._observe(pair, wanted)
        if "decode" in wanted:
            self._decode(pair)
        if "chunked" in wanted:
            self.progress("float64: prompts in chunks")
            chunked = self.decoding.in_chunks(self.plan.chunks)
            for twin, logits in cached_logits(pair, chunked).items():
                self._positions(f"chunked {twin}", self.decoding.batch, logits, self.full)
        if "ragged" in wanted:
            self.progress("float64: rows of a padded batch, and alone")
            for twin in ("torch", "flax"):
                found = pair.full_logits(self.ragged, twin)
                alone = [pair.full_logits(row, twin) for row in self.ragged.rows()]
                self._positions(f"ragged {twin}", self.ragged, found, np.concatenate(alone))
        if "packed" in wanted:
            self._packed(pair)
        if "context" in wanted:
            self._context(pair)
        if "cache-gradients" in wanted:
            self.progress("float64: gradients through the cache")
            self._add(cache_gradients.checks(pair, self.plan, self.device.name))
        if "optimizer" in wanted:
            self._optimizer(pair)
        if "training" in self.kinds:
            self._training(pair)

    def _observe(self, pair: Pair, wanted: set[str]) -> None:
        assert self.truth is not None
        pair.drop_torch()
        self.progress("float64: logits, blocks, gradients")
        found = pair.observe_flax(self.batch, "gradients" in wanted)
        same = lines.same(self.truth, found, wanted, self.batch, self.device.name)
        self._add(same, self.batch.reach)
        self._forward_positions("float64", {"flax": found})
        del found
        release_memory(self.config)

    def _decode(self, pair: Pair) -> None:
        self.progress("float64: cached decoding")
        batch = self.decoding.batch
        for twin, logits in cached_logits(pair, self.decoding).items():
            self._positions(f"decode {twin}", batch, logits, self.full)
            self._decode_positions("float64", twin, logits)
        if self.plan.greedy_tokens:
            one, other = greedy(pair, self.decoding, self.plan.greedy_tokens)
            rows = Batch(one, np.full(len(one), one.shape[1], np.int32))
            self._add([lines.same_tokens(one, other, self.device.name)], rows.reach)

    def _optimizer(self, pair: Pair) -> None:
        self.progress("float64: optimizers")
        pair.drop_torch()
        flat, rows = flatten(pair.params), tensors(pair.config)
        first = {row.hf: row.to_flax.inverse(np.asarray(flat[row.flax])) for row in rows}
        one, other = run_optimizers(
            first,
            pair.config,
            self.plan.recipe,
            self.plan.optimizer_steps,
            self.plan.seed,
            self.device,
        )
        same = lines.same_optimizer(one, other, self.device.name)
        self._add([same], f"{self.plan.optimizer_steps} steps")

    def _training(self, pair: Pair) -> None:
        """Float64: the truth, and where it is asked for the other twin and the control."""
        steps = f"{len(self.batches)} steps of training"
        self.progress(f"float64: {steps}")
        truth = self.trained = train_torch(pair, self.plan.recipe, self.batches)
        if "training" in self.wanted["float64"]:
            other = train_flax(pair, self.plan.recipe, self.batches)
            self.progress(f"float64: {steps}, the control")
            control = train_flax(pair, self.plan.recipe, self.batches, moved=True)
            same = lines.same_training(truth, other, control, self.device.name)
            self._add([same], self._steps)
            losses = {"torch": truth.losses, "flax": other.losses}
            self.curves += loss_curves("float64", truth.losses, losses, control.losses)
        truth.parameters.clear()  # only the losses are needed from here on

    def _rounding(self, dtype: str) -> None:
        wanted = self.wanted[dtype]
        pair = Pair(self.path, dtype, self.device)
        control = allowance(pair.config, dtype, self.device)
        if wanted & _OBSERVED:
            assert self.truth is not None
            self.progress(f"{dtype}: rounding against the truth")
            one = pair.observe_torch(self.batch, "gradients" in wanted)
            pair.drop_torch()
            other = pair.observe_flax(self.batch, "gradients" in wanted)
            same = lines.same_rounding(
                (self.truth, one, other), wanted, self.batch, dtype, self.device.name, control
            )
            self._add(same, self.batch.reach)
            self._forward_positions(dtype, {"torch": one, "flax": other})
            del one, other
            release_memory(self.config)
        if "decode" in wanted:
            self.progress(f"{dtype}: cached decoding")
            logits, batch = cached_logits(pair, self.decoding), self.decoding.batch
            self._add(
                [
                    lines.provable(
                        *("decode", dtype, self.device.name),
                        partial(
                            lines.decode_rounding,
                            *(self.full, logits, batch, dtype, self.device.name, control),
                        ),
                    )
                ],
                batch.reach,
            )
            for twin, found in logits.items():
                self._decode_positions(dtype, twin, found)
        if "training" in wanted:
            self._training_rounding(pair, dtype, control)

    def _training_rounding(self, pair: Pair, dtype: str, control: tuple[float, float]) -> None:
        assert self.trained is not None
        self.progress(f"{dtype}: {len(self.batches)} steps of training")
        one = train_torch(pair, self.plan.recipe, self.batches).losses
        other, moved = (
            train_flax(pair, self.plan.recipe, self.batches, moved=flag).losses
            for flag in (False, True)
        )
        truth = self.trained.losses
        same = lines.training_rounding(truth, one, other, moved, dtype, self.device.name, control)
        self._add([same], self._steps)
        self.curves += loss_curves(dtype, truth, {"torch": one, "flax": other}, moved)

    def _positions(
        self, name: str, batch: Batch, found: NDArray[np.float64], truth: NDArray[np.float64]
    ) -> None:
        self._logits(name, batch.place, found, truth, batch.reach)

    def _logits(
        self,
        name: str,
        place: Callable[[int], str],
        found: NDArray[np.float64],
        truth: NDArray[np.float64],
        reach: str,
    ) -> None:
        make = partial(lines.same_positions, name, place, found, truth, self.device.name)
        self._add([lines.provable(name, "float64", self.device.name, make)], reach)

    def _packed(self, pair: Pair) -> None:
        self.progress("float64: documents packed into rows, and alone")
        packed = Packed.make(self.config, self.plan.packed, self.plan.seed)
        alone = pair.full_logits(packed.documents)
        for twin, logits in packed_logits(pair, packed).items():
            self._logits(f"packed {twin}", packed.documents.place, logits, alone, packed.reach)

    def _context(self, pair: Pair) -> None:
        self.progress(f"float64: positions up to {self.config.max_position_embeddings:,}")
        far = Far.make(self.config, self.plan.seed)
        found = far_logits(pair, far)
        self._logits("context flax", far.place, found["flax"], found["torch"], far.reach)
        release_memory(self.config)

    def _add(self, checks: Sequence[Check], reach: str = "") -> None:
        self.checks += [dataclasses.replace(c, reach=reach or c.reach) for c in checks]

    @property
    def _steps(self) -> str:
        return f"{len(self.batches)} steps, 0-{self.batches[0].ids.shape[1] - 1}"

    def _forward_positions(self, dtype: str, seen: dict[str, Observation]) -> None:
        assert self.truth is not None
        valid, labelled = self.batch.valid, self.batch.labels >= 0
        for side, found in seen.items():
            self._curve(FORWARD_POSITIONS, dtype, side, valid, found.logits, self.truth.logits)
        for side, found in seen.items():
            self._curve(
                BACKWARD_POSITIONS, dtype, side, labelled, found.embedded, self.truth.embedded
            )

    def _decode_positions(self, dtype: str, twin: str, logits: NDArray[np.float64]) -> None:
        valid = self.decoding.batch.valid
        self._curve(DECODE_POSITIONS, dtype, twin, valid, logits, self.full)

    def _curve(
        self,
        figure: str,
        dtype: str,
        side: str,
        where: NDArray[np.bool_],
        found: NDArray[Any] | None,
        truth: NDArray[Any] | None,
    ) -> None:
        if found is None or truth is None:
            return
        with contextlib.suppress(NothingProven):  # the line of the check says so, and fails
            self.curves.append(position_curve(figure, dtype, side, where, found, truth))
