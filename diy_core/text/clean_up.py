"""Decoded text without the spaces before punctuation, as `clean_up_tokenization_spaces` asks.

The rules are those of `PreTrainedTokenizerBase.clean_up_tokenization` in transformers.
"""

from __future__ import annotations

_RULES = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}
_IN_RULES = "".join({character for rule in _RULES for character in rule})


def clean_up(text: str) -> str:
    """Apply the rules, each after the one before."""
    for spaced, close in _RULES.items():
        text = text.replace(spaced, close)
    return text


class CleanUpStream:
    """`clean_up` of a text that comes in pieces.

    No rule reaches across a character that is in none: what stands before the last such character
    is done with.
    """

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str) -> str:
        """What is certain after this piece."""
        self._held += piece
        done = len(self._held.rstrip(_IN_RULES))
        text, self._held = self._held[:done], self._held[done:]
        return clean_up(text)

    def finish(self) -> str:
        """The rest."""
        text, self._held = self._held, ""
        return clean_up(text)
