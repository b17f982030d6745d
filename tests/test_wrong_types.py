"""What is given to a public door and is of no use there: the error says what is wanted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Where the tests run, beartype sees wrong types first; users have it not.
_PROGRAM = """
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp

import diy_jax
import diy_torch
import parity
from diy_core.config import DIYConfig
from diy_core.data import TokenData, prepare, tokenizer_hash
from diy_core.text.tokenizer import Tokenizer

ids = jnp.zeros((1, 1), jnp.int32)
doors = {
    "path": [
        diy_torch.DIYForCausalLM.from_pretrained,
        diy_jax.DIYForCausalLM.from_pretrained,
        DIYConfig.from_pretrained,
        Tokenizer.from_pretrained,
        tokenizer_hash,
        TokenData,
        lambda path: prepare("builtin:pydoc", path, tokenizer="bytes"),
        lambda path: parity.convert_checkpoint(path, "x"),
        lambda path: parity.convert_checkpoint("x", path),
    ],
    "config": [
        diy_torch.DIYForCausalLM,
        diy_torch.DIYModel,
        lambda config: diy_jax.DIYForCausalLM(config).init(jax.random.key(0), ids),
        lambda config: diy_jax.DIYModel(config).init(jax.random.key(0), ids),
        diy_jax.init_params,
        lambda config: diy_torch.init_cache(config, 2),
        lambda config: diy_jax.init_cache(config, 2),
        lambda config: parity.to_flax({}, config),
        lambda config: parity.to_torch({}, config),
    ],
}
values = {
    "path": [3, None, b"model", ["model"], {"path": "model"}],
    "config": [3, None, {"vocab_size": 8}, SimpleNamespace(vocab_size=8)],
}
said = {what: [] for what in doors}
for what, functions in doors.items():
    for number, function in enumerate(functions):
        for value in values[what]:
            try:
                function(value)
            except Exception as error:
                said[what].append([number, repr(value), type(error).__name__, str(error)])
json.dump(said, sys.stdout)
"""


def test_what_is_wanted_at_each_door() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    said = json.loads(done.stdout)
    assert (len(said["path"]), len(said["config"])) == (9 * 5, 9 * 4)
    for number, value, kind, text in said["path"]:
        wanted = f" must be a path, as text or pathlib.Path, got {value}"
        assert (kind, wanted in text) == ("TypeError", True), (number, value, text)
    for number, value, kind, text in said["config"]:
        # Flax makes another kind of dict of what a module is given.
        right = text.startswith("config must be a DIYConfig (") and (
            text.endswith(f"got {value}") or "got FrozenDict({" in text
        )
        assert (kind, right) == ("TypeError", True), (number, value, text)
