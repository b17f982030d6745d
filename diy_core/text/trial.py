"""A tokenizer is tried before it is used: its steps are programs that came with a checkpoint.

Expressions may backtrack for a second at each character, and thirty steps that each write ten
characters for one ask for all memory, or end the process. What the `tokenizers` library does cannot
be interrupted; so it does it on one text first, without the vocabulary, in a process with limits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.errors import CheckpointError
from diy_core.system.confined import Confined, ConfinedError

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")
_PATTERNS = ('"pattern"', '"Precompiled"', '"Prepend"')  # in steps that are programs
_SMALL = 1 << 16  # characters of steps without those
_VOCABULARY = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}


def require_moderate(file: Path, state: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that takes too much for one text of 4,000 characters.

    Args:
        file: what errors name.
        state: what tokenizer.json holds.

    Raises:
        CheckpointError: it takes too long, too much memory, or writes too much.
    """
    steps = {name: state[name] for name in _STEPS if state.get(name)}
    text = json.dumps({"version": "1.0", **steps, "model": _VOCABULARY})
    if len(text) < _SMALL and not any(pattern in text for pattern in _PATTERNS):
        return
    try:
        _try(text)
    except ConfinedError as error:
        raise CheckpointError(file, f"tried on a short text, it {error}") from error


@functools.lru_cache(maxsize=8)
def _try(state: str) -> None:
    _TRIALS.call("run", state)


_TRIALS = Confined(Path(__file__).with_name("trial_run.py"), "tokenizer")
