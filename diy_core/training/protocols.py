"""What the loop needs of a twin and of the data.

Letters: A accumulation passes, B rows of a pass, S tokens of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, SupportsFloat, SupportsInt

import numpy as np
from numpy.typing import NDArray

# input_ids, labels and segment_ids, int32 (A, B, S).
Batch = Mapping[str, NDArray[np.int32]]


class TrainingError(RuntimeError):
    """A run cannot go on; the message says what to do."""


class StepResult(Protocol):
    """What a step reports. Scalars of the framework will do: the loop reads them a step later.

    Attributes:
        loss: the mean over the counted tokens of the step, before the update.
        grad_norm: of the gradient, before clipping.
        tokens: that were counted.
        skipped: True where loss or norm were not finite, AdamW could not square the clipped
            gradient or no token was counted, and nothing was changed.
    """

    @property
    def loss(self) -> SupportsFloat: ...  # noqa: D102
    @property
    def grad_norm(self) -> SupportsFloat: ...  # noqa: D102
    @property
    def tokens(self) -> SupportsInt: ...  # noqa: D102
    @property
    def skipped(self) -> Any: ...  # noqa: D102


def is_ready(result: StepResult) -> bool:
    """Whether reading it does not wait: JAX's scalars can tell, others are there from the start."""
    ready = getattr(result.loss, "is_ready", None)
    return ready is None or ready()


class Trainer(Protocol):
    """A twin's model and optimizer, which change with every step.

    Attributes:
        flops_per_token: see `diy_core.training.log.progress.flops_per_token`.
        matmul_peak: floating point operations per second that the machine reaches in its largest
            matrix products, in the dtype of the run; None: not known.
        compiles: the first step is compiled, which takes a while.
    """

    flops_per_token: float
    compiles: bool
    matmul_peak: float | None

    def train_step(self, batch: Batch, learning_rate: float, step: int) -> StepResult:
        """One optimizer step, skipped if it is not finite or counts no token; the first is 0."""

    def evaluate(self, batch: Batch) -> tuple[SupportsFloat, SupportsInt]:
        """The sum of the cross-entropies of a batch, and the number of its counted tokens."""

    def memory(self) -> int | None:
        """Bytes of the device's memory that were in use at the peak; None: it has no such count."""


class Store(Protocol):
    """A twin's training checkpoints, each the state of the trainer and a JSON object.

    A checkpoint appears whole or not at all, whenever the process is killed. Saving may go on in
    the background, with a copy of the state as it was when `save` was called.
    """

    def save(self, step: int, extra: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint; one of the same step is replaced.

        Raises:
            OSError: the disk is full, ..., while this one or the one before was written.
        """

    def wait(self) -> None:
        """Return when everything is on the disk.

        Raises:
            OSError: what `save` raises.
        """

    def steps(self) -> Sequence[int]:
        """The steps of the whole checkpoints, rising."""

    def restore(self, step: int) -> dict[str, Any]:
        """Give the trainer the state of a checkpoint; returns `extra`.

        Raises:
            CheckpointError: it is damaged, or holds the state of another model.
        """

    def delete(self, step: int) -> None:
        """Remove a whole checkpoint."""

    def nbytes(self) -> int:
        """The size of a checkpoint on the disk, about."""


class Data(Protocol):
    """Batches without end."""

    def __next__(self) -> Batch: ...

    def state(self) -> Any:
        """The position after the batches that were handed out, as JSON."""

    def restore(self, state: Any) -> None:
        """Go on behind the batch after which `state` was taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces:
    """Everything that `train` drives.

    Attributes:
        trainer: the model and the optimizer at step 0.
        store: the checkpoints of that trainer.
        data: at its beginning.
        validation: each call gives the same batches; None: there is nothing to evaluate on.
    """

    trainer: Trainer
    store: Store
    data: Data
    validation: Callable[[], Iterable[Batch]] | None = None
