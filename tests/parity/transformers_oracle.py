"""transformers' Llama as a witness, made exact enough to be asked in float64."""

from __future__ import annotations

import math
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers
from torch import Tensor


def load(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """AutoModelForCausalLM; in float64 with norm, rotary tables and softmax in float64 too."""
    # The eager attention's softmax is float32 in a float64 model; that of `sdpa` is not.
    attention = "sdpa" if dtype == torch.float64 else "eager"
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = MethodType(_norm, module)
            elif type(module).__name__ == "LlamaRotaryEmbedding":
                module.forward = MethodType(_rotary, module)
    return model.to(device).eval()


def _norm(self: Any, x: Tensor) -> Tensor:
    return self.weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def _rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    table = torch.tensor(frequencies(self.config), dtype=torch.float64, device=x.device)
    angles = position_ids[:, :, None].double() * table
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def frequencies(config: Any) -> list[float]:
    """Inverse frequencies of a transformers config, one by one in Python's floats."""
    rope, size = config.rope_parameters, config.head_dim
    plain = [rope["rope_theta"] ** (-2 * pair / size) for pair in range(size // 2)]
    if rope["rope_type"] == "default":
        return plain
    if rope["rope_type"] == "linear":
        return [value / rope["factor"] for value in plain]
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    result = []
    for value in plain:
        wavelength = 2 * math.pi / value
        if wavelength < high:
            result.append(value)
        elif wavelength > low:
            result.append(value / rope["factor"])
        else:
            smooth = (
                rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]
            ) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            result.append((1 - smooth) * value / rope["factor"] + smooth * value)
    return result
