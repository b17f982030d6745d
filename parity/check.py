"""`parity check`: three kinds of proof that the two twins are one function.

1. float64, the logic: relative L2 per tensor of logits, every module's output, every gradient.
2. float32 and bfloat16, the rounding: each twin's error against the float64 truth, pooled,
   neither more than twice the other's, beyond what already lies between the two libraries.
3. Decoding: ragged cached decoding against the full forward, position by position; greedy tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.hf_directory import require_directory
from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from parity.compare import Check, Tensors, rounding, worst_tensor
from parity.control import allowance
from parity.decoding import Decoding, cached_logits, greedy
from parity.environment import Device, exact
from parity.metrics import (
    Pool,
    pooled_gradients,
    pooled_outputs,
    relative_l2,
)
from parity.pair import LOGITS, Batch, Observation, Pair, release_memory

ACTIVATION_BOUND = 1e-12
GRADIENT_BOUND = 1e-10
DTYPES = ("float64", "float32", "bfloat16")
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is compared: tokens of the forward check, positions of the decoding check.

    `greedy_tokens` 0 leaves the greedy continuation out.
    """

    batch_size: int = 2
    sequence: int = 64
    decode_prompts: tuple[int, ...] = (3, 200, 77)
    decode_positions: int = 320
    greedy_tokens: int = 48
    gradients: bool = True
    seed: int = 0


_LARGE = 20_000_000  # parameters: from here on less is compared, so that a check takes minutes


def plan_for(path: str | Path) -> Plan:
    """How much to compare for the model in a directory: less for a large one."""
    require_directory(path)
    config = DIYConfig.from_pretrained(path)
    if sum(tensor.parameters for tensor in tensors(config)) < _LARGE:
        return Plan()
    return Plan(decode_prompts=(120, 31), decode_positions=256)


def check_model(
    path: str | Path,
    device: Device,
    dtypes: Sequence[str] = DTYPES,
    plan: Plan | None = None,
    progress: Progress = lambda message: None,
) -> list[Check]:
    """Run the checks of the chosen dtypes on one Hugging Face directory.

    The float64 truth is computed whichever dtypes are chosen.

    Raises:
        ValueError: an unknown dtype, or a directory that cannot be loaded.
    """
    plan = plan or Plan()
    if unknown := [dtype for dtype in dtypes if dtype not in DTYPES]:
        raise ValueError(f"dtype {unknown[0]!r} is not supported; choose one of {list(DTYPES)}")
    checks: list[Check] = []
    with exact(device):
        progress("float64: the truth")
        pair = Pair(path, "float64", device)
        batch = make_batch(pair.config, plan)
        truth = pair.observe_torch(batch, plan.gradients)
        decoding = Decoding.make(pair.config, plan.decode_prompts, plan.decode_positions, plan.seed)
        full = pair.full_logits(decoding.batch)
        if "float64" in dtypes:
            pair.drop_torch()
            progress("float64: logits, modules, gradients")
            other = pair.observe_flax(batch, plan.gradients)
            checks += _same(truth, other, device)
            del other
            release_memory()
            progress("float64: cached decoding")
            checks += _same_decoding(pair, decoding, full, plan, device)
        for dtype in (dtype for dtype in DTYPES[1:] if dtype in dtypes):
            del pair
            release_memory()
            progress(f"{dtype}: rounding against the truth")
            pair = Pair(path, dtype, device)
            control = allowance(pair.config, dtype, device)
            seen = pair.observe_torch(batch, plan.gradients)
            pair.drop_torch()
            other = pair.observe_flax(batch, plan.gradients)
            checks += _same_rounding(truth, seen, other, dtype, device, control)
            del seen, other
            release_memory()
            progress(f"{dtype}: cached decoding")
            checks += _decoding_rounding(pair, decoding, full, dtype, device, control)
    return checks


def make_batch(config: DIYConfig, plan: Plan) -> Batch:
    """A ragged batch of random tokens: the first row whole, the others shorter."""
    sequence = min(plan.sequence, config.max_position_embeddings)
    generator = np.random.default_rng(plan.seed)
    ids = generator.integers(0, config.vocab_size, (plan.batch_size, sequence), np.int32)
    lengths = np.linspace(sequence, max(2, sequence // 4), plan.batch_size)
    return Batch(ids, lengths.astype(np.int32))


def _same(truth: Observation, other: Observation, device: Device) -> list[Check]:
    """Float64: every tensor of the two observations, the worst of each kind."""
    kinds = [
        ("logits", _only_logits(truth), _only_logits(other), ACTIVATION_BOUND),
        ("modules", _but_logits(truth), _but_logits(other), ACTIVATION_BOUND),
    ]
    if truth.gradients:
        kinds.append(("gradients", truth.gradients, other.gradients, GRADIENT_BOUND))
    return [
        worst_tensor(name, expected, found, bound, "float64", device.name)
        for name, expected, found, bound in kinds
    ]


def _same_rounding(
    truth: Observation,
    one: Observation,
    other: Observation,
    dtype: str,
    device: Device,
    control: tuple[float, float],
) -> list[Check]:
    """Float32, bfloat16: the two twins' errors against the truth, pooled."""
    seen = (truth, one, other)
    kinds: list[tuple[str, list[Tensors], Pool]] = [
        ("logits", [_only_logits(side) for side in seen], pooled_outputs),
        ("modules", [_but_logits(side) for side in seen], pooled_outputs),
    ]
    if truth.gradients:
        kinds.append(("gradients", [side.gradients for side in seen], pooled_gradients))
    return [
        rounding(name, *sides, dtype=dtype, device=device.name, control=control, pool=pool)
        for name, sides, pool in kinds
    ]


def _same_decoding(
    pair: Pair, decoding: Decoding, full: NDArray[np.float64], plan: Plan, device: Device
) -> list[Check]:
    """Float64: both twins' cached logits against the full forward, and the same greedy tokens."""
    checks = []
    for name, logits in cached_logits(pair, decoding).items():
        errors = _position_errors(logits, full)
        worst = int(errors.argmax())
        checks.append(
            Check(
                f"decode {name}",
                "float64",
                device.name,
                int(logits.size),
                float(errors[worst]),
                ACTIVATION_BOUND,
                bool(errors[worst] <= ACTIVATION_BOUND),
                decoding.place(worst),
            )
        )
    if not plan.greedy_tokens:
        return checks
    one, other = greedy(pair, decoding, plan.greedy_tokens)
    differing = int((one != other).sum())
    checks.append(
        Check("greedy tokens", "float64", device.name, one.size, differing, 0, differing == 0)
    )
    return checks


def _decoding_rounding(
    pair: Pair,
    decoding: Decoding,
    full: NDArray[np.float64],
    dtype: str,
    device: Device,
    control: tuple[float, float],
) -> list[Check]:
    """Float32, bfloat16: both twins' cached logits against the float64 full forward."""
    truth = {LOGITS: full}
    logits = cached_logits(pair, decoding)
    one, other = ({LOGITS: logits[name]} for name in ("torch", "flax"))
    return [rounding("decode", truth, one, other, dtype=dtype, device=device.name, control=control)]


def _position_errors(
    logits: NDArray[np.float64], truth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Relative L2 of each position's logits, (positions,)."""
    return np.array([relative_l2(a, b) for a, b in zip(logits, truth, strict=True)])


def _only_logits(seen: Observation) -> Tensors:
    return {LOGITS: seen.activations[LOGITS]}


def _but_logits(seen: Observation) -> Tensors:
    return {name: array for name, array in seen.activations.items() if name != LOGITS}
