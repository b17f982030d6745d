"""The tokenizer of a GGUF file, rebuilt as the files of a Hugging Face directory.

Byte-level ones are rebuilt where the rules behind their name are known (`gguf_rules`), those of
SentencePiece where their scores say everything (`gguf_sentencepiece`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from diy_core.checkpoints.gguf.chat_templates import as_setting, templates_of
from diy_core.checkpoints.gguf.rules import RULES, UnknownTokenizer
from diy_core.checkpoints.gguf.sentencepiece import build_sentencepiece
from diy_core.checkpoints.gguf.special_tokens import SpecialTokens
from diy_core.errors import listed
from diy_core.system.json_file import write_json
from diy_core.system.translated import translated

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # .token_type
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # tokenizer.ggml.model
_TYPES = {
    BYTE_LEVEL: {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED},
    SENTENCEPIECE: {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE},
}


class GGUFTokenizer:
    """The tokenizer in a GGUF file's metadata, checked.

    Args:
        metadata: the `tokenizer.*` entries of the file.
        vocab_size: the rows of the embedding; models padded to a round number have more of them
            than the tokenizer has tokens.
        max_length: goes to `model_max_length`.

    Raises:
        UnknownTokenizer: the file does not say enough to rebuild it, or it is of another model.
        ValueError: entries that contradict each other.
    """

    def __init__(self, metadata: Mapping[str, Any], vocab_size: int, max_length: int) -> None:
        self._metadata = metadata
        self._max_length = max_length
        self._model = self._entry("model")
        self._refuse_unknown()
        self.tokens = self._list("tokens", str)
        self.types = self._list("token_type", int)
        if len(self.tokens) > vocab_size:
            raise UnknownTokenizer(
                f"it has {len(self.tokens)} tokens and the model a vocabulary of {vocab_size}, so "
                "some of its ids are none of the model's"
            )
        if len(self.types) != len(self.tokens):
            raise ValueError(f"{len(self.types)} token types for {len(self.tokens)} tokens")
        if twice := [token for token, n in Counter(self.tokens).items() if n > 1]:
            raise ValueError(f"token {twice[0]!r} stands in the vocabulary twice")
        known = _TYPES[self._model]
        if unknown := sorted(set(self.types) - known):
            raise ValueError(
                f"token type {unknown[0]} is not supported: this reads {listed(sorted(known))}"
            )
        self.special = SpecialTokens(metadata, len(self.tokens))
        self.backend = self._build()

    def write(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        file = directory / "tokenizer.json"
        with translated(file, "cannot be rebuilt", may_panic=True):
            text = self.backend.to_str(pretty=True)
        file.write_text(text, encoding="utf-8")
        templates = templates_of(self._metadata)
        write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                **{role: self.tokens[i] for role, i in self.special.by_role.items()},
                **({"chat_template": as_setting(templates)} if templates else {}),
                "model_max_length": self._max_length,
                "clean_up_tokenization_spaces": False,
                "padding_side": "left",
            },
        )

    def _refuse_unknown(self) -> None:
        if not isinstance(self._model, str) or self._model not in _TYPES:
            raise UnknownTokenizer(
                f"its kind, tokenizer.ggml.model {self._model!r}, is not one that is rebuilt, as "
                f"{' and '.join(sorted(_TYPES))} are"
            )
        if self._model == SENTENCEPIECE:
            return
        pre = self._entry("pre")
        if not isinstance(pre, str) or pre not in RULES:
            raise UnknownTokenizer(
                f"the rules of its pre-tokenizer {pre!r} are not known, as those of "
                f"{', '.join(sorted(RULES))} are"
            )

    def _build(self) -> Tokenizer:
        sentencepiece = self._model == SENTENCEPIECE
        backend = self._sentencepiece() if sentencepiece else self._byte_level()
        # In a byte-level vocabulary the unknown token is a plain one.
        special = {CONTROL, UNKNOWN} if sentencepiece else {CONTROL}
        backend.add_tokens(
            [
                AddedToken(token, special=kind in special, normalized=False)
                for token, kind in zip(self.tokens, self.types, strict=True)
                if kind in special | {USER_DEFINED}
            ]
        )
        begins = sentencepiece or RULES[self._entry("pre")].begins
        backend.post_processor = self._post_processor(begins)
        return backend

    def _byte_level(self) -> Tokenizer:
        vocabulary = {token: i for i, token in enumerate(self.tokens)}
        merges = self._merges(vocabulary)
        rules = RULES[self._entry("pre")]
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.whole_words)
        backend = Tokenizer(model)
        backend.pre_tokenizer = rules.split()
        backend.decoder = decoders.ByteLevel()
        return backend

    def _merges(self, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
        merges = self._list("merges", str)
        for merge in merges:  # before pairs are made of millions of them
            pair = merge.split(" ")
            if len(pair) != 2:
                raise ValueError(f"merge {merge!r} is not two tokens with a space between")
            if unknown := [part for part in (*pair, "".join(pair)) if part not in vocabulary]:
                raise ValueError(
                    f"tokenizer.ggml.merges has {merge!r}, and {unknown[0]!r} is not a token"
                )
        return [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]

    def _sentencepiece(self) -> Tokenizer:
        scores = self._list("scores", float)
        if len(scores) != len(self.tokens):
            raise ValueError(f"{len(scores)} scores for {len(self.tokens)} tokens")
        unknown = self.special.by_role.get("unk_token")
        if unknown is None:
            raise UnknownTokenizer("its unknown token is not a token")
        return build_sentencepiece(
            {token: i for i, token in enumerate(self.tokens)},
            scores,
            self.tokens[unknown],
            prefix=bool(self._metadata.get("tokenizer.ggml.add_space_prefix", True)),
        )

    def _post_processor(self, begins: bool) -> processors.PostProcessor | None:
        """BOS and EOS around the text, where the file asks for them."""
        first = self._surrounding("add_bos_token", "bos_token_id", begins)
        last = self._surrounding("add_eos_token", "eos_token_id", False)
        if not first and not last:
            return None
        single = [*first, "$A", *last]
        return processors.TemplateProcessing(
            single=single,
            pair=[*single, *(f"{piece}:1" for piece in (*first, "$B", *last))],
            special_tokens=[(token, self.tokens.index(token)) for token in {*first, *last}],
        )

    def _surrounding(self, flag: str, key: str, unsaid: bool) -> list[str]:
        if not self._metadata.get(f"tokenizer.ggml.{flag}", unsaid):
            return []
        token_id = self.special.id(key)
        if token_id is None:
            raise ValueError(f"tokenizer.ggml.{flag} is set, and there is no tokenizer.ggml.{key}")
        return [self.tokens[token_id]]

    def _entry(self, key: str) -> Any:
        name = f"tokenizer.ggml.{key}"
        if name not in self._metadata:
            raise UnknownTokenizer(f"the file has no {name}")
        return self._metadata[name]

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self._entry(key)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise ValueError(f"tokenizer.ggml.{key} must be a list of {kind.__name__}")
        return value
