"""The tokenizer of a GGUF file, rebuilt as the files of a Hugging Face directory.

A GGUF file holds the vocabulary and the merges, and of the rules that split a text into words only
a name (`tokenizer.ggml.pre`), which stands for regular expressions in llama.cpp's source
(`src/llama-vocab.cpp`). The names below are those whose rules are known for certain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)

from diy_core.checkpoints.hf_directory import write_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type
_ROLE_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2,
    "llama-bpe": _llama3,
    "smollm": _single_digits,
    "starcoder": _single_digits,
}
# Those look a whole word up before they merge; Llama 3's vocabulary was not made by BPE.
WHOLE_WORDS = {"llama-bpe"}


class GGUFTokenizer:
    """The tokenizer in a GGUF file's metadata, checked.

    Args:
        metadata: the `tokenizer.*` entries of the file.
        vocab_size: the rows of the embedding.
        max_length: goes to `model_max_length`.

    Raises:
        ValueError: a kind that is not supported, or entries that contradict each other.
    """

    def __init__(self, metadata: Mapping[str, Any], vocab_size: int, max_length: int) -> None:
        self._metadata = metadata
        self._max_length = max_length
        self._check_kind()
        self.tokens = self._list("tokens", str)
        self.types = self._list("token_type", int)
        if len(self.tokens) != vocab_size:
            raise ValueError(
                f"the tokenizer has {len(self.tokens)} tokens and the model a vocabulary of "
                f"{vocab_size}"
            )
        if len(self.types) != len(self.tokens):
            raise ValueError(f"{len(self.types)} token types for {len(self.tokens)} tokens")
        if twice := [token for token, n in Counter(self.tokens).items() if n > 1]:
            raise ValueError(f"token {twice[0]!r} stands in the vocabulary twice")
        known = {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED}
        if unknown := sorted(set(self.types) - known):
            raise ValueError(f"token type {unknown[0]} is not supported; choose one of {known}")
        self.backend = self._build()

    @property
    def special_ids(self) -> dict[str, int]:
        """Token id by role: `bos_token`, `eos_token`, `unk_token`, `pad_token`, where given."""
        ids = {role: self._id(key) for role, key in _ROLE_KEYS.items()}
        return {role: token_id for role, token_id in ids.items() if token_id is not None}

    @property
    def eos_token_ids(self) -> list[int]:
        """What ends a generation: the end of the text, and that of a turn where it is another."""
        ids = [self._id("eos_token_id"), self._id("eot_token_id")]
        return list(dict.fromkeys(i for i in ids if i is not None))

    def write(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and generation_config.json."""
        self.backend.save(str(directory / "tokenizer.json"))
        special = self.special_ids
        template = self._metadata.get("tokenizer.chat_template")
        write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                **{role: self.tokens[token_id] for role, token_id in special.items()},
                **({} if template is None else {"chat_template": template}),
                "model_max_length": self._max_length,
                "clean_up_tokenization_spaces": False,
                "padding_side": "left",
            },
        )
        eos = self.eos_token_ids
        ids = {
            "bos_token_id": special.get("bos_token"),
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "pad_token_id": special.get("pad_token"),
        }
        write_json(
            directory / "generation_config.json",
            {key: value for key, value in ids.items() if value is not None},
        )

    def _check_kind(self) -> None:
        model = self._entry("model")
        if model != "gpt2":
            raise ValueError(f"tokenizer model {model!r} is not supported; choose one of ['gpt2']")
        pre = self._entry("pre")
        if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
            raise ValueError(
                f"pre-tokenizer {pre!r} is not supported; choose one of {sorted(PRE_TOKENIZERS)}"
            )

    def _build(self) -> Tokenizer:
        vocabulary = {token: i for i, token in enumerate(self.tokens)}
        merges = [tuple(merge.split(" ")) for merge in self._list("merges", str)]
        if bad := [merge for merge in merges if len(merge) != 2]:
            raise ValueError(f"merge {' '.join(bad[0])!r} is not two tokens with a space between")
        llama3 = self._entry("pre") == "llama-bpe"
        try:
            whole = self._entry("pre") in WHOLE_WORDS
            model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"the merges do not fit the vocabulary: {error}") from error
        backend = Tokenizer(model)
        backend.pre_tokenizer = PRE_TOKENIZERS[self._entry("pre")]()
        backend.decoder = decoders.ByteLevel()
        backend.add_tokens(
            [
                AddedToken(token, special=kind == CONTROL, normalized=False)
                for token, kind in zip(self.tokens, self.types, strict=True)
                if kind in (CONTROL, USER_DEFINED)
            ]
        )
        backend.post_processor = self._post_processor(add_bos_unsaid=llama3)
        return backend

    def _post_processor(self, add_bos_unsaid: bool) -> processors.PostProcessor | None:
        """BOS and EOS around the text, where the file asks for them."""
        first = self._surrounding("add_bos_token", "bos_token_id", add_bos_unsaid)
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
        token_id = self._id(key)
        if token_id is None:
            raise ValueError(f"tokenizer.ggml.{flag} is set, and there is no tokenizer.ggml.{key}")
        return [self.tokens[token_id]]

    def _id(self, key: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise ValueError(
                f"tokenizer.ggml.{key} is {value!r}, and ids are 0 to {len(self.tokens) - 1}"
            )
        return value

    def _entry(self, key: str) -> Any:
        name = f"tokenizer.ggml.{key}"
        if name not in self._metadata:
            raise ValueError(f"the file has no {name}")
        return self._metadata[name]

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self._entry(key)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise ValueError(f"tokenizer.ggml.{key} must be a list of {kind.__name__}")
        return value
