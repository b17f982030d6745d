"""The pages in docs/: their Python runs as it stands there, and their commands exist."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import diy_torch
import parity
from diy_core.commands.command_line import build_parser as twin_parser
from diy_core.data import prepare
from diy_core.training import options
from parity.__main__ import build_parser as parity_parser
from tests.tiny_checkpoints import CONFIG, put, put_tokenizer, weights

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
_COMMAND = re.compile(r"^    ((?:diy-torch|diy-jax|parity) .*?)(?: +#.*)?$", re.MULTILINE)
_CODE = re.compile(r"^(?:from|import|batches =|rules =|parity\.\w|opt_state =|result =)")
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{{ tools or documents or '' }}"


def code(page: str) -> list[str]:
    """The blocks of Python on a page, fenced or indented, in order."""
    text = PAGES[page]
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    .*\n(?:^\s*\n(?=    ))?)+", text, re.MULTILINE)
    blocks = [*fenced, *(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in indented)]
    return [block for block in blocks if _CODE.match(block)]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/smollm2 and, with named chat templates, models/hermes, from where docs are run."""
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(CONFIG, vocab_size=300)
    names = ("default", "tool_use", "rag")
    templates = [{"name": name, "template": TEMPLATE} for name in names]
    for name, settings in (("smollm2", {}), ("hermes", {"chat_template": templates})):
        put(tmp_path / "models" / name, weights(config), config)
        put_tokenizer(tmp_path / "models" / name, **settings)
    return tmp_path / "models" / "smollm2"


def run(source: str, page: str, scope: dict[str, Any]) -> None:
    exec(compile(source, f"docs/{page}", "exec"), scope)


def test_tokenizers_are_used_as_the_page_says(model: Path) -> None:
    (block,) = code("tokenizers.md")
    scope: dict[str, Any] = {}
    run(block, "tokenizers.md", scope)
    assert scope["tokenizer"].encode("x")


def test_data_are_used_as_the_page_says(model: Path) -> None:
    (model.parents[1] / "text.txt").write_text(
        "\n\n".join(f"the cat {number}" for number in range(400))
    )
    prepare("text.txt", "data/corpus", tokenizer=model, validation=0.1, separator="\n\n")
    chats, opened, batches = code("data.md")
    turn = {"role": "user", "content": "the cat"}
    scope: dict[str, Any] = {"messages": [turn], "tools": [{"name": "f"}], "documents": []}
    # The line that goes on with an answer needs one that was begun.
    *lines, go_on, ids = chats.splitlines()
    assert "continue_final_message=True" in go_on
    run("\n".join([*lines, ids]), "data.md", scope)
    scope["messages"] = [turn, {"role": "assistant", "content": "sat"}]
    run(go_on, "data.md", scope)
    run(opened, "data.md", scope)
    endless = re.sub(r"(?m)^for batch in batches:", "for batch in first(batches):", batches)
    assert endless != batches
    scope["first"] = lambda made: itertools.islice(iter(made), 2)
    run(endless, "data.md", scope)
    assert scope["batch"]["input_ids"].shape == (4, 8, 1024)
    assert scope["validation"]


def test_arrays_of_orbax_are_read_as_the_page_says(model: Path) -> None:
    assert parity.convert_checkpoint(model, "DIR").tensors
    (block, states) = code("convert.md")
    scope: dict[str, Any] = {}
    run(block, "convert.md", scope)
    embedding = scope["params"]["model"]["embed_tokens"]["embedding"]
    assert np.shape(embedding) == (300, CONFIG.hidden_size)
    # The optimizer's state, of the twin with the same weights.
    twin = diy_torch.DIYForCausalLM.from_pretrained(model)
    optimizer = torch.optim.AdamW(twin.named_parameters())
    for parameter in twin.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scope |= {"parity": parity, "optimizer": optimizer, "tx": optax.adamw(1e-3)}
    scope |= {"config": twin.config, "params": parity.to_flax(twin, twin.config)}
    run(states, "convert.md", scope)
    moments = [state["exp_avg"] for state in scope["state_dict"]["state"].values()]
    assert len(moments) == len(list(twin.parameters()))
    assert all(bool(torch.isclose(moment, torch.tensor(0.1)).all()) for moment in moments)
    assert jax.tree.structure(scope["mask"]) == jax.tree.structure(scope["params"])


class _Linear(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return flax.linen.Dense(3, param_dtype=jnp.float32)(x)


def test_two_models_are_traced_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    traced, ruled, stacked = code("trace.md")
    layer = torch.nn.Sequential(torch.nn.Linear(2, 3))
    kernel, bias = (value.detach().numpy() for value in (layer[0].weight.T, layer[0].bias))
    scope: dict[str, Any] = {
        "torch_module": layer.eval(),
        "flax_module": _Linear(),
        "params": {"Dense_0": {"kernel": kernel, "bias": bias}},
        "inputs": np.ones((4, 2), np.float32),
    }
    run(traced, "trace.md", scope)
    assert capsys.readouterr().out == "None\n"
    assert scope["result"].equal
    rules, _, call = ruled.partition("result =")
    assert "rules=rules" in call
    run(rules + stacked, "trace.md", scope)
    assert [type(rule) for rule in scope["rules"]] == [parity.Rule] * 2


def test_every_block_of_python_is_one_that_runs_here() -> None:
    """A page that begins to show Python gets a test of its own."""
    sessions = {page for page, text in PAGES.items() if "```pycon" in text}
    assert sessions == {"port.md", "read.md"}  # run from top to bottom, in test_port and test_read
    assert {page: len(code(page)) for page in PAGES.keys() - sessions if code(page)} == {
        "convert.md": 2,
        "data.md": 3,
        "tokenizers.md": 1,
        "trace.md": 3,
    }


def _exists(line: str) -> None:
    program, *words = shlex.split(line)
    if program == "parity":
        parity_parser().parse_args(words)
    elif words[0] != "train":
        twin_parser(program).parse_args(words)
    else:
        known = options.build_parser(f"{program} train")._option_string_actions
        names = [word.partition("=")[0].replace("-", "_") for word in words if word[:2] == "--"]
        assert names
        assert {name.replace("__", "--", 1) for name in names} <= set(known)


def test_commands_of_the_pages_exist() -> None:
    lines = [(page, line) for page, text in PAGES.items() for line in _COMMAND.findall(text)]
    # `[...]` is the form of a command, not one.
    lines = [(page, line) for page, line in lines if "[" not in line]
    assert len(lines) >= 15
    for page, line in lines:
        try:
            _exists(line)
        except (SystemExit, AssertionError) as error:
            pytest.fail(f"docs/{page}: {line}: {error}")
    files = {word for _, line in lines for word in line.split() if word.startswith("examples/")}
    assert files
    assert all((ROOT / file).is_file() for file in files)
