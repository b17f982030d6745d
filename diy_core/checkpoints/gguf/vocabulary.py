"""The tokenizer of a Hugging Face directory as the metadata of a GGUF file.

The other direction is `gguf_tokenizer`. What llama.cpp needs is the vocabulary, the merges, and the
name under which its source knows the rules that split a text into words; those names are looked up
by building each known rule and comparing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from diy_core.checkpoints.gguf.chat_templates import template_metadata
from diy_core.checkpoints.gguf.rules import RULES
from diy_core.checkpoints.gguf.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED
from diy_core.errors import CheckpointError
from diy_core.system.outside import is_there
from diy_core.system.translated import translated
from diy_core.text.tokenizer import Tokenizer

_ROLES = {"bos_token": "bos_token_id", "unk_token": "unknown_token_id"}


def vocabulary_metadata(directory: Path, vocab_size: int, notes: list[str]) -> dict[str, Any]:
    """The `tokenizer.*` entries for the tokenizer files in a directory.

    Args:
        directory: may have no tokenizer: then the entries say so.
        vocab_size: rows of the embedding; ids beyond the tokenizer's are filled with unused ones.
        notes: gets what is odd about the tokenizer.

    Raises:
        CheckpointError: a tokenizer that llama.cpp does not know under a name that we know, or one
            with more tokens than the model has rows.
    """
    file = directory / "tokenizer.json"
    if not is_there(file):
        notes.append("has no tokenizer.json, so the GGUF file has no tokenizer to run text with")
        return {"tokenizer.ggml.model": "no_vocab"}
    tokenizer = Tokenizer.read(directory)
    notes += tokenizer.notes
    with translated(file, "cannot be written to GGUF", may_panic=True):
        return _metadata(file, tokenizer, vocab_size, notes)


def _metadata(
    file: Path, tokenizer: Tokenizer, vocab_size: int, notes: list[str]
) -> dict[str, Any]:
    backend = tokenizer.backend
    if (count := tokenizer.vocab_size) > vocab_size:  # before all of them are written out
        raise CheckpointError(
            file, f"has {count} tokens, and the model's vocabulary has {vocab_size} rows"
        )
    state = json.loads(backend.to_str())
    pre = _name_of_rules(file, state)
    _refuse_unsaid(file, tokenizer, state)
    tokens, types = _tokens(file, backend, state, vocab_size)
    bos = tokenizer.bos_token_id
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    eos = tokenizer.special_tokens.get("eos_token")
    eos_ids: list[int | None] = list(tokenizer.eos_token_ids)
    if eos is not None:  # the end of a text first, then that of a turn
        first = [backend.token_to_id(eos)]
        eos_ids = list(dict.fromkeys([*first, *eos_ids]))
    ids: dict[str, int | None] = {
        key: backend.token_to_id(tokenizer.special_tokens[role])
        for role, key in _ROLES.items()
        if role in tokenizer.special_tokens
    }
    ids["padding_token_id"] = tokenizer.pad_token_id
    ids |= dict(zip(("eos_token_id", "eot_token_id"), eos_ids, strict=False))
    entries: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        **_around(file, tokenizer, bos, eos_ids[:1]),
        **{key: token_id for key, token_id in ids.items() if token_id is not None},
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in entries.items()}
    return metadata | template_metadata(tokenizer.chat_templates, notes)


def _around(
    file: Path, tokenizer: Tokenizer, bos: int | None, eos: list[int | None]
) -> dict[str, bool]:
    """Whether BOS and EOS are put around a text; a GGUF file can say no more than that."""
    plain, around = (tokenizer.encode("a", added) for added in (False, True))
    begins = around[:1] != plain[:1] and around[0] == bos
    ends = around[-1:] != plain[-1:] and around[-1:] == eos
    if around != [bos] * begins + plain + eos * ends:
        raise CheckpointError(
            file,
            f"puts more around a text than BOS in front and EOS behind ({around} for {plain}), "
            "which a GGUF file cannot say",
        )
    return {"add_bos_token": begins, "add_eos_token": ends}


def _refuse_unsaid(file: Path, tokenizer: Tokenizer, state: dict[str, Any]) -> None:
    """Raise for what a GGUF file has no entry for, and llama.cpp would pass over."""
    faults = [
        f"the added token {token['content']!r} has {', '.join(flags)}, which a GGUF file cannot say"
        for token in state["added_tokens"]
        if (flags := [flag for flag in ("lstrip", "rstrip", "single_word") if token[flag]])
    ]
    if (decoder := (state["decoder"] or {}).get("type")) != "ByteLevel":
        faults.append(
            f"its decoder is {decoder or 'null'}, and llama.cpp always decodes as ByteLevel does"
        )
    if tokenizer.backend.encode_special_tokens:
        faults.append("split_special_tokens is true, which a GGUF file cannot say")
    if tokenizer.cleans_up:
        faults.append("clean_up_tokenization_spaces is forced, which a GGUF file cannot say")
    if faults:
        raise CheckpointError(file, faults)


def _name_of_rules(file: Path, state: dict[str, Any]) -> str:
    """What llama.cpp calls the rules of this tokenizer."""
    model = state["model"]
    unlike = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    other = model["type"] != "BPE" or any(model.get(key) for key in unlike)
    if other or state["normalizer"] is not None:
        raise CheckpointError(
            file,
            "is not a byte-level BPE tokenizer without a normaliser, and only those are written to "
            "GGUF: use llama.cpp's own converter for this model",
        )
    if not model["merges"]:
        raise CheckpointError(
            file,
            "has no merges, as each of its tokens is one byte, and llama.cpp runs no such "
            "tokenizer: convert to hf or orbax instead, or move tokenizer.json out of the "
            "directory for a GGUF file of the weights alone",
        )
    for name, rules in RULES.items():
        blank = tokenizers.Tokenizer(tokenizers.models.BPE())
        blank.pre_tokenizer = rules.split()
        same = json.loads(blank.to_str())["pre_tokenizer"] == state["pre_tokenizer"]
        # Whether a known word is taken whole is a part of llama.cpp's rules.
        if same and bool(model.get("ignore_merges")) == rules.whole_words:
            return name
    raise CheckpointError(
        file,
        "splits text, or takes whole words (ignore_merges), by rules other than those that "
        f"llama.cpp knows as {', '.join(RULES)}: use llama.cpp's own converter for it",
    )


def _tokens(
    file: Path, backend: tokenizers.Tokenizer, state: dict[str, Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Text and type of every id."""
    by_id = {token_id: (token, NORMAL) for token, token_id in state["model"]["vocab"].items()}
    for added in state["added_tokens"]:
        token_id, text = added["id"], added["content"]
        # Where files disagree about a token, its own entry need not say whether it is printed.
        special = not backend.decode([token_id], skip_special_tokens=True)
        if (other := by_id.get(token_id, (text, NORMAL))[0]) != text:
            raise CheckpointError(
                file,
                f"gives the tokens {other!r} and {text!r} one id, {token_id}, which a GGUF file "
                "cannot say: number the tokens of the vocabulary without a gap",
            )
        by_id[token_id] = (text, CONTROL if special else USER_DEFINED)
    if (last := max(by_id, default=-1)) >= vocab_size:
        raise CheckpointError(
            file, f"has token id {last}, and the model's vocabulary has {vocab_size} rows"
        )
    texts = {text for text, _ in by_id.values()}
    filled = [by_id.get(i, (_filler(i, texts), UNUSED)) for i in range(vocab_size)]
    return [token for token, _ in filled], [kind for _, kind in filled]


def _filler(token_id: int, texts: set[str]) -> str:
    """What an id without a token is called, as llama.cpp's converter calls it if it can."""
    text = f"[PAD{token_id}]"
    while text in texts:
        text = f"[{text}]"
    return text
