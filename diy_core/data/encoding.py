"""Documents to token ids, and which of them the loss counts."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.kinds import refuse_gguf_file
from diy_core.data.chats import NothingToLearn, encode_chat, unread_keys
from diy_core.data.files import file_hash
from diy_core.data.records import Chat, Completion, Document
from diy_core.errors import CheckpointError
from diy_core.system.places import as_path
from diy_core.system.translated import translated
from diy_core.system.utf8 import as_utf8
from diy_core.text.backend import load
from diy_core.text.byte_tokenizer import BYTES, END_TOKEN_ID, is_byte_tokenizer
from diy_core.text.chat.template import undeclared_names
from diy_core.text.chat.templates import DEFAULT, TOOL_USE
from diy_core.text.tokenizer import Tokenizer
from diy_core.text.tokenizer_files import read_json


def tokenizer_hash(tokenizer: str | Path) -> str:
    """What tells tokenizers apart: a sha256, or "bytes".

    Of `tokenizer.json`, where the ids follow from it alone; else of the tokenizer as it is used,
    with what the files beside it say.

    Args:
        tokenizer: a Hugging Face directory, or "bytes".

    Raises:
        CheckpointError: the directory holds no readable tokenizer.
    """
    if str(tokenizer) == BYTES:
        return BYTES
    path = as_path(tokenizer, "tokenizer")
    backend = load(path)
    if not backend.as_written:
        with translated(path, "holds a tokenizer that cannot be written as text", may_panic=True):
            return backend.digest()
    return BYTES if is_byte_tokenizer(path) else file_hash(path / "tokenizer.json")


def require_tokenizer(tokenizer: str | Path) -> None:
    """Raise for what is neither a directory nor "bytes".

    Raises:
        CheckpointError: it is not.
    """
    refuse_gguf_file(Path(tokenizer))
    if str(tokenizer) != BYTES and not Path(tokenizer).is_dir():
        raise CheckpointError(
            tokenizer, "is not a directory: a tokenizer is a Hugging Face directory, or bytes"
        )


class Encoder:
    """Turns a document into ids.

    A text is encoded as `transformers` does, with what the tokenizer puts around it, and ended with
    the first end-of-text id unless it already ends with one. Every token of it counts. Of a chat,
    written by the chat template, only what the assistant says counts.

    Args:
        tokenizer: a Hugging Face directory, or "bytes".

    Raises:
        CheckpointError: the directory holds no readable tokenizer.
    """

    def __init__(self, tokenizer: str | Path) -> None:
        self._source = tokenizer
        self._tokenizer: Tokenizer | None = None
        self.end_token_ids = [END_TOKEN_ID]
        self.vocab_size = END_TOKEN_ID + 1
        self.chat_templates: dict[str, str] = {}
        self.special_tokens: dict[str, str] = {}
        require_tokenizer(tokenizer)
        if str(tokenizer) != BYTES:
            self._tokenizer = Tokenizer.from_pretrained(tokenizer)
            self.end_token_ids = self._tokenizer.eos_token_ids
            self.chat_templates = self._tokenizer.chat_templates
            self.special_tokens = self._tokenizer.special_tokens
            # A model may have more rows than its tokenizer has tokens, never fewer.
            rows = read_json(Path(tokenizer) / "config.json").get("vocab_size")
            self.vocab_size = rows if isinstance(rows, int) else self._tokenizer.vocab_size

    @functools.cached_property
    def template_names(self) -> frozenset[str]:
        """What the chat templates that a chat can take read by name."""
        found: set[str] = set()
        for name in (DEFAULT, TOOL_USE):
            # One that cannot be parsed reads nothing; the first chat says what is wrong with it.
            with contextlib.suppress(ValueError):
                found |= undeclared_names(self.chat_templates.get(name, ""))
        return frozenset(found)

    @functools.cached_property
    def hash(self) -> str:
        """The `tokenizer_hash`."""
        return tokenizer_hash(self._source)

    def encode(self, document: Document) -> tuple[NDArray[np.uint32], NDArray[np.uint8] | None]:
        """The ids of a document, and unless all count as many flags: 1 = the loss counts this one.

        Raises:
            ValueError: no UTF-8 text, a chat that the template refuses, or an id beyond the
                vocabulary of the model's `config.json`.
            NothingToLearn: a document in which nothing counts.
        """
        counted: NDArray[np.uint8] | None = None
        if isinstance(document, Completion):
            ids, counted = self._encode_completion(document)
        elif not isinstance(document, Chat):
            ids = self._encode_text(document)
        elif self._tokenizer is None:
            raise ValueError(
                "a chat needs a tokenizer with a chat template: give a Hugging Face directory "
                "instead of 'bytes'"
            )
        else:
            listed, counted = encode_chat(self._tokenizer, document)
            ids = np.array(listed, dtype=np.uint32)
        # Bytes are never beyond; to look costs as much as to encode a short text.
        if self._tokenizer is not None and ids.size and ids.max() >= self.vocab_size:
            raise ValueError(
                f"token id {ids.max()} is beyond vocab_size {self.vocab_size} of config.json: the "
                "tokenizer and the model of this directory do not belong together"
            )
        return ids, counted

    def unread(self, document: Document, known: dict[tuple[str, str], bool]) -> list[str]:
        """What `encode` did not read of a document: see `unread_keys`."""
        if not isinstance(document, Chat) or self._tokenizer is None:
            return []
        return unread_keys(self._tokenizer, document, known)

    def _encode_completion(
        self, document: Completion
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Both parts as one text; a token that reaches over the border counts."""
        ids = self._encode_text(document.prompt + document.completion)
        before = self._encode_text(document.prompt)
        length = min(len(ids), len(before))
        different = np.flatnonzero(ids[:length] != before[:length])
        counted = np.ones(ids.size, np.uint8)
        counted[: int(different[0]) if different.size else length] = 0
        if not counted.any():
            raise NothingToLearn("the completion is empty")
        return ids, counted

    def _encode_text(self, text: str) -> NDArray[np.uint32]:
        if self._tokenizer is None:
            content = np.frombuffer(as_utf8("text", text), dtype=np.uint8)
            encoded = np.empty(content.size + 1, np.uint32)
            encoded[:-1], encoded[-1] = content, END_TOKEN_ID
            return encoded
        ids = self._tokenizer.encode(text)
        if self.end_token_ids and (not ids or ids[-1] not in self.end_token_ids):
            ids.append(self.end_token_ids[0])
        return np.array(ids, dtype=np.uint32)
