"""Names of tensors in one author's language: words, numbers, and the leaf."""

from __future__ import annotations

import re

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "running_mean": "mean",
    "running_var": "var",
}
# Words that different authors use for one thing.
_SYNONYMS = {
    "attention": "attn self_attn self_attention mha multi_head_attention",
    "feedforward": "mlp ffn feed_forward ff",
    "norm": "ln layernorm layer_norm rmsnorm rms_norm bn batchnorm",
    "embed": "embedding embeddings embed_tokens wte tok_embeddings token_embedding tokens",
    "position": "wpe positions pos_embed position_embeddings pos",
    "layer": "layers h blocks block blk encoderblock",
    "query": "q q_proj wq query_proj attn_q",
    "key": "k k_proj wk key_proj attn_k",
    "value": "v v_proj wv value_proj attn_v",
    "out": "o o_proj wo out_proj c_proj proj attn_output output dense",
    "gate": "gate_proj w1",
    "down": "down_proj w2 fc2 wo_mlp",
    "up": "up_proj w3 fc1 c_fc fc_in",
    "head": "lm_head classifier",
    "final": "ln_f norm_f final_norm",
    "input": "input_layernorm attention_norm ln_1 norm1",
    "post": "post_attention_layernorm feedforward_norm ffn_norm ln_2 norm2",
}
_MEANS = {word: name for name, words in _SYNONYMS.items() for word in [name, *words.split()]}
_IGNORED = {"model", "transformer", "params", "module", "net", "backbone"}


def parse(name: str) -> tuple[set[str], list[int], str]:
    """The words of a name in one author's language, its numbers, and the leaf."""
    *parts, leaf = re.split(r"[./]", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    words, numbers = set(), []
    for part in parts:
        found = re.fullmatch(r"(.*?)_?(\d+)", part)
        if found and part not in _MEANS:
            part = found[1]
            numbers.append(int(found[2]))
        if part in _MEANS:
            words.add(_MEANS[part])
        else:
            words |= {_MEANS.get(word, word) for word in part.split("_") if word}
    return words - _IGNORED, numbers, _LEAVES.get(leaf, leaf)


def words_of(path: str) -> set[str]:
    """The words of a module's path in one author's language: `self_attn.q_proj` has `query`."""
    return parse(f"{path}.weight")[0]


_KINDS = {"w": "weight", "kernel": "weight", "scale": "weight", "b": "bias"}


def words_and_kind(name: str) -> tuple[set[str], list[int], str]:
    """The words of a whole name, its numbers, and the kind: `layers_0/query_w` is a weight."""
    words, numbers, _ = parse(f"{name}.x")
    kinds = {_KINDS.get(word, word) for word in words}
    kind = next((kind for kind in ("weight", "bias") if kind in kinds), "")
    return {w for w in words if _KINDS.get(w, w) != kind}, numbers, kind
