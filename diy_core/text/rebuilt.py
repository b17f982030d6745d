"""The tokenizer classes that transformers 5.23 builds anew, whatever tokenizer.json says.

Of tokenizer.json they keep vocabulary, merges and post-processor. Normaliser, pre-tokenizer and
decoder are each class's own, from `__init__` in `transformers/models/*/tokenization_*.py`; a test
holds each to it. `legacy` and `add_prefix_space` of tokenizer_config.json count only here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

Settings = Mapping[str, Any]
_SPACE = "▁"
_ENDING = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """One class.

    Attributes:
        tokens: special tokens by role, where tokenizer_config.json is silent.
        build: the tokenizer, without added tokens and post-processor, from vocabulary and merges
            as `BPE` takes them, and from the settings.
        keeps_post_processor: that of tokenizer.json; else only `adds_bos` is put around a text.
        adds_bos: whether BOS is put in front where the post-processor is not kept.
        doubled: roles whose tokens are among those without a role, too.
        again: special tokens are added a second time, "plain": without what their entries say
            about the spaces around them, or "special": as entries say, where there is one.
    """

    tokens: Mapping[str, str | None]
    build: Callable[[dict[str, int], list[tuple[str, str]], Settings], Tokenizer]
    keeps_post_processor: bool = True
    adds_bos: bool = False
    again: Literal["plain", "special"] | None = None
    doubled: tuple[str, ...] = ()


def _llama(vocab: dict[str, int], merges: list[tuple[str, str]], settings: Settings) -> Tokenizer:
    prefixed = settings.get("add_prefix_space") in (None, True)
    scheme = "always" if settings.get("legacy") else "first"
    backend = Tokenizer(BPE(vocab, merges, fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        _SPACE, prepend_scheme=scheme if prefixed else "never", split=False
    )
    backend.decoder = _pieces_to_text(strip=prefixed)
    return backend


def _code_llama(
    vocab: dict[str, int], merges: list[tuple[str, str]], settings: Settings
) -> Tokenizer:
    unknown = str(settings["unk_token"])
    prefixed = settings.get("add_prefix_space") in (None, True)
    backend = Tokenizer(BPE(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        _SPACE, prepend_scheme="first" if prefixed else "never", split=False
    )
    backend.decoder = _pieces_to_text(strip=True)
    return backend


def _gemma(vocab: dict[str, int], merges: list[tuple[str, str]], settings: Settings) -> Tokenizer:
    unknown = str(settings["unk_token"])
    backend = Tokenizer(BPE(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token=unknown))
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = _pieces_to_text(strip=False)
    return backend


def _pieces_to_text(strip: bool) -> decoders.Decoder:
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * strip)


def _byte_level(
    *before: Callable[[], pre_tokenizers.PreTokenizer], nfc: bool = True, words: bool = True
) -> Callable[[dict[str, int], list[tuple[str, str]], Settings], Tokenizer]:
    """Bytes as letters, after other pre-tokenizers; `words`: split as GPT-2 does."""

    def build(
        vocab: dict[str, int], merges: list[tuple[str, str]], settings: Settings
    ) -> Tokenizer:
        prefixed = bool(settings.get("add_prefix_space"))
        backend = Tokenizer(
            BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
        )
        if nfc:
            backend.normalizer = normalizers.NFC()
        letters = pre_tokenizers.ByteLevel(add_prefix_space=prefixed, use_regex=words)
        steps = [make() for make in before]
        backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, letters]) if steps else letters
        backend.decoder = decoders.ByteLevel()
        return backend

    return build


def _split(pattern: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    return lambda: pre_tokenizers.Split(Regex(pattern), "isolated")


_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN3_5_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_INFILLING_TOKENS = {
    "prefix_token": "▁<PRE>",
    "middle_token": "▁<MID>",
    "suffix_token": "▁<SUF>",
    "eot_token": "▁<EOT>",
    "fill_token": "<FILL_ME>",
}
_QWEN_TOKENS = {"unk_token": _ENDING, "eos_token": _ENDING, "pad_token": _ENDING}

REBUILT = {
    "LlamaTokenizer": Rebuilt(_LLAMA_TOKENS, _llama),
    "CodeLlamaTokenizer": Rebuilt(
        _LLAMA_TOKENS | _INFILLING_TOKENS,
        _code_llama,
        keeps_post_processor=False,
        adds_bos=True,
        doubled=tuple(_INFILLING_TOKENS),
    ),
    "GemmaTokenizer": Rebuilt(
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        _gemma,
    ),
    "Qwen2Tokenizer": Rebuilt(
        _QWEN_TOKENS, _byte_level(_split(_QWEN2_WORDS), words=False), again="plain"
    ),
    "Qwen3_5Tokenizer": Rebuilt(_QWEN_TOKENS, _byte_level(_split(_QWEN3_5_WORDS), words=False)),
    "GPT2Tokenizer": Rebuilt(
        {"unk_token": _ENDING, "bos_token": _ENDING, "eos_token": _ENDING, "pad_token": None},
        _byte_level(nfc=False),
    ),
    "GPTNeoXTokenizer": Rebuilt(
        {
            "unk_token": _ENDING,
            "bos_token": _ENDING,
            "eos_token": _ENDING,
            "pad_token": "<|padding|>",
        },
        _byte_level(),
        keeps_post_processor=False,
    ),
    "CohereTokenizer": Rebuilt(
        {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "sep_token": "<SEP>",
            "mask_token": "<MASK_TOKEN>",
        },
        _byte_level(lambda: pre_tokenizers.Digits(individual_digits=True)),
        again="special",
    ),
}
