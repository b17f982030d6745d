"""What was read of sources, what was passed over and why: for `data.json`, and for people."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diy_core.data.counts import Counts
from diy_core.data.files import DataError, counted
from diy_core.data.finding import BUILTIN, SOURCES
from diy_core.data.forms import form_of
from diy_core.data.found import Found, folded
from diy_core.data.sources import Source

# Parts of a set that are kept apart, by a word of the name of a file or a folder, or by two of them
# in a row (held_out); `set`, `split` and `data` may stand behind it (testset).
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation")
_SPLITS |= dict.fromkeys(("heldout", "holdout"), "held out")
_SPLITS |= {
    word + ending: split for word, split in _SPLITS.items() for ending in ("set", "split", "data")
}
_MOST_NAMES = 100  # of files that were passed over for one reason; the others are counted


def report(
    found: Found, sources: Sequence[Source], counts: Counts, json_texts: Sequence[str] = ()
) -> dict[str, Any]:
    """What `data.json` holds as `report`.

    Args:
        found: from `survey`, after `plan`.
        sources: that were read.
        counts: of all their records.
        json_texts: text files that hold JSON lines.

    Returns:
        files: how many were read of each ending.
        packed: `count` and first `names` of those that were unpacked as they were read.
        passed_over: by the reason, `count` and the first `names`.
        same_content: groups of names of files that were read and are equal.
        same_name: groups that differ in how they are packed alone.
        splits: how many files of each split, where there are several.
        json_texts: `count` and first `names` of text files that hold JSON lines.
        documents, empty, without_tokens, marks, columns: of `Counts`, whose others decide what is
            refused.
    """
    endings = Counter(
        source.path if source.path == BUILTIN else form_of(source.path).ending or "no ending"
        for source in sources
    )
    equal: dict[str, list[str]] = {}
    unpacked: dict[str, list[str]] = {}
    for source in sources:
        equal.setdefault(source.sha256, []).append(source.path)
        unpacked.setdefault(_unpacked(source.path), []).append(source.path)
    packed = [source.path for source in sources if form_of(source.path).packing]
    return {
        "files": dict(sorted(endings.items())),
        "packed": {"count": len(packed), "names": packed[:_MOST_NAMES]},
        "passed_over": {
            why: {"count": len(names), "names": names[:_MOST_NAMES]}
            for why, names in sorted(found.passed_over.items())
        },
        "same_content": [names for names in equal.values() if len(names) > 1],
        "same_name": [names for names in unpacked.values() if len(names) > 1],
        "splits": _splits([source.path for source in sources if source.path != BUILTIN]),
        "json_texts": {"count": len(json_texts), "names": list(json_texts[:_MOST_NAMES])},
        **{
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(counts).items()
            if name not in ("records", "with_field")
        },
    }


def require_field(field: str, counts: Counts) -> str | None:
    """What there is to say of a column that was asked for; None: a record has it.

    Args:
        field: that `read_record` was told to learn.
        counts: of all records.

    Raises:
        DataError: there are records, and none holds anything there.
    """
    if not counts.records:
        return f"field {field!r} is not used: no source has records"
    if not counts.with_field:
        raise DataError(
            SOURCES,
            f"no record holds anything in the column that was asked for (field={field!r}): name "
            "one that the records have, or leave it out",
        )
    return None


def _splits(paths: Sequence[str]) -> dict[str, int]:
    """How many files belong to each split; none where they are all of one, or of none.

    Files of no split are counted where the only other ones were meant to be kept from training.
    """
    top = os.path.commonpath([os.path.abspath(path) for path in paths]) if paths[1:] else ""
    found: Counter[str] = Counter()
    for path in paths:
        for part in reversed(Path(os.path.relpath(path, top or None)).parts):
            words = re.split(r"[^a-z]+", part.lower())
            words += ["".join(pair) for pair in itertools.pairwise(words)]
            if split := next((_SPLITS[word] for word in words if word in _SPLITS), None):
                found[split] += 1
                break
    others = len(paths) - found.total()
    if len(found) == 1 and "train" not in found and others:
        found["others"] = others
    return dict(sorted(found.items())) if len(found) > 1 else {}


def _unpacked(path: str) -> str:
    """The name that a packed file has when it is unpacked beside it."""
    return str(Path(path).with_suffix("")) if form_of(path).packing else path


def what_was_read(told: Mapping[str, Any]) -> str:
    """A line for people, such as `read 2 .jsonl, 1 .txt.gz files: 30 texts, 2 chats`."""
    files = [f"{number:,} {ending}" for ending, number in told["files"].items()]
    number = sum(told["files"].values())
    documents = [counted(number, kind) for kind, number in told["documents"].items()]
    return f"read {', '.join(files)} file{'' if number == 1 else 's'}: {', '.join(documents)}"


def what_was_not(told: Mapping[str, Any]) -> list[str]:
    """Lines for people about what was passed over, left out or unpacked; none if that is nothing.

    Args:
        told: of `report`.
    """
    said = []
    if (packed := told["packed"])["count"]:
        said.append(f"unpacked and read: {folded(packed['names'], of=packed['count'])}")
    for why, passed in told["passed_over"].items():
        first = folded(passed["names"], of=passed["count"])
        said.append(f"passed over, {why}: {first}")
    if splits := told.get("splits"):
        names = [f"{name} ({number:,})" for name, number in splits.items()]
        said.append(
            f"several splits, all of them read as one (and their files): {', '.join(names)}"
        )
    if (held := told.get("json_texts", {"count": 0}))["count"]:
        said.append(
            "JSON lines, learnt as text with braces and names (call them .jsonl to read records): "
            + folded(held["names"], of=held["count"])
        )
    if told["empty"]:
        said.append(f"left out, nothing but white space: {counted(told['empty'], 'document')}")
    if silent := told.get("without_tokens", 0):
        said.append(
            "left out, as the tokenizer has no token for anything in them: "
            f"{counted(silent, 'document')}"
        )
    if columns := told["columns"]:
        names = [f"{name} ({number:,})" for name, number in columns.items()]
        said.append(f"passed over, columns (and how many records have them): {folded(names, 10)}")
    if told["marks"]:
        said.append(f"left out, byte order marks inside of files: {told['marks']:,}")
    said += [
        f"the same content, read {len(names)} times: {folded(names)}"
        for names in told["same_content"][:3]
    ]
    said += [
        f"the same name, packed and not, all of them read: {folded(names)}"
        for names in told["same_name"][:3]
    ]
    return said
