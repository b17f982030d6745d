"""Convolutions that are computed otherwise, by torch's own in float64; channels last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flax import linen as nn
from torch.nn import functional

import parity
from parity.diagnosis.explain import explain
from parity.environment import Device, exact
from parity.tracing.result import TraceResult
from tests.parity.foreign_pairs import array
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


# Images that are square, and as wide as they have channels: their layout cannot be seen.


@pytest.fixture
def _exact(device: Device) -> Iterator[None]:
    with exact(device):
        yield


class Rectified(torch.nn.Module):
    def __init__(self, conv: torch.nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class FlaxRectified(nn.Module):
    channels: int
    kernel: tuple[int, ...]
    strides: int = 1
    padding: Any = "SAME"
    dilation: int = 1
    transposed: bool = False
    relu: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        known: dict[str, Any] = {"padding": self.padding, "name": "conv", "param_dtype": x.dtype}
        known["strides"] = (self.strides,) * len(self.kernel)
        if self.transposed:
            y = nn.ConvTranspose(self.channels, self.kernel, **known)(x)
        else:
            y = nn.Conv(self.channels, self.kernel, kernel_dilation=self.dilation, **known)(x)
        return nn.relu(y) if self.relu else y


def traced_image(
    conv: Any, size: tuple[int, ...], relu: bool = True, moved: bool = True, **other: Any
) -> TraceResult:
    """A convolution of PyTorch against Flax's, on images of this size, moved to channels last."""
    conv, weight, axes = conv.double(), array(conv.weight), tuple(range(2, 2 + len(size)))
    transposed = "Transpose" in type(conv).__name__
    if transposed:
        kernel = np.flip(weight.transpose(*axes, 0, 1), tuple(range(len(size))))
    else:
        kernel = weight.transpose(*axes, 1, 0)
    flax = FlaxRectified(
        conv.out_channels,
        conv.kernel_size,
        conv.stride[0],
        transposed=transposed,
        relu=relu,
        **other,
    )
    x = normal(2, *size, conv.in_channels)
    model = Rectified(conv) if relu else torch.nn.ModuleDict({"conv": conv})
    if not relu:
        model.forward = conv.forward  # type: ignore[method-assign]
    return parity.trace(
        model,
        flax,
        {"conv": {"kernel": kernel, "bias": array(conv.bias)}},
        {"torch": np.moveaxis(x, -1, 1), "flax": x if moved else np.moveaxis(x, -1, 1)},
        backward=False,
    )


@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize(
    ("conv", "size", "padding"),
    [
        (torch.nn.Conv2d(5, 7, 3, 2, 1), (8, 8), 1),
        (torch.nn.Conv2d(8, 8, 3, 2, 1), (8, 8), 1),
        (torch.nn.Conv2d(8, 4, 3, 2, 1), (8, 8), 1),  # what comes out is 4 x 4 of 4 channels
        (torch.nn.Conv2d(3, 6, 7, 2, 3), (12, 12), 3),
        (torch.nn.Conv2d(3, 5, 2, 2, 1), (9, 9), 1),
        (torch.nn.Conv1d(8, 4, 3, 2, 1), (8,), 1),
        (torch.nn.Conv3d(2, 3, 3, 2, 1), (6, 6, 6), 1),
    ],
    ids=lambda value: str(value).partition(", dtype")[0],
)
def test_padding_of_square_images(conv: Any, size: tuple[int, ...], padding: int) -> None:
    found = traced_image(conv, size).first_divergence
    assert found is not None
    assert found.torch == "conv"
    (suspect,) = found.suspects
    assert suspect.sentence == f"SAME in Flax, padding {padding} in PyTorch"


@pytest.mark.usefixtures("_exact")
def test_padding_with_a_dilation() -> None:
    found = traced_image(torch.nn.Conv2d(3, 6, 3, 2, 2, 2), (8, 8), dilation=2).first_divergence
    assert found is not None
    assert found.suspects[0].sentence == "SAME in Flax, padding 2 in PyTorch"


@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("relu", [True, False])
def test_an_image_as_wide_as_it_has_channels_is_no_alarm(relu: bool) -> None:
    """Also where it is what the model returns: it lies there as its input does."""
    conv = torch.nn.Conv2d(6, 6, 3, 1, 1)
    assert traced_image(conv, (6, 6), relu).equal
    wrong = traced_image(conv, (6, 6), relu, padding="CIRCULAR").first_divergence
    assert wrong is not None
    assert "padded with circular in Flax" in wrong.suspects[0].sentence


@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("axes", [1, 2])
def test_same_of_a_transposed_convolution(axes: int) -> None:
    kind: Any = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d)[axes - 1]
    assert traced_image(kind(3, 8, 4, 2, 1), (4,) * axes).equal
    found = traced_image(kind(3, 8, 3, 2, 1, 1), (4,) * axes).first_divergence
    assert found is not None
    assert found.suspects[0].sentence == (
        "the transposed convolution with SAME starts 0 into the full output in Flax, "
        "with padding 1 starts 1 into the full output in PyTorch"
    )


@pytest.mark.usefixtures("_exact")
def test_a_transposed_convolution_whose_stride_is_wider_than_its_kernel() -> None:
    """Its output is longer than what the kernel reaches: the rest is the bias."""
    conv = torch.nn.ConvTranspose1d(3, 8, 2, 3, 0, 1)
    assert traced_image(conv, (4,)).equal
    found = traced_image(conv, (4,), padding=((0, 3),)).first_divergence
    assert found is not None
    assert found.suspects[0].sentence == (
        "the transposed convolution with padding 1 starts 1 into the full output in Flax, "
        "with SAME starts 0 into the full output in PyTorch"
    )


@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("channels", [5, 6])
def test_an_image_that_nobody_moved_to_channels_last(channels: int) -> None:
    """Its shape says nothing: it is as wide as it has channels."""
    conv = torch.nn.Conv2d(6, channels, 3, 1, 1)
    found = traced_image(conv, (6, 6), moved=False).first_divergence
    assert found is not None
    (suspect,) = found.suspects
    assert suspect.name == "conv-channels-first"
    assert "transpose it for Flax" in suspect.sentence
