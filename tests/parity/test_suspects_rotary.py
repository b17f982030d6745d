"""Rotary frequencies: what each side's are made of, by the tables of transformers and our own."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from diy_core.config import DIYConfig
from diy_core.rope import inverse_frequencies
from diy_core.rope_scaling import RopeScaling
from parity.diagnosis.attention.rotary_frequencies import NOISE, Rotary, read
from parity.diagnosis.evidence import Evidence
from parity.diagnosis.explain import explain
from tests.parity.test_suspects_evidence import both_sides, first
from tests.parity.test_suspects_tables import rotary

S, H = 40, 64
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 8.0}
ALL = "llama3 (factor 32, low_freq_factor 1, high_freq_factor 4, "
ALL += "original_max_position_embeddings 8192)"


def ours(theta: float = 1e4, size: int = H, **scaling: Any) -> Any:
    config = DIYConfig(
        vocab_size=8, hidden_size=size, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, rope_theta=theta,
        rope_scaling=RopeScaling(**scaling) if scaling else None,
    )  # fmt: skip
    return inverse_frequencies(config)


def theirs(theta: float = 1e4, size: int = H, **scaling: Any) -> Any:
    """What transformers computes, in float32."""
    rope = {"rope_theta": theta, "rope_type": "default"} | scaling
    config = transformers.LlamaConfig(
        hidden_size=size, num_attention_heads=1, max_position_embeddings=8192, rope_parameters=rope
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    return frequencies.double().numpy()


def tables(
    frequencies: Any, *, start: int = 0, twice: bool = False, pairs: bool = False
) -> tuple[Any, Any]:
    angles = ((start + np.arange(S))[:, None] * frequencies)[None]
    angles = np.concatenate((angles, angles), -1) if twice else angles
    angles = np.repeat(angles, 2, -1) if pairs else angles
    return np.cos(angles), np.sin(angles)


def seen(right: Any, wrong: Any, odd: str, **layout: Any) -> Evidence:
    return rotary(tables(right, **layout), tables(wrong, **layout), odd)


# The values of the usual side, of the odd one, the suspect's name, and what it says of both.
CASES: dict[str, tuple[Any, Any, str, str]] = {
    "theta": (ours(5e5), ours(1e4), "rope-theta", "theta is 10000 in {o}, 500000 in {u}"),
    "a little": (ours(1e4), ours(10001.0), "rope-theta", "theta is 10001 in {o}, 10000 in {u}"),
    "hardly": (ours(5e5), ours(500000.25), "rope-theta", "500000.2 in {o}, 500000 in {u}"),
    "both scaled": (
        ours(5e5, **LLAMA3), ours(1e4, **LLAMA3), "rope-theta", "10000 in {o}, 500000 in {u}",
    ),
    "factor": (
        ours(5e5, **LLAMA3), ours(5e5, **LLAMA3 | {"factor": 8.0}), "rope-frequencies",
        "the llama3 scaling's factor is 8 in {o}, 32 in {u}",
    ),
    "original": (
        ours(5e5, **LLAMA3), ours(5e5, **LLAMA3 | {"original_max_position_embeddings": 4096}),
        "rope-frequencies", "original_max_position_embeddings is 4096 in {o}, 8192 in {u}",
    ),
    "high": (
        ours(5e5, **LLAMA3), ours(5e5, **LLAMA3 | {"high_freq_factor": 8.0}),
        "rope-frequencies", "high_freq_factor is 8 in {o}, 4 in {u}",
    ),
    "left out": (ours(5e5, **LLAMA3), ours(5e5), "rope-frequencies", ALL + ", that {o} leaves out"),
    "theta too": (
        ours(5e5, **LLAMA3), ours(1e4), "rope-theta",
        "10000 in {o}, 500000 in {u}; a rope scaling, " + ALL + ", that {o} leaves out",
    ),
    "linear": (
        ours(5e5, **LLAMA3), ours(5e5, **LINEAR), "rope-frequencies",
        "the rope scaling is linear (factor 8) in {o}, " + ALL + " in {u}",
    ),
    "linear theta": (
        ours(1e4, **LINEAR), ours(1e5, **LINEAR), "rope-theta", "100000 in {o}, 10000 in {u}",
    ),
    "head_dim": (
        ours(1e4), 1e4 ** (-np.arange(H // 2) / H), "rope-theta",
        "10000 with exponents 2j/128 in place of 2j/64: another head_dim",
    ),
    "endpoint": (
        ours(1e4), 1e4 ** -np.linspace(0, 1, H // 2), "rope-theta", "exponents 2j/62 in place of",
    ),
    "inverse": (
        ours(1e4), 1e4 ** (2 * np.arange(H // 2) / H), "rope-inverse",
        "theta ** (2j/H) in {o}, not theta ** (-2j/H)",
    ),
    "ntk": (
        ours(1e4), ours(1e4 * 4 ** (H / (H - 2))), "rope-theta", "10000 scaled by 4, the NTK way",
    ),
    "ntk of another base": (
        ours(2e4), ours(2e4 * 4 ** (H / (H - 2))), "rope-theta", "20000 scaled by 4, the NTK way",
    ),
    "large": (ours(1e7), ours(1e4), "rope-theta", "rope theta is 10000 in {o}, 10000000 in {u}"),
    "one": (ours(1e4), np.ones(H // 2), "rope-theta", "rope theta is 1 in {o}, 10000 in {u}"),
    "unknown": (
        ours(1e4), ours(1e4) * np.linspace(1, 0.3, H // 2) ** 2, "rope-frequencies",
        "{u}'s are those of theta 10000, scaling none; {o}'s follow no known rule",
    ),
}  # fmt: skip


def in_order(words: str, odd: str) -> str:
    """`A in Flax, B in PyTorch`, whichever is the odd one."""
    if odd == "PyTorch":
        number = r"([^ ]+|[^ ]+ \(.*\))"
        words = re.sub(rf"{number} in {{o}}, {number} in {{u}}", r"\2 in {u}, \1 in {o}", words)
    return words.format(o=odd, u="Flax" if odd == "PyTorch" else "PyTorch")


@both_sides
@pytest.mark.parametrize("case", CASES)
def test_each_side_is_told_by_its_values(case: str, odd: str) -> None:
    right, wrong, name, words = CASES[case]
    said = in_order(words, odd)
    evidence = dataclasses.replace(seen(right, wrong, odd), bound=1e-9)  # the inverse's angles
    suspect = first(evidence, name, said)
    assert ("leaves out" in suspect.sentence) == ("leaves out" in words)


@both_sides
@pytest.mark.parametrize("layout", [{"start": 7}, {"twice": True}, {"pairs": True}])
def test_positions_that_go_on_and_tables_with_every_frequency_twice(layout: Any, odd: str) -> None:
    evidence = seen(ours(5e5, **LLAMA3), ours(5e5, **LLAMA3 | {"factor": 8.0}), odd, **layout)
    first(evidence, "rope-frequencies", in_order("factor is 8 in {o}, 32 in {u}", odd))
    evidence = seen(ours(5e5), ours(1e4), odd, **layout)
    first(evidence, "rope-theta", in_order("rope theta is 10000 in {o}, 500000 in {u}", odd))


@pytest.mark.parametrize(
    "places",
    [
        [0] * 5 + list(range(30)),  # padding on the left
        [0] * 25 + list(range(10)),
        [1] * 5 + list(range(30)),  # as transformers has it
        [*range(20), 0, 0, 0],  # and on the right
        [*range(12), *range(9), *range(14)],  # documents in one row
    ],
)
def test_positions_that_stand_still_or_begin_again(places: list[int]) -> None:
    rows = np.array([places, [place + 1 for place in places]])[..., None]

    def at(frequencies: Any) -> tuple[Any, Any]:
        return np.cos(rows * frequencies), np.sin(rows * frequencies)

    first(rotary(at(ours(5e5)), at(ours(1e4)), "Flax"), "rope-theta", "theta is 10000 in Flax, 5")


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ((2.0, 4.0), "(linear factor 4 in Flax, 2 in PyTorch)"),
        ((2.0, 1.0), "(linear factor 2 in PyTorch, left out in Flax)"),
        ((1.0, 4.0), "(linear factor 4 in Flax, left out in PyTorch)"),
    ],
)
def test_linear_factors(factors: tuple[float, float], words: str) -> None:
    right, wrong = (ours(rope_type="linear", factor=f) for f in factors)
    first(seen(right, wrong, "Flax"), "rope-scaled", words)


def test_which_way_frequencies_run() -> None:
    words = "opposite orders on the two sides: from high to low in PyTorch"
    first(seen(ours(), ours()[::-1], "Flax"), "rope-reversed", words)


def test_tables_of_yarn_are_a_little_larger() -> None:
    """Its attention factor multiplies cos and sin."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    right = tuple(1.1386294 * table for table in tables(theirs(**scaling)))
    evidence = dataclasses.replace(rotary(right, tables(ours()), "Flax"), bound=1e-6)
    suspect = first(evidence, "rope-frequencies", "a rope scaling, yarn (factor 4, ")
    assert "that Flax leaves out" in suspect.sentence
    words = "cos and sin are 1 in size in Flax, 1.13863 in PyTorch (yarn's attention factor)"
    assert words in suspect.sentence


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tables_in_a_narrow_dtype(dtype: str) -> None:
    def narrow(frequencies: Any) -> tuple[Any, ...]:
        kind = getattr(torch, dtype)
        return tuple(torch.from_numpy(t).to(kind).double().numpy() for t in tables(frequencies))

    bound = {"float32": 2e-5, "bfloat16": 4e-2}[dtype]
    for right, wrong, words in (
        (ours(5e5), ours(1e4), "rope theta is 10000 in Flax, 500000 in PyTorch"),
        (ours(1e4), ours(**LINEAR), "(linear factor 8 in Flax, left out in PyTorch)"),
    ):
        evidence = rotary(narrow(right), narrow(wrong), "Flax")
        found = explain(dataclasses.replace(evidence, bound=bound, dtype=dtype))
        assert words in found[0].sentence


def test_a_scaling_in_bfloat16_is_not_told_by_its_values() -> None:
    kind = torch.bfloat16
    right, wrong = (
        tuple(torch.from_numpy(t).to(kind).double().numpy() for t in tables(f))
        for f in (ours(1e4), ours(1e4, **LLAMA3 | {"original_max_position_embeddings": 64}))
    )
    evidence = dataclasses.replace(rotary(right, wrong, "Flax"), bound=4e-2, dtype="bfloat16")
    for suspect in explain(evidence):
        assert "no known rule" not in suspect.sentence
        assert "leaves out" not in suspect.sentence


def test_a_blend_of_too_few_channels_to_tell_its_ends() -> None:
    """Of a small head: both are llama3 by the same factor, and not the same."""
    scaling = LLAMA3 | {"original_max_position_embeddings": 512}
    right, wrong = (ours(1e4, 16, **scaling | {"high_freq_factor": n}) for n in (4.0, 5.0))
    first(seen(right, wrong, "Flax"), "rope-frequencies", "scaling begins or ends elsewhere")


@pytest.mark.parametrize(("theta", "size"), [(1e4, 12), (1e4, 20), (1e5, 12)])
def test_one_channel_of_a_blend_tells_the_kind(theta: float, size: int) -> None:
    scaling = LLAMA3 | {"original_max_position_embeddings": 512}
    found = read(theirs(theta, size, **scaling), NOISE["float64"])
    assert found is not None
    assert found.scaling() == "llama3 (factor 32)"


def test_a_length_is_read_off_the_longer_end() -> None:
    """What is kept there has three channels, and what is divided has one."""
    scaling = LLAMA3 | {"factor": 2.0, "original_max_position_embeddings": 2048}
    found = read(ours(1e4, 16, **scaling), NOISE["float32"])
    assert found is not None
    assert found.values["original_max_position_embeddings"] == 2048


def test_a_low_factor_is_that_which_gives_a_usual_length() -> None:
    scaling = {"low_freq_factor": 2.0, "high_freq_factor": 8.0}
    scaling |= {"original_max_position_embeddings": 2112}  # 33 times 64
    found = read(ours(5e5, 128, **LLAMA3 | scaling), NOISE["float64"])
    assert found is not None
    assert found.values == pytest.approx({"factor": 32.0} | scaling)


def test_one_position_tells_nothing_of_frequencies() -> None:
    """Nor that it is one too high, as the empty rest of both tables would have it."""
    right, wrong = (
        (np.cos(7 * f)[None, None], np.sin(7 * f)[None, None]) for f in (ours(), ours(5e5))
    )
    for odd in ("Flax", "PyTorch"):
        names = {suspect.name for suspect in explain(rotary(right, wrong, odd))}
        assert not any(name.startswith(("rope", "position")) for name in names)


def test_a_base_of_few_channels_is_not_read_to_the_last_digit() -> None:
    """Both are 10000; float32 gives 9999.9994 where one step is all that shows it."""
    scaling = LLAMA3 | {"original_max_position_embeddings": 256}
    right, wrong = ours(1e4, 8, **scaling), theirs(1e4, 8, **scaling | {"factor": 4.0})
    evidence = dataclasses.replace(seen(right, wrong, "Flax"), bound=1e-5)
    suspect = first(evidence, "rope-frequencies", "factor is 4 in Flax, 32 in PyTorch")
    assert "theta" not in suspect.sentence


def test_values_that_float32_does_not_tell_apart_are_not_said() -> None:
    right, wrong = (theirs(theta, 128, **LLAMA3) for theta in (5e5, 1e4))
    evidence = dataclasses.replace(seen(right, wrong, "Flax"), bound=1e-4, dtype="float32")
    assert first(evidence, "rope-theta").sentence.endswith(
        "rope theta is 10000 in Flax, 500000 in PyTorch"
    )


def test_a_blend_that_shows_on_one_side_alone() -> None:
    """The other one may be of the same kind: its factor is what differs."""
    right, wrong = (
        ours(1e4, 8, **LLAMA3 | {"factor": factor, "original_max_position_embeddings": length})
        for factor, length in ((32.0, 1024), (8.0, 512))
    )
    kinds = [read(f, NOISE["float64"]) for f in (right, wrong)]
    assert [found and found.kind for found in kinds] == ["llama3", "llama3 or yarn"]
    first(seen(right, wrong, "Flax"), "rope-frequencies", "factor is 8 in Flax, 32 in PyTorch")


def test_what_comes_of_the_same_rounding_is_no_other_scaling() -> None:
    right, wrong = ours(5e5, **LLAMA3), theirs(5e5, **LLAMA3)
    found = explain(dataclasses.replace(seen(right, wrong, "Flax"), bound=1e-9))
    assert not any(suspect.name.startswith("rope") for suspect in found)


@pytest.mark.parametrize(
    ("size", "right", "wrong"),
    [
        (96, 1e4, 1e6),  # 2j/64 would give it too, and nobody means that
        (64, 1e4, 1e4 * 0.5 ** (64 / 62)),  # no context is scaled by a half
        (64, 5e5, 1.5),
    ],
)
def test_a_base_that_somebody_chose_has_no_other_reason(
    size: int, right: float, wrong: float
) -> None:
    suspect = first(seen(ours(right, size), ours(wrong, size), "Flax"), "rope-theta", "rope theta")
    assert "the same as" not in suspect.sentence


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize(
    ("what", "angles"),
    [
        ("frequencies", lambda p, f, narrow: p * narrow(f)),
        ("angles", lambda p, f, narrow: narrow(p * f)),
        ("frequencies and angles", lambda p, f, narrow: narrow(narrow(p) * narrow(f))),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "tables_too"), [("float16", False), ("bfloat16", False), ("float16", True)]
)
def test_what_was_rounded_on_the_way_to_the_tables(
    what: str, angles: Any, tables_too: bool, dtype: str, size: int
) -> None:
    """It is said once, and not that the frequencies are others."""

    def narrow(array: Any) -> Any:
        return torch.from_numpy(array).to(getattr(torch, dtype)).double().numpy()

    places, right = np.arange(S, dtype=float)[:, None], ours(1e4, size)
    wrong = angles(places, right, narrow)[None]
    found = np.cos(wrong), np.sin(wrong)
    found = (narrow(found[0]), narrow(found[1])) if tables_too else found
    (suspect,) = explain(rotary(tables(right), found, "Flax"))
    assert suspect.name == "rope-rounded"
    assert suspect.sentence == f"rotary {what} are rounded to {dtype} in Flax"


def test_equal_frequencies_are_no_suspect() -> None:
    wrong = np.random.default_rng(0).normal(size=(1, S, H // 2))
    evidence = seen(ours(), ours(), "Flax")
    assert not explain(evidence)
    other = rotary(tables(ours()), (np.cos(wrong), np.sin(wrong)), "Flax")
    assert not any("theta" in suspect.name for suspect in explain(other))


@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
@pytest.mark.parametrize("size", [16, 64, 128])
@pytest.mark.parametrize("low", [1.0, 2.0])
@pytest.mark.parametrize("length", [64, 512, 8192])
def test_the_values_that_make_the_tables_of_transformers(
    theta: float, size: int, low: float, length: int
) -> None:
    """In float32; a head of 16 channels may show less than there is, and never something else."""
    scaling = LLAMA3 | {"low_freq_factor": low, "original_max_position_embeddings": length}
    found = read(theirs(theta, size, **scaling), NOISE["float64"])
    assert found is not None
    assert found.theta == pytest.approx(theta, rel=1e-6)
    assert found.kind.startswith("llama3")
    assert found.values["factor"] == pytest.approx(32.0, rel=1e-4)
    if "low_freq_factor" in found.values:  # two ratios are all that the frequencies show
        named = found.values
        high = named["high_freq_factor"] / named["low_freq_factor"]
        assert high == pytest.approx(4 / low, rel=1e-2)
        first_kept = named["original_max_position_embeddings"] / named["low_freq_factor"]
        assert first_kept == pytest.approx(length / low, rel=1e-2)
    elif size == 128:
        pytest.fail(f"nothing was said of the blend: {found}")


def test_values_of_linear_and_yarn_tables() -> None:
    noise = NOISE["float64"]
    linear = read(theirs(1e5, **LINEAR), noise)
    assert isinstance(linear, Rotary)
    assert linear.kind == "linear"
    assert linear.values["factor"] == pytest.approx(8, rel=1e-6)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    yarn = read(theirs(1e4, **scaling), noise)
    assert isinstance(yarn, Rotary)
    assert yarn.kind == "yarn"
    turns = (H * math.log(4096 / (b * 2 * math.pi)) / (2 * math.log(1e4)) for b in (32, 1))
    ends = [math.floor(next(turns)), math.ceil(next(turns))]
    assert [yarn.values["first"], yarn.values["last"]] == pytest.approx(ends, rel=1e-4)
    assert read(np.array([1.0]), noise) is None
    assert read(np.array([1.0, 0.3, 0.7, 0.1]), noise) is None
