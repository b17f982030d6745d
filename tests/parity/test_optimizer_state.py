"""AdamW's state across the frameworks: bit for bit, training goes on, what does not fit is refused.

The oracle of the training tests is the run that was never carried: gradients are made in numpy, so
the two optimizers see the same ones, and all is float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import torch

import diy_torch
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten, tensors, unflatten
from diy_torch.tensors import to_numpy
from parity.convert.optimizer_state import (
    decay_mask,
    optimizer_state_to_optax,
    optimizer_state_to_torch,
)
from tests.oracles import tiny

# Grouped heads, biases, and no two axes of a projection equal, so that a wrong transpose shows.
_SIZES: dict[str, Any] = {"num_hidden_layers": 1, "head_dim": 10, "vocab_size": 11}
TIED = tiny(attention_bias=True, mlp_bias=True, **_SIZES)
UNTIED = tiny(tie_word_embeddings=False, **_SIZES)
B1, B2, EPS, DECAY, CLIP = 0.8, 0.95, 1e-6, 0.3, 0.5
ADAM = {"b1": B1, "b2": B2, "eps": EPS, "eps_root": 0.0}
NORM = "model.norm.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def rate(count: Any) -> Any:
    """The learning rate after so many updates, falling fast so that a wrong count shows."""
    count = count.astype(float) if isinstance(count, jax.Array) else count
    return 0.05 / (1.0 + 0.5 * count)


RATE = rate(0)


def decays(name: str) -> bool:
    return name.endswith(".weight") and "norm" not in name


def gradients(params: dict[str, Any], clip: bool) -> dict[str, Any]:
    """Of a quadratic loss, by torch name, in the torch layout; clipped by their common norm."""
    found = {}
    for name, value in params.items():
        draw = np.random.default_rng([*name.encode()])
        found[name] = draw.uniform(0.5, 2, value.shape) * (value - draw.normal(size=value.shape))
    norm = np.sqrt(sum((g**2).sum() for g in found.values()))
    return {name: g * (CLIP / norm if clip else 1.0) for name, g in found.items()}


def new_optimizer(
    model: torch.nn.Module, named: bool = True, **changes: Any
) -> tuple[torch.optim.AdamW, list[str]]:
    """AdamW with two groups, weights and the rest, and the names in the order of the groups."""
    every = list(model.named_parameters())
    groups = [[item for item in every if decays(item[0]) is flag] for flag in (True, False)]
    options = {"lr": RATE, "betas": (B1, B2), "eps": EPS, **changes}
    optimizer = torch.optim.AdamW(
        [
            {"params": group if named else [p for _, p in group], "weight_decay": decay}
            for group, decay in zip(groups, (DECAY, 0.0), strict=True)
        ],
        **options,
    )
    return optimizer, [name for group in groups for name, _ in group]


class TorchRun:
    def __init__(self, config: DIYConfig, dtype: str = "float64", named: bool = True) -> None:
        self.model = diy_torch.DIYForCausalLM(config, seed=0, dtype=DTYPES[dtype])
        self.optimizer, self.names = new_optimizer(self.model, named)

    def params(self) -> dict[str, Any]:
        return {n: to_numpy(p.detach()).copy() for n, p in self.model.named_parameters()}

    def load(self, params: dict[str, Any], state_dict: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.from_numpy(params[name]))
        self.optimizer.load_state_dict(state_dict)

    def train(self, first: int, steps: int, clip: bool = False, falling: bool = False) -> None:
        for i in range(first, first + steps):
            for name, grad in gradients(self.params(), clip).items():
                parameter = self.model.get_parameter(name)
                parameter.grad = torch.from_numpy(grad).to(parameter.dtype)
            for group in self.optimizer.param_groups:
                group["lr"] = rate(i) if falling else RATE
            self.optimizer.step()


def to_params(config: DIYConfig, named: dict[str, Any]) -> dict[str, Any]:
    return unflatten({t.flax: jnp.asarray(t.to_flax(named[t.torch])) for t in tensors(config)})


def to_named(config: DIYConfig, params: Any) -> dict[str, Any]:
    flat = flatten(params)
    return {t.torch: np.array(t.to_flax.inverse(flat[t.flax])) for t in tensors(config)}


class OptaxRun:
    def __init__(self, config: DIYConfig, tx: Any, named: dict[str, Any], mini: int = 1) -> None:
        self.config, self.tx, self.mini = config, tx, mini
        self.params = to_params(config, named)
        self.state = tx.init(self.params)
        self.update = jax.jit(tx.update)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            grads = gradients(to_named(self.config, self.params), clip=False)
            for _ in range(self.mini):
                updates, self.state = self.update(
                    to_params(self.config, grads), self.state, self.params
                )
            self.params = optax.apply_updates(self.params, updates)


def mask_of(config: DIYConfig, wanted: bool = True) -> dict[str, Any]:
    return unflatten({t.flax: decays(t.torch) is wanted for t in tensors(config)})


def adamw(config: DIYConfig, learning_rate: Any = RATE, **changes: Any) -> Any:
    return optax.adamw(
        learning_rate, **{"weight_decay": DECAY, "mask": mask_of(config), **ADAM, **changes}
    )


def grouped(config: DIYConfig, learning_rate: Any = rate) -> Any:
    labels = jax.tree.map(lambda flag: "weights" if flag else "rest", mask_of(config))
    rest = adamw(config, learning_rate, weight_decay=0.0, mask=None)
    return optax.multi_transform(
        {"weights": adamw(config, learning_rate, mask=None), "rest": rest}, labels
    )


def injected(config: DIYConfig, learning_rate: Any) -> Any:
    inject = optax.inject_hyperparams(optax.adamw)
    return inject(learning_rate, weight_decay=DECAY, mask=mask_of(config), **ADAM)


def masked(config: DIYConfig) -> Any:
    return optax.chain(
        optax.masked(adamw(config, mask=None), mask_of(config)),
        optax.masked(adamw(config, weight_decay=0.0, mask=None), mask_of(config, False)),
    )


def multi_steps(config: DIYConfig, every: int) -> Any:
    inner = optax.chain(optax.clip_by_global_norm(CLIP), adamw(config, rate))
    return optax.MultiSteps(inner, every, accumulator_dtype=jnp.float64).gradient_transformation()


# The transformation, and what the torch run does to be its like: clip, falling rate, mini-steps.
CASES: dict[str, tuple[Callable[[DIYConfig], Any], bool, bool, int]] = {
    "plain": (adamw, False, False, 1),
    "clip, schedule and mask": (
        lambda config: optax.chain(optax.clip_by_global_norm(CLIP), adamw(config, rate)),
        True,
        True,
        1,
    ),
    "multi_transform": (grouped, False, True, 1),
    "masked": (masked, False, False, 1),
    "inject, schedule": (lambda config: injected(config, rate), False, True, 1),
    "inject, constant": (lambda config: injected(config, RATE), False, False, 1),
    "MultiSteps 1": (lambda config: multi_steps(config, 1), True, True, 1),
    "MultiSteps 2": (lambda config: multi_steps(config, 2), True, True, 2),
}


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = np.abs(other[name]).max()
        assert np.abs(value - other[name]).max() <= 1e-12 * scale, name


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_in_the_other_framework(case: str) -> None:
    make, clip, falling, mini = CASES[case]
    config, options = TIED, {"clip": clip, "falling": falling}
    with jax.enable_x64(True):
        one = TorchRun(config)
        one.train(0, 3, **options)
        state_dict, mask = copy.deepcopy(one.optimizer.state_dict()), mask_of(config)
        two = OptaxRun(config, make(config), one.params(), mini)
        two.state = optimizer_state_to_optax(state_dict, two.state, config, decay_mask=mask)
        one.train(3, 4, **options)
        two.train(4)
        assert_close(to_named(config, two.params), one.params())
        back = TorchRun(config)
        template = back.optimizer.state_dict()
        back.load(
            to_named(config, two.params),
            optimizer_state_to_torch(two.state, template, config, decay_mask=mask),
        )
        back.train(7, 3, **options)
        two.train(3)
        assert_close(back.params(), to_named(config, two.params))


def adams(opt_state: Any) -> list[Any]:
    """The Adam states of an optax state, found in another way than the module's."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda n: isinstance(n, optax.ScaleByAdamState))
    return [node for node in nodes if isinstance(node, optax.ScaleByAdamState)]


def bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_moments_there_and_back_are_the_same_to_the_bit(
    config: DIYConfig, named: bool, dtype: str
) -> None:
    run = TorchRun(config, dtype, named)
    names = None if named else run.names
    run.train(0, 2)
    state_dict = run.optimizer.state_dict()
    with jax.enable_x64(dtype == "float64"):
        tx = adamw(config)
        template = tx.init(to_params(config, run.params()))
        opt_state = optimizer_state_to_optax(state_dict, template, config, names=names)
        assert jax.tree.structure(opt_state) == jax.tree.structure(template)
        (adam,) = adams(opt_state)
        assert adam.count == 2
        assert adam.count.dtype == np.int32
        mu, nu = flatten(adam.mu), flatten(adam.nu)
        for tensor in tensors(config):
            state = run.optimizer.state[run.model.get_parameter(tensor.torch)]
            for key, flat in (("exp_avg", mu), ("exp_avg_sq", nu)):
                array = np.asarray(flat[tensor.flax])
                expected = to_numpy(state[key])
                expected = expected.T if tensor.kind == "projection" else expected
                assert array.dtype == expected.dtype == dtype
                assert bits(array) == bits(expected) != bits(np.zeros_like(expected))
        fresh, _ = new_optimizer(run.model, named)
        back = optimizer_state_to_torch(opt_state, fresh.state_dict(), config, names=names)
    assert back["param_groups"] == fresh.state_dict()["param_groups"]
    assert back["state"].keys() == state_dict["state"].keys() == set(range(len(run.names)))
    for i, entry in state_dict["state"].items():
        assert back["state"][i].keys() == entry.keys()
        for key, value in entry.items():
            found = back["state"][i][key]
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert torch.equal(found, value)
    fresh.load_state_dict(back)
    kept = fresh.state[run.model.get_parameter(NORM)]["exp_avg"]
    assert torch.equal(kept, run.optimizer.state[run.model.get_parameter(NORM)]["exp_avg"])


def test_what_comes_back_has_memory_of_its_own() -> None:
    run, template = trained()
    opt_state = optimizer_state_to_optax(run.optimizer.state_dict(), template, TIED)
    state_dict = optimizer_state_to_torch(opt_state, run.optimizer.state_dict(), TIED)
    before = np.array(adams(opt_state)[0].mu["model"]["norm"]["scale"])
    for entry in [*run.optimizer.state_dict()["state"].values(), *state_dict["state"].values()]:
        entry["exp_avg"].fill_(7.0)
    np.testing.assert_array_equal(adams(opt_state)[0].mu["model"]["norm"]["scale"], before)
    plain = jax.tree.map(np.array, opt_state)  # writable, and the norm's axes do not move
    state_dict = optimizer_state_to_torch(plain, run.optimizer.state_dict(), TIED)
    entry_of(run, state_dict)["exp_avg"].fill_(7.0)
    np.testing.assert_array_equal(adams(plain)[0].mu["model"]["norm"]["scale"], before)


def test_neither_a_step_of_zeros_nor_moments_without_a_step_are_lost() -> None:
    run, template = trained()
    empty = TorchRun(TIED, "float32").optimizer.state_dict()
    adam, *rest = template
    stepped = (adam._replace(count=jnp.asarray(3, jnp.int32)), *rest)
    back = optimizer_state_to_torch(stepped, empty, TIED)
    assert [float(entry["step"]) for entry in back["state"].values()] == [3.0] * len(run.names)
    mu = copy.deepcopy(adam.mu)
    mu["model"]["norm"]["scale"] = jnp.ones(16)
    back = optimizer_state_to_torch((adam._replace(mu=mu), *rest), empty, TIED)
    assert list(back["state"]) == [run.names.index(NORM)]
    assert entry_of(run, back)["step"] == 0
    assert torch.equal(entry_of(run, back)["exp_avg"], torch.ones(16))


def test_an_optimizer_without_a_step_is_one_without_a_step() -> None:
    run = TorchRun(TIED, "float32")
    empty = run.optimizer.state_dict()
    assert not empty["state"]
    _, stepped = stepped_optax(adamw(TIED))
    opt_state = optimizer_state_to_optax(empty, stepped, TIED)
    assert [leaf.dtype for leaf in jax.tree.leaves(opt_state)] == [
        leaf.dtype for leaf in jax.tree.leaves(stepped)
    ]
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(opt_state))
    assert optimizer_state_to_torch(opt_state, empty, TIED) == empty


def test_counters_follow_and_injected_hyperparameters_stay() -> None:
    run = TorchRun(TIED, "float32")
    run.train(0, 3)
    params = to_params(TIED, run.params())
    tx = optax.inject_hyperparams(optax.adamw)(lambda count: 0.5 * count, mask=None)
    state = optimizer_state_to_optax(run.optimizer.state_dict(), tx.init(params), TIED)
    assert [state.count, state.hyperparams_states["learning_rate"].count] == [3, 3]
    assert {k: float(v) for k, v in state.hyperparams.items()} == {
        k: float(v) for k, v in tx.init(params).hyperparams.items()
    }
    multi = optax.MultiSteps(adamw(TIED), 3, should_skip_update_fn=optax.skip_not_finite)
    grads = jax.tree.map(jnp.ones_like, params)
    _, template = multi.update(grads, multi.init(params), params)  # in the middle
    state = optimizer_state_to_optax(run.optimizer.state_dict(), template, TIED)
    assert [state.mini_step, state.gradient_step, adams(state)[0].count] == [0, 3, 3]
    assert state.skip_state.keys() == {"should_skip", "num_not_finite"}
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.acc_grads))


def test_each_adam_state_has_the_step_of_its_own_parameters() -> None:
    run, _ = trained()
    state_dict = copy.deepcopy(run.optimizer.state_dict())
    for index in state_dict["param_groups"][1]["params"]:
        del state_dict["state"][index]
    template = grouped(TIED, RATE).init(to_params(TIED, run.params()))
    opt_state = optimizer_state_to_optax(state_dict, template, TIED)
    weights, rest = (opt_state.inner_states[key] for key in ("weights", "rest"))
    assert [adams(weights)[0].count, adams(rest)[0].count] == [2, 0]
    back = optimizer_state_to_torch(opt_state, run.optimizer.state_dict(), TIED)
    assert back["state"].keys() == state_dict["state"].keys()
    assert {float(entry["step"]) for entry in back["state"].values()} == {2.0}
    with pytest.raises(CheckpointError, match=r"torch's steps are \{0, 2\}; optax's schedules"):
        optimizer_state_to_optax(
            state_dict, grouped(TIED, rate).init(to_params(TIED, run.params())), TIED
        )


def test_a_group_without_parameters_is_no_obstacle() -> None:
    run, _ = trained()
    tx = optax.multi_transform(
        {"all": adamw(TIED, mask=None), "none": adamw(TIED, rate, mask=None)},
        jax.tree.map(lambda _: "all", mask_of(TIED)),
    )
    template = tx.init(to_params(TIED, run.params()))
    state = optimizer_state_to_optax(run.optimizer.state_dict(), template, TIED)
    assert [adam.count for adam in adams(state)] == [2, 2]
    optimizer_state_to_torch(state, run.optimizer.state_dict(), TIED)


def test_shapes_alone_are_a_template() -> None:
    run, template = trained()
    shapes = jax.eval_shape(lambda: template)
    one = optimizer_state_to_optax(run.optimizer.state_dict(), shapes, TIED)
    two = optimizer_state_to_optax(run.optimizer.state_dict(), template, TIED)
    assert [bits(leaf) for leaf in jax.tree.leaves(one)] == [
        bits(leaf) for leaf in jax.tree.leaves(two)
    ]


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_decay_mask_is_that_of_the_groups(config: DIYConfig) -> None:
    model = diy_torch.DIYForCausalLM(config, seed=0)
    optimizer, names = new_optimizer(model, named=False)
    assert decay_mask(optimizer.state_dict(), config, names=names) == mask_of(config)
    with pytest.raises(CheckpointError, match="no param_names"):
        decay_mask(optimizer.state_dict(), config)


def test_the_tied_head_is_the_embedding_under_either_name() -> None:
    run, template = trained()
    state_dict = run.optimizer.state_dict()
    for group in state_dict["param_groups"]:
        del group["param_names"]
    names = [{"model.embed_tokens.weight": "lm_head.weight"}.get(n, n) for n in run.names]
    (adam,) = adams(optimizer_state_to_optax(state_dict, template, TIED, names=names))
    state = run.optimizer.state[run.model.lm_head.weight]
    np.testing.assert_array_equal(adam.mu["model"]["embed_tokens"]["embedding"], state["exp_avg"])


# What is refused.


def trained(config: DIYConfig = TIED) -> tuple[TorchRun, Any]:
    """A float32 torch run of two steps, and an optax state for its model."""
    run = TorchRun(config, "float32")
    run.train(0, 2)
    return run, adamw(config).init(to_params(config, run.params()))


def stepped_optax(tx: Any, steps: int = 2) -> tuple[Any, Any]:
    """Params and the state after some updates."""
    named = {t.torch: np.ones(t.shape, np.float32) for t in tensors(TIED)}
    params = to_params(TIED, named)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(steps):
        _, state = update(jax.tree.map(jnp.ones_like, params), state, params)
    return params, state


def refused(state_dict: Any, opt_state: Any, **options: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        optimizer_state_to_optax(state_dict, opt_state, TIED, **options)
    assert "optimizer state" in str(error.value)
    return error.value


def torch_refused(opt_state: Any, state_dict: Any, **options: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        optimizer_state_to_torch(opt_state, state_dict, TIED, **options)
    return error.value


def entry_of(run: TorchRun, state_dict: dict[str, Any], name: str = NORM) -> dict[str, Any]:
    entry: dict[str, Any] = state_dict["state"][run.names.index(name)]
    return entry


@pytest.fixture
def run() -> TorchRun:
    return trained()[0]


@pytest.fixture
def state_dict(run: TorchRun) -> dict[str, Any]:
    return copy.deepcopy(run.optimizer.state_dict())


@pytest.fixture
def template(run: TorchRun) -> Any:
    return adamw(TIED).init(to_params(TIED, run.params()))


def test_names_that_are_unknown_or_wrong(run: TorchRun, template: Any) -> None:
    run = TorchRun(TIED, "float32", named=False)
    unnamed = run.optimizer.state_dict()
    assert "no param_names: build the optimizer from model.named_parameters(), or pass" in str(
        refused(unnamed, template)
    )
    assert "no param_names" in str(torch_refused(template, unnamed))
    assert f"1 names for {len(run.names)} parameters" in str(
        refused(unnamed, template, names=[NORM])
    )
    swapped = ["lm_head.bias", *run.names[1:-1], run.names[1]]
    faults = refused(unnamed, template, names=iter(swapped)).faults
    assert sorted(faults) == sorted(
        [
            "the torch optimizer has no model.embed_tokens.weight",
            f"the torch optimizer has no {run.names[-1]}",
            "the model has no parameter lm_head.bias",
            f"the torch optimizer has {run.names[1]} twice",
        ]
    )
    named = TorchRun(TIED, "float32").optimizer.state_dict()
    assert optimizer_state_to_optax(named, template, TIED, names=run.names) is not None
    error = refused(named, template, names=run.names[::-1])
    assert "names differ from the param_names" in str(error)


def test_an_optimizer_in_place_of_its_state_is_named(run: TorchRun, template: Any) -> None:
    words = "must be what the optimizer's state_dict() gives, with state and param_groups, got "
    assert words + "dict" in str(refused({"state": {}}, template))
    assert words + "dict" in str(torch_refused(template, run.optimizer.state_dict()["state"]))


def test_kinds_of_torch_optimizers_that_are_not_adamw(template: Any) -> None:
    model = diy_torch.DIYForCausalLM(TIED, seed=0)
    optimizer, _ = new_optimizer(model, amsgrad=True)
    error = refused(optimizer.state_dict(), template)
    assert error.faults == [
        f"torch's group {i} has amsgrad, which optax.adamw has not" for i in range(2)
    ]
    sgd = torch.optim.SGD(model.named_parameters(), momentum=0.9)
    adam = torch.optim.Adam(model.named_parameters(), weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for other in (optimizer, sgd):
        other.step()
    assert "'max_exp_avg_sq', 'step'] of model.norm.weight; AdamW: exp_avg, exp_avg_sq, step" in (
        "\n".join(refused(optimizer.state_dict(), template).faults)
    )
    assert f"torch has ['momentum_buffer'] of {NORM}; AdamW: " in "\n".join(
        refused(sgd.state_dict(), template).faults
    )
    assert "group 0 adds weight_decay to the gradient: not AdamW" in str(
        refused(adam.state_dict(), template)
    )
    harmless = torch.optim.Adam(model.named_parameters(), weight_decay=0.0)
    optimizer_state_to_optax(harmless.state_dict(), template, TIED)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: optax.sgd(0.1, momentum=0.9), "has TraceState.trace, which torch's AdamW has not"),
        (
            lambda: optax.sgd(0.1),
            "opt_state has no ScaleByAdamState in it: not made by optax.adamw",
        ),
        (lambda: optax.amsgrad(0.1), "ScaleByAmsgradState.nu_max"),
        (lambda: optax.adabelief(0.1), "ScaleByBeliefState.mu"),
        (lambda: optax.chain(optax.trace(0.9), adamw(TIED)), "TraceState.trace"),
        (lambda: optax.chain(adamw(TIED), optax.ema(0.9)), "EmaState.ema"),
        (
            lambda: optax.GradientTransformation(
                lambda params: (adamw(TIED).init(params), {"momentum": jnp.zeros(3)}), None
            ),
            "has an array outside of optax's states",
        ),
    ],
)
def test_kinds_of_optax_states_that_are_not_adamw(
    make: Callable[[], Any], words: str, run: TorchRun, state_dict: dict[str, Any]
) -> None:
    opt_state = make().init(to_params(TIED, run.params()))
    assert words in str(refused(state_dict, opt_state))
    assert words in str(torch_refused(opt_state, state_dict))


def test_moments_of_another_dtype(run: TorchRun, state_dict: dict[str, Any]) -> None:
    opt_state = adamw(TIED, mu_dtype=jnp.bfloat16).init(to_params(TIED, run.params()))
    error = refused(state_dict, opt_state)
    assert f"exp_avg of {NORM} is float32 in torch and bfloat16 in optax" in error.faults
    assert len(error.faults) == len(run.names)
    faults = torch_refused(opt_state, state_dict).faults
    assert len(faults) == len(run.names)
    assert f"mu of {NORM} is bfloat16 and nu float32; torch has both in the" in "\n".join(faults)


def test_every_fault_is_named_at_once(run: TorchRun, state_dict: dict[str, Any]) -> None:
    flat = flatten(to_params(TIED, run.params()))
    scale = flat.pop(("model", "norm", "scale"))
    flat["model", "norm", "offset"] = scale
    flat["model", "embed_tokens", "embedding"] = jnp.zeros((16, 11))
    opt_state = optax.scale_by_adam().init(unflatten(flat))
    bias = "model.layers.0.attention.q_proj.bias"
    entry_of(run, state_dict)["step"] = torch.tensor(2.5)
    entry_of(run, state_dict, bias)["exp_avg"] = torch.full((40,), float("nan"))
    del entry_of(run, state_dict, "model.layers.0.attention.k_proj.bias")["exp_avg"]
    entry_of(run, state_dict, "model.layers.0.attention.v_proj.bias")["exp_avg_sq"] = torch.ones(3)
    state_dict["state"][99] = {}
    faults = refused(state_dict, opt_state).faults
    per_moment = [
        "missing tensor model/norm/scale (16,)",
        "unexpected tensor model/norm/offset (16,)",
        "tensor model/embed_tokens/embedding has shape (16, 11), expected (11, 16)",
    ]
    assert faults == [
        "torch's state 99 is in no group",
        *[f"optax's {key}: {text}" for key in ("exp_avg", "exp_avg_sq") for text in per_moment],
        f"exp_avg of {bias} is not finite",
        "torch has ['exp_avg_sq', 'step'] of model.layers.0.attention.k_proj.bias; AdamW: exp_avg, "
        "exp_avg_sq, step",
        "tensor exp_avg_sq of model.layers.0.attention.v_proj.bias has shape (3,), expected (20,)",
        f"step 2.5 of {NORM} is not a whole number",
    ]
    optax_faults = torch_refused(opt_state, state_dict).faults
    assert set(optax_faults) == set(faults[:7])


@pytest.mark.parametrize("step", [-1.0, 0.5, float("nan"), float("inf")])
def test_a_step_that_counts_nothing(
    step: float, run: TorchRun, state_dict: dict[str, Any], template: Any
) -> None:
    entry_of(run, state_dict)["step"] = torch.tensor(step)
    assert refused(state_dict, template).faults == [f"step {step} of {NORM} is not a whole number"]


def test_steps_that_differ(run: TorchRun, state_dict: dict[str, Any], template: Any) -> None:
    entry_of(run, state_dict)["step"] = torch.tensor(5.0)
    assert f"torch's step of {NORM} is 5, of others 2; optax counts once" in str(
        refused(state_dict, template)
    )
    del state_dict["state"][run.names.index(NORM)]
    assert f"torch's step of {NORM} is 0, of others 2; optax counts once" in str(
        refused(state_dict, template)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["mu", "nu"])
def test_moments_that_are_not_finite(
    field: str, value: float, run: TorchRun, state_dict: dict[str, Any], template: Any
) -> None:
    key = {"mu": "exp_avg", "nu": "exp_avg_sq"}[field]
    entry_of(run, state_dict)[key][3] = value
    assert refused(state_dict, template).faults == [f"{key} of {NORM} is not finite"]
    adam, *rest = template
    tree = copy.deepcopy(getattr(adam, field))
    tree["model"]["norm"]["scale"] = jnp.full(16, value)
    faults = torch_refused((adam._replace(**{field: tree}), *rest), state_dict).faults
    assert faults == [f"{key} of {NORM} is not finite"]


def test_parameters_that_two_adams_or_none_have(run: TorchRun, state_dict: dict[str, Any]) -> None:
    params = to_params(TIED, run.params())
    twice = optax.chain(adamw(TIED), adamw(TIED)).init(params)
    assert "exp_avg_sq of model/norm/scale is in 2 Adam states" in "\n".join(
        refused(state_dict, twice).faults
    )
    labels = jax.tree.map(lambda flag: "on" if flag else "off", mask_of(TIED))
    frozen = optax.multi_transform({"on": adamw(TIED, mask=None), "off": optax.sgd(0.1)}, labels)
    for error in (
        refused(state_dict, frozen.init(params)),
        torch_refused(frozen.init(params), state_dict),
    ):
        assert "optax's exp_avg: missing tensor model/norm/scale (16,)" in error.faults


def test_an_accumulation_under_way() -> None:
    tx = optax.MultiSteps(adamw(TIED), 2)
    fresh = TorchRun(TIED, "float32").optimizer.state_dict()
    _, middle = stepped_optax(tx, 3)
    assert "mini_step is 1: torch's state has no place for accumulated gradients" in str(
        torch_refused(middle, fresh)
    )
    _, state = stepped_optax(tx, 4)
    back = optimizer_state_to_torch(state, fresh, TIED)
    assert {float(entry["step"]) for entry in back["state"].values()} == {2.0}


def test_counters_that_count_something_else(run: TorchRun, state_dict: dict[str, Any]) -> None:
    params = to_params(TIED, run.params())
    outside = optax.chain(
        optax.MultiSteps(adamw(TIED, rate), 2).gradient_transformation(),
        optax.scale_by_schedule(lambda count: 1.0),
    )
    assert refused(state_dict, outside.init(params)).faults == [
        "ScaleByScheduleState.count outside of MultiSteps counts mini-steps, which torch does not "
        "tell"
    ]
    _, state = stepped_optax(outside, 4)
    assert torch_refused(state, state_dict).faults == [
        "ScaleByScheduleState.count is 4, Adam's {2}; torch has one step"
    ]
    fresh = TorchRun(TIED, "float32").optimizer.state_dict()
    optimizer_state_to_optax(fresh, outside.init(params), TIED)  # nothing is counted yet
    adam, *rest = adamw(TIED).init(params)
    big = adam._replace(count=jnp.asarray(2**24 + 1, jnp.int32))
    assert "count is 16777217, which is not a float32 like torch's step" in str(
        torch_refused((big, *rest), fresh)
    )


def test_a_mask_that_is_not_that_of_the_groups(state_dict: dict[str, Any], template: Any) -> None:
    flat = flatten(mask_of(TIED))
    flat["model", "norm", "scale"] = True
    flat["model", "embed_tokens", "embedding"] = False
    mask = unflatten(flat)
    words = [
        "weight_decay of model.embed_tokens.weight is 0.3 in torch, but decay_mask is False",
        f"weight_decay of {NORM} is 0.0 in torch, but decay_mask is True",
    ]
    assert refused(state_dict, template, decay_mask=mask).faults == words
    assert torch_refused(template, state_dict, decay_mask=mask).faults == words
    del flat["model", "norm", "scale"]
    assert refused(state_dict, template, decay_mask=unflatten(flat)).faults == [
        "decay_mask has other parameters than the model"
    ]


def test_a_mask_may_be_a_function_of_params(state_dict: dict[str, Any], template: Any) -> None:
    def by_axes(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    optimizer_state_to_optax(state_dict, template, TIED, decay_mask=by_axes)

    def everything(params: Any) -> Any:
        return jax.tree.map(lambda leaf: True, params)

    faults = refused(state_dict, template, decay_mask=everything).faults
    assert f"weight_decay of {NORM} is 0.0 in torch, but decay_mask is True" in faults


def test_float64_without_64_bits(run: TorchRun) -> None:
    named = {t.torch: np.ones(t.shape) for t in tensors(TIED)}
    tree = unflatten({t.flax: t.to_flax(named[t.torch]) for t in tensors(TIED)})
    count = np.zeros((), np.int32)
    opt_state = (optax.ScaleByAdamState(count, tree, copy.deepcopy(tree)), optax.EmptyState())
    wide = TorchRun(TIED, "float64")
    for steps in (0, 1):
        wide.train(0, steps)
        with pytest.raises(ValueError, match="jax_enable_x64"):
            optimizer_state_to_optax(wide.optimizer.state_dict(), opt_state, TIED)
    assert "is float32 in torch and float64 in optax" in str(
        refused(run.optimizer.state_dict(), opt_state)
    )


def test_numpy_arrays_are_as_good_as_jax_arrays(state_dict: dict[str, Any], template: Any) -> None:
    opt_state = optimizer_state_to_optax(state_dict, template, TIED)
    plain = jax.tree.map(np.array, opt_state)
    for entry in (one := optimizer_state_to_torch(plain, state_dict, TIED))["state"].values():
        assert entry["step"].dtype == torch.float32
    two = optimizer_state_to_torch(opt_state, state_dict, TIED)
    for i, entry in one["state"].items():
        assert all(torch.equal(value, two["state"][i][key]) for key, value in entry.items())
    narrow = jax.tree.map(
        lambda a: a.astype(ml_dtypes.bfloat16) if a.dtype == np.float32 else a, plain
    )
    back = optimizer_state_to_torch(narrow, state_dict, TIED)
    assert {entry["exp_avg"].dtype for entry in back["state"].values()} == {torch.bfloat16}
