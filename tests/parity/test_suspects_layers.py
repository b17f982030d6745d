"""Norms, linear layers and embeddings that are computed otherwise, by torch's own in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from parity.diagnosis.explain import explain
from tests.parity.test_suspects_evidence import both_sides, evidence_of, first, normal, only

D = 8
Tensor = torch.Tensor
Norm = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def rms(x: Tensor, w: Tensor | None, eps: float = 1e-5) -> Tensor:
    return functional.rms_norm(x, (D,), w, eps)


def layer(x: Tensor, w: Tensor, b: Tensor | None, eps: float = 1e-5) -> Tensor:
    return functional.layer_norm(x, (D,), w, b, eps)


def in_groups(x: torch.Tensor) -> torch.Tensor:
    halves = x.unflatten(-1, (2, -1))
    return (halves / (halves.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2)


NORMS: dict[str, tuple[Norm, str]] = {
    "eps": (lambda x, w, b: rms(x, w, 1e-6), "eps 1e-06 in {odd}"),
    "any eps": (lambda x, w, b: rms(x, w, 0.0123), "eps 0.0123 in {odd}"),
    "1 + w": (lambda x, w, b: rms(x, w + 1), "weight 1 + w in {odd}"),
    "no weight": (lambda x, w, b: rms(x, None), "weight none in {odd}"),
    "exp": (lambda x, w, b: rms(x, w.exp()), "weight exp(w) in {odd}"),
    "mean": (lambda x, w, b: layer(x, w, None), "mean subtracted in {odd}"),
    "float32": (lambda x, w, b: rms(x.float(), None).double() * w, "precision float32 in {odd}"),
    "twice": (lambda x, w, b: rms(rms(x, w), w), "applied twice in {odd}"),
    "nothing": (lambda x, w, b: x, "not normalised in {odd}"),
    "outside": (
        lambda x, w, b: x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-5) * w,
        "eps outside the root in {odd}",
    ),
    "sum": (lambda x, w, b: x / (x.square().sum(-1, keepdim=True) + 1e-5).sqrt() * w, "a sum in"),
    "positions": (
        lambda x, w, b: functional.rms_norm(x.mT, (x.shape[1],), None, 1e-5).mT * w,
        "statistics over positions in {odd}",
    ),
    "positions and channels": (
        lambda x, w, b: x / (x.square().mean((-2, -1), keepdim=True) + 1e-5).sqrt() * w,
        "statistics over positions and channels in {odd}",
    ),
    "groups": (lambda x, w, b: in_groups(x) * w, f"each group of {D // 2} channels in {{odd}}"),
    "first half": (
        lambda x, w, b: x / (x[..., : D // 2].square().mean(-1, keepdim=True) + 1e-5).sqrt() * w,
        f"statistics of the first {D // 2} channels in {{odd}}",
    ),
    "added": (lambda x, w, b: rms(x, None) + w, "weight added, not multiplied in {odd}"),
    "cut off": (
        lambda x, w, b: rms(x.clamp(-0.1, 0.1), w),
        "values cut off at 0.1 before in {odd}",
    ),
}


@both_sides
@pytest.mark.parametrize("case", NORMS)
def test_a_norm_is_another(case: str, odd: str) -> None:
    change, words = NORMS[case]
    x, w = normal(2, 3, D) * 0.1, normal(D, seed=1)
    ours, weight = torch.from_numpy(x), torch.from_numpy(w)
    right, wrong = rms(ours, weight).numpy(), change(ours, weight, None).numpy()
    # float32 sums in another order.
    bound = 2e-7 if case == "float32" else 1e-9 if case == "any eps" else 1e-12
    evidence = evidence_of(
        right, wrong, odd, inputs={"args.0": x}, parameters={"weight": w}, bound=bound
    )
    (suspect,) = explain(evidence)
    if case == "float32":  # as small as a rounding: it may be told by its size
        assert "float32" in suspect.sentence
        return
    assert suspect.name.startswith("norm-")
    assert words.format(odd=odd) in suspect.sentence
    assert suspect.after is not None
    assert suspect.after <= bound < suspect.before


@both_sides
@pytest.mark.parametrize("case", ["bias", "mean"])
def test_a_layer_norm_is_another(case: str, odd: str) -> None:
    x, w, b = normal(2, 3, D), normal(D, seed=1), normal(D, seed=2)
    ours, weight, bias = (torch.from_numpy(a) for a in (x, w, b))
    right = layer(ours, weight, bias).numpy()
    wrong = (layer(ours, weight, None) if case == "bias" else rms(ours, weight) + bias).numpy()
    words = f"bias left out in {odd}" if case == "bias" else f"plain in {odd}"
    evidence = evidence_of(
        right, wrong, odd, inputs={"args.0": x}, parameters={"weight": w, "bias": b}
    )
    (suspect,) = explain(evidence)
    assert words in suspect.sentence
    assert not explain(
        evidence_of(right, right, inputs={"args.0": x}, parameters={"weight": w, "bias": b})
    )


@both_sides
@pytest.mark.parametrize(
    ("training", "eps", "words"),
    [(True, 1e-5, "statistics of the batch in {}"), (False, 1e-3, "eps 0.001 in {}")],
)
def test_a_batch_norm_is_another(training: bool, eps: float, words: str, odd: str) -> None:
    x = normal(6, D)
    tensors = {
        "weight": normal(D, seed=1),
        "bias": normal(D, seed=2),
        "running_mean": normal(D, seed=3),
        "running_var": normal(D, seed=4) ** 2,
    }
    w, b, mean, var = (torch.from_numpy(a.copy()) for a in tensors.values())
    right, wrong = (
        functional.batch_norm(torch.from_numpy(x), mean.clone(), var.clone(), w, b, t, 0.1, e)
        for t, e in ((False, 1e-5), (training, eps))
    )
    evidence = evidence_of(
        right.numpy(), wrong.numpy(), odd, inputs={"args.0": x}, parameters=tensors
    )
    (suspect,) = explain(evidence)
    assert suspect.name.startswith("norm-")
    assert words.format(odd) in suspect.sentence


LINEARS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]] = {
    "transposed": (lambda x, w, b: functional.linear(x, w.T, b), "weight transposed in {odd}"),
    "no bias": (lambda x, w, b: functional.linear(x, w), "bias left out in {odd}"),
    "bias twice": (lambda x, w, b: functional.linear(x, w, b) + b, "bias twice in {odd}"),
    "bfloat16": (
        lambda x, w, b: functional.linear(x.bfloat16().double(), w.bfloat16().double(), b),
        "precision bfloat16 in {odd}",
    ),
}


@both_sides
@pytest.mark.parametrize("case", LINEARS)
def test_a_linear_layer_is_another(case: str, odd: str) -> None:
    change, words = LINEARS[case]
    x, w, b = normal(2, 3, D), normal(D, D, seed=1), normal(D, seed=2)
    ours, weight, bias = torch.from_numpy(x), torch.from_numpy(w.T), torch.from_numpy(b)
    right = functional.linear(ours, weight, bias).numpy()
    evidence = evidence_of(
        right,
        change(ours, weight, bias).numpy(),
        odd,
        inputs={"args.0": x},
        parameters={"weight": w, "bias": b},
    )
    (suspect,) = explain(evidence)
    assert suspect.name.startswith("linear-")
    assert words.format(odd=odd) in suspect.sentence


EMBEDDINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "scaled": (lambda i, t: functional.embedding(i, t) * D**0.5, "scaled by sqrt(8) in {odd}"),
    "next": (lambda i, t: functional.embedding(i + 1, t), "ids +1 in {odd}"),
    "padding": (
        lambda i, t: functional.embedding(i, t) * (i != 3)[..., None],
        "padding: id 3 gives zeros in {odd}",
    ),
    "shifted": (lambda i, t: functional.embedding(i.roll(1, 1), t), "shifted by +1 positions"),
    "unit": (
        lambda i, t: functional.normalize(functional.embedding(i, t), dim=-1),
        "normalised to length 1 in {odd}",
    ),
}


@both_sides
@pytest.mark.parametrize("case", EMBEDDINGS)
def test_an_embedding_is_another(case: str, odd: str) -> None:
    change, words = EMBEDDINGS[case]
    ids, table = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]), torch.from_numpy(normal(12, D))
    evidence = evidence_of(
        functional.embedding(ids, table).numpy(),
        change(ids, table).numpy(),
        odd,
        inputs={"args.0": ids.numpy()},
        parameters={"weight": table.numpy()},
    )
    suspect = first(evidence, explain(evidence)[0].name, words.format(odd=odd))
    assert suspect.name.startswith("embedding-")


def test_another_embedding_altogether() -> None:
    ids, table = torch.arange(5)[None], normal(12, D)
    known: dict[str, Any] = {"inputs": {"args.0": ids.numpy()}, "parameters": {"weight": table}}
    right = table[ids.numpy()]
    assert not explain(evidence_of(right, normal(1, 5, D, seed=2), **known))
    assert not explain(evidence_of(right, right, **known))


@both_sides
@pytest.mark.parametrize(
    ("groups", "eps", "weighted", "words"),
    [
        (2, 1e-5, True, "each of 2 groups of channels in {}"),
        (1, 1e-5, True, "statistics over positions and channels in {}"),
        (D, 1e-5, True, "each channel by itself in {}"),
        (4, 1e-3, True, "eps 0.001 in {}"),
        (4, 1e-5, False, "weight none in {}"),
    ],
)
def test_a_group_norm_is_another(
    groups: int, eps: float, weighted: bool, words: str, odd: str
) -> None:
    x, w, b = normal(2, 3, 5, D), normal(D, seed=1), normal(D, seed=2)
    ours, weight, bias = (torch.from_numpy(a) for a in (x, w, b))
    right, wrong = (
        functional.group_norm(ours.movedim(-1, 1), n, v, bias, e).movedim(1, -1).numpy()
        for n, v, e in ((4, weight, 1e-5), (groups, weight if weighted else None, eps))
    )
    known: dict[str, Any] = {
        "inputs": {"args.0": x},
        "parameters": {"weight": w, "bias": b},
        "module": torch.nn.GroupNorm(4, D),
    }
    (suspect,) = explain(evidence_of(right, wrong, odd, **known))
    assert suspect.name.startswith("norm-")
    assert words.format(odd) in suspect.sentence
    assert not explain(evidence_of(right, right, odd, **known))


@both_sides
@pytest.mark.parametrize("eps", [1.0, 12.0, 512.0])
@pytest.mark.parametrize("centred", [False, True])
def test_an_eps_that_was_meant_as_a_size(eps: float, centred: bool, odd: str) -> None:
    """`LayerNorm(12)` is a norm of 12 channels in PyTorch, and one with an eps of 12 in Flax."""
    x, w = normal(2, 3, D), normal(D, seed=1)
    ours, weight = torch.from_numpy(x), torch.from_numpy(w)
    right, wrong = (
        (layer(ours, weight, None, e) if centred else rms(ours, weight, e)).numpy()
        for e in (1e-5, eps)
    )
    module = torch.nn.LayerNorm(D) if centred else torch.nn.RMSNorm(D)
    known: dict[str, Any] = {"inputs": {"args.0": x}, "parameters": {"weight": w}}
    suspect = only(explain(evidence_of(right, wrong, odd, module=module, **known)))
    assert suspect.name == "norm-eps"
    assert f"eps {eps:g} in {odd}" in suspect.sentence
    name = type(module).__name__
    hint = f"the first argument of Flax's {name} is epsilon, so {name}({eps:g}) sets it to {eps:g}"
    assert (hint in suspect.sentence) == (odd == "Flax")


@both_sides
def test_a_large_eps_of_a_batch_norm_and_of_a_group_norm(odd: str) -> None:
    """Flax's take epsilon by name only: there is nothing to be taken for it."""
    x, w, b = normal(2, 3, 5, D), normal(D, seed=1), normal(D, seed=2)
    image, weight, bias = (
        torch.from_numpy(x).movedim(-1, 1),
        torch.from_numpy(w),
        torch.from_numpy(b),
    )
    mean, var = normal(D, seed=3), normal(D, seed=4) ** 2
    running = torch.from_numpy(mean), torch.from_numpy(var)
    both: dict[Any, Any] = {
        torch.nn.GroupNorm(4, D): [
            functional.group_norm(image, 4, weight, bias, e) for e in (1e-5, 7.5)
        ],
        torch.nn.BatchNorm2d(D): [
            functional.batch_norm(image, *running, weight, bias, False, 0.1, e) for e in (1e-5, 7.5)
        ],
    }
    for module, results in both.items():
        right, wrong = (result.movedim(1, -1).numpy() for result in results)
        tensors = {"weight": w, "bias": b}
        if isinstance(module, torch.nn.BatchNorm2d):
            tensors |= {"running_mean": mean, "running_var": var}
        known: dict[str, Any] = {"inputs": {"args.0": x}, "parameters": tensors, "module": module}
        suspect = only(explain(evidence_of(right, wrong, odd, **known)))
        assert f"eps 7.5 in {odd}" in suspect.sentence
        assert "first argument" not in suspect.sentence


def test_one_row_alone_does_not_show_a_large_eps() -> None:
    """Any factor of one row is some eps."""
    x, w = normal(1, 1, D), normal(D, seed=1)
    right = rms(torch.from_numpy(x), torch.from_numpy(w)).numpy()
    known: dict[str, Any] = {"inputs": {"args.0": x}, "parameters": {"weight": w}}
    found = explain(evidence_of(right, 0.37 * right, **known))
    assert not any(suspect.name == "norm-eps" for suspect in found)


@both_sides
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_eps_of_a_norm_that_rounds(dtype: str, odd: str) -> None:
    """In float32, or float32 inside of a float64 model: no other number is fitted to rounding."""
    x, w = normal(4, 3, D), normal(D, seed=1)
    ours, weight = torch.from_numpy(x).float(), torch.from_numpy(w)
    right, wrong = (
        (rms(ours, None, e).double() * weight).numpy().astype(dtype).astype(float)
        for e in (1e-6, 1e-4)
    )
    bound = {"float64": 1e-12, "float32": 2e-5}[dtype]
    known: dict[str, Any] = {"inputs": {"args.0": x}, "parameters": {"weight": w}, "bound": bound}
    evidence = dataclasses.replace(evidence_of(right, wrong, odd, **known), dtype=dtype)
    suspect = only(explain(evidence))
    assert suspect.name == "norm-eps"
    assert f"eps 0.0001 in {odd}" in suspect.sentence
    assert "eps 1e-06 in" in suspect.sentence
    assert "cut off" not in suspect.sentence


GATES = {"GRU": 3, "LSTM": 4}
CELLS: dict[str, tuple[str, Callable[[dict[str, Tensor], int], dict[str, Tensor]], str]] = {
    "gru order": ("GRU", lambda p, n: reordered(p, n, [1, 0, 2]), "gates in the order z, r, n in"),
    "gru bias": ("GRU", lambda p, n: p | {"bias_hh": p["bias_hh"] * 0}, "hidden bias left out in"),
    "lstm order": ("LSTM", lambda p, n: reordered(p, n, [0, 1, 3, 2]), "order i, f, o, g in"),
    "lstm forget": ("LSTM", lambda p, n: p | {"bias_hh": forgetting(p, n)}, "1 added to f in"),
}


def reordered(tensors: dict[str, Tensor], size: int, order: list[int]) -> dict[str, Tensor]:
    return {n: torch.cat([t.split(size)[i] for i in order]) for n, t in tensors.items()}


def forgetting(tensors: dict[str, Tensor], size: int) -> Tensor:
    return tensors["bias_hh"] + torch.cat([torch.full((size,), float(i == 1)) for i in range(4)])


@both_sides
@pytest.mark.parametrize("case", CELLS)
def test_a_cell_is_another(case: str, odd: str) -> None:
    kind, change, words = CELLS[case]
    made: Any = {"GRU": torch.nn.GRUCell, "LSTM": torch.nn.LSTMCell}[kind]
    cell = made(5, D).double()
    states = [normal(3, D, seed=i) for i in range(1, GATES[kind] - 1)]
    given = [normal(3, 5), *states]
    before = {name: p.detach() for name, p in cell.named_parameters()}
    results = []
    for tensors in (before, change(before, D)):
        state = [torch.from_numpy(a) for a in given[1:]]
        arguments = (torch.from_numpy(given[0]), tuple(state) if len(state) > 1 else state[0])
        out = torch.func.functional_call(cell, tensors, arguments)
        results.append((out[0] if kind == "LSTM" else out).numpy())
    inputs = {f"args.{i}": a for i, a in enumerate(given)}
    parameters = {n: t.numpy().T for n, t in before.items()}
    known: dict[str, Any] = {"inputs": inputs, "parameters": parameters, "module": cell}
    (suspect,) = explain(evidence_of(*results, odd, **known))
    assert suspect.name.startswith("cell-")
    assert f"{words} {odd}" in suspect.sentence
    assert not explain(evidence_of(results[0], results[0], odd, **known))


@both_sides
@pytest.mark.parametrize("way", ["before", "update", "hard"])
def test_a_gru_of_another_formula(way: str, odd: str) -> None:
    """Cho et al. 2014 apply the reset gate before the product; PyTorch and cuDNN after it."""
    cell = torch.nn.GRUCell(5, D).double()
    x, h = (torch.from_numpy(normal(3, n, seed=n)) for n in (5, D))
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w, u, b, c = (getattr(cell, name).detach() for name in names)
    sigmoid = functional.hardsigmoid if way == "hard" else torch.sigmoid
    (ar, az, an), (br, bz, bn) = ((y).chunk(3, -1) for y in (x @ w.T + b, h @ u.T + c))
    r, z = sigmoid(ar + br), sigmoid(az + bz)
    inner = (r * h) @ u[2 * D :].T + c[2 * D :] if way == "before" else r * bn
    new = torch.tanh(an + inner)
    wrong = z * new + (1 - z) * h if way == "update" else (1 - z) * new + z * h
    words = {"before": "reset gate applied before the product", "update": "z n + (1 - z) h"}
    evidence = evidence_of(
        cell(x, h).detach().numpy(),
        wrong.numpy(),
        odd,
        inputs={"args.0": x.numpy(), "args.1": h.numpy()},
        parameters={n: getattr(cell, n).detach().numpy().T for n in names},
    )
    (suspect,) = explain(evidence)
    assert f"{words.get(way, 'hard sigmoid (x / 6 + 1 / 2)')} in {odd}" in suspect.sentence


@both_sides
@pytest.mark.parametrize("axes", [1, 2])
def test_a_transposed_convolution_is_another(axes: int, odd: str) -> None:
    """Its output begins elsewhere in the full one, or its kernel runs the other way."""
    kind = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d)[axes - 1]
    module = kind(3, 4, 4, stride=2, padding=1, dtype=torch.float64)
    x = normal(2, *(5,) * axes, 3)
    image = torch.from_numpy(x).movedim(-1, 1)

    def output(padding: int, flip: bool = False) -> Any:
        function = (functional.conv_transpose1d, functional.conv_transpose2d)[axes - 1]
        kernel = module.weight.flip(tuple(range(2, 2 + axes))) if flip else module.weight
        full = function(image, kernel, module.bias, stride=2)
        place = (slice(padding, padding + 10),) * axes
        return full[(..., *place)].detach().movedim(1, -1).numpy()

    weight = module.weight.detach().numpy().transpose(*range(2, 2 + axes), 0, 1)
    known: dict[str, Any] = {
        "inputs": {"args.0": x},
        "parameters": {"weight": weight, "bias": module.bias.detach().numpy()},
        "module": module,
    }
    right = output(1)
    (suspect,) = explain(evidence_of(right, output(2), odd, **known))
    assert f"with padding 2 starts 2 into the full output in {odd}" in suspect.sentence
    assert "with SAME starts 1 into the full output in" in suspect.sentence
    (suspect,) = explain(evidence_of(right, output(1, flip=True), odd, **known))
    assert f"kernel flipped in {odd}" in suspect.sentence
    assert not explain(evidence_of(right, right, odd, **known))
