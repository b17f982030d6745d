"""Both twins against transformers on the same weights: two twins could be wrong together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import diy_jax
import diy_torch
from diy_core.mapping import tensors
from diy_core.text.tokenizer import Tokenizer
from parity.batch import Batch
from parity.check.measures import relative_l2
from parity.check.model import Plan, make_batch
from parity.environment import TORCH_DTYPES, Device, exact
from parity.random_models import SCALES, small_configs, write_random_model
from parity.twins import LOGITS, Pair

sys.path.insert(0, str(Path(__file__).parent))
import transformers_oracle as oracle

SMALL = [(name, scale) for name in small_configs() for scale in SCALES]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("small")

    def path(name: str, scale: str) -> Path:
        if not (root / name / scale).exists():
            (root / name).mkdir(exist_ok=True)
            write_random_model(root / name / scale, small_configs()[name], scale)
        return root / name / scale

    return path


def witness(path: Path, batch: Batch, dtype: str, device: Device, gradients: bool = False) -> Any:
    """transformers' logits at the valid tokens of a padded batch, and its gradients."""
    model = oracle.load(path, TORCH_DTYPES[dtype], device.torch)
    ids = torch.from_numpy(batch.ids).long().to(device.torch)
    mask = torch.from_numpy(batch.valid).long().to(device.torch)
    with torch.set_grad_enabled(gradients):
        logits = model(ids, attention_mask=mask).logits
    found = {}
    if gradients:
        labels = torch.from_numpy(batch.labels).to(device.torch)
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-1
        ).backward()
        found = {name: p.grad.cpu().numpy() for name, p in model.named_parameters()}
    return logits.detach().double().cpu().numpy()[batch.valid], found


def both(pair: Pair, batch: Batch, gradients: bool = False) -> list[Any]:
    return [pair.observe_torch(batch, gradients), pair.observe_flax(batch, gradients)]


@pytest.mark.parametrize(("name", "scale"), SMALL)
def test_float64_logits_and_gradients_are_those_of_transformers(
    name: str, scale: str, small: Any, device: Device
) -> None:
    config = small_configs()[name]
    batch = make_batch(config, Plan(sequence=40))
    with exact(device):
        logits, gradients = witness(small(name, scale), batch, "float64", device, gradients=True)
        for seen in both(Pair(small(name, scale), "float64", device), batch, gradients=True):
            assert relative_l2(seen.activations[LOGITS], logits) <= 1e-12
            assert {t.hf for t in tensors(config)} == set(gradients)
            for key, expected in gradients.items():
                assert relative_l2(seen.gradients[key], expected) <= 1e-10, key


@pytest.mark.parametrize(("name", "scale"), SMALL)
def test_float32_and_bfloat16_logits_are_as_exact_as_those_of_transformers(
    name: str, scale: str, small: Any, device: Device
) -> None:
    path, batch = small(name, scale), make_batch(small_configs()[name], Plan(sequence=40))
    with exact(device):
        truth = Pair(path, "float64", device).full_logits(batch)
        plain, _ = witness(path, batch, "float32", device)
        rounded, _ = witness(path, batch, "bfloat16", device)
        for seen in both(Pair(path, "float32", device), batch):
            assert relative_l2(seen.activations[LOGITS], plain) <= 1e-5
        theirs = relative_l2(rounded, truth)
        for seen in both(Pair(path, "bfloat16", device), batch):
            assert relative_l2(seen.activations[LOGITS], truth) <= 1.5 * theirs


@pytest.mark.parametrize("name", ["gqa", "rope-llama3"])
def test_cached_decoding_is_that_of_transformers(name: str, small: Any, device: Device) -> None:
    path, steps = small(name, "fan-in"), 90
    ids = np.random.default_rng(3).integers(0, 131, (2, steps), np.int32)
    with exact(device):
        model, past, expected = oracle.load(path, torch.float64, device.torch), None, []
        pair = Pair(path, "float64", device)
        ours: dict[str, list[Any]] = {"torch": [], "flax": []}
        cached, store = None, diy_jax.init_cache(pair.config, 2, steps, jnp.float64)
        step = jax.jit(lambda p, i, c: pair.flax.apply({"params": p}, i, None, None, c, True))
        with torch.inference_mode():
            for begin, end in [(0, 30), *((i, i + 1) for i in range(30, steps))]:
                part = torch.from_numpy(ids[:, begin:end]).long().to(device.torch)
                out = model(part, past_key_values=past, use_cache=True)
                past = out.past_key_values
                expected.append(out.logits.cpu().numpy())
                logits, cached = pair.torch(part, past_key_values=cached, use_cache=True)
                ours["torch"].append(logits.cpu().numpy())
                logits, store = step(pair.params, ids[:, begin:end], store)
                ours["flax"].append(np.asarray(logits))
        for parts in ours.values():
            found, wanted = np.concatenate(parts, 1), np.concatenate(expected, 1)
            assert relative_l2(found, wanted) <= 1e-12


@pytest.mark.model
def test_smollm2_float32_logits_are_within_3e_6_of_transformers(
    smollm2: Path, device: Device
) -> None:
    tokenizer = Tokenizer.from_pretrained(smollm2)
    texts = [
        "The capital of France is Paris, and the capital of Germany is Berlin, a city of 1237.",
        "def add(a, b):\n    return a + b",
    ]
    ids, mask = tokenizer.batch(texts)
    batch = Batch(ids, mask.sum(axis=1).astype(np.int32))
    with exact(device):
        expected, _ = witness(smollm2, batch, "float32", device)
        for seen in both(Pair(smollm2, "float32", device), batch):
            assert relative_l2(seen.activations[LOGITS], expected) <= 3e-6


PROMPTS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain in two sentences why the sky is blue.",
    "List three uses of a paper clip.",
    "What is 12 + 30?",
]


@pytest.mark.model
def test_smollm2_greedy_text_of_five_prompts_is_that_of_transformers(
    smollm2: Path, device: Device
) -> None:
    tokenizer, new = Tokenizer.from_pretrained(smollm2), 32
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]
    ids, mask = tokenizer.batch(prompts, padding_side="left")
    model = oracle.load(smollm2, torch.float32, device.torch)
    pair = Pair(smollm2, "float32", device)
    options: dict[str, Any] = {"max_new_tokens": new, "eos_token_id": tokenizer.eos_token_ids}
    one = diy_torch.generate(pair.torch, ids, mask, **options)
    other = diy_jax.generate(pair.flax, pair.params, ids, mask, **options)
    for row, prompt in enumerate(prompts):
        length = int(one.lengths[row])
        assert length > len(prompt) + 1
        assert (
            length == len(prompt) + new
            or int(one.sequences[row, length - 1]) in tokenizer.eos_token_ids
        )
        sequence = one.sequences[row, :length]
        assert np.array_equal(
            sequence.cpu(), np.asarray(other.sequences)[row, : int(other.lengths[row])]
        )
        # Greedy: each token is the one that transformers finds likeliest after those before it.
        with torch.inference_mode():
            likeliest = model(sequence[None].long()).logits[0].argmax(-1)
        assert torch.equal(likeliest[len(prompt) - 1 : -1], sequence[len(prompt) :]), PROMPTS[row]
