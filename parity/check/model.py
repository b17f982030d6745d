"""`parity check`: fifteen kinds of proof that the two twins are one function.

float64 is for the logic: relative L2 per tensor, position or parameter against the bounds below.
float32 and bfloat16 are for the rounding: each twin's error against the float64 truth, pooled,
neither more than twice the other's, beyond what already lies between the two libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.mapping import flatten, tensors
from diy_core.notes import notes_refused
from diy_core.system.sources import unchanged_sources
from parity.batch import Batch
from parity.check import cache_gradients, kept, lines, own_steps, whole_tables
from parity.check.curves import loss_curves
from parity.check.decoding import cached_logits, greedy
from parity.check.findings import Findings, Result
from parity.check.inputs import Inputs
from parity.check.kinds import DTYPES, KINDS, require_supported
from parity.check.long_context import Far, far_logits
from parity.check.matmul_control import allowance
from parity.check.optimizers import run_optimizers
from parity.check.packing import Packed, packed_logits
from parity.check.plan import Plan, left_out, make_batch, plan_for
from parity.check.training import Run, train_flax, train_torch
from parity.environment import Device, exact
from parity.twins import Observation, Pair, release_memory

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
        self.config = DIYConfig.from_pretrained(path)
        self.inputs = Inputs.make(self.config, plan)
        self.findings = Findings(device.name, self.inputs)
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
        return self.findings.result()

    def _float64(self) -> None:
        wanted = self.wanted["float64"]
        self.progress("float64: the truth")
        pair = Pair(self.path, "float64", self.device)
        if self.kinds & _OBSERVED:
            self.truth = pair.observe_torch(self.inputs.batch, "gradients" in self.kinds)
        if self.kinds & {"decode", "chunked"}:
            self.full = pair.full_logits(self.inputs.decoding.batch)
        if wanted & _OBSERVED:
            self._observe(pair, wanted)
        if "decode" in wanted:
            self._decode(pair)
        if "chunked" in wanted:
            self.progress("float64: prompts in chunks")
            chunked = self.inputs.decoding.in_chunks(self.plan.chunks)
            for twin, logits in cached_logits(pair, chunked, masks=True).items():
                self.findings.positions(
                    f"chunked {twin}", self.inputs.decoding.batch, logits, self.full
                )
        if "ragged" in wanted:
            self.progress("float64: rows of a padded batch, and alone")
            for twin in ("torch", "flax"):
                found = pair.full_logits(self.inputs.ragged, twin)
                alone = [pair.full_logits(row, twin) for row in self.inputs.ragged.rows()]
                self.findings.positions(
                    f"ragged {twin}", self.inputs.ragged, found, np.concatenate(alone)
                )
        if "kept" in wanted:
            self.progress("float64: the last logits of each row")
            self.findings.add(kept.checks(pair, self.inputs.ragged, self.device.name))
        if "packed" in wanted:
            self._packed(pair)
        if "context" in wanted:
            self._context(pair)
        if "rotations" in wanted:
            self.progress("float64: rotations of all positions")
            self.findings.add(whole_tables.rotations(pair, self.device.name))
        if "embeddings" in wanted:
            self.progress("float64: embeddings of all ids")
            self.findings.add(whole_tables.embeddings(pair, self.device.name))
        if "cache-gradients" in wanted:
            self.progress("float64: gradients through the cache")
            self.findings.add(cache_gradients.checks(pair, self.plan, self.device.name))
        if "step" in wanted:
            self.progress("float64: the twins' own training step")
            pair.drop_torch()
            self.findings.add([own_steps.check(pair, _weights(pair), self.plan.seed)])
        if "optimizer" in wanted:
            self._optimizer(pair)
        if "training" in self.kinds:
            self._training(pair)

    def _observe(self, pair: Pair, wanted: set[str]) -> None:
        assert self.truth is not None
        pair.drop_torch()
        self.progress("float64: logits, blocks, gradients")
        found = pair.observe_flax(self.inputs.batch, "gradients" in wanted)
        same = lines.same(self.truth, found, wanted, self.inputs.batch, self.device.name)
        self.findings.add(same, self.inputs.batch.reach)
        self.findings.forward_positions("float64", self.truth, {"flax": found})
        del found
        release_memory(self.config)

    def _decode(self, pair: Pair) -> None:
        self.progress("float64: cached decoding")
        batch = self.inputs.decoding.batch
        for twin, logits in cached_logits(pair, self.inputs.decoding).items():
            self.findings.positions(f"decode {twin}", batch, logits, self.full)
            self.findings.decode_positions("float64", twin, logits, self.full)
        if self.plan.greedy_tokens:
            one, other = greedy(pair, self.inputs.decoding, self.plan.greedy_tokens)
            rows = Batch(one, np.full(len(one), one.shape[1], np.int32))
            self.findings.add([lines.same_tokens(one, other, self.device.name)], rows.reach)

    def _optimizer(self, pair: Pair) -> None:
        self.progress("float64: optimizers")
        pair.drop_torch()
        one, other = run_optimizers(
            _weights(pair),
            pair.config,
            self.plan.recipe,
            self.plan.optimizer_steps,
            self.plan.seed,
            self.device,
        )
        same = lines.same_optimizer(one, other, self.device.name)
        self.findings.add([same], f"{self.plan.optimizer_steps} steps")

    def _training(self, pair: Pair) -> None:
        """Float64: the truth, and where it is asked for the other twin and the control."""
        steps = f"{len(self.inputs.training)} steps of training"
        self.progress(f"float64: {steps}")
        truth = self.trained = train_torch(pair, self.plan.recipe, self.inputs.training)
        if "training" in self.wanted["float64"]:
            other = train_flax(pair, self.plan.recipe, self.inputs.training)
            self.progress(f"float64: {steps}, the control")
            control = train_flax(pair, self.plan.recipe, self.inputs.training, moved=True)
            same = lines.same_training(truth, other, control, self.device.name)
            self.findings.add([same], self.inputs.steps)
            losses = {"torch": truth.losses, "flax": other.losses}
            self.findings.curves += loss_curves("float64", truth.losses, losses, control.losses)
        truth.parameters.clear()  # only the losses are needed from here on

    def _rounding(self, dtype: str) -> None:
        wanted = self.wanted[dtype]
        pair = Pair(self.path, dtype, self.device)
        control = allowance(pair.config, dtype, self.device)
        if wanted & _OBSERVED:
            assert self.truth is not None
            self.progress(f"{dtype}: rounding against the truth")
            one = pair.observe_torch(self.inputs.batch, "gradients" in wanted)
            pair.drop_torch()
            other = pair.observe_flax(self.inputs.batch, "gradients" in wanted)
            same = lines.same_rounding(
                (self.truth, one, other),
                wanted,
                self.inputs.batch,
                dtype,
                self.device.name,
                control,
            )
            self.findings.add(same, self.inputs.batch.reach)
            self.findings.forward_positions(dtype, self.truth, {"torch": one, "flax": other})
            del one, other
            release_memory(self.config)
        if "decode" in wanted:
            self.progress(f"{dtype}: cached decoding")
            logits, batch = cached_logits(pair, self.inputs.decoding), self.inputs.decoding.batch
            device = self.device.name
            more = self.full, logits, batch, dtype, device, control
            line = lines.provable("decode", dtype, device, lines.decode_rounding, *more)
            self.findings.add([line], batch.reach)
            for twin, found in logits.items():
                self.findings.decode_positions(dtype, twin, found, self.full)
        if "rotations" in wanted:
            rotations = whole_tables.rounded_rotations
            self.findings.add([rotations(pair, dtype, self.device.name, control)])
        if "training" in wanted:
            self._training_rounding(pair, dtype, control)

    def _training_rounding(self, pair: Pair, dtype: str, control: tuple[float, float]) -> None:
        assert self.trained is not None
        self.progress(f"{dtype}: {len(self.inputs.training)} steps of training")
        one = train_torch(pair, self.plan.recipe, self.inputs.training).losses
        other, moved = (
            train_flax(pair, self.plan.recipe, self.inputs.training, moved=flag).losses
            for flag in (False, True)
        )
        truth = self.trained.losses
        same = lines.training_rounding(truth, one, other, moved, dtype, self.device.name, control)
        self.findings.add([same], self.inputs.steps)
        self.findings.curves += loss_curves(dtype, truth, {"torch": one, "flax": other}, moved)

    def _packed(self, pair: Pair) -> None:
        self.progress("float64: documents packed into rows, and alone")
        packed = Packed.make(self.config, self.plan.packed, self.plan.seed)
        alone = pair.full_logits(packed.documents)
        for twin, logits in packed_logits(pair, packed).items():
            self.findings.logits(
                f"packed {twin}", packed.documents.place, logits, alone, packed.reach
            )

    def _context(self, pair: Pair) -> None:
        self.progress(f"float64: positions up to {self.config.max_position_embeddings:,}")
        far = Far.make(self.config, self.plan.seed)
        found = far_logits(pair, far)
        self.findings.logits("context flax", far.place, found["flax"], found["torch"], far.reach)
        release_memory(self.config)


def _weights(pair: Pair) -> dict[str, NDArray[Any]]:
    """By Hugging Face name, in the torch layout."""
    flat = flatten(pair.params)
    return {t.hf: t.to_flax.inverse(np.asarray(flat[t.flax])) for t in tensors(pair.config)}
