"""Text to token ids and back, out of the tokenizer files of a Hugging Face directory.

    tokenizer.json           the tokenizer, run by the `tokenizers` library
    tokenizer_config.json    its class, its special tokens by role, and the chat template
    chat_template.jinja      the chat template, where it has a file of its own (`chat_templates`)
    generation_config.json   the ids that end a generation (`text/ends.py`)

Which other files have a say is in `text/backend.py`.

Letters: B batch, S the longest row of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from diy_core.errors import CheckpointError
from diy_core.notes import settle
from diy_core.system.outside import is_there
from diy_core.system.places import as_path
from diy_core.system.sources import unchanged_sources
from diy_core.system.translated import translated
from diy_core.system.utf8 import as_utf8
from diy_core.text import tokenizer_files as files
from diy_core.text.backend import load, unbounded
from diy_core.text.chat import template as template
from diy_core.text.chat.templates import (
    DEFAULT,
    choose,
    read_chat_templates,
    refuse_other_arguments,
)
from diy_core.text.clean_up import clean_up
from diy_core.text.ends import read_ends
from diy_core.text.stream import TextStream, flat_ids, spoiler_of
from diy_core.text.wishes import unheeded_wishes


class Tokenizer:
    """Encodes and decodes as `transformers.AutoTokenizer` does, without transformers.

    `Tokenizer.from_pretrained` builds one; the arguments here are what it found.

    Args:
        backend: the tokenizer of the `tokenizers` library; its truncation and padding are turned
            off, since both would change what is encoded.
        special_tokens: text by role (`"bos_token"`, ...), handed to the chat template.
        chat_template: Jinja source, several by name, or None where the model has none.
        eos_token_ids: every id that ends a generation.
        pad_token_id: the id that fills short rows, or None where the model has none.
        cleans_up: whether `decode` leaves out the spaces before punctuation.
        notes: what is odd about the files.
        wishes: notes on what the files ask of a generation, and `generate` does not do.
        where: what error messages name.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | Mapping[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
        pad_token_id: int | None = None,
        cleans_up: bool = False,
        notes: Sequence[str] = (),
        wishes: Sequence[str] = (),
        where: str = "tokenizer",
    ) -> None:
        self.backend = unbounded(backend)
        self._where = where
        self.special_tokens = dict(special_tokens or {})
        one = {DEFAULT: chat_template} if isinstance(chat_template, str) else chat_template
        self.chat_templates = dict(one or {})
        self.eos_token_ids = list(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.notes, self.wishes = list(notes), list(wishes)
        self.cleans_up = cleans_up

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, where: object = None, strict: bool = False
    ) -> Tokenizer:
        """Read the tokenizer of a Hugging Face directory, with a warning for each note.

        Args:
            path: the directory.
            where: what error messages and notes name; None: the directory.
            strict: refuse a tokenizer with notes.

        Raises:
            CheckpointError: no `tokenizer.json`, one of the files cannot be read or has what
                cannot be honoured; with `strict`, a note.
        """
        where = path if where is None else where
        tokenizer = cls.read(path, where=where)
        settle(where, tokenizer.notes, strict=strict)
        return tokenizer

    @classmethod
    def read(cls, path: str | Path, *, where: object = None) -> Tokenizer:
        """The same, with the notes unsaid."""
        path = as_path(path)
        if not is_there(path / "tokenizer.json"):
            raise CheckpointError(path, f"has no tokenizer.json{files.what_instead(path)}")
        with unchanged_sources(path):
            found = load(path)
            ends = read_ends(path, found)
            return cls(
                found.tokenizer,
                special_tokens=found.special_tokens,
                chat_template=read_chat_templates(path, files.read_json(path / files.SETTINGS)),
                eos_token_ids=ends.eos,
                pad_token_id=ends.pad,
                cleans_up=found.cleans_up,
                notes=[*found.notes, *ends.notes],
                wishes=unheeded_wishes(path),
                where=str(path if where is None else where),
            )

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included; a model may have more rows than that."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a text, or None."""
        token = self.special_tokens.get("bos_token")
        return None if token is None else self.backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text. Special tokens that are spelled out in it are recognised.

        Args:
            text: any string without lone surrogates.
            add_special_tokens: whether the tokenizer may put its own around it, such as BOS.

        Raises:
            ValueError: `text` is not a string, or holds half of a character.
        """
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {type(text).__name__}")
        as_utf8("text", text)
        with translated(self._where, "the tokenizer cannot encode this text", may_panic=True):
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids beyond the vocabulary, which padded models have, are empty.

        Args:
            ids: the ids of one text, in order: a list or a one-dimensional array of integers.
            skip_special_tokens: leave out the tokens that the tokenizer calls special.

        Returns:
            The text, cleaned up where the tokenizer's files ask for it.

        Raises:
            ValueError: an id that is negative or no integer.
        """
        text = self._decode(flat_ids(ids, "ids"), skip_special_tokens)
        return clean_up(text) if self.cleans_up else text

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        with translated(self._where, "the tokenizer cannot decode these ids", may_panic=True):
            return str(self.backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """An object that turns one token id after the other into text."""
        with translated(self._where, "the tokenizer cannot decode", may_panic=True):
            spoiler = spoiler_of(self.backend)
        return TextStream(
            lambda ids: self._decode(ids, skip_special_tokens),
            cleans_up=self.cleans_up,
            spoiler=spoiler,
        )

    def batch(
        self,
        rows: Sequence[str | Sequence[int]],
        padding_side: Literal["right", "left"] = "right",
        *,
        add_special_tokens: bool = True,
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Texts, or lists of ids, as one rectangle.

        Args:
            rows: B texts or lists of ids; texts are encoded.
            padding_side: "right" is what the twins take; "left" is for other programs.
            add_special_tokens: as in `encode`, for the rows that are texts.

        Returns:
            The pair (input_ids, attention_mask), both int32 (B, S). Padding is `pad_token_id`;
            without one the first end-of-text id, or 0: the mask, 1 = token and 0 = padding, is what
            says that it is padding.

        Raises:
            ValueError: no rows, an empty row, a bad id, or an unknown `padding_side`.
        """
        if padding_side not in ("right", "left"):
            raise ValueError(f"padding_side must be 'right' or 'left', got {padding_side!r}")
        if isinstance(rows, (str, bytes)) or len(rows) == 0:
            raise ValueError(f"rows must be a list of texts or of id lists, got {rows!r}")
        encoded = [
            self.encode(row, add_special_tokens)
            if isinstance(row, str)
            else flat_ids(row, f"row {i}")
            for i, row in enumerate(rows)
        ]
        if empty := [i for i, row in enumerate(encoded) if not row]:
            raise ValueError(f"row {empty[0]} has no tokens: a row needs at least one")
        lengths = np.array([len(row) for row in encoded])[:, None]
        columns = np.arange(lengths.max())
        right = padding_side == "right"
        mask = columns < lengths if right else columns >= lengths.max() - lengths
        filler = self.pad_token_id if self.pad_token_id is not None else [*self.eos_token_ids, 0][0]
        ids = np.full(mask.shape, filler, dtype=np.int32)
        ids[mask] = np.concatenate(encoded)
        return ids, mask.astype(np.int32)

    @property
    def chat_template(self) -> str | None:
        """The default chat template, or None; `chat_templates` has all of them by name."""
        return self.chat_templates.get(DEFAULT)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """The conversation as the model was trained to read it: its chat template, filled in.

        Args:
            messages: `{"role": "user", "content": "..."}` and so on, oldest first. Content may be a
                list of parts where the template reads them.
            add_generation_prompt: end where the assistant begins to answer; None: yes, unless the
                last message goes on.
            tools: JSON schemas of the functions that the model may call. A model with a template of
                the name `tool_use` takes that one.
            documents: what to answer from, `{"title": "...", "text": "..."}` each.
            chat_template: the name of one of `chat_templates`, or Jinja source.
            continue_final_message: end where the last message ends, to go on with it; a text names
                another key of the message than `content`, such as `reasoning_content`.
            variables: further names for the template (`enable_thinking`, ...).

        Raises:
            ValueError: no such chat template, malformed messages, content that the template would
                drop, or an error in or from the template.
        """
        refuse_other_arguments(variables)
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "add_generation_prompt begins a new answer and continue_final_message goes on with "
                "the last message: choose one"
            )
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        source, name = choose(self.chat_templates, chat_template, tools is not None, self._where)
        names = self.special_tokens | variables
        names |= {"tools": tools, "documents": documents}
        names |= {"add_generation_prompt": add_generation_prompt}
        return template.render(
            source, messages, names, name, continue_final_message=continue_final_message
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool | None = None,
        **options: Any,
    ) -> list[int]:
        """The token ids of `chat`; the template wrote the special tokens, so none are added.

        Args:
            messages: as in `chat`.
            add_generation_prompt: as in `chat`.
            options: the other arguments of `chat`, by name.

        Returns:
            The ids of the whole conversation, in order.

        Raises:
            ValueError: as `chat` does.
        """
        text = self.chat(messages, add_generation_prompt, **options)
        return self.encode(text, add_special_tokens=False)
