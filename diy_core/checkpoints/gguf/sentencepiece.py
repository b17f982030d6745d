"""A SentencePiece vocabulary (Llama 2, Mistral, TinyLlama), run by the `tokenizers` library.

A GGUF file with `tokenizer.ggml.model = llama` has tokens with scores and no merges. llama.cpp
joins, of all neighbours that make a token, those with the highest score first, the leftmost of
equals. Merges in the order of the scores are the same, and are what `convert_slow_tokenizer` of
transformers writes into a tokenizer.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

from diy_core.checkpoints.gguf.rules import UnknownTokenizer

_SPACE = "\u2581"  # what stands for a space
_LONGEST = 1024  # characters of a token; SentencePiece makes 16, unless told otherwise
_BYTES = frozenset(f"<0x{value:02X}>" for value in range(256))


def build_sentencepiece(
    vocabulary: Mapping[str, int], scores: Sequence[float], unknown: str, *, prefix: bool
) -> Tokenizer:
    """The tokenizer without its special tokens.

    Args:
        vocabulary: ids by token, in the order of the ids.
        scores: of every token.
        unknown: the token for what cannot be written otherwise.
        prefix: whether a space is put before a text.

    Raises:
        UnknownTokenizer: the scores leave open what is joined first, single bytes are missing, or
            a token is longer than any is.
    """
    if missing := sorted(_BYTES - vocabulary.keys()):
        raise UnknownTokenizer(f"it has no token for some bytes, as {missing[0]}")
    model = models.BPE(
        vocab=dict(vocabulary),
        merges=_merges(vocabulary, scores),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    spaces = [normalizers.Replace(" ", _SPACE)]
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), *spaces] if prefix else spaces
    )
    pieces = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*pieces, decoders.Strip(" ", 1, 0)] if prefix else pieces)
    return backend


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, those of the highest score first."""
    if not all(map(math.isfinite, scores)):
        raise UnknownTokenizer("its scores are not all numbers")
    if (longest := max(map(len, vocabulary))) > _LONGEST:  # every cut of it would be tried
        raise UnknownTokenizer(f"it has a token of {longest} characters")
    found: list[tuple[float, str, str]] = []
    made: dict[float, str] = {}
    for (token, _), score in zip(vocabulary.items(), scores, strict=True):
        pairs = [
            (score, token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
        if pairs and made.setdefault(score, token) != token:
            raise UnknownTokenizer(
                f"its tokens {made[score]!r} and {token!r} have the same score, which leaves open "
                "what is joined first"
            )
        found += pairs
    found.sort(key=lambda pair: (-pair[0], -len(pair[1])))
    return [(left, right) for _, left, right in found]
