"""Damage to what is neither a header nor metadata: templates, tokenizers, YAML, lines of JSON."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import yaml

from tests.torture.mutations import damage_bytes, damage_json

_TEMPLATES = (
    "{% for i in range(9) %}",
    "{{ 2**(2**33) }}",
    "{% for i in range(99999) %}{% for i in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 999999999 }}",
    "{{ messages[9].x.y }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ raise_exception('x') }}",
    "{{ 1/0 }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{{ ''.__class__ }}",
    "{{ 'x'|nofilter }}",
    "{{ '%d' % 'x' }}",
    "{{ messages|tojson(indent=-1) }}",
    "{{ [1]|slice(0)|list }}",
    "{{ {}[[]] }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 100_000 + "1 }}",
    "{{ '\\ud800' }}",
    "\ud800",
)
_BOMBS = (
    "a: &a [x, x]\nb: &b [*a, *a]\n",
    "a: &a [*a]\n",
    "? [a]\n: 1\n",
    "<<: 1\n",
    "a: !!bool x\n",
)
_SLOW = "(a+)+$", "(.?){24}\0", "(x+x+)+y", "(?=(\\w+\\s?)+$)", "(", "[[:^foo:]]", "a{99999}", "\\"


def _pattern(draw: random.Random) -> dict[str, str]:
    return draw.choice(({"Regex": draw.choice(_SLOW)}, {"String": draw.choice(("", "e", "\0"))}))


def _growing(draw: random.Random, steps: str) -> dict[str, Any]:
    """Each step makes a text ten times as long."""
    step = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 10}
    return {"type": "Sequence", steps: [step] * draw.choice((1, 3, 30))}


def _nested(draw: random.Random, steps: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "Sequence", steps: []}
    for _ in range(draw.choice((2, 20, 40))):
        part = {"type": "Sequence", steps: [part]}
    return part


def _part(draw: random.Random, name: str) -> Any:
    """A step of a tokenizer that is well formed and asks for much, or for what is not there."""
    replace = {
        "type": "Replace",
        "pattern": _pattern(draw),
        "content": "x" * draw.choice((1, 10**6)),
    }
    if name == "normalizer":
        charsmap = base64.b64encode(draw.randbytes(draw.choice((0, 3, 4, 400)))).decode()
        choices = (
            replace,
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
            {"type": "Prepend", "prepend": "e" * draw.choice((1, 10**6))},
            *(_growing(draw, "normalizers"), _nested(draw, "normalizers")),
        )
    elif name == "pre_tokenizer":
        split = {
            "behavior": draw.choice(("Isolated", "Removed", "MergedWithNext")),
            "invert": False,
        }
        choices = (
            {"type": "Split", "pattern": _pattern(draw), **split},
            {"type": "FixedLength", "length": draw.choice((0, 1, 2**64 - 1))},
            {"type": "Metaspace", "replacement": "", "prepend_scheme": "first"},
            _nested(draw, "pretokenizers"),
        )
    elif name == "decoder":
        choices = (
            replace,
            {"type": "Strip", "content": "e", "start": 2**63, "stop": 2**63},
            {"type": "WordPiece", "prefix": "", "cleanup": True},
            *(_growing(draw, "decoders"), _nested(draw, "decoders")),
        )
    else:
        piece = {"SpecialToken": {"id": draw.choice(("<end>", "none")), "type_id": 0}}
        choices = (
            {"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": {}},
            {"type": "BertProcessing", "sep": ["e", 2**32 - 1], "cls": ["x", 0]},
            _nested(draw, "processors"),
        )
    return draw.choice(choices)


def damage_tokenizer(draw: random.Random, whole: bytes) -> bytes:
    """A tokenizer.json with damage to its JSON, or with steps that are odd."""
    if draw.random() < 0.6:
        return damage_json(draw, whole)
    values = json.loads(whole)
    for name in draw.sample(("normalizer", "pre_tokenizer", "decoder", "post_processor"), 1):
        values[name] = _part(draw, name)
    return json.dumps(values).encode()


def damage_template(draw: random.Random, whole: bytes) -> bytes:
    """A chat template that is damaged, or that begins with what no template should ask for."""
    if draw.random() < 0.4:
        return damage_bytes(draw, whole)
    return draw.choice(_TEMPLATES).encode("utf-8", "surrogatepass") + whole


def damage_yaml(draw: random.Random, whole: bytes) -> bytes:
    """A file in YAML with damage to its bytes or to its values, or with aliases that unfold."""
    what = draw.random()
    if what < 0.4:
        return damage_bytes(draw, whole)
    if what < 0.9:
        return damage_json(draw, json.dumps(yaml.safe_load(whole)).encode())
    names = [f"b{i}: &b{i} [{f'*b{i - 1}, ' * 9}]" for i in range(1, draw.choice((3, 9, 30)))]
    return (
        draw.choice((draw.choice(_BOMBS).encode(), "\n".join(["b0: &b0 x", *names]).encode()))
        + whole
    )


def damage_lines(draw: random.Random, whole: bytes) -> bytes:
    """Lines of JSON with damage to their bytes, or to what one of them says."""
    if draw.random() < 0.4:
        return damage_bytes(draw, whole)
    lines = whole.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    lines[at] = damage_json(draw, lines[at]) + b"\n"
    return b"".join(lines)


def damage_any(draw: random.Random, whole: bytes) -> bytes:
    """Damage that fits what the bytes look like: JSON, lines of it, or neither."""
    if whole[:1] not in (b"{", b"["):
        return damage_bytes(draw, whole)
    return damage_lines(draw, whole) if whole.count(b"\n{") > 1 else damage_json(draw, whole)
