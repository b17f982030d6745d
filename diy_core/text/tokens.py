"""The tokens that stand elsewhere than in the vocabulary: which they are, and in what order.

Four files may name them. Where two of them differ, transformers' order decides, and so here:

    tokenizer_config.json      roles (`eos_token`, and any other `*_token`), `extra_special_tokens`
                               (`additional_special_tokens` by its old name), `added_tokens_decoder`
    special_tokens_map.json    the same roles; wins over tokenizer_config.json
    added_tokens.json          text and id; loses to tokenizer.json for the same id
    tokenizer.json             `added_tokens`

Where tokenizer_config.json has `added_tokens_decoder`, the two in the middle are not asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from diy_core.errors import CheckpointError
from diy_core.text.tokenizer_files import ROLES, SETTINGS, read_json

MAP, ADDED = "special_tokens_map.json", "added_tokens.json"
Token = str | AddedToken
_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What the files say.

    Attributes:
        settings: tokenizer_config.json, with special_tokens_map.json where that counts.
        special: by role.
        extra: special tokens without a role.
        added: by the id that the files say; the tokenizer may give them another.
    """

    settings: Mapping[str, Any]
    special: Mapping[str, Token]
    extra: list[Token]
    added: Mapping[int, AddedToken]

    def texts(self) -> dict[str, str]:
        """The special tokens by role, as text."""
        return {role: text_of(token) for role, token in self.special.items()}

    def add_to(self, backend: Tokenizer) -> None:
        """Add what is not there yet, and what files describe otherwise than tokenizer.json."""
        wanted: list[Token] = [token for _, token in sorted(self.added.items())]
        known = {t.content for t in backend.get_added_tokens_decoder().values()}
        known |= {text_of(token) for token in wanted}
        for token in (*self.special.values(), *self.extra):
            if text_of(token) not in known and token not in wanted:
                wanted.append(token)
        named = set(self.texts().values())
        backend.add_tokens([_special(token, named) for token in wanted])


def read_tokens(
    path: Path,
    settings: Mapping[str, Any],
    own: Mapping[int, AddedToken],
    silent: Mapping[str, str | None],
    doubled: Iterable[str] = (),
) -> Tokens:
    """Merge what the files of a directory say.

    Args:
        path: the directory.
        settings: its tokenizer_config.json.
        own: the added tokens of its tokenizer.json.
        silent: the tokenizer class's own roles, for which the files may be silent.
        doubled: those of them that it has among the tokens without a role, too.

    Raises:
        CheckpointError: an entry that is not a token.
    """
    # Of these two, tokenizer.json's post-processor is the word, for transformers too.
    values = {k: v for k, v in settings.items() if k not in ("add_bos_token", "add_eos_token")}
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    others = [k for k, v in values.items() if _is_other_role(k) and isinstance(v, str)]
    more = {key: values.pop(key) for key in others} | _named_extras(values)
    more = more or _object(path / SETTINGS, "model_specific_special_tokens", values)
    described: dict[str, AddedToken] = {}
    if "added_tokens_decoder" in values:
        added = _decoder(path / SETTINGS, values)
    else:
        values |= _special_tokens_map(path / MAP, values)
        more |= _named_extras(values)
        legacy = _added_tokens(path / ADDED, values)
        described |= {token.content: token for token in legacy.values()}
        added = legacy | dict(own)
    described |= {token.content: token for token in added.values()}
    values = dict(silent) | values
    named = {k: token_of(path, k, v) for k, v in values.items() if _names_token(k, v)}
    special = {k: described.get(text_of(named[k]), named[k]) for k in ROLES if k in named}
    special |= {k: token for k, token in named.items() if k not in ROLES}
    special |= {k: token_of(path, k, v) for k, v in more.items()}
    special = {k: special[k] for k in (*ROLES, *special) if k in special}  # as they are added
    listed = _extras(path, values)
    if "extra_special_tokens" not in values:
        listed = [*listed, *(values[role] for role in doubled if values[role] is not None)]
    extra = [token_of(path, "extra_special_tokens", value) for value in listed]
    # Whoever builds a tokenizer needs the text of a role, however it was written.
    return Tokens(values | {k: text_of(v) for k, v in special.items()}, special, extra, added)


def _named_extras(values: dict[str, Any]) -> dict[str, Any]:
    """Take `extra_special_tokens` out, where they are given by role."""
    extras = values.get("extra_special_tokens")
    return values.pop("extra_special_tokens") if isinstance(extras, Mapping) else {}


def _extras(where: Path, values: Mapping[str, Any]) -> list[Any]:
    """The list of special tokens without a role."""
    found = values.get("extra_special_tokens", values.get("additional_special_tokens")) or []
    if not isinstance(found, list):
        raise CheckpointError(where, f"extra_special_tokens must be a list, got {found!r}")
    return found


def _decoder(file: Path, values: Mapping[str, Any]) -> dict[int, AddedToken]:
    """`added_tokens_decoder`: tokens by id, which JSON writes as text."""
    found = {}
    for key, value in _object(file, "added_tokens_decoder", values).items():
        token = token_of(file, f"added_tokens_decoder[{key!r}]", value)
        if not key.isdecimal() or isinstance(token, str):
            raise CheckpointError(
                file,
                f"added_tokens_decoder must have tokens as objects by id, got {key!r}: {value!r}",
            )
        found[int(key)] = token
    return found


def _special_tokens_map(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """special_tokens_map.json; its list of tokens follows that of tokenizer_config.json."""

    def special(key: str, value: Any) -> Any:
        is_object = isinstance(value, Mapping)
        return token_of(file, key, {**value, "special": True}) if is_object else value

    found = {
        key: value if key == "extra_special_tokens" else special(key, value)
        for key, value in read_json(file).items()
    }
    if isinstance(listed := found.get("extra_special_tokens"), list):
        listed = [special("extra_special_tokens", token) for token in listed]
        # The old name has no say here: beside extra tokens by role, it is passed over.
        first = _extras(file, {"extra_special_tokens": values.get("extra_special_tokens")})
        found["extra_special_tokens"] = first + [token for token in listed if token not in first]
    return found


def _added_tokens(file: Path, values: Mapping[str, Any]) -> dict[int, AddedToken]:
    """added_tokens.json; a token is special where another file says so."""
    named = [values[role] for role in ROLES if values.get(role)]
    if values.get("extra_special_tokens"):
        named += _extras(file, values)
    # Objects of tokenizer_config.json are no tokens yet where transformers compares them here.
    special = {text_of(token) for token in named if isinstance(token, (str, AddedToken))}
    found = {}
    for text, token_id in read_json(file).items():
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise CheckpointError(file, f"must map tokens to ids, got {token_id!r} for {text!r}")
        found[token_id] = AddedToken(text, normalized=text not in special, special=text in special)
    return found


def _object(file: Path, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found = values.get(name) or {}
    if not isinstance(found, Mapping):
        raise CheckpointError(file, f"{name} must be an object, got {found!r}")
    return dict(found)


def text_of(token: Token) -> str:
    """What a token spells."""
    return token if isinstance(token, str) else token.content


def add_again(backend: Tokenizer, tokens: Iterable[Token], how: str | None) -> None:
    """Add the special tokens a second time, as `Rebuilt.again` says."""
    if how == "plain":
        backend.add_tokens([AddedToken(text_of(token), special=True) for token in tokens])
    elif how == "special":
        backend.add_special_tokens(
            [
                AddedToken(token, special=True, normalized=False)
                if isinstance(token, str)
                else token
                for token in tokens
            ]
        )


def _special(token: Token, named: set[str]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if token.content in named:
        token.special = True
    return token


def _is_other_role(key: str) -> bool:
    return key.endswith("_token") and key not in ROLES


def _names_token(key: str, value: Any) -> bool:
    """Whether an entry is a token by its role; other `*_token` may be flags: `add_bos_token`.

    Of these, transformers passes over an object that does not say that it is a token.
    """
    if key in ROLES:
        return value is not None
    is_object = isinstance(value, Mapping) and value.get("__type") == "AddedToken"
    return _is_other_role(key) and (is_object or isinstance(value, (str, AddedToken)))


def token_of(where: Path, name: str, value: Any) -> Token:
    """A token that is written as its text or as an object with `content`."""
    if isinstance(value, (str, AddedToken)):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise CheckpointError(
            where, f"{name} must be a token, as text or as an object with content, got {value!r}"
        )
    return AddedToken(**{field: value[field] for field in _FIELDS if field in value})
