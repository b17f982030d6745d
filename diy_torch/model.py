"""The model: the trunk of blocks, and the causal language model over it.

Shapes: B batch, S sequence of this call, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diy_core import validate
from diy_core.checkpoints.hf.writer import MAX_SHARD_SIZE
from diy_core.config import DIYConfig, require_config
from diy_core.first_weights import first_weights
from diy_torch import checkpoint, inputs
from diy_torch.attention import attention_mask_from_positions
from diy_torch.block import ModelBlock
from diy_torch.cache import PastKeyValues
from diy_torch.norm import RMSNorm
from diy_torch.random import fold_in
from diy_torch.rope import rope_tables
from diy_torch.tensors import assign_weights
from diy_torch.unseen import spoil, wrong_rows


class DIYModel(nn.Module):
    """The trunk: embedding, blocks, final norm.

    Args:
        config: sizes and switches.

    Raises:
        TypeError: `config` is no `DIYConfig`.
    """

    def __init__(self, config: DIYConfig) -> None:
        super().__init__()
        require_config(config)
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ModelBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Any,
        seq_lengths: Any = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        *,
        segment_ids: Any = None,
        dropout_key: Any = None,
    ) -> Any:
        """Hidden states (B, S, D) after the final norm; with `use_cache`, also the new cache.

        Args:
            input_ids: integers (B, S), padded on the right.
            seq_lengths: integers (B,), the valid tokens of each row of this call; None: all S.
            past_key_values: the cache that an earlier call returned, or `init_cache` made.
            use_cache: also return the updated cache; without `past_key_values` start a new one.
            segment_ids: integers (B, S); packed documents see only themselves and count their
                positions from 0. Not together with a cache.
            dropout_key: uint32 (2,), see `random`: drop at the config's rates, the same elements
                for the same key. None: drop nothing. Not together with a cache.

        Raises:
            ValueError: ids, lengths or cache that do not fit; a sequence beyond
                `max_position_embeddings`. Where values cannot be seen (compiled, on an
                accelerator), such a row is NaN instead, and so is whatever is cached after it.
        """
        weight = self.embed_tokens.weight
        cached = use_cache or past_key_values is not None
        ids = inputs.prepare_input_ids(input_ids, self.config, weight.device)
        lengths = inputs.prepare_lengths(seq_lengths, ids, past_key_values is not None)
        segments = inputs.prepare_segments(segment_ids, ids, cached)
        key = inputs.prepare_dropout_key(dropout_key, cached)
        past: PastKeyValues | None = None
        if cached:
            past = inputs.prepare_cache(past_key_values, self.config, ids, lengths, weight.dtype)

        positions, mask = _positions_and_mask(ids, segments, past)
        rope = rope_tables(self.config, positions, weight.dtype)
        hidden = self.embed_tokens(ids)
        keys = _layer_keys(key, self.config, ids.device)
        presents = []
        for index, layer in enumerate(self.layers):
            past_layer = past[index] if past else None
            hidden, present = layer(hidden, rope, mask, lengths, past_layer, keys[index])
            presents.append(present)
        wrong = wrong_rows(ids, lengths, past, past_key_values is not None, self.config)
        hidden, presents = spoil(wrong, self.norm(hidden), presents)
        return (hidden, presents) if use_cache else hidden


def _layer_keys(
    key: Tensor | None, config: DIYConfig, device: torch.device
) -> Sequence[Tensor | None]:
    """One key per layer; None where nothing is dropped."""
    count = config.num_hidden_layers
    if key is None or not (config.attention_dropout or config.residual_dropout):
        return [None] * count
    # Folded where the key is: for so few numbers the host is faster than an accelerator.
    return fold_in(key, torch.arange(count, device=key.device)).to(device).unbind()


def _positions_and_mask(
    ids: Tensor, segments: Tensor | None, past: PastKeyValues | None
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S T"]]:
    """Where each token stands, counted from the start of its row or segment, and what it sees."""
    columns = torch.arange(ids.shape[1], dtype=torch.int32, device=ids.device)
    columns = columns.expand(ids.shape)
    if past is not None:
        cached, position = past[0]
        slots = torch.arange(cached["key"].shape[2], dtype=torch.int32, device=ids.device)
        positions = position[:, None] + columns
        slots = slots.expand(ids.shape[0], -1)
        return positions, attention_mask_from_positions(positions, slots)
    if segments is None:
        return columns, attention_mask_from_positions(columns, columns)
    # Documents are numbered anew, so that an id that comes back is another document.
    begins = torch.zeros_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    documents = begins.cumsum(dim=1, dtype=torch.int32)
    starts = torch.where(begins, columns, 0).cummax(dim=1).values
    return columns - starts, attention_mask_from_positions(columns, columns, documents, documents)


class DIYForCausalLM(nn.Module):
    """The language model: the trunk, and a head that is the embedding again where it is tied.

    Args:
        config: sizes and switches.
        seed: of the first weights; the Flax twin draws the same bits from the same seed.
        dtype: of weights and computation: one of any library, or its name, such as `bfloat16`.
        device: where the weights live; None is the CPU.
    """

    def __init__(
        self,
        config: DIYConfig,
        seed: int = 0,
        *,
        dtype: Any = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self._build(config)
        drawn = ((tensor.torch, array) for tensor, array in first_weights(config, seed))
        assign_weights(self, drawn, dtype, device, tied=config.tie_word_embeddings)

    def _build(self, config: DIYConfig) -> None:
        """All modules, their weights on no device yet: whoever builds assigns them."""
        self.config = config
        with torch.device("meta"):
            self.model = DIYModel(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def _without_weights(cls, config: DIYConfig) -> DIYForCausalLM:
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._build(config)
        return model

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        seq_lengths: Any = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        *,
        segment_ids: Any = None,
        logits_to_keep: int = 0,
        dropout_key: Any = None,
    ) -> Any:
        """Logits (B, S, V), or with `use_cache` the pair (logits, presents).

        Args:
            input_ids: integers (B, S), padded on the right.
            attention_mask: (B, S), 1 = token, 0 = padding, ones before zeros in each row. Another
                way to say `seq_lengths`; given both, they must agree.
            seq_lengths: integers (B,), the valid tokens of each row of this call; None: all S.
                With a cache a row may have none.
            past_key_values: the cache that an earlier call returned, or `init_cache` made.
            use_cache: also return the updated cache; without `past_key_values` start a new one.
            segment_ids: integers (B, S) of packed documents, see `DIYModel`.
            logits_to_keep: n > 0 returns logits (B, n, V) of the last n valid tokens of each row
                (its first token again where it has fewer).
            dropout_key: uint32 (2,): drop at the config's rates, see `DIYModel`; None: nothing.

        Logits at padded positions are finite and mean nothing.

        Raises:
            ValueError: whatever does not fit; it says what, where, and the way out. Where values
                cannot be seen (compiled, on an accelerator), the logits of a row that would have
                been refused are NaN: an id outside of the vocabulary, a mask that is not ones
                before zeros, lengths out of range or other than the mask's, a row that has no room
                left in its cache.
        """
        has_cache = past_key_values is not None
        device = self.model.embed_tokens.weight.device
        ids = inputs.prepare_input_ids(input_ids, self.config, device)
        seq_lengths = inputs.lengths_from_mask(attention_mask, seq_lengths, ids, has_cache)
        logits_to_keep = validate.check_logits_to_keep(logits_to_keep, ids.shape[1])
        extras = {"segment_ids": segment_ids, "dropout_key": dropout_key}
        result = self.model(ids, seq_lengths, past_key_values, use_cache, **extras)
        hidden, presents = result if use_cache else (result, None)
        if logits_to_keep:
            lengths = inputs.prepare_lengths(seq_lengths, ids, has_cache)
            keep = torch.arange(-logits_to_keep, 0, device=ids.device)
            index = (lengths[:, None] + keep).clamp(min=0).long()
            hidden = hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2]))
        logits = self.project(hidden)
        return (logits, presents) if use_cache else logits

    if TYPE_CHECKING:  # what `model(...)` gives: nn.Module calls `forward`, and says Any

        @overload
        def __call__(
            self,
            input_ids: Any,
            attention_mask: Any = ...,
            *,
            use_cache: Literal[True],
            **more: Any,
        ) -> tuple[Tensor, PastKeyValues]: ...
        @overload
        def __call__(
            self,
            input_ids: Any,
            attention_mask: Any = ...,
            *,
            use_cache: Literal[False] = ...,
            **more: Any,
        ) -> Tensor: ...
        @overload
        def __call__(self, *args: Any, **more: Any) -> Tensor | tuple[Tensor, PastKeyValues]: ...
        def __call__(self, *args: Any, **more: Any) -> Any:
            """See `forward`."""

    def project(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S V"]:
        """Logits of hidden states: hidden times the head, or the embedding where they are tied.

        Args:
            hidden: (B, S, D), what the trunk returned, in the dtype of the model.

        Returns:
            Logits (B, S, V) in the same dtype.
        """
        return self.lm_head(hidden)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: Any = torch.float32,
        device: torch.device | str | None = None,
        *,
        verify: bool = False,
        strict: bool = False,
        config: str | Path | None = None,
    ) -> DIYForCausalLM:
        """Load a Hugging Face directory or a GGUF file.

        Args:
            path: a directory with `config.json` and safetensors files, or a GGUF file, of which
                quantised tensors become what they stand for, in float32.
            dtype: of weights and computation: one of any library, or its name, such as `bfloat16`;
                None keeps the dtype of the file.
            device: where the weights go; None is the CPU.
            verify: compare every tensor with its SHA-256 in the manifest.
            strict: refuse what is odd but means the same; else it is read with a warning, a
                `CheckpointNote`.
            config: of an Orbax checkpoint without one, as the Flax twin takes it; this twin reads
                none, and the error has the command that converts it.

        Returns:
            The model.

        Raises:
            ValueError: a `config.json` or a dtype that cannot be honoured.
            CheckpointError: tensors missing, extra, misshapen, mistyped or not finite; or, with
                `verify`, no manifest, or values that changed since it was written; or, with
                `strict`, anything odd; or a `config` for what has its own.
        """
        return checkpoint.load(cls._without_weights, path, dtype, device, verify, strict, config)

    def save_pretrained(self, path: str | Path, *, max_shard_size: int = MAX_SHARD_SIZE) -> None:
        """Write a Hugging Face directory, whole or not at all; transformers loads it.

        A manifest with the SHA-256 of every tensor is written beside the weights.

        Args:
            path: an existing model directory is replaced, but for files that are no weights.
            max_shard_size: bytes of one safetensors file; larger models get several.

        Raises:
            CheckpointError: weights not finite, or `path` exists and is not a model directory.
        """
        checkpoint.save(self, self.config, path, max_shard_size)
