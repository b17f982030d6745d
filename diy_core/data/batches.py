"""Token files to batches, in an order that depends on the seed alone.

The batch of a step is a function of the data, the seed, `batch_size`, `sequence_length` and
`packing`; `accumulation_steps` and the number of processes only cut it, and threads only fetch it
earlier. Grain maps steps to batches, reads ahead and keeps the position.

Letters: A passes of a step, B rows of a pass (and process), S tokens of a row.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from diy_core.data.files import DataError
from diy_core.data.packing import arrange
from diy_core.data.token_data import TokenData
from diy_core.validate import IGNORED


class Batch(TypedDict):
    """One optimizer step, cut into passes; each array is int32 (A, B, S).

    Attributes:
        input_ids: the tokens, padded with 0.
        labels: the token that each position has to predict, already shifted; -100 is not counted:
            padding, the last token of a document, what the assistant of a chat did not say.
        segment_ids: 1, 2, ... for the pieces of documents in a row, 0 for padding.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    segment_ids: NDArray[np.int32]


class Batches:
    """The batches of some data. `iter` begins at the first; `batches[step]` is any of them.

    In an epoch every token of the data is an input once, and every token but the first of each
    document is a label once. A document that is cut goes on as a segment of its own in another row;
    the label of a piece's last position is the token with which the next piece begins. Batches run
    on over the end of an epoch, so no row is dropped.

    Args:
        data: the documents.
        batch_size: rows of a step, all passes and processes together.
        sequence_length: S, the tokens of a row.
        seed: of the order, 0 to 2**32 - 1; there are batches without end. None, for validation:
            the rows in order, once; the last batch is filled with padding.
        accumulation_steps: A, the passes that a step is cut into.
        packing: short documents share rows (see `diy_core.data.packing`); False: each its own row.
        process, processes: this process gets the rows that are its own of every pass.
        threads: read ahead with so many threads; 0 reads when asked.

    Raises:
        ValueError: sizes that do not divide, or are out of range.
        DataError: data without anything to predict, or (with a seed) of less than one row.
    """

    def __init__(
        self,
        data: TokenData,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int | None,
        accumulation_steps: int = 1,
        packing: bool = True,
        process: int = 0,
        processes: int = 1,
        threads: int = 0,
    ) -> None:
        _check_sizes(batch_size, sequence_length, accumulation_steps, process, processes, threads)
        if seed is not None and not 0 <= seed < 1 << 32:
            raise ValueError(f"seed must be 0 to 2**32 - 1, got {seed}")
        if not data.description["counted"]:
            raise DataError(
                data.path,
                "has nothing to predict: no document has a second token that counts. Prepare other "
                "documents",
            )
        if seed is not None and sequence_length > data.tokens.size:
            raise DataError(
                data.path,
                f"holds {data.tokens.size} tokens, sequence_length is {sequence_length}: choose a "
                "shorter one, or prepare more data",
            )
        self._data = data
        self._rows = arrange(data.ends, sequence_length, packing)
        self._shape = accumulation_steps, batch_size // accumulation_steps, sequence_length
        self._process, self._processes = process, processes
        self._threads = threads
        # What decides about the order; `accumulation_steps` and processes may change on resume.
        self.identity: dict[str, Any] = {
            "data": data.hash,
            "seed": seed,
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "packing": packing,
        }
        self._order: Callable[[int], NDArray[np.int64]] | None = None
        if seed is not None:  # a batch reaches into two epochs, or is larger than them
            self._order = lru_cache(maxsize=2)(partial(epoch_order, seed, self.rows))
        self._steps = self._grain(seed)

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self._rows)

    def __len__(self) -> int:
        """Batches of one time through; with a seed they go on after that."""
        return math.ceil(self.rows / self.identity["batch_size"])

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        if step < 0 or (self.identity["seed"] is None and step >= len(self)):
            raise IndexError(f"batch {step} of {len(self)}")
        batch: Batch = self._steps[step]
        return batch

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self)

    def _grain(self, seed: int | None) -> Any:
        # Imported late: it takes a second and brings JAX along where that is installed.
        try:
            import grain
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("batches need grain: pip install 'diy-lm[train]'") from error

        steps = len(self) if seed is None else sys.maxsize
        return grain.MapDataset.range(steps).map(self._batch)

    def _batch(self, step: int) -> Batch:
        passes, rows, length = self._shape
        own = rows // self._processes
        ids = np.zeros((passes, own, length), np.int32)
        labels = np.full_like(ids, IGNORED)
        segments = np.zeros_like(ids)
        for i, j in np.ndindex(passes, own):
            place = (int(step) * passes + i) * rows + self._process * own + j
            epoch, row = divmod(place, self.rows)
            if self._order is not None:
                row = int(self._order(epoch)[row])
            elif epoch:
                continue  # behind the last row there is padding
            self._row(row, ids[i, j], labels[i, j], segments[i, j])
        return {"input_ids": ids, "labels": labels, "segment_ids": segments}

    def _row(
        self,
        row: int,
        ids: NDArray[np.int32],
        labels: NDArray[np.int32],
        segments: NDArray[np.int32],
    ) -> None:
        """Fill one row, each array int32 (S,)."""
        rows, counted, at = self._rows, self._data.counted, 0
        first, stop = int(rows.first[row]), int(rows.first[row + 1])
        for segment, piece in enumerate(range(first, stop), 1):
            start, length = int(rows.starts[piece]), int(rows.lengths[piece])
            predicted = length - bool(rows.final[piece])
            # One token more than the piece, if its document has one.
            tokens = self._data.tokens[start : start + predicted + 1]
            ids[at : at + length] = tokens[:length]
            targets = labels[at : at + predicted]
            targets[:] = tokens[1:]
            if counted is not None:
                targets[counted[start + 1 : start + predicted + 1] == 0] = IGNORED
            segments[at : at + length] = segment
            at += length


def epoch_order(seed: int, rows: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch, int64 (rows,): rows sorted by the words of a cipher.

    The raw words of Philox (Salmon et al., 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") are
    the same on every machine and with every version of numpy. Grain's own shuffle costs 65 ms an
    epoch even for ten rows (0.2.18: it walks a cycle of 2**16), more than a step of a small model.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(rows)
    return np.argsort(words, kind="stable")


class BatchIterator(Iterator[Batch]):
    """Batches one after the other, from a position that can be kept and restored."""

    def __init__(self, batches: Batches) -> None:
        import grain

        self._identity = batches.identity
        threads = batches._threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        self._iterator = iter(batches._steps.to_iter_dataset(options))

    def __next__(self) -> Batch:
        batch: Batch = next(self._iterator)
        return batch

    def state(self) -> dict[str, Any]:
        """The position, for JSON: the number of the next batch, and what it is a position in."""
        return {"next_index": int(self._iterator.get_state()["next_index"]), **self._identity}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with the batch that came next when `state` was taken.

        Raises:
            ValueError: a position in other batches; it names what differs.
        """
        index = state.get("next_index")
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise ValueError(f"next_index must be 0 or more, got {index!r}")
        if differing := [
            f"{name} was {state.get(name)!r} and is {value!r}"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]:
            raise ValueError(
                f"the position belongs to other batches: {', '.join(differing)}. Go on with the "
                "same data and settings, or begin a new run"
            )
        self._iterator.set_state({"next_index": index})


def _check_sizes(
    batch_size: int,
    sequence_length: int,
    accumulation_steps: int,
    process: int,
    processes: int,
    threads: int,
) -> None:
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("sequence_length", sequence_length, 2),
        ("accumulation_steps", accumulation_steps, 1),
        ("processes", processes, 1),
        ("threads", threads, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")
    if batch_size % (accumulation_steps * processes):
        raise ValueError(
            f"batch_size ({batch_size}) must be a multiple of accumulation_steps "
            f"({accumulation_steps}) times the number of processes ({processes})"
        )
    if not 0 <= process < processes:
        raise ValueError(f"process must be 0 to {processes - 1}, got {process}")
