"""A tokenizer without its vocabulary, run on one text: what `trial` has done in another process.

The file is run by its path, without this package around it.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each thread takes memory
import tokenizers

# Words, numbers, scripts, and the long runs of one kind that expressions backtrack in.
TEXT = (
    "it's I'LL a1234 x_Y2 camelCase (a)  b,c\n\n\td... /\n你好 e\u0301 किताब ﬁ ½ 🙂 <|a|> [b] "
    "The quick brown fox jumps over the lazy dog, and 3.14159 is not 22/7; see https://x.org/?a=1. "
    f"{'a' * 60}!{' ' * 60}{'ab' * 30}{'1' * 60}{'-' * 60}{chr(10) * 30}{'я' * 30}"
) * 8


def run(state: str) -> str:
    """All text that the steps of a tokenizer make of `TEXT`, and a space for each token.

    Args:
        state: a tokenizer.json.
    """
    made: list[str] = []
    try:
        _run(tokenizers.Tokenizer.from_str(state), made)
    except MemoryError:
        raise
    except BaseException as error:  # panics, too; whoever uses the tokenizer is told of it
        return f"{''.join(made)}{error}"
    return "".join(made)


def _run(tokenizer: tokenizers.Tokenizer, made: list[str]) -> None:
    text, words = TEXT, [TEXT]
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
        made.append(text)
    if tokenizer.pre_tokenizer is not None:
        words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        made += words
    made.append(" " * len(tokenizer.encode(TEXT).ids))
    if tokenizer.decoder is not None:
        made.append(tokenizer.decoder.decode(words))
