"""The tokenizer that the files of a directory describe together.

    tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json
    config.json      its `model_type`, and `tokenizer_class` where tokenizer_config.json has none

As `transformers.AutoTokenizer` takes them: a sweep over many tokenizers holds the two together.
What cannot be honoured is refused by name.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, processors

from diy_core.errors import CheckpointError
from diy_core.notes import of_many
from diy_core.system.translated import translated
from diy_core.text.classes import class_of
from diy_core.text.rebuilt import REBUILT, Rebuilt
from diy_core.text.settings import patch_mistral, refuse_settings
from diy_core.text.tokenizer_files import SETTINGS, read_json
from diy_core.text.tokenizer_json import (
    BYTE_LEVEL,
    FILE,
    own_tokens,
    parse,
    read_text,
    vocabulary_of,
    without_words,
)
from diy_core.text.tokens import Tokens, add_again, read_tokens
from diy_core.text.trial import require_moderate

_OTHER_WORDS = (
    "{} splits text into words otherwise than tokenizer.json, and was taken, as transformers 5 "
    "takes it: name PreTrainedTokenizerFast in tokenizer_config.json if tokenizer.json is meant"
)
_LISTED = 20  # tokens in one note
# Rules for words that differ split this differently.
_TELLING = "it's I'LL a1234 x_Y2 camelCase (a)  b,c\n\n\td... /\n你好 e\u0301 किताब"


@dataclasses.dataclass(frozen=True)
class Backend:
    """A tokenizer of the `tokenizers` library, complete, and what it cannot say itself.

    Attributes:
        tokenizer: without truncation and padding, which would change what is encoded.
        special_tokens: text by role.
        cleans_up: whether decoded text loses the spaces before punctuation.
        as_written: whether it gives the ids that tokenizer.json gives alone.
        notes: what is odd about the files.
    """

    tokenizer: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    cleans_up: bool
    as_written: bool
    notes: list[str]

    def digest(self) -> str:
        """The SHA-256 of all that decides about ids."""
        found = hashlib.sha256(self.tokenizer.to_str().encode())
        found.update(b"split" * self.tokenizer.encode_special_tokens)
        return found.hexdigest()


def load(path: Path) -> Backend:
    """Read the tokenizer of a directory.

    Raises:
        CheckpointError: a file that cannot be read, or something in it that cannot be honoured.
    """
    with translated(path / FILE, "is not a readable tokenizer", may_panic=True):
        return _load(path)


def _load(path: Path) -> Backend:
    file = path / FILE
    settings, config = read_json(path / SETTINGS), read_json(path / "config.json")
    refuse_settings(path / SETTINGS, settings)
    text = read_text(file)
    state = parse(file, text)
    require_moderate(file, state)
    name = class_of(path, config, settings, byte_level=BYTE_LEVEL in text)
    rebuilt, own = REBUILT.get(name), own_tokens(file, state)
    if rebuilt is None:
        state = {}  # the library reads the text anew: both would take twice the memory
    written = tokenizers.Tokenizer.from_str(text if rebuilt is None else without_words(state))
    doubled = rebuilt.doubled if rebuilt else ()
    tokens = read_tokens(path, settings, own, _silent(written, rebuilt), doubled)
    notes: list[str] = []
    backend = written
    if rebuilt is None:
        _turn_dropout_off(backend, notes)
    else:
        vocabulary, merges = vocabulary_of(file, state, name)
        with translated(file, f"cannot be built as a {name}"):
            backend = rebuilt.build(vocabulary, merges, tokens.settings)
            backend.post_processor = written.post_processor
            if BYTE_LEVEL in text and _words(backend) != _words(written):
                notes.append(_OTHER_WORDS.format(name))
    unbounded(backend)
    alone = backend.get_added_tokens_decoder()
    _add(backend, tokens, settings, notes)
    if rebuilt:
        add_again(backend, [*tokens.special.values(), *tokens.extra], rebuilt.again)
    put_around = _put_around(path, backend, tokens, rebuilt)
    patched = patch_mistral(backend, config, settings)
    notes += _alike(path, backend)
    backend.encode_special_tokens = bool(settings.get("split_special_tokens"))
    same = alone == backend.get_added_tokens_decoder() and not backend.encode_special_tokens
    return Backend(
        backend,
        tokens.texts(),
        cleans_up=_cleans_up(backend, settings),
        as_written=same and rebuilt is None and not put_around and not patched,
        notes=notes,
    )


def unbounded(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same, which from now on cuts no text and pads none: both are of how it was trained."""
    backend.no_truncation()
    backend.no_padding()
    return backend


def _turn_dropout_off(backend: tokenizers.Tokenizer, notes: list[str]) -> None:
    """Dropout of merges is for training a model: with it, the same text has other ids each time."""
    if isinstance(backend.model, models.BPE) and backend.model.dropout is not None:
        if backend.model.dropout > 0:
            notes.append(
                f"dropout ({backend.model.dropout:g}) of tokenizer.json was turned off: it would "
                "give the same text other ids each time"
            )
        backend.model.dropout = None


def _alike(path: Path, backend: tokenizers.Tokenizer) -> list[str]:
    """Notes on added tokens that the normaliser makes one: the library takes any of them.

    One of which it leaves nothing stands everywhere, and the library may search it without an end.
    """
    if backend.normalizer is None:
        return []
    found: dict[str, list[str]] = {}
    for token in backend.get_added_tokens_decoder().values():
        if token.normalized and token.content:
            text = backend.normalizer.normalize_str(token.content)
            found.setdefault(text, []).append(token.content)
    if gone := found.get(""):
        raise CheckpointError(
            path,
            f"has the added token {gone[0]!r}, of which the normaliser leaves nothing: it would "
            "stand between any two characters; set its normalized to false, or remove it",
        )
    return of_many(
        f"the added tokens {_some(texts)} are all {text!r} to the "
        "normaliser: which of their ids a text gets may change each time the tokenizer is read"
        for text, texts in found.items()
        if len(texts) > 1
    )


def _some(texts: list[str]) -> str:
    """Texts in quotes; of very many, the first ones."""
    more = f" and {len(texts) - _LISTED:,} more" if len(texts) > _LISTED else ""
    return ", ".join(map(repr, sorted(texts)[:_LISTED])) + more


def _words(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """How `_TELLING` is split."""
    text = _TELLING
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _silent(written: tokenizers.Tokenizer, rebuilt: Rebuilt | None) -> dict[str, str | None]:
    """The roles that count where the other files are silent."""
    silent = dict(rebuilt.tokens) if rebuilt else {}
    if written.padding:
        silent.setdefault("pad_token", written.padding["pad_token"])
    return silent


def _add(
    backend: tokenizers.Tokenizer, tokens: Tokens, settings: Mapping[str, Any], notes: list[str]
) -> None:
    known = {text for text in tokens.texts().values() if backend.token_to_id(text) is not None}
    tokens.add_to(backend)
    ids = {token.content: backend.token_to_id(token.content) for token in tokens.added.values()}
    notes += of_many(
        f"{token.content!r} has id {ids[token.content]}, as transformers gives it, and not the "
        f"{token_id} that the files say: tokens are added one after the other"
        for token_id, token in tokens.added.items()
        if ids[token.content] != token_id
    )
    notes += of_many(
        f"{role} {text!r} was in no vocabulary: it has the new id {backend.token_to_id(text)}, as "
        "transformers gives it"
        for role, text in tokens.texts().items()
        if text and text not in known and text not in ids and role in settings
    )


def _put_around(
    path: Path, backend: tokenizers.Tokenizer, tokens: Tokens, rebuilt: Rebuilt | None
) -> bool:
    """Set what is put around a text where that of tokenizer.json does not count; True: it was."""
    names = {"bos_token": "add_bos_token", "eos_token": "add_eos_token"}
    asked = any(flag in tokens.settings for flag in names.values())
    if not asked and (rebuilt is None or rebuilt.keeps_post_processor):
        return False
    first = bool(rebuilt and rebuilt.adds_bos)
    texts = tokens.texts()
    bos, eos = (
        texts.get(role) if tokens.settings.get(flag, first and role == "bos_token") else None
        for role, flag in names.items()
    )
    for role, token in zip(names, (bos, eos), strict=True):
        if token == "":
            raise CheckpointError(
                path, f"has an empty {role}, which is to be put around texts: name it, or remove it"
            )
    ids = [(token, backend.token_to_id(token)) for token in (bos, eos) if token is not None]
    backend.post_processor = processors.TemplateProcessing(
        single=[token for token in (bos, "$A", eos) if token is not None], special_tokens=ids
    )
    return True


def _cleans_up(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> bool:
    """transformers leaves this out for BPE, whose spaces belong to the words, unless forced."""
    forced = settings.get(
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False
    )
    wanted = bool(settings.get("clean_up_tokenization_spaces", False))
    return wanted and bool(forced or not isinstance(backend.model, models.BPE))
