"""How text is split into words under each name of `tokenizer.ggml.pre`.

A GGUF file has the vocabulary and the merges of a byte-level tokenizer, and of the rules around
them only a name, which stands for regular expressions in llama.cpp's source
(`src/llama-vocab.cpp`). Here are the names whose rules are known for certain: where llama.cpp's
expressions are those of the models' own tokenizer.json. Not among them: `default` and an absent
name, under which llama.cpp guesses, and `qwen2` and others whose models also normalise the text,
which llama.cpp does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tokenizers import Regex, pre_tokenizers

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*"
    rf"|\p{{N}}{_REST}"
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+{_ENDINGS}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*{_ENDINGS}|\p{{N}}{{1,3}}{_REST}"
)
# One after the other. The third has Chinese, other scripts below it, and Hangul.
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)


class UnknownTokenizer(ValueError):
    """A GGUF file does not say enough to rebuild its tokenizer for certain."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What llama.cpp does under one name.

    Attributes:
        split: builds the pre-tokenizer.
        whole_words: a word that is a token is taken whole, before anything is merged.
        begins: a text begins with BOS where the file does not say.
    """

    split: Callable[[], pre_tokenizers.PreTokenizer]
    whole_words: bool = False
    begins: bool = False


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _splitting(*expressions: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    def build() -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(e), behavior="isolated") for e in expressions]
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, plain])

    return build


# The first of several names for the same rules is the one that is written.
RULES: dict[str, Rules] = {
    "gpt-2": Rules(_gpt2),
    "phi-2": Rules(_gpt2),
    "llama-bpe": Rules(_splitting(_LLAMA3), whole_words=True, begins=True),
    "llama3": Rules(_splitting(_LLAMA3), whole_words=True, begins=True),
    "llama-v3": Rules(_splitting(_LLAMA3), whole_words=True, begins=True),
    "smaug-bpe": Rules(_splitting(_LLAMA3)),
    "dbrx": Rules(_splitting(_LLAMA3)),
    "smollm": Rules(_single_digits),
    "starcoder": Rules(_single_digits),
    "refact": Rules(_single_digits),
    "tekken": Rules(_splitting(_TEKKEN), whole_words=True, begins=True),
    "gpt-4o": Rules(_splitting(_GPT4O)),
    "deepseek-coder": Rules(_splitting(*_DEEPSEEK_CODER)),
}
