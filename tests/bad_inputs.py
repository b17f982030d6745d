"""What both twins refuse, and the words that both must say, each a regular expression."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.oracles import Array, tiny

CONFIG = tiny(max_position_embeddings=70)  # float32, vocab_size 23, two layers
IDS = np.array([[1, 2, 3], [4, 5, 6]], np.int32)


@dataclasses.dataclass(frozen=True)
class Past:
    """A cache of zeros; the defaults fit `CONFIG` and `IDS`."""

    batch: int = 2
    heads: int = 2
    capacity: int = 64
    head_dim: int = 4
    dtype: str = "float32"
    layers: int = 2
    position: Any = 0
    value: dict[str, Any] = dataclasses.field(default_factory=dict)  # where it is not as the key

    def make(self, from_numpy: Callable[[Array], Any]) -> list[Any]:
        """The cache with the arrays of a framework; an int position stays one."""

        def zeros(of: Past) -> Any:
            return from_numpy(np.zeros((of.batch, of.heads, of.capacity, of.head_dim), of.dtype))

        value, position = dataclasses.replace(self, **self.value), self.position
        position = from_numpy(position) if isinstance(position, np.ndarray) else position
        return [({"key": zeros(self), "value": zeros(value)}, position) for _ in range(self.layers)]


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of the model that must fail, and how it must say so."""

    name: str
    kwargs: dict[str, Any]
    message: str
    past: Past | None = None

    def call(self, model: Any, from_numpy: Callable[[Array], Any]) -> Any:
        """Hand the input to a twin."""
        kwargs = {"input_ids": IDS} | self.kwargs
        if self.past is not None:
            kwargs["past_key_values"] = self.past.make(from_numpy)
        return model(**kwargs)


def _case(name: str, message: str, past: Past | None = None, **kwargs: Any) -> Case:
    """A case whose message is meant literally, but for `...`, which stands for anything."""
    return Case(name, kwargs, re.escape(message).replace(r"\.\.\.", ".*"), past)


def _ids(*rows: list[int]) -> Array:
    return np.array(rows, np.int64)


def _mask(first: list[Any], second: tuple[Any, ...] = (1, 1, 1)) -> Array:
    return np.array([first, second])


def _long(columns: int) -> Array:
    return np.ones((2, columns), np.int64)


_TEXT = (
    "must hold token ids, got text; encode it first: Tokenizer.from_pretrained(DIR).encode(text)"
)
_RAGGED = "must be a rectangular array, got rows of different lengths...pad the rows on the right"
_FIT = "must have shape (batch 2, key/value heads 2, capacity, head_dim 4) with one capacity"

CASES = [
    _case(
        "an id beyond the vocabulary",
        "input_ids must lie in 0..22 (vocab_size 23), got 23 at row 1, column 2",
        input_ids=_ids([1, 2, 3], [4, 5, 23]),
    ),
    _case(
        "a negative id",
        "input_ids must lie in 0..22 (vocab_size 23), got -1 at row 0, column 1",
        input_ids=_ids([1, -1, 3], [4, 5, 6]),
    ),
    _case(
        "an id that would wrap around in 32 bits",
        "got 4294967297 at row 0, column 0",
        input_ids=_ids([2**32 + 1, 2, 3], [4, 5, 6]),
    ),
    _case(
        "an id that is bad where the mask says padding",
        "input_ids must lie in 0..22 (vocab_size 23), got -100 at row 0, column 2",
        input_ids=_ids([1, 2, -100], [4, 5, 6]),
        attention_mask=_mask([1, 1, 0]),
    ),
    _case(
        "ids that are floats",
        "input_ids must be integers, got dtype float64",
        input_ids=[[1.0, 2.0]],
    ),
    _case("ids that are truths", "input_ids must be integers, got dtype bool", input_ids=[[True]]),
    _case("words", f"input_ids {_TEXT}", input_ids=[["hello"]]),
    _case("a text", f"input_ids {_TEXT}", input_ids="hello"),
    _case(
        "lengths that are words", "seq_lengths must hold numbers, got dtype <U1", seq_lengths=["3"]
    ),
    _case(
        "ids of one row without a batch",
        "input_ids must have shape (batch, sequence), none of it 0; got (3,), one row without a "
        "batch; wrap it: [[1, 2, 3]]",
        input_ids=[1, 2, 3],
    ),
    _case(
        "a long row without a batch",
        "got (9,), one row without a batch; wrap it: [input_ids]",
        input_ids=[1] * 9,
    ),
    _case("ids of rank 3", "none of it 0; got (1, 1, 2)", input_ids=[[[1, 2]]]),
    _case("ids of rank 0", "none of it 0; got ()", input_ids=np.array(1)),
    _case("no columns", "none of it 0; got (2, 0)", input_ids=np.zeros((2, 0), np.int64)),
    _case("no rows", "none of it 0; got (0, 2)", input_ids=np.zeros((0, 2), np.int64)),
    _case("rows of different lengths", f"input_ids {_RAGGED}", input_ids=[[1, 2], [3]]),
    _case("no ids at all", "input_ids must be a rectangular array", input_ids=None),
    _case(
        "a hole in the mask",
        "attention_mask row 1 has a hole at column 1: tokens must come first and padding after",
        attention_mask=_mask([1, 1, 1], (1, 0, 1)),
    ),
    _case(
        "a hole and left padding",
        "attention_mask row 0 has a hole at column 2",
        input_ids=_ids([1, 2, 3, 4]),
        attention_mask=np.array([[0, 1, 0, 1]]),
    ),
    _case(
        "left padding",
        "attention_mask row 0 is padded on the left (first token at column 1): pad on the right",
        attention_mask=_mask([0, 1, 1]),
    ),
    _case(
        "padding on both sides",
        "attention_mask row 0 is padded on the left (first token at column 1)",
        attention_mask=_mask([0, 1, 0]),
    ),
    _case(
        "a mask that is too wide",
        "attention_mask must have the shape of input_ids (2, 3), got (2, 4); with a cache it cover",
        attention_mask=np.ones((2, 4), int),
    ),
    _case(
        "a mask of one row",
        "attention_mask must have the shape of input_ids (2, 3), got (3,)",
        attention_mask=[1, 1, 1],
    ),
    _case(
        "a mask of two other rows",
        "attention_mask must have the shape of input_ids (2, 3), got (3, 2)",
        attention_mask=np.ones((3, 2), int),
    ),
    _case("a mask that is ragged", f"attention_mask {_RAGGED}", attention_mask=[[1, 1, 1], [1]]),
    _case(
        "a mask of segment numbers",
        "attention_mask must hold 0 and 1 only (1 = token, 0 = padding), got 2 at row 0, column 1",
        attention_mask=_mask([1, 2, 0]),
    ),
    _case(
        "a mask of probabilities",
        "attention_mask must hold 0 and 1 only (1 = token, 0 = padding), got 0.5 at row 1",
        attention_mask=_mask([1, 1, 1], (1, 0.5, 0)),
    ),
    _case(
        "an additive mask",
        "attention_mask must hold 0 and 1 only (1 = token, 0 = padding), got -1",
        attention_mask=_mask([0, 0, -1]),
    ),
    _case(
        "a mask with NaN", "0 and 1 only...got nan at row 0", attention_mask=_mask([1, np.nan, 0])
    ),
    _case(
        "a row of zeros",
        "attention_mask row 0 has no tokens: only a call with past_key_values may leave a row empt",
        attention_mask=_mask([0, 0, 0]),
    ),
    _case(
        "a row of zeros in the call that starts a cache",
        "attention_mask row 0 has no tokens",
        attention_mask=_mask([0, 0, 0]),
        use_cache=True,
    ),
    _case(
        "a mask and lengths that disagree",
        "attention_mask and seq_lengths disagree at row 1: 3 ones against a length of 2",
        attention_mask=_mask([1, 1, 0]),
        seq_lengths=[2, 2],
    ),
    _case(
        "a length beyond the columns",
        "seq_lengths must lie in 0..3 (the columns of input_ids), got 4 at row 1",
        seq_lengths=[3, 4],
    ),
    _case(
        "a negative length",
        "seq_lengths must lie in 0..3 (the columns of input_ids), got -1 at row 0",
        seq_lengths=np.array([-1, 3]),
    ),
    _case(
        "lengths of three rows",
        "seq_lengths must have shape (2,), one per row, got (3,)",
        seq_lengths=[1, 2, 3],
    ),
    _case("one length", "seq_lengths must have shape (2,), one per row, got ()", seq_lengths=3),
    _case("lengths in a column", "one per row, got (2, 1)", seq_lengths=[[1], [2]]),
    _case(
        "lengths that are floats",
        "seq_lengths must be integers, got dtype float64",
        seq_lengths=[1.0, 2.0],
    ),
    _case(
        "a length of 0",
        "seq_lengths row 1 has no tokens: only a call with past_key_values may leave a row empty",
        seq_lengths=[3, 0],
    ),
    _case("a cache of three rows", f"past_key_values[0] key {_FIT}...got (3, 2, 64, 4)", Past(3)),
    _case(
        "a cache of one row, which would broadcast",
        f"past_key_values[0] key {_FIT}...got (1, 2, 64, 4)",
        Past(1),
    ),
    _case("a cache of four heads", f"key {_FIT}...got (2, 4, 64, 4)", Past(heads=4)),
    _case("a cache of another head_dim", f"key {_FIT}...got (2, 2, 64, 8)", Past(head_dim=8)),
    _case("a cache without slots", f"key {_FIT}...got (2, 2, 0, 4)", Past(capacity=0)),
    _case(
        "values of another capacity",
        f"past_key_values[0] value {_FIT}...got (2, 2, 32, 4)",
        Past(value={"capacity": 32}),
    ),
    _case(
        "a cache of half precision",
        "past_key_values[0] key has dtype float16, the model computes in float32",
        Past(dtype="float16"),
    ),
    _case(
        "values of half precision",
        "past_key_values[0] value has dtype float16, the model computes in float32",
        Past(value={"dtype": "float16"}),
    ),
    _case(
        "a cache of three layers",
        "past_key_values has 3 layers, the model has 2",
        Past(layers=3),
    ),
    _case("an empty cache", "past_key_values has 0 layers, the model has 2", Past(layers=0)),
    _case(
        "positions of three rows",
        "past_key_values[0] position must be an integer or integers of shape (2,), got int32 (3,)",
        Past(position=np.zeros(3, np.int32)),
    ),
    _case(
        "a position that is not an integer",
        "past_key_values[0] position must be an integer...got float32 (2,)",
        Past(position=np.zeros(2, np.float32)),
    ),
    _case(
        "a negative position",
        "past_key_values position of row 1 is negative (-1)",
        Past(position=np.array([0, -1], np.int32)),
    ),
    _case(
        "more columns than positions",
        "input_ids has 71 columns: a sequence of 71 is beyond max_position_embeddings (70)",
        input_ids=_long(71),
    ),
    _case(
        "more cached and new tokens than positions",
        "row 1 has 68 cached and 3 new tokens: a sequence of 71 is beyond max_position_embeddings",
        Past(position=np.array([5, 68], np.int32)),
    ),
    _case(
        "more cached tokens than slots",
        "past_key_values position of row 1 is 65, beyond the 64 slots of the cache",
        Past(position=np.array([5, 65], np.int32)),
    ),
    _case(
        "segments with a cache",
        "segment_ids cannot go together with past_key_values or use_cache",
        Past(),
        segment_ids=_ids([0, 0, 1], [0, 1, 1]),
    ),
    _case(
        "segments with a cache to be started",
        "segment_ids cannot go together with past_key_values or use_cache",
        segment_ids=_ids([0, 0, 1], [0, 1, 1]),
        use_cache=True,
    ),
    _case(
        "dropout with a cache",
        "dropout_key cannot go together with past_key_values or use_cache",
        Past(),
        dropout_key=np.zeros(2, np.uint32),
    ),
    _case(
        "dropout with a cache to be started",
        "dropout_key cannot go together with past_key_values or use_cache",
        dropout_key=np.zeros(2, np.uint32),
        use_cache=True,
    ),
    _case(
        "a dropout key of one word",
        "dropout_key must be uint32 of shape (2,), as random.key makes it; got uint32 (1,)",
        dropout_key=np.zeros(1, np.uint32),
    ),
    _case(
        "a seed for a dropout key",
        "dropout_key must be uint32 of shape (2,), as random.key makes it; got int32 ()",
        dropout_key=np.int32(3),
    ),
    _case(
        "segments of another shape",
        "segment_ids must have the shape of input_ids (2, 3), got (2, 2)",
        segment_ids=_ids([0, 0], [0, 1]),
    ),
    _case(
        "segments that are floats",
        "segment_ids must be integers, got dtype float64",
        segment_ids=np.zeros((2, 3)),
    ),
    _case(
        "more logits than columns",
        "logits_to_keep must lie in 0..3 (the columns of input_ids; 0 keeps all), got 4",
        logits_to_keep=4,
    ),
    _case("a negative number of logits", "logits_to_keep must lie in 0..3", logits_to_keep=-1),
]
assert len({case.name for case in CASES}) == len(CASES)

GENERATE_CASES = [
    _case(
        "a prompt and new tokens beyond the limit",
        "a prompt of 3 tokens and max_new_tokens (68) make 71, beyond max_position_embeddings (70)",
        max_new_tokens=68,
    ),
    _case("no new tokens", "max_new_tokens must be a positive integer, got 0", max_new_tokens=0),
    _case("less than none", "max_new_tokens must be a positive integer, got -1", max_new_tokens=-1),
    _case(
        "an eos beyond the vocabulary", "eos_token_id must lie in 0..22, got 23", eos_token_id=23
    ),
    _case("a negative eos", "eos_token_id must lie in 0..22, got -1", eos_token_id=[1, -1]),
    _case("a pad beyond the vocabulary", "pad_token_id must lie in 0..22, got 50", pad_token_id=50),
    _case(
        "an id beyond the vocabulary", "got 23 at row 0, column 1", input_ids=_ids([1, 23], [2, 3])
    ),
    _case("a row without tokens", "input_ids row 1 is empty", input_ids=[[1, 2], []]),
    _case(
        "one row without a batch", "got (3,), one ...; wrap it: [[1, 2, 3]]", input_ids=[1, 2, 3]
    ),
    _case("a text", f"input_ids {_TEXT}", input_ids="hello"),
    _case("texts", f"input_ids {_TEXT}", input_ids=["hello", "you"]),
    _case(
        "a hole in the mask",
        "attention_mask row 0 has a hole at column 1",
        attention_mask=_mask([1, 0, 1]),
    ),
    _case(
        "a hole behind left padding",
        "attention_mask row 0 has a hole",
        input_ids=_ids([1, 2, 3, 4]),
        attention_mask=np.array([[0, 1, 0, 1]]),
    ),
    _case("a row of zeros", "attention_mask row 0 has no tokens", attention_mask=_mask([0, 0, 0])),
    _case(
        "a mask of another shape",
        "attention_mask must have the shape of input_ids (2, 3), got (2, 4)",
        attention_mask=np.ones((2, 4), int),
    ),
]
