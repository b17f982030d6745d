"""What a GPU would run, on a machine without one: fake tensors have a device, but no values."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import diy_torch
from diy_core.config import DIYConfig
from diy_torch import random
from tests.oracles import CONFIGS

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
# Without a GPU, autograd finds no stream, which it wants for fake tensors too: there "meta" stands
# for the GPU wherever gradients are taken. It is as far from the CPU.
TRAINED = CUDA if torch.cuda.is_available() else torch.device("meta")

IDS = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
CALLS: dict[str, dict[str, Any]] = {
    "ids alone": {},
    "a mask": {"attention_mask": MASK},
    "a mask and lengths": {"attention_mask": MASK, "seq_lengths": [5, 3]},
    "lengths": {"seq_lengths": [5, 3]},
    "segments": {"segment_ids": MASK},
    "last logits": {"attention_mask": MASK, "logits_to_keep": 2},
    "last logits of whole rows": {"logits_to_keep": 2},
}

every_config = pytest.mark.parametrize("name", ["gqa", "untied", "biases", "llama3"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


class OnlyOn(TorchDispatchMode):
    """Refuses operations on tensors that are not all on one device; single numbers may be anywhere.

    numpy arrays may come to the device, cast on their way; `fetched` tells what went back.
    """

    COPIES = (torch.ops.aten._to_copy, torch.ops.aten.to)
    FROM_NUMPY = (torch.ops.aten.lift_fresh, torch.ops.prim.device, *COPIES)

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.operations = device, 0
        self.fetched: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = _places((args, kwargs)), _places(result)
        if given | made == {self.device}:
            self.operations += 1
        elif given == {self.device} and func.overloadpacket in self.COPIES:
            self.fetched.append((result.dtype, tuple(result.shape)))
        elif given or made:
            coming = given == {CPU} and func.overloadpacket in self.FROM_NUMPY
            assert coming, f"{func} of tensors on {given} makes one on {made}"
        return result


def _places(tree: Any) -> set[torch.device]:
    return {x.device for x in tree_leaves(tree) if isinstance(x, Tensor) and x.ndim}


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    """Where torch was built without CUDA, lend CUDA the device guard of the CPU: it does nothing.

    A build with CUDA does so by itself for fake tensors, where it finds no GPU.
    """
    if torch.backends.cuda.is_built():
        yield
        return
    (library,) = (Path(torch.__file__).parent / "lib").glob("libc10.*")
    symbol = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * 2).in_dll(ctypes.CDLL(str(library)), symbol)  # CPU, CUDA, ...
    assert guards[1] is None
    guards[1] = guards[0]
    try:
        yield
    finally:
        guards[1] = None


@contextlib.contextmanager
def model_on(
    device: torch.device, name: str | DIYConfig, dtype: torch.dtype
) -> Iterator[tuple[diy_torch.DIYForCausalLM, OnlyOn]]:
    """A model on the device; what runs inside of the block must run there too."""
    config = CONFIGS[name] if isinstance(name, str) else name
    with _device_guard(), FakeTensorMode():
        model = diy_torch.DIYForCausalLM(config, dtype=dtype, device=device)
        with OnlyOn(device) as watched:
            yield model, watched
    assert watched.operations > 100, "hardly anything ran"


def on(device: torch.device, call: dict[str, Any]) -> dict[str, Any]:
    """The arrays and lists of a call as tensors on a device."""
    return {
        key: value if isinstance(value, int) else torch.as_tensor(value, device=device)
        for key, value in call.items()
    }


def check(tree: Any, dtype: torch.dtype, device: torch.device = CUDA) -> None:
    """All tensors are on the device; floating-point ones are of this dtype."""
    leaves = [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
    assert leaves
    assert {x.device for x in leaves} == {device}
    assert {x.dtype for x in leaves if x.is_floating_point()} == {dtype}


@every_config
@every_dtype
@pytest.mark.parametrize("given", ["lists", "tensors"])
def test_a_forward_pass_stays_on_the_device(name: str, dtype: torch.dtype, given: str) -> None:
    with model_on(CUDA, name, dtype) as (model, watched):
        check(list(model.parameters()), dtype)
        for call in CALLS.values():
            call = {"input_ids": IDS, **call}
            logits = model(**(on(CUDA, call) if given == "tensors" else call))
            check(logits, dtype)
            assert logits.shape == (2, call.get("logits_to_keep", 5), 23)
    assert not watched.fetched


@every_config
@every_dtype
def test_cached_decoding_stays_on_the_device(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    with model_on(CUDA, name, dtype) as (model, watched), torch.no_grad():
        ids = torch.as_tensor(IDS, device=CUDA)
        _, fresh = model(ids, on(CUDA, {"mask": MASK})["mask"], use_cache=True)
        check(fresh, dtype)
        past = diy_torch.init_cache(config, 2, 8, dtype, CUDA)
        for lengths in ([2, 0], torch.tensor([3, 3], device=CUDA)):  # a prompt in two chunks
            logits, past = model(ids, None, lengths, past, use_cache=True)
            check((logits, past), dtype)
        past = diy_torch.grow_cache(past, 65, config.max_position_embeddings)
        check(past, dtype)
        assert past[0][0]["key"].shape[2] == 128
        for position in (past[0][1], 7):  # per row, and one for all
            past = [(cached, position) for cached, _ in past]
            logits, past = model(ids[:, :1], past_key_values=past, use_cache=True, logits_to_keep=1)
            check((logits, past), dtype)
            assert logits.shape == (2, 1, 23)
    assert not watched.fetched


@every_dtype
def test_dropout_stays_on_the_device(dtype: torch.dtype) -> None:
    config = dataclasses.replace(CONFIGS["gqa"], attention_dropout=0.5, residual_dropout=0.5)
    with model_on(TRAINED, config, dtype) as (model, watched):
        ids, key = torch.as_tensor(IDS, device=TRAINED), random.key(3).to(TRAINED)
        for each in (key, random.fold_in(key, 5)):
            logits = model(ids, segment_ids=MASK, dropout_key=each)
            check(logits, dtype, TRAINED)
            logits.float().square().sum().backward()
            check([p.grad for p in model.parameters()], dtype, TRAINED)
    assert not watched.fetched


def test_a_key_of_the_host_is_folded_there_and_brought_to_the_device() -> None:
    config = dataclasses.replace(CONFIGS["gqa"], attention_dropout=0.5, residual_dropout=0.5)
    with _device_guard(), FakeTensorMode():
        model = diy_torch.DIYForCausalLM(config, device=CUDA)
        check(model(IDS, dropout_key=random.key(3)), torch.float32)


@every_config
@every_dtype
def test_training_stays_on_the_device(name: str, dtype: torch.dtype) -> None:
    with model_on(TRAINED, name, dtype) as (model, watched):
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, foreach=True)
        ids = torch.as_tensor(IDS, device=TRAINED)
        for call in (CALLS["a mask"], CALLS["segments"]):
            logits = model(ids, **call)[:, :-1].flatten(0, 1).float()
            functional.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=-1).backward()
            check([p.grad for p in parameters], dtype, TRAINED)
            optimizer.step()
            optimizer.zero_grad()
        moments = [optimizer.state[p][key] for p in parameters for key in ("exp_avg", "exp_avg_sq")]
        check([parameters, moments], dtype, TRAINED)
        _, past = model(ids, use_cache=True)  # with gradients a cache is not written in place
        model(ids, past_key_values=past, use_cache=True)[0].float().square().sum().backward()
        check([p.grad for p in parameters], dtype, TRAINED)
    assert not watched.fetched


@every_config
@every_dtype
def test_weights_are_loaded_onto_the_device(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    diy_torch.DIYForCausalLM(CONFIGS[name], dtype=dtype).save_pretrained(tmp_path / "model")
    with _device_guard(), FakeTensorMode():
        model = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model", None, CUDA)
        check(model.state_dict(), dtype)
    assert not list(model.buffers())


def test_generation_fetches_tokens_and_nothing_else() -> None:
    """Up to where it asks for the values of the first tokens, which fake tensors do not have.

    The steps that would follow are calls like those of cached decoding, above.
    """
    with (
        model_on(CUDA, "gqa", torch.float32) as (model, watched),
        pytest.raises(RuntimeError, match="numpy"),
    ):
        diy_torch.generate(model, IDS, MASK, max_new_tokens=2)
    assert watched.fetched == [(torch.int64, (2,))]
