"""Which chat templates a model has, and which of them a conversation takes.

    chat_template.jinja                     the default one
    additional_chat_templates/NAME.jinja    further ones, by name: as transformers 5 saves them
    tokenizer_config.json                   chat_template: one, or several by name; read where there
                                            is none of the files above
    chat_template.json                      as older processors saved it; the last resort

A model with a template of the name `tool_use` takes it wherever tools are given, even none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.errors import CheckpointError
from diy_core.system.outside import is_there, names_in, read_text
from diy_core.text.tokenizer_files import read_json

DEFAULT, TOOL_USE = "default", "tool_use"
TEMPLATE_FILE, TEMPLATES_FOLDER = "chat_template.jinja", "additional_chat_templates"
_SETTINGS, _OLD_FILE = "tokenizer_config.json", "chat_template.json"
_ENDING = ".jinja"
_JINJA = re.compile(r"\{[{%#]")
# Arguments of transformers' apply_chat_template that are no names for the template.
_NOT_OURS = {
    "conversation",
    "tokenize",
    "sanitize_control_tokens",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}


def read_chat_templates(path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a Hugging Face directory, by name; empty where it has none.

    Args:
        path: the directory.
        settings: the content of its `tokenizer_config.json`.

    Raises:
        CheckpointError: a template that is not text, or a file that is not UTF-8.
    """
    if own_files := _template_files(path):
        return {name: read_text(file) for name, file in own_files.items()}
    if settings.get("chat_template") is not None:
        return _by_name(path / _SETTINGS, settings["chat_template"])
    old = read_json(path / _OLD_FILE).get("chat_template")
    return {} if old is None else _by_name(path / _OLD_FILE, old)


def template_names(path: Path) -> list[str]:
    """The files of further chat templates in a Hugging Face directory, by their names.

    Raises:
        CheckpointError: their folder cannot be read.
    """
    return [name for name in names_in(path / TEMPLATES_FOLDER) if name.endswith(_ENDING)]


def write_chat_templates(path: Path, templates: Mapping[str, str]) -> None:
    """Write templates by name as the files that transformers 5 reads.

    Raises:
        ValueError: a name that would lead out of the directory.
    """
    for name, text in templates.items():
        if "/" in name or "\\" in name:
            raise ValueError(f"{name!r} is not a name of a chat template")
        file = path / TEMPLATES_FOLDER / f"{name}.jinja"
        if name == DEFAULT:
            file = path / TEMPLATE_FILE
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


def choose(
    templates: Mapping[str, str], wanted: str | None, tools_given: bool, where: str
) -> tuple[str, str]:
    """The source of the template that a conversation takes, and what to call it in an error.

    Args:
        templates: of the model, by name.
        wanted: the name of one of them, or Jinja source; None: the model's own choice.
        tools_given: whether the conversation comes with tools.
        where: what error messages name.

    Raises:
        ValueError: there is no such template, or none to choose without a name.
    """
    if wanted is not None:
        if wanted in templates:
            return templates[wanted], f"chat template {wanted!r} of {where}"
        if not isinstance(wanted, str) or not _JINJA.search(wanted):
            there = f"{where} has {_listed(templates)}" if templates else f"{where} has none"
            raise ValueError(
                f"chat_template ({wanted!r}) is neither a Jinja template nor the name of one: "
                f"{there}"
            )
        return wanted, "the chat template that was given"
    if not templates:
        raise ValueError(
            f"{where} has no chat template ({TEMPLATE_FILE}, or chat_template in {_SETTINGS}): use "
            "encode with plain text, or a model tuned for chat"
        )
    if tools_given and TOOL_USE in templates:
        return templates[TOOL_USE], f"chat template {TOOL_USE!r} of {where}"
    if DEFAULT not in templates:
        raise ValueError(
            f"{where} has several chat templates and none is the default: choose one of "
            f"{_listed(templates)} (chat_template=...)"
        )
    return templates[DEFAULT], f"chat template of {where}"


def refuse_other_arguments(variables: Mapping[str, Any]) -> None:
    """Raise for what `apply_chat_template` takes and no template sees: it would have no effect.

    Raises:
        ValueError: such a name.
    """
    if wrong := sorted(_NOT_OURS & variables.keys()):
        raise ValueError(
            f"{wrong[0]} is an argument of transformers' apply_chat_template and does nothing "
            "here: chat gives the text, encode_chat the token ids of one conversation, and batch "
            "pads several"
        )


def _template_files(path: Path) -> dict[str, Path]:
    files = {DEFAULT: path / TEMPLATE_FILE} if is_there(path / TEMPLATE_FILE) else {}
    more = template_names(path)
    return files | {name.removesuffix(_ENDING): path / TEMPLATES_FOLDER / name for name in more}


def _by_name(file: Path, value: Any) -> dict[str, str]:
    """A template, a list of `{"name": ..., "template": ...}`, or an object by name."""
    if isinstance(value, list):
        if not all(isinstance(entry, dict) and "name" in entry for entry in value):
            raise CheckpointError(file, "chat_template must list objects with name and template")
        value = {entry["name"]: entry.get("template") for entry in value}
    found = value if isinstance(value, dict) else {DEFAULT: value}
    if bad := [name for name, text in found.items() if not isinstance(text, str)]:
        kind = type(found[bad[0]]).__name__
        raise CheckpointError(file, f"chat template {bad[0]!r} must be a string, got {kind}")
    return found


def _listed(templates: Mapping[str, str]) -> str:
    return ", ".join(repr(name) for name in sorted(templates))
