"""The lines of a check: what was measured, its bound, and the verdict.

Of float64 each line compares with the PyTorch twin in float64; of float32 and bfloat16 each puts
the errors of both twins against that truth over one another, see `parity.check.compare.rounding`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.batch import Batch
from parity.check.compare import Check, Tensors, ratio, rounding, worst_tensor
from parity.check.measures import (
    Agreement,
    NothingProven,
    Pool,
    agreement,
    machine_epsilon,
    pooled_gradients,
    pooled_outputs,
    position_errors,
    tensor_error,
)
from parity.check.training import Run
from parity.twins import LOGITS, Observation

ACTIVATION_BOUND = 1e-12
GRADIENT_BOUND = 1e-10
OPTIMIZER_BOUND = 1e-12
TRAINING_BOUND = 1e-9
Logits = NDArray[np.float64]


def provable(
    name: str, dtype: str, device: str, make: Callable[..., Check], /, *arguments: Any, **more: Any
) -> Check:
    """A line as `make(*arguments, **more)` has it, or one that failed, having nothing to go by.

    So the other lines are made even then.
    """
    try:
        return make(*arguments, **more)
    except NothingProven as error:
        return Check(name, dtype, device, 0, math.inf, ACTIVATION_BOUND, False, str(error))


def same(
    truth: Observation, other: Observation, wanted: Set[str], batch: Batch, device: str
) -> list[Check]:
    """Float64: logits, blocks and gradients, the worst tensor of each."""
    checks = []
    for name, (expected, found) in _tensors_of([truth, other], wanted).items():
        bound = GRADIENT_BOUND if name == "gradients" else ACTIVATION_BOUND
        line = name, "float64", device
        check = provable(*line, worst_tensor, name, expected, found, bound, "float64", device)
        if name == "logits" and check.compared:
            check = _with_agreement(check, batch.place, truth.logits, {"flax": other.logits})
        checks.append(check)
    return checks


def same_rounding(
    seen: tuple[Observation, Observation, Observation],
    wanted: Set[str],
    batch: Batch,
    dtype: str,
    device: str,
    control: tuple[float, float],
) -> list[Check]:
    """The same in a dtype that rounds: truth, PyTorch, Flax."""
    checks = []
    for name, sides in _tensors_of(list(seen), wanted).items():
        pool: Pool = pooled_gradients if name == "gradients" else pooled_outputs
        more = {"dtype": dtype, "device": device, "control": control, "pool": pool}
        check = provable(name, dtype, device, rounding, name, *sides, **more)
        if name == "logits" and check.compared:
            truth, one, other = (side.logits for side in seen)
            check = _with_agreement(check, batch.place, truth, {"torch": one, "flax": other})
        checks.append(check)
    return checks


def same_positions(
    name: str, place: Callable[[int], str], found: Logits, truth: Logits, device: str
) -> Check:
    """Float64: logits (tokens, V) of one twin, position by position; the worst of them.

    Args:
        name: of the line; its last word is the twin.
        place: says where a token stands.
        found: what the twin computed.
        truth: what it is held against.
        device: where.
    """
    twin = name.split()[-1]
    errors = position_errors(found, truth)
    worst = int(errors.argmax())
    check = Check(
        name,
        "float64",
        device,
        compared=int(found.size),
        value=float(errors[worst]),
        bound=ACTIVATION_BOUND,
        passed=bool(errors[worst] <= ACTIVATION_BOUND),
        where=place(worst),
        tensors=(tensor_error(LOGITS, found, truth, twin),),
    )
    return _with_agreement(check, place, truth, {twin: found})


def through_cache(
    name: str, truth: Tensors, found: Mapping[str, Tensors], device: str
) -> list[Check]:
    """Float64: gradients that went through a cache in each twin, the worst tensor of each."""
    checks = []
    for twin, grads in found.items():
        line = f"{name} {twin}", "float64", device
        tensors = truth, grads, GRADIENT_BOUND
        checks.append(provable(*line, worst_tensor, line[0], *tensors, *line[1:], twin))
    return checks


def decode_rounding(
    full: Logits,
    logits: dict[str, Logits],
    batch: Batch,
    dtype: str,
    device: str,
    control: tuple[float, float],
) -> Check:
    """Float32, bfloat16: both twins' cached logits against the float64 full forward."""
    sides = [{LOGITS: array} for array in (full, logits["torch"], logits["flax"])]
    check = rounding("decode", *sides, dtype=dtype, device=device, control=control)
    return _with_agreement(check, batch.place, full, logits)


def same_tokens(one: NDArray[np.int32], other: NDArray[np.int32], device: str) -> Check:
    """How many greedy tokens differ."""
    differing = np.argwhere(one != other)
    where = "" if not len(differing) else "row {}, position {}".format(*differing[0])
    count = len(differing)
    return Check("greedy tokens", "float64", device, one.size, count, 0, count == 0, where)


def same_optimizer(one: Tensors, other: Tensors, device: str) -> Check:
    """Float64: parameters and moments after the same updates by torch and by optax."""
    return worst_tensor("optimizer", one, other, OPTIMIZER_BOUND, "float64", device)


def same_training(truth: Run, other: Run, control: Run, device: str) -> Check:
    """Float64: parameters after training, and losses and norms that the steps reported.

    The control is the worst of them in the moved run.
    """
    one, two, moved = (run.parameters | run.reported for run in (truth, other, control))
    check = worst_tensor("training", one, two, TRAINING_BOUND, "float64", device)
    drift = max(tensor_error(name, moved[name], array).relative_l2 for name, array in two.items())
    return dataclasses.replace(check, control=drift)


def training_rounding(
    truth: NDArray[np.float64],
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    moved: NDArray[np.float64],
    dtype: str,
    device: str,
    allowed: tuple[float, float],
) -> Check:
    """Float32: each twin's loss curve against the float64 one, the errors over each other.

    An error is the relative L2 of the whole curve. One below the floor counts as the floor: what
    the control moved the curve by, since less than a change of one bit in one weight is nothing to
    be told apart. The bound is that of the other rounding checks, 2 times what already lies between
    the libraries (`allowed`).
    """
    sides = tuple(
        tensor_error("loss curve", losses, truth, side)
        for side, losses in (("torch", one), ("flax", other))
    )
    spread = tensor_error("loss curve", moved, other).relative_l2
    floor = max(spread, machine_epsilon("float64"))
    first, second = (max(side.relative_l2, floor) for side in sides)
    value, bound = ratio(first, second, allowed)
    furthest = max(sides, key=lambda side: side.relative_l2)
    return Check(
        "training",
        dtype,
        device,
        compared=truth.size,
        value=value,
        bound=bound,
        passed=value <= bound,
        where=f"step {furthest.index[0] + 1}",
        control=spread,
        tensors=sides,
    )


def _tensors_of(sides: list[Observation], wanted: Set[str]) -> dict[str, list[Tensors]]:
    """The tensors of each kind that is wanted, one mapping for each side."""
    kinds: dict[str, list[Tensors]] = {
        "logits": [{LOGITS: side.logits} for side in sides],
        "blocks": [
            {name: array for name, array in side.activations.items() if name != LOGITS}
            for side in sides
        ],
        "gradients": [side.gradients for side in sides],
    }
    return {name: tensors for name, tensors in kinds.items() if name in wanted}


def _with_agreement(
    check: Check,
    place: Callable[[int], str],
    truth: NDArray[Any],
    sides: dict[str, NDArray[Any]],
) -> Check:
    found: list[Agreement] = [
        agreement(side, logits, truth, place) for side, logits in sides.items()
    ]
    return dataclasses.replace(check, agreement=tuple(found))
