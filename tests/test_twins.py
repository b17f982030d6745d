"""Who knows one twin knows the other: the same files, names, arguments, weights and words."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import diy_jax
import diy_torch
from diy_core.mapping import flatten, tensors
from tests.bad_inputs import CASES, CONFIG, GENERATE_CASES, IDS, Case
from tests.oracles import CONFIGS

ROOT = Path(__file__).parents[1]
WITHOUT_A_TWIN = {"orbax_files.py", "orbax_store.py", "linear.py"}  # torch has its own nn.Linear
# What differs because the frameworks do: an array type, arrays given to modules or to a dict,
# parameters inside the model or beside it.
NAMES_IN_JAX = {"as_tensor": "as_array", "to_tensor": "to_array", "assign_weights": "build_params"}
ONLY_IN_JAX = {"init_params", "require_held"}  # torch holds every dtype
ONLY_IN_TORCH: set[str] = set()
OWN_PARAMETERS = {"device", "params", "self", "cls"}
OTHER_SIGNATURES = {"as_tensor", "to_tensor", "assign_weights", "to_numpy", "__init__"}


def files(package: str) -> list[str]:
    return sorted(path.name for path in (ROOT / package).glob("*.py"))


PAIRS = [name for name in files("diy_torch") if name not in ("__init__.py", "__main__.py")]


def names(package: str, file: str) -> list[str]:
    """Public classes, functions and constants of a file, in order; of classes, their methods."""
    found = []
    for node in ast.parse((ROOT / package / file).read_text()).body:
        if isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.append(node.name)
    return [name for name in found if not name.startswith("_")]


def members(package: str, file: str) -> dict[str, Any]:
    """Public functions, and public methods as `Class.method`, of a file."""
    module = importlib.import_module(f"{package}.{file.removesuffix('.py')}")
    found: dict[str, Any] = {}
    for name in names(package, file):
        value = getattr(module, name)
        if inspect.isclass(value):
            for method, function in vars(value).items():
                plain = inspect.unwrap(getattr(function, "__func__", function))
                public = not method.startswith("_") or method == "__call__"
                if inspect.isfunction(plain) and public and plain.__module__ == module.__name__:
                    found[f"{name}.{method.replace('__call__', 'forward')}"] = plain
        elif inspect.isroutine(inspect.unwrap(value)):
            found[name] = inspect.unwrap(value)
    return found


def parameters(function: Any) -> dict[str, Any]:
    """Name and default of each argument; dtypes, which each framework spells its own way, aside."""
    found = inspect.signature(function).parameters.values()
    return {
        p.name: "dtype" if p.name == "dtype" else p.default
        for p in found
        if p.name not in OWN_PARAMETERS
    }


def test_the_twins_have_the_same_files() -> None:
    assert set(files("diy_torch")) == set(files("diy_jax")) - WITHOUT_A_TWIN
    tests = {path.name for path in (ROOT / "tests" / "torch_twin").glob("test_*.py")}
    of_jax = {path.name for path in (ROOT / "tests" / "jax_twin").glob("test_*.py")}
    assert tests == of_jax - {f"test_{name}" for name in WITHOUT_A_TWIN}


@pytest.mark.parametrize("file", PAIRS)
def test_the_twins_have_the_same_public_names_in_the_same_order(file: str) -> None:
    of_torch = [name for name in names("diy_torch", file) if name not in ONLY_IN_TORCH]
    of_jax = [name for name in names("diy_jax", file) if name not in ONLY_IN_JAX]
    assert [NAMES_IN_JAX.get(name, name) for name in of_torch] == of_jax
    assert of_jax


def test_the_twins_export_the_same_names() -> None:
    assert [n for n in diy_jax.__all__ if n not in ONLY_IN_JAX] == diy_torch.__all__
    for name in ("DIYConfig", "RopeScaling", "CheckpointError", "GenerateOutput"):
        assert getattr(diy_torch, name) is getattr(diy_jax, name)


@pytest.mark.parametrize("file", PAIRS)
def test_the_twins_take_the_same_arguments(file: str) -> None:
    of_torch, of_jax = members("diy_torch", file), members("diy_jax", file)
    shared = [name for name in of_torch if name in of_jax and name not in OTHER_SIGNATURES]
    assert shared
    for name in shared:
        assert list(parameters(of_torch[name]).items()) == list(parameters(of_jax[name]).items())
    missing = set(of_torch) - set(of_jax) - OTHER_SIGNATURES
    assert not missing, missing


def test_the_model_s_arguments_are_those_that_were_asked_for() -> None:
    wanted = ["input_ids", "attention_mask", "seq_lengths", "past_key_values", "use_cache"]
    for call in (diy_torch.DIYForCausalLM.forward, diy_jax.DIYForCausalLM.__call__):
        assert list(parameters(call))[:5] == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parameter_trees_are_those_of_the_table(name: str) -> None:
    config = CONFIGS[name]
    model, params = diy_torch.DIYForCausalLM(config), flatten(diy_jax.init_params(config))
    of_torch = {name: tuple(p.shape) for name, p in model.named_parameters()}
    of_jax = {path: tuple(leaf.shape) for path, leaf in params.items()}
    table = tensors(config)
    assert of_torch == {tensor.torch: tensor.shape for tensor in table}
    assert of_jax == {tensor.flax: tensor.flax_shape for tensor in table}
    for tensor in table:
        *modules, leaf = tensor.torch.split(".")
        path = "/".join(modules).replace("layers/", "layers_")
        assert "/".join(tensor.flax[:-1]) == path
        assert (tensor.flax[-1] in ("kernel", "embedding", "scale")) == (leaf == "weight")


@pytest.mark.parametrize("seed", [0, 7])
def test_the_first_weights_are_the_same_bits(seed: int) -> None:
    config = CONFIGS["untied"]
    of_torch = dict(diy_torch.DIYForCausalLM(config, seed=seed).named_parameters())
    of_jax = flatten(diy_jax.init_params(config, seed=seed))
    for tensor in tensors(config):
        one, other = of_torch[tensor.torch].detach().numpy(), np.array(of_jax[tensor.flax])
        other = other.T if tensor.flax[-1] == "kernel" else other
        assert one.dtype == other.dtype == np.float32
        assert np.ascontiguousarray(other).tobytes() == one.tobytes()


def test_other_seeds_and_other_tensors_draw_other_weights() -> None:
    one, other = (diy_torch.DIYForCausalLM(CONFIGS["mha"], seed=seed) for seed in (0, 1))
    first, second = (model.model.layers[0].attention for model in (one, other))
    assert not torch.equal(first.q_proj.weight, second.q_proj.weight)
    assert not torch.equal(first.q_proj.weight, first.k_proj.weight)
    deeper = one.model.layers[1].attention
    assert not torch.equal(first.q_proj.weight, deeper.q_proj.weight)


def words(call: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


TORCH = diy_torch.DIYForCausalLM(CONFIG)
FLAX, PARAMS = diy_jax.DIYForCausalLM(CONFIG), diy_jax.init_params(CONFIG)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_answered_with_the_same_words(case: Case) -> None:
    def flax(**kwargs: Any) -> Any:
        return FLAX.apply({"params": PARAMS}, **kwargs)

    assert words(lambda: case.call(TORCH, torch.from_numpy)) == words(
        lambda: case.call(flax, jnp.asarray)
    )


@pytest.mark.parametrize("case", GENERATE_CASES, ids=lambda case: case.name)
def test_bad_prompts_are_answered_with_the_same_words(case: Case) -> None:
    kwargs = {"input_ids": IDS, "max_new_tokens": 2} | case.kwargs
    assert words(lambda: diy_torch.generate(TORCH, **kwargs)) == words(
        lambda: diy_jax.generate(FLAX, PARAMS, **kwargs)
    )


def test_bad_checkpoints_are_answered_with_the_same_words(tmp_path: Path) -> None:
    def both() -> str:
        one = words(lambda: diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model"))
        other = words(lambda: diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model"))
        assert one == other
        return one

    assert "is not a directory" in both()
    TORCH.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    both()
    file.unlink()
    both()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    assert "model_type 'gpt2' is not supported" in both()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_may_be_given_by_its_name(tmp_path: Path, name: str) -> None:
    TORCH.save_pretrained(tmp_path / "model")
    model = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype=name)
    flax, params = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype=name)
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, name)}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {str(flax.dtype)} == {name}
    made = diy_torch.DIYForCausalLM(CONFIG, dtype=name).lm_head.weight
    assert made.dtype == getattr(torch, name)
    assert str(diy_jax.init_params(CONFIG, dtype=name)["model"]["norm"]["scale"].dtype) == name


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_float64_weights_are_rounded_once(tmp_path: Path, name: str) -> None:
    model = diy_torch.DIYForCausalLM(CONFIG, dtype="float64")
    # By way of float32 it would be the middle of two neighbours, and become the even one.
    middle = 1 + 2.0 ** {"bfloat16": -8, "float16": -11}[name]
    with torch.no_grad():
        model.model.norm.weight.fill_(middle * (1 + 2.0**-40))
    model.save_pretrained(tmp_path / "model")
    above = 1 + 2.0 ** {"bfloat16": -7, "float16": -10}[name]
    one = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype=name)
    _, params = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype=name)
    assert set(one.model.norm.weight.tolist()) == {above}
    assert set(params["model"]["norm"]["scale"].tolist()) == {above}


def test_a_trained_head_of_a_tied_model_is_not_left_behind(tmp_path: Path) -> None:
    model = diy_torch.DIYForCausalLM(dataclasses.replace(CONFIG, tie_word_embeddings=True))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    with pytest.raises(ValueError, match="differs from the embedding"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["auto", "fp16", "int8", "f4", "float8_e4m3fn"])
def test_a_dtype_that_weights_cannot_have_is_refused_in_the_same_words(
    tmp_path: Path, name: str
) -> None:
    TORCH.save_pretrained(tmp_path / "model")
    one = words(lambda: diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model", name))
    other = words(lambda: diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model", name))
    assert one == other
    assert f"dtype {name!r} is not supported; choose one of bfloat16, float16, float32" in one
    for dtype in (torch.int8, jnp.int8, np.int8):
        for load in (
            diy_torch.DIYForCausalLM.from_pretrained,
            diy_jax.DIYForCausalLM.from_pretrained,
        ):
            said = words(functools.partial(load, tmp_path / "model", dtype))
            assert "dtype 'int8' is not supported" in said


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.bfloat16, jnp.bfloat16, ml_dtypes.bfloat16, jnp.dtype("bfloat16")),
        *("bfloat16", "torch.bfloat16"),
    ],
    ids=str,
)
def test_both_take_a_dtype_of_any_library(dtype: Any, tmp_path: Path) -> None:
    TORCH.save_pretrained(tmp_path / "model")
    one = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype)
    model, params = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype)
    assert {p.dtype for p in one.parameters()} == {torch.bfloat16}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert diy_torch.DIYForCausalLM(CONFIG, dtype=dtype).lm_head.weight.dtype == torch.bfloat16
    built = diy_jax.DIYForCausalLM(CONFIG, dtype=dtype, param_dtype=dtype)
    assert (built.dtype, built.param_dtype) == (model.dtype, model.param_dtype)
    assert jax.tree.leaves(diy_jax.init_params(CONFIG, dtype=dtype))[0].dtype == jnp.bfloat16
    assert diy_torch.init_cache(CONFIG, 1, 4, dtype)[0][0]["key"].dtype == torch.bfloat16
    assert diy_jax.init_cache(CONFIG, 1, 4, dtype)[0][0]["key"].dtype == jnp.bfloat16


def test_weights_that_are_not_finite_are_saved_by_neither(tmp_path: Path) -> None:
    model = diy_torch.DIYForCausalLM(CONFIG)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    params = jax.tree.map(lambda leaf: leaf, PARAMS)
    params["model"]["norm"] = {"scale": params["model"]["norm"]["scale"].at[3].set(jnp.nan)}
    one = words(lambda: model.save_pretrained(tmp_path / "model"))
    assert one == words(lambda: FLAX.save_pretrained(tmp_path / "model", params))
    assert "model.norm.weight" in one
    assert not list(tmp_path.iterdir())


def test_each_twin_names_the_other_where_it_gets_its_model() -> None:
    flax, torch_model = diy_jax.DIYForCausalLM(CONFIG), diy_torch.DIYForCausalLM(CONFIG)
    words = r"diy_torch.generate got a model of diy_jax: call diy_jax.generate\(model, params, inp"
    for given in ((flax, IDS), (flax, {}, IDS)):
        with pytest.raises(TypeError, match=words):
            diy_torch.generate(*given, max_new_tokens=1)
    words = r"diy_jax.generate got a model of diy_torch: call diy_torch.generate\(model, input_ids"
    with pytest.raises(TypeError, match=words):
        diy_jax.generate(torch_model, {}, IDS, max_new_tokens=1)
    for twin in (diy_torch, diy_jax):
        with pytest.raises(
            TypeError, match=rf"needs a {twin.__name__}.DIYForCausalLM, got ndarray"
        ):
            twin.generate(IDS, {}, IDS, max_new_tokens=1)


def test_what_a_type_checker_is_told_of_a_call_is_what_forward_takes() -> None:
    """nn.Module's own `__call__` is Any to it, and what it is told is never run."""
    tree = ast.parse((ROOT / "diy_torch" / "model.py").read_text())
    calls = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "__call__"]
    taken = set(inspect.signature(diy_torch.DIYForCausalLM.forward).parameters)
    *told, _ = calls
    assert len(told) == 3
    for call in told:
        assert {arg.arg for arg in (*call.args.args, *call.args.kwonlyargs)} <= taken
        assert call.returns is not None
        assert "Any" not in ast.unparse(call.returns)
    assert diy_torch.DIYForCausalLM.__call__ is torch.nn.Module.__call__
