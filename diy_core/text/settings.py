"""Keys of tokenizer_config.json that change ids and belong to no class: honoured or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from diy_core.errors import CheckpointError

_FLAGS = ("split_special_tokens", "clean_up_tokenization_spaces", "legacy", "add_prefix_space")
_VERSIONED = re.compile(r"tokenizer\.(.+)\.json")


def refuse_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Raise for what cannot be honoured.

    Raises:
        CheckpointError: another tokenizer.json for each version of transformers, or a flag that is
            neither true nor false.
    """
    listed = settings.get("fast_tokenizer_files") or []
    faults = [
        f"fast_tokenizer_files names {name!r}, another tokenizer for another version of "
        "transformers: keep the one that you mean as tokenizer.json, and remove the key"
        for name in listed
        if isinstance(name, str) and _VERSIONED.search(name)
    ]
    faults += [
        f"{flag} must be true, false or null, got {settings[flag]!r}"
        for flag in _FLAGS
        if settings.get(flag) not in (None, True, False)
    ]
    if faults:
        raise CheckpointError(file, faults)


# `TokenizersBackend._patch_mistral_regex`: what the tokenizers of some Mistral models should have
# said (https://huggingface.co/mistralai/Mistral-Small-3.1-24B-Instruct-2503/discussions/84).
_MISTRALS = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
_MISTRAL_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def patch_mistral(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """Split text as `"fix_mistral_regex": true` asks; True: something was changed.

    Only large vocabularies, and models of transformers before 5 that are Mistral's or do not say
    whose they are.
    """
    version = str(config.get("transformers_version") or "0")
    mistral = bool(config) and config.get("model_type") in (None, *_MISTRALS)
    large = backend.get_vocab_size() > 100_000 and backend.pre_tokenizer is not None
    old = re.match(r"[5-9]|\d\d", version) is None
    if not (settings.get("fix_mistral_regex") and large and mistral and old):
        return False
    before = json.loads(backend.pre_tokenizer.__getstate__())
    words = {
        "type": "Split",
        "pattern": {"Regex": _MISTRAL_WORDS},
        "behavior": "Isolated",
        "invert": False,
    }
    if before["type"] == "Sequence":
        steps = [words, *before["pretokenizers"][1:]]
    elif before["type"] == "Metaspace":
        letters = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        steps = [words, {"type": "ByteLevel", **letters}]
    else:
        steps = [words, before]
    after = {"type": "Sequence", "pretokenizers": steps}
    blank = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    patched = tokenizers.Tokenizer.from_str(json.dumps(blank | {"pre_tokenizer": after}))
    backend.pre_tokenizer = patched.pre_tokenizer
    return after != before
