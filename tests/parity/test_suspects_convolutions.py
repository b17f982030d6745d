"""Convolutions that are computed otherwise, by torch's own in float64; channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from parity.tracing.suspects import explain
from tests.parity.test_suspects_evidence import both_sides, evidence_of, normal

Tensor = torch.Tensor
Change = Callable[[Tensor, Tensor, Tensor], Tensor]


def strided(x: Tensor, w: Tensor, b: Tensor | None, pad: tuple[int, ...] = (1, 1)) -> Tensor:
    """Stride 2, both axes padded alike, of (B, H, W, C)."""
    return torch.conv2d(functional.pad(x.movedim(-1, 1), pad * 2), w, b, 2).movedim(1, -1)


def plain(x: Tensor, w: Tensor, b: Tensor, mode: str = "constant", wide: int = 1) -> Tensor:
    """As large as its input; depthwise."""
    padded = functional.pad(x.movedim(-1, 1), (wide,) * 4, mode)
    return torch.conv2d(padded, w, b, dilation=wide, groups=4).movedim(1, -1)


STRIDED: dict[str, tuple[Change, str]] = {
    "SAME": (lambda x, w, b: strided(x, w, b, (0, 1)), "SAME in {}"),
    "before": (lambda x, w, b: strided(x, w, b, (2, 0)), "padding (2, 0) x (2, 0) in {}"),
    "flipped": (lambda x, w, b: strided(x, w.flip(2, 3), b), "(a true convolution) in {}"),
    "no bias": (lambda x, w, b: strided(x, w, None), "bias left out in {}"),
}
PLAIN: dict[str, tuple[Change, str]] = {
    "circular": (lambda x, w, b: plain(x, w, b, "circular"), "padded with circular in {}"),
    "reflect": (lambda x, w, b: plain(x, w, b, "reflect"), "padded with reflect in {}"),
    "replicate": (lambda x, w, b: plain(x, w, b, "replicate"), "padded with replicate in {}"),
    "dilation": (lambda x, w, b: plain(x, w, b, wide=2), "dilation 2 in {}"),
}


@both_sides
@pytest.mark.parametrize("case", [*STRIDED, *PLAIN])
def test_a_convolution_is_another(case: str, odd: str) -> None:
    is_strided = case in STRIDED
    change, words = (STRIDED if is_strided else PLAIN)[case]
    usual: Change = strided if is_strided else plain
    x, w, b = normal(2, 8, 6, 4), normal(12, 4 if is_strided else 1, 3, 3), normal(12)
    ours = [torch.from_numpy(a) for a in (x, w, b)]
    right, wrong = usual(*ours).numpy(), change(*ours).numpy()
    module = torch.nn.Conv2d(
        4, 12, 3, stride=1 + is_strided, padding=1, groups=1 if is_strided else 4
    )
    known: dict[str, Any] = {
        "inputs": {"args.0": x},
        "parameters": {"weight": w.transpose(2, 3, 1, 0), "bias": b},
        "module": module,
    }
    (suspect,) = explain(evidence_of(right, wrong, odd, **known))
    assert suspect.name.startswith("conv-")
    assert words.format(odd) in suspect.sentence
    assert suspect.after is not None
    assert suspect.after <= 1e-12 < suspect.before
    assert not explain(evidence_of(right, right, odd, **known))


def test_another_convolution_altogether() -> None:
    x, w = normal(2, 8, 6, 4), normal(3, 3, 4, 12)
    known: dict[str, Any] = {"inputs": {"args.0": x}, "parameters": {"weight": w}}
    one, other = (normal(2, 8, 6, 12, seed=i) for i in (1, 2))
    module = torch.nn.Conv2d(4, 12, 3, padding=1)
    assert not explain(evidence_of(one, other, module=module, **known))
    assert np.isfinite(one).all()
