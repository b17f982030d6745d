"""Batches against a slow reference that knows nothing of packing, and where they begin again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diy_core.data import Batch, Batches, DataError, TokenData, prepare

NAMES = ("input_ids", "labels", "segment_ids")


def text_data(folder: Path, texts: list[str], **options: Any) -> TokenData:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return prepare(file, folder / "data", tokenizer="bytes", overwrite=True, **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    rng = np.random.default_rng(3)
    texts = ["".join(map(chr, rng.integers(97, 123, n))) for n in rng.integers(1, 90, 60)]
    return text_data(tmp_path_factory.mktemp("data"), texts)


def same(one: Batch, other: Batch) -> bool:
    return all(
        one[name].dtype == other[name].dtype == np.int32
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in NAMES
    )


def rows_of(batches: list[Batch]) -> list[tuple[list[int], list[int], list[int]]]:
    return [
        (ids.tolist(), labels.tolist(), segments.tolist())
        for batch in batches
        for ids, labels, segments in zip(
            *(batch[name].reshape(-1, batch[name].shape[-1]) for name in NAMES), strict=True
        )
    ]


def check_rows(rows: list[Any], documents: list[list[int]], length: int) -> None:
    """Every document of the data stands in the rows, once, in pieces, each with its labels.

    Pieces are put together again by their text alone: whole documents, or runs of `length` tokens
    that go on where a label says so.
    """
    pieces: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for ids, labels, segments in rows:
        used = [s for s in segments if s]
        assert segments == used + [0] * (length - len(used))  # padding is at the end
        assert ids[len(used) :] == [0] * (length - len(used))
        assert labels[len(used) :] == [-100] * (length - len(used))
        assert sorted(set(used)) == list(range(1, len(set(used)) + 1))
        assert used == sorted(used)
        for segment in sorted(set(used)):
            at = [i for i, s in enumerate(segments) if s == segment]
            pieces[tuple(ids[i] for i in at), tuple(labels[i] for i in at)] += 1
    expected: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for document in documents:
        labels = [*document[1:], -100]
        for start in range(0, len(document), length):
            stop = start + length
            expected[tuple(document[start:stop]), tuple(labels[start:stop])] += 1
    assert pieces == expected


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=12),
    length=st.integers(2, 20),
    batch_size=st.integers(1, 5),
    packing=st.booleans(),
)
def test_an_epoch_holds_every_token_once_with_the_right_label(
    tmp_path: Path, texts: list[str], length: int, batch_size: int, packing: bool
) -> None:
    data = text_data(tmp_path, texts)
    documents = [[*text.encode(), 256] for text in texts]
    options = {"batch_size": batch_size, "sequence_length": length, "packing": packing}

    once = Batches(data, seed=None, **options)
    rows = rows_of(list(once))
    padded = [row for row in rows if not any(row[2])]
    assert rows[len(rows) - len(padded) :] == padded
    assert len(padded) == len(once) * batch_size - once.rows < batch_size
    check_rows(rows, documents, length)

    if length <= data.tokens.size:
        endless = Batches(data, seed=7, **options)
        need = -(-2 * endless.rows // batch_size)  # two epochs, over the border between them
        rows = rows_of([endless[step] for step in range(need)])
        check_rows(rows[: endless.rows], documents, length)
        check_rows(rows[endless.rows : 2 * endless.rows], documents, length)


def test_a_batch_one_can_read(tmp_path: Path) -> None:
    data = text_data(tmp_path, ["abcdefgh", "xy", "k"])
    (batch,) = Batches(data, batch_size=3, sequence_length=6, seed=None)
    a, x, k, end, no = ord("a"), ord("x"), ord("k"), 256, -100
    assert batch["input_ids"].tolist() == [
        [
            [a, a + 1, a + 2, a + 3, a + 4, a + 5],
            [a + 6, a + 7, end, x, x + 1, end],
            [k, end, 0, 0, 0, 0],
        ]
    ]
    assert batch["labels"].tolist() == [
        [
            [a + 1, a + 2, a + 3, a + 4, a + 5, a + 6],
            [a + 7, end, no, x + 1, end, no],
            [end, no, no, no, no, no],
        ]
    ]
    assert batch["segment_ids"].tolist() == [
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 2], [1, 1, 0, 0, 0, 0]]
    ]


def test_of_a_chat_only_what_the_assistant_says_is_a_label(tmp_path: Path) -> None:
    data = text_data(tmp_path, ["abcdefgh", "xy"])
    data.counted = np.ones(data.tokens.size, np.uint8)
    data.counted[[2, 6, 10]] = 0  # c, g and y
    (batch,) = Batches(data, batch_size=2, sequence_length=6, seed=None)
    a, end, no = ord("a"), 256, -100
    assert batch["labels"].tolist() == [
        [[a + 1, no, a + 3, a + 4, a + 5, no], [a + 7, end, no, no, end, no]]
    ]


def test_accumulation_and_processes_only_cut_a_batch(data: TokenData) -> None:
    options: dict[str, Any] = {"batch_size": 12, "sequence_length": 32, "seed": 1}
    whole = Batches(data, **options)
    for passes in (1, 2, 3, 6):
        cut = Batches(data, accumulation_steps=passes, **options)
        parts = [
            Batches(data, accumulation_steps=passes, process=p, processes=2, threads=p, **options)
            for p in range(2)
        ]
        for step in (0, 1, 7):
            for name in NAMES:
                expected = whole[step][name].reshape(passes, 12 // passes, 32)
                assert (cut[step][name] == expected).all()
                joined = np.concatenate([part[step][name] for part in parts], axis=1)
                assert (joined == expected).all()


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("packing", [True, False])
def test_a_restored_iterator_goes_on_to_the_byte(
    data: TokenData, threads: int, packing: bool
) -> None:
    options: dict[str, Any] = {
        "batch_size": 4,
        "sequence_length": 48,
        "seed": 5,
        "packing": packing,
    }
    batches = Batches(data, threads=threads, **options)
    iterator = iter(batches)
    positions, taken = [iterator.state()], []
    for _ in range(3 * len(batches)):  # into the third epoch
        taken.append(next(iterator))
        positions.append(iterator.state())
    assert all(same(batch, batches[i]) for i, batch in enumerate(taken))
    for i, position in enumerate(positions[:-1]):
        restored = iter(Batches(TokenData(data.path), **options))
        restored.restore(json.loads(json.dumps(position)))
        assert restored.state() == position
        assert same(next(restored), taken[i])
    iterator.restore(positions[2])  # back, in the same iterator
    assert same(next(iterator), taken[2])


def test_the_order_is_the_seeds(data: TokenData) -> None:
    def epoch(seed: int, number: int) -> list[Any]:
        batches = Batches(data, batch_size=1, sequence_length=64, seed=seed)
        steps = range(number * batches.rows, (number + 1) * batches.rows)
        return rows_of([batches[step] for step in steps])

    first = epoch(0, 0)
    assert epoch(0, 0) == first
    for other in (epoch(0, 1), epoch(1, 0)):
        assert other != first
        assert sorted(other) == sorted(first)


def test_the_order_is_the_same_on_every_machine(tmp_path: Path) -> None:
    # Written down. A change would give a resumed run other batches.
    data = text_data(tmp_path, [chr(97 + i) for i in range(10)])
    batches = Batches(data, batch_size=10, sequence_length=2, seed=3)
    letters = ["".join(map(chr, batches[step]["input_ids"][0, :, 0])) for step in range(3)]
    assert letters == ["gbifchjeda", "jhidfgeacb", "icebdgfahj"]


def test_validation_is_in_order_once_and_again(data: TokenData) -> None:
    batches = Batches(data, batch_size=4, sequence_length=64, seed=None, threads=2)
    one, two = list(batches), list(batches)
    assert len(one) == len(batches) == -(-batches.rows // 4)
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert one[0]["input_ids"][0, 0].tolist() == data.tokens[:64].tolist()
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_one_document_is_enough(tmp_path: Path) -> None:
    data = text_data(tmp_path, ["abc"])
    batch = next(iter(Batches(data, batch_size=2, sequence_length=4, seed=0)))
    assert batch["input_ids"].tolist() == [[[97, 98, 99, 256]] * 2]


def test_a_position_in_other_batches_is_refused(data: TokenData, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "sequence_length": 48, "seed": 5}
    position = iter(Batches(data, **options)).state()
    changes = {"batch_size": 8, "sequence_length": 32, "seed": 6, "packing": False}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"{name} was .* and is {value}"):
            iter(Batches(data, **(options | {name: value}))).restore(position)
    other = text_data(tmp_path, ["abc" * 50])
    with pytest.raises(ValueError, match="data was '"):
        iter(Batches(other, **options)).restore(position)
    for bad in (-1, "3", None, True):
        with pytest.raises(ValueError, match="next_index must be 0 or more"):
            iter(Batches(data, **options)).restore(position | {"next_index": bad})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"sequence_length": 1}, "sequence_length must be 2 or more, got 1"),
        ({"seed": -1}, "seed must be 0 to"),
        ({"accumulation_steps": 3}, r"batch_size \(4\) must be a multiple of accumulation_steps"),
        ({"processes": 3}, r"times the number of processes \(3\)"),
        ({"process": 1}, "process must be 0 to 0, got 1"),
        ({"sequence_length": 10**6}, r"sequence_length is 1000000: choose a shorter one"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    data: TokenData, change: dict[str, int], message: str
) -> None:
    options: dict[str, Any] = {"batch_size": 4, "sequence_length": 48, "seed": 5}
    with pytest.raises(ValueError, match=message):
        Batches(data, **(options | change))


def test_data_with_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    data = text_data(tmp_path, ["a"])
    data.description["counted"] = 0
    with pytest.raises(DataError, match="nothing to predict"):
        Batches(data, batch_size=1, sequence_length=2, seed=0)


_IMPORTS = """
import sys
import diy_core.data
print([name for name in ("grain", "jax", "torch", "pyarrow") if name in sys.modules])
sys.modules["grain"] = None
try:
    data = diy_core.data.TokenData({path!r})
    diy_core.data.Batches(data, batch_size=1, sequence_length=8, seed=0)
except ModuleNotFoundError as error:
    print(error)
"""


def test_tokenising_needs_no_grain_and_batches_say_what_they_need(data: TokenData) -> None:
    program = _IMPORTS.format(path=str(data.path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\nbatches need grain: pip install 'diy-lm[train]'\n", done.stderr
