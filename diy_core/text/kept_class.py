"""Tokenizer files next to the config.json of another model, which may make them another class."""

from __future__ import annotations

from pathlib import Path

from diy_core.system.json_file import write_json
from diy_core.system.outside import is_there
from diy_core.text.classes import AS_WRITTEN, class_of
from diy_core.text.tokenizer_files import SETTINGS, read_json
from diy_core.text.tokenizer_json import BYTE_LEVEL, FILE, read_text


def keep_class(source: Path, copy: Path) -> None:
    """Have copied tokenizer files mean the same next to the config.json of another model.

    Args:
        source: the directory that they are from.
        copy: the one that they are in now; its tokenizer_config.json then names the class, where
            its own config.json would make it another.

    Raises:
        CheckpointError: a class that is not to be had here.
    """
    if (name := _class(source)) != _class(copy):
        known = "PreTrainedTokenizerFast" if name == AS_WRITTEN else name  # to older ones, too
        write_json(copy / SETTINGS, read_json(copy / SETTINGS) | {"tokenizer_class": known})


def _class(path: Path) -> str:
    settings, config = read_json(path / SETTINGS), read_json(path / "config.json")
    has_tokenizer = is_there(path / FILE)
    byte_level = has_tokenizer and BYTE_LEVEL in read_text(path / FILE)
    return class_of(path, config, settings, byte_level=byte_level)
