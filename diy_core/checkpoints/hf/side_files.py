"""The files that travel with a model, and are neither its config nor its weights.

They are carried along unread from one format to the next. Of a directory's other files, those that
could mean something to a program that loads the model are named, as they stay behind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from diy_core.system.lfs import refuse_lfs_pointer
from diy_core.system.outside import is_there, names_in, read_bytes
from diy_core.text.chat.templates import TEMPLATE_FILE, TEMPLATES_FOLDER, template_names
from diy_core.text.tokenizer_files import VOCABULARIES

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    TEMPLATE_FILE,
    "chat_template.json",
    *VOCABULARIES,
    "merges.txt",
    "added_tokens.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
)
# All names that side files have in a directory: what a new model's replace of an older one.
SIDE_NAMES = (*SIDE_FILES, TEMPLATES_FOLDER)
_FOR_PEOPLE = ("LICENSE", "NOTICE")  # which are folders in some projects
_TEMPLATE = re.compile(re.escape(TEMPLATES_FOLDER) + r"/[^/\\\0]+\.jinja")
# The model itself in this and in other forms, and what is for people: nothing is lost with them.
_OTHERWISE_THERE = re.compile(
    r"\..*|config\.json|diy_manifest\.json|.*\.index\.json|README.*|.*\.md|original|onnx|checkpoint-.*"
    r"|.*\.(safetensors|bin|pt|pth|ckpt|msgpack|h5|ot|onnx|gguf|tflite|png|jpe?g|gif|svg|webp|pdf)",
    re.IGNORECASE,
)
_MOST_NAMES = 5  # in a note


def side_files(directory: Path) -> list[str]:
    """The side files that a directory has, by their names in it; those in a folder with a slash.

    Raises:
        CheckpointError: a Git LFS pointer in place of one, or something that cannot be read.
    """
    names = [name for name in SIDE_FILES if not _is_folder(directory, name)]
    names += [f"{TEMPLATES_FOLDER}/{name}" for name in template_names(directory)]
    files = [name for name in names if is_there(directory / name)]
    for name in files:
        refuse_lfs_pointer(directory / name)
    return files


def is_side_name(name: str) -> bool:
    """Whether a relative path is one that side files have; what else is in a folder is not."""
    return name in SIDE_NAMES or _TEMPLATE.fullmatch(name) is not None


def _is_folder(directory: Path, name: str) -> bool:
    return name in _FOR_PEOPLE and (directory / name).is_dir()


def copy_side_files(source: Path, to: Path) -> None:
    """Copy the side files of a directory into another."""
    for name in side_files(source):
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_bytes(read_bytes(source / name))


def read_side_files(directory: Path) -> dict[str, str]:
    """The text of every side file; bytes that are no UTF-8 become lone surrogates."""
    return {
        name: read_bytes(directory / name).decode("utf-8", "surrogateescape")
        for name in side_files(directory)
    }


def write_side_files(directory: Path, texts: Mapping[str, str]) -> None:
    """The inverse of `read_side_files`; a name that is none of ours is passed over."""
    for name, text in texts.items():
        if name in SIDE_FILES or _TEMPLATE.fullmatch(name):
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(text.encode("utf-8", "surrogateescape"))


def left_behind(directory: Path) -> str | None:
    """A note about what a directory holds beside the model and its side files, or None."""
    names = [
        f"{item.name}/" if item.is_dir() else item.name
        for item in (directory / name for name in names_in(directory))
        if (item.name not in SIDE_NAMES or _is_folder(directory, item.name))
        and not _OTHERWISE_THERE.fullmatch(item.name)
    ]
    if not names:
        return None
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"not carried along, as no part of the model: {', '.join(names[:_MOST_NAMES])}{more}"
