"""Which class of transformers reads a tokenizer: it says how much of tokenizer.json counts.

Most classes take tokenizer.json at its word. Some keep its vocabulary, merges and post-processor,
and build the rest anew from rules of their own (`rebuilt`): for them `"tokenizer_class"` in
tokenizer_config.json, or the `model_type` of config.json, decides about ids as much as that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.errors import CheckpointError
from diy_core.text.class_names import MISTAKEN, OTHER_CLASSES, OTHER_MODEL_TYPES, REGISTERED
from diy_core.text.rebuilt import REBUILT

AS_WRITTEN = "TokenizersBackend"  # also called PreTrainedTokenizerFast: tokenizer.json at its word


def class_of(
    path: Path, config: Mapping[str, Any], settings: Mapping[str, Any], byte_level: bool
) -> str:
    """The name of a class in `REBUILT`, or `AS_WRITTEN`.

    Args:
        path: what errors name.
        config: config.json.
        settings: tokenizer_config.json.
        byte_level: whether tokenizer.json speaks of "ByteLevel": a Llama 3 then, not a Llama 2,
            whatever class it names.

    Raises:
        CheckpointError: a class that is not to be had here, by name.
    """
    _refuse_own_code(path, settings)
    declared = _declared(path, "tokenizer_config.json", settings)
    said = declared or _declared(path, "config.json", config)
    if declared == "" and said is None:  # to transformers, a class that it does not know
        return AS_WRITTEN
    model_type = config.get("model_type") or ""
    registered = REGISTERED.get(model_type)
    mistaken = model_type in MISTAKEN or config.get("model_name") in MISTAKEN
    if said == "LlamaTokenizer" and byte_level and not mistaken:
        return AS_WRITTEN
    if said is not None and registered == AS_WRITTEN:
        return AS_WRITTEN
    if said is not None and registered and mistaken:
        return _known(path, registered)
    if said is not None and not (mistaken and model_type in OTHER_MODEL_TYPES):
        return _known(path, said)
    if model_type in OTHER_MODEL_TYPES:
        raise CheckpointError(
            path / "config.json",
            f"has model_type {model_type!r}, whose tokenizer class transformers builds by rules "
            'that are not known here; with "tokenizer_class": "PreTrainedTokenizerFast" in '
            "tokenizer_config.json, tokenizer.json is taken at its word",
        )
    # No config of transformers is a code_llama: without a class, it comes out as no model's own.
    return AS_WRITTEN if registered is None or model_type == "code_llama" else registered


def _declared(path: Path, name: str, values: Mapping[str, Any]) -> str | None:
    declared = values.get("tokenizer_class")
    if declared is not None and not isinstance(declared, str):
        raise CheckpointError(path / name, f"tokenizer_class must be a string, got {declared!r}")
    return None if declared is None else declared.removesuffix("Fast")


def _known(path: Path, name: str) -> str:
    while name.endswith("Fast"):
        name = name.removesuffix("Fast")
    if name in REBUILT:
        return name
    if name.removesuffix("Tokenizer") in OTHER_CLASSES:
        raise CheckpointError(
            path / "tokenizer_config.json",
            f"tokenizer_class {name!r} is not supported: transformers builds it by rules of its "
            f"own, whatever tokenizer.json says. Known are {', '.join(REBUILT)}, and "
            "PreTrainedTokenizerFast, which takes tokenizer.json at its word",
        )
    return AS_WRITTEN  # transformers, too, takes a class that it does not know for this one


def _refuse_own_code(path: Path, settings: Mapping[str, Any]) -> None:
    code = settings.get("auto_map")
    own = code.get("AutoTokenizer") if isinstance(code, Mapping) else code
    if own:
        raise CheckpointError(
            path / "tokenizer_config.json",
            f"auto_map names code of its own for the tokenizer ({own!r}), which is not run: remove "
            "it where tokenizer.json says the same",
        )
