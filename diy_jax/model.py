"""The model: the trunk of blocks, and the causal language model over it.

Shapes: B batch, S sequence of this call, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from diy_core import validate
from diy_core.checkpoints.hf.writer import MAX_SHARD_SIZE
from diy_core.config import DIYConfig, require_config
from diy_core.first_weights import first_weights
from diy_jax import checkpoint, inputs
from diy_jax.attention import attention_mask_from_positions
from diy_jax.block import ModelBlock
from diy_jax.cache import PastKeyValues
from diy_jax.linear import Linear
from diy_jax.norm import RMSNorm
from diy_jax.random import fold_in
from diy_jax.rope import rope_tables
from diy_jax.tensors import build_params, float_dtype
from diy_jax.unseen import spoil, wrong_rows


class DIYModel(nn.Module):
    """The trunk: embedding, blocks, final norm.

    Args:
        config: sizes and switches.
        dtype: of the computation.
        param_dtype: of the weights that `init` makes.

    Raises:
        TypeError: `config` is no `DIYConfig`.
    """

    config: DIYConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Embedding, blocks and norm."""
        require_config(self.config)
        config, dtypes = self.config, (self.dtype, self.param_dtype)
        self.embed_tokens = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,  # without it `attend` would promote to the dtype of the table
            param_dtype=self.param_dtype,
            embedding_init=nn.initializers.normal(config.initializer_range),
        )
        self.layers = [ModelBlock(config, *dtypes) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, self.param_dtype)

    def __call__(
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
                `max_position_embeddings`. Where values cannot be seen (`jit`, on an
                accelerator), such a row is NaN instead, and so is whatever is cached after it.
        """
        cached = use_cache or past_key_values is not None
        ids = inputs.prepare_input_ids(input_ids, self.config)
        lengths = inputs.prepare_lengths(seq_lengths, ids, past_key_values is not None)
        segments = inputs.prepare_segments(segment_ids, ids, cached)
        key = inputs.prepare_dropout_key(dropout_key, cached)
        past: PastKeyValues | None = None
        if cached:
            past = inputs.prepare_cache(past_key_values, self.config, ids, lengths, self.dtype)

        positions, mask = _positions_and_mask(ids, segments, past)
        rope = rope_tables(self.config, positions, self.dtype)
        hidden = self.embed_tokens(ids)
        keys = _layer_keys(key, self.config)
        presents = []
        for index, layer in enumerate(self.layers):
            past_layer = past[index] if past else None
            hidden, present = layer(hidden, rope, mask, lengths, past_layer, keys[index])
            presents.append(present)
        wrong = wrong_rows(ids, lengths, past, past_key_values is not None, self.config)
        hidden, presents = spoil(wrong, self.norm(hidden), presents)
        return (hidden, presents) if use_cache else hidden


def _layer_keys(key: Array | None, config: DIYConfig) -> Sequence[Array | None]:
    """One key per layer; None where nothing is dropped."""
    count = config.num_hidden_layers
    if key is None or not (config.attention_dropout or config.residual_dropout):
        return [None] * count
    return list(fold_in(key, jnp.arange(count, dtype=jnp.uint32)))


def _positions_and_mask(
    ids: Array, segments: Array | None, past: PastKeyValues | None
) -> tuple[Int[Array, "B S"], Bool[Array, "B S T"]]:
    """Where each token stands, counted from the start of its row or segment, and what it sees."""
    columns = jnp.arange(ids.shape[1], dtype=jnp.int32)
    columns = jnp.broadcast_to(columns[None, :], ids.shape)
    if past is not None:
        cached, position = past[0]
        slots = jnp.arange(cached["key"].shape[2], dtype=jnp.int32)
        positions = position[:, None] + columns
        slots = jnp.broadcast_to(slots[None, :], (ids.shape[0], slots.shape[0]))
        return positions, attention_mask_from_positions(positions, slots)
    if segments is None:
        return columns, attention_mask_from_positions(columns, columns)
    # Documents are numbered anew, so that an id that comes back is another document.
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    documents = jnp.cumsum(begins, axis=1, dtype=jnp.int32)
    starts = jax.lax.cummax(jnp.where(begins, columns, 0), axis=1)
    return columns - starts, attention_mask_from_positions(columns, columns, documents, documents)


class DIYForCausalLM(nn.Module):
    """The language model: the trunk, and a head that is the embedding again where it is tied.

    Args:
        config: sizes and switches.
        dtype: of the computation: one of any library, or its name, such as `bfloat16`.
        param_dtype: of the weights that `init` makes, likewise.

    Raises:
        ValueError: a dtype that weights cannot have.
    """

    config: DIYConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Take the dtypes of any library, and their names."""
        self.dtype = float_dtype(self.dtype)
        self.param_dtype = float_dtype(self.param_dtype)
        super().__post_init__()

    def setup(self) -> None:
        """The trunk, and the head unless it is tied."""
        require_config(self.config)
        self.model = DIYModel(self.config, self.dtype, self.param_dtype)
        if not self.config.tie_word_embeddings:
            self.lm_head = Linear(
                self.config.vocab_size,
                use_bias=False,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                std=self.config.initializer_range,
            )

    def __call__(
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
                cannot be seen (`jit`, on an accelerator), the logits of a row that would have
                been refused are NaN: an id outside of the vocabulary, a mask that is not ones
                before zeros, lengths out of range or other than the mask's, a row that has no room
                left in its cache.
        """
        has_cache = past_key_values is not None
        ids = inputs.prepare_input_ids(input_ids, self.config)
        seq_lengths = inputs.lengths_from_mask(attention_mask, seq_lengths, ids, has_cache)
        logits_to_keep = validate.check_logits_to_keep(logits_to_keep, ids.shape[1])
        extras = {"segment_ids": segment_ids, "dropout_key": dropout_key}
        result = self.model(ids, seq_lengths, past_key_values, use_cache, **extras)
        hidden, presents = result if use_cache else (result, None)
        if logits_to_keep:
            lengths = inputs.prepare_lengths(seq_lengths, ids, has_cache)
            keep = jnp.arange(-logits_to_keep, 0, dtype=jnp.int32)
            index = jnp.maximum(lengths[:, None] + keep[None, :], 0)
            hidden = jnp.take_along_axis(hidden, index[:, :, None], axis=1)
        logits = self.project(hidden)
        return (logits, presents) if use_cache else logits

    def project(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Logits of hidden states: hidden times the head, or the embedding where they are tied.

        Args:
            hidden: (B, S, D), what the trunk returned, in the dtype of the model.

        Returns:
            Logits (B, S, V) in the same dtype.
        """
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.attend(hidden)
        return self.lm_head(hidden)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: Any = jnp.float32,
        *,
        verify: bool = False,
        strict: bool = False,
        config: str | Path | None = None,
    ) -> tuple[DIYForCausalLM, dict[str, Any]]:
        """Load a Hugging Face directory, an Orbax checkpoint or a GGUF file.

        Args:
            path: a directory with `config.json` and safetensors files, one that `parity convert`
                wrote for Orbax, or a GGUF file, of which quantised tensors become what they stand
                for, in float32.
            dtype: of weights and computation: one of any library, or its name, such as `bfloat16`;
                None keeps the dtype of the file.
            verify: compare every tensor with its SHA-256 in the manifest.
            strict: refuse what is odd but means the same; else it is read with a warning, a
                `CheckpointNote`.
            config: of an Orbax checkpoint without one, as other programs write it: a `config.json`,
                or a directory with one.

        Returns:
            The model and its params, for `model.apply({"params": params}, input_ids)`.

        Raises:
            ValueError: a `config.json` or a dtype that cannot be honoured.
            CheckpointError: tensors missing, extra, misshapen, mistyped or not finite; or, with
                `verify`, no manifest, or values that changed since it was written; or, with
                `strict`, anything odd; or a `config` for what has its own.
        """
        return checkpoint.load(cls._of, path, dtype, verify, strict, config)

    @classmethod
    def _of(cls, config: DIYConfig, dtype: Any) -> DIYForCausalLM:
        return cls(config, dtype=dtype, param_dtype=dtype)

    def save_pretrained(
        self, path: str | Path, params: Any, *, max_shard_size: int = MAX_SHARD_SIZE
    ) -> None:
        """Write a Hugging Face directory, whole or not at all; transformers loads it.

        A manifest with the SHA-256 of every tensor is written beside the weights.

        Args:
            path: an existing model directory is replaced, but for files that are no weights.
            params: the model's parameters; or `{"params": params}`, an `nnx.State`, a TrainState,
                with arrays in boxes or not.
            max_shard_size: bytes of one safetensors file; larger models get several.

        Raises:
            CheckpointError: weights not finite, or `path` exists and is not a model directory.
        """
        checkpoint.save(params, self.config, path, max_shard_size)


def init_params(config: DIYConfig, seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """First weights, the same bits as the PyTorch twin draws from the same seed.

    Args:
        config: sizes and switches.
        seed: the same seed gives the same weights.
        dtype: of the weights.

    Returns:
        params, a nested dict of arrays.

    Raises:
        TypeError: `config` is no `DIYConfig`.
    """
    require_config(config)
    return build_params(first_weights(config, seed), dtype)
