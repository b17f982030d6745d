"""The host's side of generation, the same for both twins: prompts in, rows that stop, rows out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.padding import pad_right
from diy_core.validate import is_whole

# Called after each step with the new tokens (B,) and which rows they count for, bool (B,).
OnTokens = Callable[[NDArray[np.int32], NDArray[np.bool_]], None]


_CALLS = {
    "diy_torch": "diy_torch.generate(model, input_ids, ...)",
    "diy_jax": "diy_jax.generate(model, params, input_ids, ...)",
}
NOT_FINITE = -1  # in place of a token, where the largest logit is not a number


@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """What was generated.

    Attributes:
        sequences: integers (B, L): each row its prompt, its new tokens (eos included), padding.
        lengths: int32 (B,): how many tokens of each row are prompt or new.
    """

    sequences: Any
    lengths: Any


def require_model(model: object, twin: str) -> None:
    """Raise for the other twin's model, and for what is not a model of ours.

    Args:
        model: what `generate` was given.
        twin: whose it must be, `diy_torch` or `diy_jax`.

    Raises:
        TypeError: it is another's; the message has the call to make.
    """
    packages = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    for other in _CALLS.keys() - {twin}:
        if other in packages:
            raise TypeError(f"{twin}.generate got a model of {other}: call {_CALLS[other]}")
    if not isinstance(getattr(model, "config", None), DIYConfig):
        raise TypeError(
            f"{twin}.generate needs a {twin}.DIYForCausalLM, got {type(model).__name__}: call "
            f"{_CALLS[twin]}"
        )


class Rows:
    """A batch of sequences that grow token by token and stop each alone.

    Args:
        input_ids: integers (B, S), padded on either side, or B lists of different lengths.
        attention_mask: 0 and 1 in the same shape, or None where nothing is padded.
        max_new_tokens: at most so many tokens are added to each row.
        eos_token_id: one id or several; a row that gets one of them is finished. None: never.
        pad_token_id: fills the end of short rows; None: the first eos id, or 0.

    Raises:
        ValueError: anything out of range, or a prompt that with `max_new_tokens` is beyond
            `max_position_embeddings`.
    """

    def __init__(
        self,
        config: DIYConfig,
        input_ids: Any,
        attention_mask: Any,
        *,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None,
        pad_token_id: int | None,
    ) -> None:
        self.eos = _token_ids("eos_token_id", eos_token_id, config.vocab_size)
        pad = _token_ids("pad_token_id", pad_token_id, config.vocab_size)
        if len(pad) > 1:
            raise ValueError(f"pad_token_id must be one id, got {pad}")
        self.pad = int((pad or self.eos or [0])[0])
        if not is_whole(max_new_tokens) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be a positive integer, got {max_new_tokens!r}")
        max_new_tokens = int(max_new_tokens)
        self.prompts, self.prompt_lengths = pad_right(
            input_ids, attention_mask, config, max_new_tokens
        )
        self.lengths = self.prompt_lengths.copy()
        self.active = np.ones(len(self.lengths), bool)
        self._left = max_new_tokens
        self._new: list[NDArray[np.int32]] = []

    @property
    def going(self) -> bool:
        """True while some row wants another token."""
        return self._left > 0 and bool(self.active.any())

    @property
    def step(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """What the next step is fed: last tokens (B, 1), and 1 per going row, 0 per finished."""
        return self._new[-1][:, None], self.active.astype(np.int32)

    def accept(self, tokens: NDArray[Any]) -> None:
        """Take each going row's next token; finished rows ignore theirs.

        Raises:
            ValueError: a row whose logits were not finite has `NOT_FINITE` for its token.
        """
        for row in np.flatnonzero(self.active & (tokens == NOT_FINITE)).tolist():
            raise ValueError(
                f"the logits of row {row} are not finite after {int(self.lengths[row])} tokens, "
                "and no token is the most probable one: compute in float32, or look for weights "
                "that are not finite"
            )
        tokens = np.where(self.active, tokens, self.pad).astype(np.int32)
        self._new.append(tokens)
        self.lengths = self.lengths + self.active
        self.active = self.active & ~np.isin(tokens, self.eos)
        self._left -= 1

    def sequences(self) -> NDArray[np.int32]:
        """Prompts and new tokens, padded on the right: int32 (B, L), L the longest row."""
        result = np.full((len(self.lengths), int(self.lengths.max())), self.pad, np.int32)
        for row, (prompt, total) in enumerate(zip(self.prompt_lengths, self.lengths, strict=True)):
            result[row, :prompt] = self.prompts[row, :prompt]
            result[row, prompt:total] = [new[row] for new in self._new[: total - prompt]]
        return result


def _token_ids(name: str, value: int | Sequence[int] | None, vocab_size: int) -> list[int]:
    if value is None:
        return []
    given: Any = value[()] if isinstance(value, np.ndarray) else value  # one number is not an array
    several = isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, (str, bytes))
    ids: list[Any] = list(given) if several else [given]
    for token in ids:
        if not is_whole(token) or not 0 <= token < vocab_size:
            raise ValueError(f"{name} must lie in 0..{vocab_size - 1}, got {token!r}")
    return [int(token) for token in ids]
