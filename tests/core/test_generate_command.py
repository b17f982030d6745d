"""`diy-torch generate` and `diy-jax generate`: what they say of a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diy_jax.__main__
import diy_torch.__main__
from diy_core.commands.command_line import build_parser
from diy_core.commands.generate import generate
from diy_core.generation import GenerateOutput
from diy_core.text.tokenizer import Tokenizer
from tests.oracles import tiny
from tests.tiny_checkpoints import PIECES, put, put_tokenizer, weights


@pytest.mark.parametrize("main", [diy_torch.__main__.main, diy_jax.__main__.main])
def test_what_is_wrong_with_a_prompt_is_told_in_options(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(vocab_size=len(PIECES) + 1, max_position_embeddings=16)
    put_tokenizer(put(tmp_path, weights(config), config))
    for words, expected in (
        (["the", "--max-new-tokens", "15"], "--max-new-tokens (15) make 17, beyond max_position_"),
        (["the", "--max-new-tokens", "15"], ": at most 14 new tokens fit\n"),
        (["the " * 20], "beyond max_position_embeddings (16): shorten the prompt\n"),
        (["the", "--chat"], f"{tmp_path} has no chat template: leave --chat out"),
        (["the", "--chat-template", "rag"], "give --chat too"),
        ([""], "the prompt is empty"),
    ):
        assert main(["generate", str(tmp_path), *words, "--device", "cpu"]) == 2
        assert expected in capsys.readouterr().err
    put_tokenizer(tmp_path, chat_template=[{"name": "rag", "template": "{{ messages }}"}])
    assert main(["generate", str(tmp_path), "the", "--chat"]) == 2
    assert "choose one of 'rag' (--chat-template ...)\n" in capsys.readouterr().err
    answer = ["--chat", "--chat-template", "rag", "--max-new-tokens", "1", "--device", "cpu"]
    assert main(["generate", str(tmp_path), "", *answer]) == 2
    assert "the prompt is empty: there is nothing to continue" in capsys.readouterr().err
    assert (
        main(["generate", str(tmp_path), "the", *answer]) == 2
    )  # a long prompt, and no other fault
    assert "shorten the prompt" in capsys.readouterr().err


@pytest.mark.parametrize("main", [diy_torch.__main__.main, diy_jax.__main__.main])
def test_ends_that_the_model_cannot_give_are_noted(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(vocab_size=len(PIECES) + 1)
    put(tmp_path, weights(config), config, eos_token_id=[9000, 9001], pad_token_id=-1)
    put_tokenizer(tmp_path, pad_token=None)
    words = ["generate", str(tmp_path), "the", "--max-new-tokens", "3", "--json", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["new_ids"]) == 3
    assert f"note: {tmp_path}: eos_token_id 9000, 9001 was left out" in said.err
    assert f"note: {tmp_path}: pad_token_id is -1" in said.err
    assert main([*words, "--strict"]) == 2
    assert "(refused: strict)" in capsys.readouterr().err


@pytest.mark.parametrize("main", [diy_torch.__main__.main, diy_jax.__main__.main])
def test_what_is_asked_of_a_generation_and_not_done_is_noted(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(vocab_size=len(PIECES) + 1)
    put_tokenizer(put(tmp_path, weights(config), config))
    wishes = {"repetition_penalty": 1.05, "num_beams": 1, "do_sample": True, "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(wishes))
    words = ["generate", str(tmp_path), "the", "--max-new-tokens", "1", "--device", "cpu"]
    assert main(words) == 0
    note = "generation_config.json asks for repetition_penalty 1.05: passed over"
    assert f"note: {tmp_path}: {note}" in capsys.readouterr().err
    assert main([*words, "--strict"]) == 2
    assert f"{note}, as the most probable token is taken (refused" in capsys.readouterr().err


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.parametrize("end", ["<|end|>", "20", None])
def test_options_arrive_and_what_comes_back_is_printed(
    tmp_path: Path, end: str | None, json_too: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(vocab_size=len(PIECES) + 1)
    ends = None if end is None else [PIECES.index(end)]
    put(tmp_path, weights(config), config, eos_token_id=ends)
    put_tokenizer(tmp_path, eos_token=None)
    given: dict[str, Any] = {}
    new = [PIECES.index(piece) for piece in ("he", "20", "<|end|>")]

    def load(*options: Any) -> Any:
        given["load"] = options

        def model(prompts: Any, *, on_tokens: Any, **options: Any) -> GenerateOutput:
            given.update(options)
            for token in new if on_tokens is not None else ():
                on_tokens(np.array([token]), np.array([True]))
            if on_tokens is not None:
                on_tokens(np.array(new[:1]), np.array([False]))  # of a row that has ended
            row = [*prompts[0], *new, 7, 7]  # padding
            return GenerateOutput(np.array([row]), np.array([len(row) - 2]))

        return model

    words = ["generate", str(tmp_path), "the", "--dtype", "bfloat16", "--device", "cuda:1"]
    words += ["--max-new-tokens", "5", *(["--json"] if json_too else [])]
    generate(build_parser("diy-torch").parse_args(words), load, ("hf",))
    assert given["load"] == (str(tmp_path), "bfloat16", "cuda:1")
    assert (given["max_new_tokens"], given["eos_token_id"]) == (5, ends)
    out = capsys.readouterr().out
    if json_too:
        record = json.loads(out)
        assert (record["prompt"], record["new_ids"]) == ("the", new)
        assert record["text"].startswith("he20")
    else:  # an end is not said, also where it is a word like others
        assert out == ("he\n" if end == "20" else "he20\n")


def test_what_a_chat_template_writes_is_measured_before_it_is_tokenized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(vocab_size=len(PIECES) + 1)
    put_tokenizer(put(tmp_path, weights(config), config), chat_template="{{ 'the ' * 300_000 }}")
    encoded: list[int] = []
    monkeypatch.setattr(Tokenizer, "encode", lambda _, text, *__: encoded.append(len(text)) or [0])
    words = ["generate", str(tmp_path), "the", "--chat", "--device", "cpu"]
    assert diy_torch.__main__.main(words) == 2
    assert (
        "the prompt, as the chat template writes it, is longer than 1,048,576 bytes: shorten "
        in (capsys.readouterr().err)
    )
    assert not encoded
