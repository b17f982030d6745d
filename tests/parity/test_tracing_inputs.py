"""What a trace is given: other forms of it, and what is refused with what to do next."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen as nn
from flax.core import freeze
from flax.training.train_state import TrainState

import parity
from parity.environment import Device, exact
from parity.tracing.match.rules import Rule, RuleError
from tests.parity.foreign_pairs import cnn, dense, repeated, values
from tests.parity.small_pair import RULES, SmallPair, TorchChain, small_pair


@pytest.fixture(autouse=True)
def _exact(device: Device) -> Iterator[None]:
    with exact(device):
        yield


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: {"x": x},
        lambda x: torch.from_numpy(x),
        lambda x: jnp.asarray(x),
        lambda x: {"torch": x, "flax": {"x": x}},
        lambda x: {"torch": ((x,), {}), "flax": ((), {"x": x})},
    ],
)
def test_inputs_in_every_form(form: Callable[[Any], Any]) -> None:
    pair = small_pair()
    pair.inputs = form(pair.inputs)
    result = pair.trace(backward=False)
    assert result.equal
    assert len(result.rows) == 5


def test_params_in_every_form() -> None:
    pair = small_pair()
    for params in (
        {"params": pair.params},
        freeze(pair.params),
        jax.tree.map(jnp.asarray, pair.params),
        jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), pair.params),
        TrainState.create(apply_fn=None, params=pair.params, tx=optax.sgd(1.0)),
    ):
        pair.params = params
        assert pair.trace(backward=False).equal


def test_what_holds_no_params_is_refused() -> None:
    pair = small_pair()
    pair.params = [1]  # type: ignore[assignment]
    with pytest.raises(TypeError, match="params must be a dict of them, got a list"):
        pair.trace(backward=False)


def test_a_call_with_keywords_only_and_none_among_them() -> None:
    pair = repeated()
    inputs = {**pair.inputs, "mask": np.full((3, 7), 0.5), "scale": 2.0}
    result = parity.trace(pair.torch, pair.flax, pair.variables, inputs)
    assert result.equal
    assert len(result.rows) == 10


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_wherever_the_trace_is_called(mode: Any) -> None:
    pair = small_pair()
    with mode():
        assert len(pair.trace().gradients) == 8


def changed(pair: SmallPair, **parts: Any) -> SmallPair:
    for name, part in parts.items():
        setattr(pair, name, part)
    return pair


def without_out(pair: SmallPair) -> None:
    del pair.params["out"]


def narrow_out(pair: SmallPair) -> None:
    pair.params["out"] = {name: leaf[..., :3] for name, leaf in pair.params["out"].items()}


def no_params(pair: SmallPair) -> None:
    pair.params = {}


def other_batches(pair: SmallPair) -> None:
    pair.inputs = {"torch": pair.inputs, "flax": pair.inputs[:3]}


def narrow_inputs(pair: SmallPair) -> None:
    pair.inputs = {"torch": pair.inputs[:, :5], "flax": pair.inputs}


def narrow_flax_inputs(pair: SmallPair) -> None:
    pair.inputs = pair.inputs[:, :5]


def unknown_keyword(pair: SmallPair) -> None:
    pair.inputs = {"torch": pair.inputs, "flax": {"image": pair.inputs}}


def meta(pair: SmallPair) -> None:
    pair.torch = pair.torch.to("meta")


def compiled(pair: SmallPair) -> None:
    pair.torch.layers[1]._orig_mod = torch.nn.Identity()  # what torch.compile puts around it has


OWN = re.escape('if the two take different ones, pass {"torch": (args, kwargs), "flax": ...}')
REFUSED: list[tuple[Callable[[SmallPair], None], str]] = [
    (without_out, "the Flax model cannot be called .* params must be those of this Flax module"),
    (narrow_out, r'"kernel" in "/out".* shape \(6, 3\)\.; params must be those of this Flax'),
    (no_params, "but the collection is empty.; params must be those of this Flax module"),
    (other_batches, r"PyTorch model returns \(5, 4\), the Flax model \(3, 4\): .* same batch size"),
    (narrow_inputs, f"the PyTorch model cannot be called .* RuntimeError: mat1 .*; {OWN}"),
    (narrow_flax_inputs, "the Flax model .* and inputs of the size that it was made for"),
    (unknown_keyword, f"the Flax model .* unexpected keyword argument 'image'; {OWN}"),
    (meta, "layers.0.weight is on the meta device and has no data: load the weights"),
    (compiled, "layers.1 is compiled, and its calls are hidden: pass the original"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_what_is_refused_and_what_to_do(change: Callable[[SmallPair], None], said: str) -> None:
    pair = small_pair()
    change(pair)
    with pytest.raises(ValueError, match=f"(?s){said}"):
        pair.trace()


def test_rules_that_do_not_fit_are_refused_before_anything_is_compared() -> None:
    pair = small_pair()
    for rules, said in (
        ([], "there are none"),
        ([*RULES, Rule("norm.{i}.weight", "norm_{i}/scale")], "norm.{i}.weight matches no tensor"),
        ([*RULES, RULES[0]], "two rules match the PyTorch tensor layers.0.weight"),
        ([Rule("out.weight", "out/kernel", (0, 1))], "does not become out/kernel"),
    ):
        with pytest.raises(RuleError, match=re.escape(said)):
            pair.trace(rules=rules)


def test_only_modules_are_traced() -> None:
    pair = small_pair()
    with pytest.raises(TypeError, match=r"first model must be a torch.nn.Module, not FlaxChain"):
        changed(pair, torch=pair.flax).trace()
    with pytest.raises(TypeError, match=r"second model must be a flax.linen.Module, not function"):
        changed(small_pair(), flax=test_only_modules_are_traced).trace()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused() -> None:
    pair = small_pair()
    pair.torch = torch.jit.trace(pair.torch, torch.from_numpy(pair.inputs))
    with pytest.raises(ValueError, match="is scripted, and its calls are hidden"):
        pair.trace()


class TorchDropout(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 6).double()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc(x))


class FlaxDropout(nn.Module):
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(6, name="fc", param_dtype=x.dtype)(x)
        return nn.Dropout(0.5, deterministic=self.deterministic)(x)


def test_chance_is_refused_on_either_side() -> None:
    one = TorchDropout()
    params, x = {"fc": dense(one.fc)}, values(0, 5, 6, dtype="float64")
    with pytest.raises(ValueError, match=r"drop \(Dropout\) is in training mode.*call .eval\(\)"):
        parity.trace(one, FlaxDropout(), params, x)
    one.eval()
    with pytest.raises(ValueError, match="a trace needs a model without random numbers"):
        parity.trace(one, FlaxDropout(False), params, x)
    result = parity.trace(one, FlaxDropout(), params, x)
    assert result.equal
    assert [row.torch for row in result.rows] == ["(root)", "fc", "drop"]


class FlaxStatistics(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=False, name="norm")(x)


def test_state_that_would_change_is_refused_on_either_side() -> None:
    pair = cnn()
    pair.torch.train()
    with pytest.raises(ValueError, match=r"features.1 \(BatchNorm2d\) is in training mode"):
        parity.trace(pair.torch, pair.flax, pair.variables, pair.inputs)
    pair.torch.eval()
    variables = {kind: {"norm": tree["BatchNorm_0"]} for kind, tree in pair.variables.items()}
    inputs = {
        "torch": values(0, 2, 8, 3, 3, dtype="float64"),
        "flax": values(0, 2, 3, 3, 8, dtype="float64"),
    }
    with pytest.raises(ValueError, match=r"(?s)a trace changes no state: .*use_running_average"):
        parity.trace(pair.torch.features[1], FlaxStatistics(), variables, inputs)


class Words(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return "no array"


class FlaxWords(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return "no array"


class Largest(TorchChain):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).argmax(-1)


class FlaxLargest(nn.Module):
    inner: Any

    def __call__(self, x: Any) -> Any:
        return self.inner(x).argmax(-1)


def test_models_that_return_nothing_comparable() -> None:
    pair = small_pair()
    with pytest.raises(ValueError, match="the PyTorch model returns no arrays: let it return"):
        changed(small_pair(), torch=Words()).trace(backward=False)
    with pytest.raises(ValueError, match="the Flax model returns no arrays: let it return"):
        changed(small_pair(), flax=FlaxWords(), params={}).trace(backward=False)
    largest = Largest().double()
    largest.load_state_dict(pair.torch.state_dict())
    pair = changed(pair, torch=largest, flax=FlaxLargest(pair.flax), params={"inner": pair.params})
    with pytest.raises(ValueError, match="no output depends on a parameter: pass backward=False"):
        pair.trace()
    assert pair.trace(backward=False).equal
