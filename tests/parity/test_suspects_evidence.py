"""What hypotheses are tried on, with its sides exchanged, and values that may not upset any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from parity.diagnosis import explain as suspects
from parity.diagnosis.evidence import Evidence, Parameter, Part, Value, value_evidence, wide
from parity.diagnosis.explain import explain
from parity.tracing.match.operations import Rearrange
from parity.tracing.match.rules import Link
from parity.tracing.result import Suspect

SIDES = ("Flax", "PyTorch")
both_sides = pytest.mark.parametrize("odd", SIDES)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def ordered(right: Any, wrong: Any, odd: str) -> tuple[Any, Any]:
    """PyTorch's and Flax's, where one of the sides is the wrong one."""
    return (right, wrong) if odd == "Flax" else (wrong, right)


def link(name: str, shape: tuple[int, ...] = ()) -> Link:
    steps = (shape, shape, tuple(range(len(shape))), shape)
    return Link(name, name.replace(".", "/"), Rearrange(*steps))


def parts(outputs: Mapping[str, Any]) -> list[Part]:
    """Calls that gave the same on both sides."""
    return [Part(name, [], [Value("0", a, a)]) for name, a in outputs.items()]


def evidence_of(
    right: Any,
    wrong: Any,
    odd: str = "Flax",
    *,
    inputs: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] | None = None,
    stage: str = "",
    module: torch.nn.Module | None = None,
    bound: float = 1e-12,
    given: Sequence[Any] = (),
) -> Evidence:
    """A culprit that gets the same, with the same parameters, on both sides."""
    known = [
        Parameter(name, link(name, np.shape(a)), a, a) for name, a in (parameters or {}).items()
    ]
    return dataclasses.replace(
        value_evidence(Value("0", *ordered(right, wrong, odd)), "", bound),
        inputs=[Value(name, a, a) for name, a in (inputs or {}).items()],
        parameters=known,
        parts=[*parts(before or {}), *([Part(stage, [], [])] if stage else [])],
        stage=stage,
        module=module or torch.nn.Identity(),
        given=given,
    )


def only(suspects: Sequence[Suspect]) -> Suspect:
    assert len(suspects) == 1, [str(s) for s in suspects]
    return suspects[0]


def first(evidence: Evidence, name: str, *words: str) -> Suspect:
    """The first suspect, which has to be the named one, to say this, and to end the error."""
    found = explain(evidence)
    assert found, f"nothing was found where {name} is the cause"
    suspect = found[0]
    assert suspect.name == name, [str(s) for s in found]
    for word in words:
        assert word in suspect.sentence, (word, suspect.sentence)
    assert suspect.before == evidence.target.error > evidence.bound
    assert suspect.after is None or suspect.after <= evidence.bound
    return suspect


# Evidence itself.


def test_mirrored_evidence_has_everything_of_the_other_side() -> None:
    a, b = normal(2, 3), normal(2, 3, seed=1)
    evidence = dataclasses.replace(
        value_evidence(Value("0", a, b), "the gradient", 1e-9),
        inputs=[Value("args.0", a, b)],
        outputs=[Value("0", a, b)],
        parts=[Part("proj", [Value("args.0", a, b)], [Value("0", a, b)])],
        parameters=[Parameter("weight", link("weight"), a, b)],
        torch_only={"mine": a},
        flax_only={"theirs": b},
    )
    turned = evidence.mirrored()
    values = [turned.target, *turned.inputs, *turned.outputs, *turned.parts[0].inputs]
    for value in [*values, *turned.parts[0].outputs, *turned.parameters]:
        assert value.torch is b
        assert value.flax is a
    assert (turned.torch_only, turned.flax_only) == ({"theirs": b}, {"mine": a})
    assert (turned.odd, turned.usual, turned.what) == ("PyTorch", "Flax", "the gradient")
    assert turned.target.error == evidence.target.error
    assert turned.mirrored() == evidence


def test_a_hypothesis_counts_only_if_the_error_goes() -> None:
    evidence = evidence_of(np.array([1.0, 2.0]), np.array([1.0, 3.0]), bound=1e-3)
    before = evidence.target.error
    assert before == pytest.approx(1 / np.sqrt(10))
    assert evidence.judge("a", "b", 1e-3) == Suspect("a", "b", before, 1e-3)
    assert evidence.judge("a", "b", 1.1e-3) is None
    assert evidence.judge("a", "b", np.nan) is None
    assert evidence.suspect("a", "b", np.zeros(2), np.zeros(3)) is None
    healthy = evidence_of(np.ones(2), np.ones(2))
    assert healthy.judge("a", "b", 0.0) is None
    # A value alone: nothing that is done to parameters makes its error vanish.
    assert evidence.with_parameters({}) == before


def test_what_differs_is_said_in_words() -> None:
    a, b = normal(2), normal(2, seed=1)
    assert evidence_of(a, b).what == "the output"
    assert evidence_of(a, b, stage="o_proj").what == "what goes into o_proj"


def test_floats_are_widened_and_nothing_else_is() -> None:
    assert wide(np.ones(2, np.float16)).dtype == np.float64
    ids = np.arange(3)
    assert wide(ids) is ids


# Values that no hypothesis may stumble over.

SHAPES: tuple[tuple[int, ...], ...] = ((), (0, 4), (5,), (3, 1), (8, 8), (2, 1, 3, 2, 4))
KINDS: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "normal": lambda s: normal(*s),
    "zero": np.zeros,
    "constant": lambda s: np.full(s, 3.7),
    "NaN": lambda s: np.full(s, np.nan),
    "some NaN": lambda s: np.where(normal(*s, seed=2) > 0, np.nan, normal(*s)),
    "some infinity": lambda s: np.where(normal(*s, seed=3) > 0, -np.inf, normal(*s)),
    "large": lambda s: normal(*s, seed=4) * 1e300,
    "small": lambda s: normal(*s, seed=5) * 1e-310,
}
WHOLE: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "int64": lambda s: np.random.default_rng(0).integers(0, 5, s),
    "uint8": lambda s: np.random.default_rng(1).integers(0, 5, s).astype(np.uint8),
}
BOOLS: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "bool": lambda s: np.random.default_rng(2).random(s) < 0.5,
    "true": lambda s: np.ones(s, bool),
    "false": lambda s: np.zeros(s, bool),
}


def pairs(kinds: Mapping[str, Any], shape: tuple[int, ...]) -> Iterator[tuple[Any, Any]]:
    """Each kind beside the first one, on either side, and beside the next one."""
    made = [frozen(make(shape)) for make in kinds.values()]
    for i, array in enumerate(made):
        yield array, made[0]
        yield made[0], array
        yield array, made[(i + 1) % len(made)]


def frozen(array: Any) -> Any:
    """What nobody can write to."""
    array = np.array(array)
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kinds", [KINDS, WHOLE, BOOLS], ids=["float", "int", "bool"])
def test_no_value_upsets_a_hypothesis_or_is_changed(kinds: Any, shape: tuple[int, ...]) -> None:
    gate, up, weight, table = (frozen(normal(*s)) for s in (shape, shape, shape[-1:], (4, *shape)))
    shown = {"gate": gate, "up": up * 2 + 1}
    layers = ({"weight": weight, "bias": weight}, {"weight": table.reshape(-1, *shape[-1:])})
    for i, (a, b) in enumerate(pairs(kinds, shape)):
        explain(value_evidence(Value("0", a, b), "", 1e-12))  # warnings are errors here
        explain(evidence_of(a, b, inputs={"args.0": a}, before=shown, stage="x"))
        for parameters in layers if i % 3 == 0 else ():
            explain(evidence_of(a, b, inputs={"args.0": a}, parameters=parameters))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kinds", [KINDS, WHOLE, BOOLS], ids=["float", "int", "bool"])
def test_no_tensor_upsets_a_hypothesis_or_is_changed(kinds: Any, shape: tuple[int, ...]) -> None:
    another = (link("another"), frozen(normal(*shape, seed=8)))
    for a, b in pairs(kinds, shape):
        evidence = dataclasses.replace(
            evidence_of(normal(3), normal(3, seed=1)),
            parameters=[Parameter("weight", link("weight"), a, b)],
            others=[another],
            with_parameters=lambda _: 0.0,
        )
        for suspect in explain(evidence):
            assert "nan" not in suspect.sentence


@pytest.mark.parametrize("shape", [(5,), (6, 8), (2, 6, 8), (2, 3, 4, 8), (2, 1, 3, 2, 4)], ids=str)
def test_unrelated_values_have_no_exact_cause(shape: tuple[int, ...]) -> None:
    right, wrong, x = (normal(*shape, seed=seed) for seed in range(3))
    vague = {"other-input", "only-in"}
    shown = {"inputs": {"args.0": x}}
    for evidence in (
        evidence_of(right, wrong),
        evidence_of(right, wrong, **shown),
        evidence_of(right, wrong, **shown, parameters={"weight": x[(0,) * (x.ndim - 1)]}),
        evidence_of(right, wrong, **shown, before={"gate": right * x, "up": wrong - x}, stage="o"),
    ):
        names = {suspect.name for suspect in explain(evidence)}
        if "up" not in [part.name for part in evidence.parts]:
            assert names <= vague, names
    for evidence in (evidence_of(right, right), evidence_of(right, right, **shown)):
        assert not explain(evidence)


def test_a_hypothesis_that_fails_is_told_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(evidence: Evidence) -> Any:
        raise ValueError("shapes")

    monkeypatch.setattr(suspects, "HYPOTHESES", (broken, *suspects.HYPOTHESES))
    right = normal(*(3, 4))
    with pytest.warns(RuntimeWarning, match="broken could not be tried on the model: shapes"):
        found = explain(evidence_of(right, -right))
    assert found[0].name in ("scale", "negative")
