"""Where and how precisely both frameworks compute: the device, the matmul precision, versions."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from typing import Any, Literal

import jax
import torch

DeviceChoice = Literal["auto", "cpu", "gpu"]
TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
PACKAGES = ("torch", "jax", "jaxlib", "flax", "optax", "numpy", "safetensors", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True)
class Device:
    """One device as both frameworks name it; `name` is `cpu` or `gpu`."""

    name: str
    torch: torch.device
    jax: jax.Device


def choose_device(choice: DeviceChoice = "auto") -> Device:
    """The GPU where both frameworks see one, else the CPU; or what `choice` says.

    Raises:
        ValueError: `gpu` is asked for and a framework sees none, or an unknown choice.
    """
    if choice not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device {choice!r} is not supported; choose one of auto, cpu, gpu")
    blind = []
    if not torch.cuda.is_available():
        blind.append(f"torch {torch.__version__}")
    jax_gpus = [device for device in jax.devices() if device.platform in ("gpu", "cuda", "rocm")]
    if not jax_gpus:
        blind.append(f"jax {jax.__version__}")
    if choice == "gpu" and blind:
        raise ValueError(
            f"--device gpu: {' and '.join(blind)} sees no GPU here; install with "
            "`make setup DEVICE=cuda`, or use --device cpu"
        )
    if choice == "cpu" or blind:
        return Device("cpu", torch.device("cpu"), jax.devices("cpu")[0])
    return Device("gpu", torch.device("cuda"), jax_gpus[0])


@contextlib.contextmanager
def exact(device: Device) -> Iterator[None]:
    """Both frameworks without shortcuts: no TF32, no reduced-precision sums; JAX with 64 bits.

    The settings found before are restored.
    """
    torch_backends: Any = torch.backends  # its stubs lag behind
    backends: list[tuple[Any, str, Any]] = [
        (torch_backends.cuda.matmul, "fp32_precision", "ieee"),
        (torch_backends.cudnn.conv, "fp32_precision", "ieee"),
        (torch_backends.mkldnn.matmul, "fp32_precision", "ieee"),
        (torch_backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        (torch_backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    ]
    before = [getattr(owner, name) for owner, name, _ in backends]
    for owner, name, value in backends:
        setattr(owner, name, value)
    try:
        with (
            jax.enable_x64(True),
            jax.default_matmul_precision("highest"),
            jax.default_device(device.jax),
        ):
            yield
    finally:
        for (owner, name, _), value in zip(backends, before, strict=True):
            setattr(owner, name, value)


def describe(device: Device) -> dict[str, Any]:
    """Versions, device and precision, for the record that a check writes."""
    gpu = torch.cuda.get_device_name() if device.name == "gpu" else None
    return {
        "device": device.name,
        "device_name": gpu or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "matmul_precision": {"torch": "ieee", "jax": "highest"},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
