"""JSON and YAML of others: what is too deep, too large, or no text at all."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from diy_core.errors import CheckpointError
from diy_core.system.parsing import parse_json, parse_object, parse_yaml
from diy_core.training.run.yaml_file import read_config_of_run, read_yaml


@pytest.mark.parametrize(
    "content", [b'{"a": [1, "\xc3\xa9", "\\ud83d\\ude00"]}', '{"a": [1, "é", "😀"]}']
)
def test_json_is_read(content: bytes | str) -> None:
    assert parse_json(content, "x") == {"a": [1, "é", "😀"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not valid JSON: Expecting value"),
        (b"\xff", "is not valid JSON: 'utf-8' codec"),
        (
            b"\xef\xbb\xbf{}",
            "is not valid JSON: it begins with a byte order mark; save it as UTF-8",
        ),
        ("{}".encode("utf-16"), r"is not valid JSON: it looks like UTF-16 \(.*iconv -f UTF-16 -t"),
        (
            b"[1,\n" + b"9" * 5000 + b"]",
            r"is not valid JSON: it has a number of 5000 .*\(line 2\)$",
        ),
        (b"[" * 100_000, "is not valid JSON: it is nested too deeply"),
        (
            b"[" * 102 + b"]" * 102,
            "is nested more than 100 levels deep: .* DIY_LIMITS=json_depth=N",
        ),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "is nested more than 100 levels deep"),
        (b"[" + b"[]," * 2_000_000 + b"[]]", "has more than 4000000 items: .*json_items=N"),
        (b"{" + b'"a":1,' * 700_000 + b'"a":1}', "has more than 4000000 items: .*json_items=N"),
        (b'{"a": ["\\uD800"]}', r"holds the escape \\ud800, which is half a character"),
        (b'{"\\udfff": 1}', r"holds the escape \\udfff"),
    ],
)
def test_what_is_no_usable_json_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"x: {said}"):
        parse_json(content, "x")


@pytest.mark.parametrize(
    "text", ['run_dir: "a\\ud800"', '? "\\ud800"\n: 2000-01-01', '- [{1: "\\ud800"}]']
)
def test_half_a_character_in_yaml_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"x: holds the escape \\ud800, which is half a"):
        parse_yaml(text, "x")


def test_json_may_be_as_deep_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[" * 100 + "]" * 100
    assert json.dumps(parse_json(text, "x")) == text
    monkeypatch.setenv("DIY_LIMITS", "json_depth=99")
    with pytest.raises(CheckpointError, match="99 levels"):
        parse_json(text, "x")


def test_the_largest_tokenizers_are_within_the_limit() -> None:
    """As those of Gemma 3: names and numbers, merges in pairs, and added tokens."""
    vocabulary = ",".join(f'"{i}":{i}' for i in range(262_144))
    token = '{"id":1,"content":"a","single_word":true,"lstrip":true,"rstrip":true,"special":true}'
    merges, added = ",".join(['["a","b"]'] * 514_000), ",".join([token] * 6_400)
    text = f'{{"added_tokens":[{added}],"model":{{"vocab":{{{vocabulary}}},"merges":[{merges}]}}}}'
    assert len(parse_object(text, "x")["model"]["vocab"]) == 262_144


def test_only_an_object_is_one() -> None:
    assert parse_object("{}", "x") == {}
    with pytest.raises(CheckpointError, match="x: must hold a JSON object, got list"):
        parse_object("[]", "x")


def _aliases(levels: int, line: Callable[[int], str]) -> str:
    return "e0: &a0 {k0: 1, l0: 2}\n" + "".join(
        f"e{i}: &a{i} {line(i)}\n" for i in range(1, levels)
    )


BOMBS = {
    "lists": _aliases(12, lambda i: f"[{', '.join([f'*a{i - 1}'] * 9)}]"),
    "mappings": _aliases(30, lambda i: f"{{x: *a{i - 1}, y: *a{i - 1}}}"),
    "keys": _aliases(30, lambda i: f"{{? [*a{i - 1}, *a{i - 1}] : 1}}"),
    "merges": _aliases(30, lambda i: f"{{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}"),
    "one large": "a: &a [" + "x, " * 9000 + "]\nb: [*a, *a]\n",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_aliases_unfold_to_no_more_than_the_limit(kind: str) -> None:
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=r"x: unfolds to more than 10000 items.*yaml_items=N"):
        parse_yaml(BOMBS[kind], "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20
    assert time.process_time() - begin < 20


def test_aliases_within_the_limit_are_read() -> None:
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n"
    assert parse_yaml(text, "x") == ({"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("&a [*a]", "holds an alias of a value within itself"),
        ("a: &a {b: *a}", "holds an alias of a value within itself"),
        ("[" * 40 + "]" * 40, "is nested more than 32 levels deep: .* DIY_LIMITS=yaml_depth=N"),
        ("{a: " * 900 + "}" * 900, "is not valid YAML: it is nested too deeply"),
        ("a" * ((1 << 17) + 1), "is longer than 131072 characters: .*yaml_bytes=N"),
        ("a: !!bool maybe", "is not valid YAML: KeyError"),
        ("a: !!int x", "is not valid YAML: invalid literal"),
        ("a: !!timestamp x", "is not valid YAML: AttributeError"),
        ("a: 2001-99-99", "is not valid YAML: month must be"),
        ("a: !!float ''", "is not valid YAML: "),
        ("a: !!python/object:os.system x", "is not valid YAML: could not determine"),
        ("{[a]: b, {c: d}: e}", "is not valid YAML: "),
        ("a: *b", "is not valid YAML: found undefined alias"),
        ("a: b: c", r"is not valid YAML: mapping values are not allowed here \(line 1\)$"),
        (
            "b: 1\na: [1, 2\nc: 3",
            r"is not valid YAML: while [^\n]*, expected [^\n]* \(line 3\)$",
        ),
        ("b: 1\na: \0", r"is not valid YAML: it has the character U\+0000, .*\(line 2\)$"),
        ("--- a\n--- b", "is not valid YAML: expected a single document"),
        ("b: 1\na: " + "9" * 5000, r"is not valid YAML: it has a number of 5000 .*\(line 2\)$"),
    ],
)
def test_what_is_no_usable_yaml_is_refused(text: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"x: {said}"):
        parse_yaml(text, "x")


def test_every_reader_of_yaml_has_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(BOMBS["lists"])
    for read in (read_yaml, read_config_of_run):
        with pytest.raises(ValueError, match=r"config\.yaml: unfolds to more"):
            read(file)
