"""Rules that are inferred, against the ones that are written down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

import diy_jax
import diy_torch
from diy_core.mapping import tensors
from parity import infer_rules
from parity.environment import Device, exact
from parity.random_models import small_configs, write_random_model
from parity.tracing.match.infer import Inferred, infer
from parity.tracing.match.rules import Link, links_of, twin_rules
from parity.tracing.record.tensors import flax_tensors, torch_tensors
from tests.parity.foreign_pairs import PAIRS


def shown(links: Iterable[Link]) -> set[tuple[Any, ...]]:
    return {(k.torch, k.flax, str(k.operation), k.torch_part, k.flax_part) for k in links}


def table(found: Inferred) -> list[str]:
    """The rows that are printed."""
    console = Console(width=120)
    with console.capture() as captured:
        found.print(console)
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def by_hand(rules: Any, module: Any, variables: Any) -> set[tuple[Any, ...]]:
    sides = (torch_tensors(module), flax_tensors(variables))
    return shown(links_of(rules, *({n: a.shape for n, a in side.items()} for side in sides)))


@pytest.mark.parametrize("name", small_configs())
def test_the_twins_own_table_is_inferred(name: str, tmp_path: Path) -> None:
    config = small_configs()[name]
    write_random_model(tmp_path / "model", config, "small")
    model, params = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model", jnp.float32)
    twin = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model", torch.float32)
    expected = by_hand(twin_rules(config), twin, {"params": params})
    found = infer_rules(twin, params)
    assert shown(found.links) == expected
    assert found.evidence.count("values") == len(found.links)
    # With other values, as of a model that nothing was carried over to yet.
    fresh = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    found = infer_rules(twin, fresh)
    assert shown(found.links) == expected
    assert found.evidence.count("names") == len(found.links)
    assert found.torch_left == found.flax_left == {}


@pytest.mark.parametrize("name", ["gqa", "untied", "biases"])
def test_the_names_of_transformers(name: str, tmp_path: Path) -> None:
    config = small_configs()[name]
    write_random_model(tmp_path / "model", config, "small")
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    fresh = diy_jax.DIYForCausalLM(config).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    found = infer_rules(whole, fresh)
    expected = {(tensor.hf, "/".join(tensor.flax)) for tensor in tensors(config)}
    assert {(link.torch, link.flax) for link in found.links} == expected
    assert all(link.operation.axes == (1, 0) for link in found.links if "_proj.w" in link.torch)
    assert all("inv_freq" in left for left in found.torch_left)
    assert found.flax_left == {}


@pytest.mark.parametrize("name", PAIRS)
def test_a_foreign_table_is_inferred(name: str, device: Device) -> None:
    with exact(device):
        pair = PAIRS[name][0]()
        expected = by_hand(pair.rules, pair.torch, pair.variables)
        assert shown(infer_rules(pair.torch, pair.variables).links) == expected
        generator = np.random.default_rng(0)
        others = jax.tree.map(lambda a: generator.normal(size=np.shape(a)), pair.variables)
        assert shown(infer_rules(pair.torch, others).links) == expected


def test_numbers_of_many_layers_are_numbers() -> None:
    """JAX sorts `Dense_10` before `Dense_2`."""
    module = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(12)))
    leaves = {"kernel": np.zeros((3, 3)), "bias": np.zeros(3)}
    found = infer_rules(module, {f"Dense_{i}": leaves for i in sorted(range(12), key=str)})
    pairs = {(f"{i}.{a}", f"Dense_{i}/{b}") for i in range(12) for a, b in WORDS}
    assert {(link.torch, link.flax) for link in found.links} == pairs


WORDS = (("weight", "kernel"), ("bias", "bias"))


def test_equal_values_outweigh_names() -> None:
    one, other = np.arange(9.0).reshape(3, 3), -np.arange(9.0).reshape(3, 3)
    torch_side = {"query.weight": one, "key.weight": other}
    found = infer(torch_side, {"key/kernel": one.T, "query/kernel": other.T}, {"query.weight"})
    expected = {("query.weight", "key/kernel"), ("key.weight", "query/kernel")}
    assert {(link.torch, link.flax) for link in found.links} == expected


def test_names_and_order_together_outweigh_equal_values() -> None:
    """Two norms whose weights were exchanged when they were carried over."""
    one, other = np.arange(4.0), -np.arange(4.0)
    torch_side = {"norm1.weight": one, "norm2.weight": other}
    found = infer(torch_side, {"norm1/scale": other, "norm2/scale": one})
    expected = {("norm1.weight", "norm1/scale"), ("norm2.weight", "norm2/scale")}
    assert {(link.torch, link.flax) for link in found.links} == expected


def test_tensors_of_a_layer_that_is_written_out() -> None:
    """Those of a linear layer of PyTorch, kept with heads by the Flax module around it."""
    generator = np.random.default_rng(0)
    names = ("query", "out")
    torch_side = {
        f"layers.{i}.{n}.{leaf}": generator.normal(size=(6, 6) if leaf == "weight" else (6,))
        for i in range(3)
        for n in names
        for leaf in ("weight", "bias")
    }
    flax_side = {}
    for i in range(3):
        query, out = (torch_side[f"layers.{i}.{n}.weight"] for n in names)
        query_bias, out_bias = (torch_side[f"layers.{i}.{n}.bias"] for n in names)
        wrong = i == 2
        flax_side[f"layers_{i}/query_w"] = query.T.reshape(6, 2, 3) * (0 if wrong else 1)
        flax_side[f"layers_{i}/out_w"] = (out if wrong else out.T).reshape(2, 3, 6)
        flax_side[f"layers_{i}/query_b"] = query_bias.reshape(2, 3)
        flax_side[f"layers_{i}/out_b"] = out_bias
    found = infer(torch_side, flax_side, {n for n in torch_side if n.endswith("weight")})
    assert not found.torch_left
    assert not found.flax_left
    for link in found.links:
        *_, name, leaf = link.torch.split(".")
        assert link.flax == f"layers_{link.torch.split('.')[1]}/{name}_{leaf[0]}"
        side = link.from_torch(torch_side[link.torch])
        if link.flax not in ("layers_2/query_w", "layers_2/out_w"):
            np.testing.assert_array_equal(side, flax_side[link.flax])
        else:  # as in the other layers, whatever its values are
            torch_tensor = torch_side[link.torch]
            np.testing.assert_array_equal(side, torch_tensor.T.reshape(side.shape))


def test_the_layout_of_an_unknown_layer_is_that_of_equal_values() -> None:
    """A square weight that is used as it is, such as that of GPT-2's Conv1D."""
    weight = np.arange(16.0).reshape(4, 4)
    found = infer({"c.weight": weight}, {"c/kernel": weight})
    assert found.links[0].operation.is_identity
    found = infer({"c.weight": weight}, {"c/kernel": weight}, usual={"c.weight"})
    assert found.links[0].operation.axes == (1, 0)


def test_what_is_fused_on_one_side_only() -> None:
    generator = np.random.default_rng(0)
    whole = generator.normal(size=(12, 4))
    parts = {"attn/q": whole[:4], "attn/k": whole[4:8], "attn/v": whole[8:]}
    flax = {f"{name}/kernel": part.T for name, part in reversed(parts.items())}
    found = infer({"attn.qkv.weight": whole}, flax)
    assert {link.flax: link.torch_part for link in found.links} == {
        "attn/q/kernel": (0, 0, 4),
        "attn/k/kernel": (0, 4, 8),
        "attn/v/kernel": (0, 8, 12),
    }
    for link in found.links:
        np.testing.assert_array_equal(link.from_torch(whole), link.from_flax(flax[link.flax]))
    assert found.evidence == ["values"] * 3
    torch_side = {f"{name.replace('/', '.')}.weight": part for name, part in parts.items()}
    found = infer(torch_side, {"attn/qkv/kernel": whole.T})
    for link in found.links:
        np.testing.assert_array_equal(
            link.from_torch(torch_side[link.torch]), link.from_flax(whole.T)
        )
    assert found.torch_left == found.flax_left == {}


def test_what_is_fused_lies_as_equal_values_say() -> None:
    """As in GPT-2's Conv1D: (in, 3 * out), and square parts; one of them is damaged."""
    whole = np.random.default_rng(0).normal(size=(4, 12))
    flax = {f"{n}/kernel": whole[:, i * 4 : i * 4 + 4] for i, n in enumerate("qkv")}
    flax["v/kernel"] = flax["v/kernel"].T
    found = infer({"attn.weight": whole}, flax)
    assert {link.flax: link.torch_part for link in found.links} == {
        f"{name}/kernel": (1, i * 4, i * 4 + 4) for i, name in enumerate("qkv")
    }
    assert all(link.operation.is_identity for link in found.links)
    assert found.evidence == ["shapes"] * 3


def test_the_order_of_what_is_fused_is_that_of_equal_values() -> None:
    """Gates of a recurrent cell, in an order that their names do not say."""
    whole = np.random.default_rng(0).normal(size=(12, 3))
    flax = {f"cell/{n}/kernel": whole[i * 3 : i * 3 + 3].T for i, n in enumerate("ifgo")}
    shuffled = {name: flax[name] for name in sorted(flax)}
    found = infer({"lstm.weight_ih_l0": whole}, shuffled)
    assert {link.flax: link.torch_part for link in found.links} == {
        f"cell/{name}/kernel": (0, i * 3, i * 3 + 3) for i, name in enumerate("ifgo")
    }
    others = {name: array + 1 for name, array in shuffled.items()}
    found = infer({"lstm.weight_ih_l0": whole}, others)
    assert found.links == []
    assert list(found.flax_left) == list(others)


def test_the_one_of_them_that_differs_is_the_one_of_their_layer() -> None:
    """Not another tensor of the same shape that is left."""
    generator = np.random.default_rng(0)
    whole = generator.normal(size=(12, 3))
    flax = {f"cell/{n}/kernel": whole[i * 3 : i * 3 + 3].T for i, n in enumerate("ifgo")}
    flax["cell/g/kernel"] = flax["cell/g/kernel"] * 2
    other = {"elsewhere/table": generator.normal(size=(3, 3))}
    found = infer({"lstm.weight_ih_l0": whole}, other | {name: flax[name] for name in sorted(flax)})
    assert {link.flax: link.torch_part for link in found.links} == {
        f"cell/{name}/kernel": (0, i * 3, i * 3 + 3) for i, name in enumerate("ifgo")
    }
    assert list(found.flax_left) == list(other)


def test_experts_that_are_stacked_are_known_by_their_values() -> None:
    generator = np.random.default_rng(0)
    torch_side = {f"experts.{i}.w1.weight": generator.normal(size=(5, 3)) for i in range(4)}
    stack = np.stack([torch_side[f"experts.{i}.w1.weight"].T for i in range(4)])
    found = infer(torch_side, {"moe/w_gate": stack})
    assert found.torch_left == found.flax_left == {}
    for link in found.links:
        np.testing.assert_array_equal(
            link.from_torch(torch_side[link.torch]), link.from_flax(stack)
        )


def test_what_has_no_partner_is_shown() -> None:
    torch_side = {"a.weight": np.ones((2, 3)), "b.weight": np.ones((7, 7)), "b.table": np.ones(5)}
    found = infer(torch_side, {"a/kernel": np.ones((3, 2)), "z/scale": np.ones(9)})
    assert [(link.torch, link.flax) for link in found.links] == [("a.weight", "a/kernel")]
    assert found.torch_left == {"b.weight": (7, 7), "b.table": (5,)}
    assert found.flax_left == {"z/scale": (9,)}
    assert table(found) == [
        "PyTorch Flax operation by",
        "a.weight a/kernel transpose (1, 0) names",
        "b.weight (7, 7) no partner",
        "b.table (5,) no partner",
        "no partner z/scale (9,)",
    ]


def test_parts_of_tensors_are_shown() -> None:
    whole = np.random.default_rng(0).normal(size=(6, 4))
    found = infer({"q.kv.weight": whole}, {"q/k/kernel": whole[:3].T, "q/v/kernel": whole[3:].T})
    assert table(found)[1:] == [
        "q.kv.weight[0:3] q/k/kernel transpose (1, 0) values",
        "q.kv.weight[3:6] q/v/kernel transpose (1, 0) values",
    ]


def test_a_transposed_convolution_may_run_the_other_way() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 2))
    turned = kernel[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
    (link,) = infer({"up.weight": kernel}, {"up/kernel": turned}).links
    np.testing.assert_array_equal(link.from_torch(kernel), turned)
