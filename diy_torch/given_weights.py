"""Weights as users hand them over: as modules, under prefixes, in a checkpoint; here, by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from diy_core.checkpoints.dtypes import fault_of_dtype
from diy_core.checkpoints.hf.dropped_buffers import notes_on_dropped
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import TIED_EMBEDDING, TIED_HEAD, tensors
from diy_core.stored_names import read_names

_PIECE = 1 << 20  # elements
_DEEPEST = 3  # levels above the weights that are looked through


def plain_weights(weights: Any) -> dict[str, Tensor]:
    """A `state_dict`, its tensors by name.

    Args:
        weights: a module, wrapped or not; its `state_dict()`; or a dict that holds one such dict
            among other things, as trainers save it.

    Raises:
        CheckpointError: something else; the message says what to pass.
    """
    found = _state_dicts(weights)
    if len(found) > 1:
        raise CheckpointError("state_dict", f"holds several: pass one of {'; '.join(found)}")
    weights = next(iter(found.values()), weights)
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            "state_dict", f"is a {type(weights).__name__}: pass a module or its state_dict()"
        )
    faults = [fault for name, value in weights.items() if (fault := _fault(name, value))]
    if faults:
        raise CheckpointError("state_dict", faults)
    return dict(weights)


def given_weights(
    weights: Any,
    config: DIYConfig,
    notes: list[str] | None = None,
    *,
    left_out: list[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a config by their names in the PyTorch twin, detached.

    Names may have a prefix, and be those of Hugging Face, where all tensors then match.

    Args:
        weights: anything that `plain_weights` takes.
        config: of the model.
        notes: is given a sentence for each thing that was not as usual.
        left_out: is given those about what is left out, which `notes` gets where this is None.

    Raises:
        CheckpointError: of `plain_weights`; or tensors missing, extra or misshapen, or a tied head
            that is not the embedding, all at once; or tensors that are no floats.
    """
    found = plain_weights(weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    values = functools.partial(_pieces, found)
    reading = read_names(shapes, config, values, "torch")
    faults = reading.faults
    if not faults and config.tie_word_embeddings and TIED_HEAD in reading.names:
        head, embedding = (found[reading.names[name]] for name in (TIED_HEAD, TIED_EMBEDDING))
        if not _equal(head, embedding):
            faults = [
                f"tie_word_embeddings is true, but {TIED_HEAD} differs from the embedding: a head "
                "of its own needs a config with false"
            ]
    if faults:
        raise CheckpointError("state_dict", faults)
    if notes is not None:
        notes += reading.notes
    if (left_out := notes if left_out is None else left_out) is not None:
        left_out += notes_on_dropped(reading.buffers, shapes, config, values)
    weights = {t.torch: found[reading.names[t.torch]].detach() for t in tensors(config)}
    if wrong := {name: f for name, w in weights.items() if (f := fault_of_dtype(w.dtype))}:
        raise CheckpointError("state_dict", [f"tensor {n} {fault}" for n, fault in wrong.items()])
    return weights


def _pieces(tensors: Mapping[str, Tensor], name: str) -> Iterator[NDArray[Any]]:
    """The values of a tensor, flat, a piece at a time."""
    for piece in tensors[name].detach().reshape(-1).split(_PIECE):
        piece = piece.cpu().resolve_neg()
        if piece.dtype == torch.bfloat16:  # which numpy does not have
            yield piece.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        else:
            yield (piece.float() if piece.dtype.itemsize == 1 else piece).numpy()


def _equal(head: Tensor, embedding: Tensor) -> bool:
    if head.data_ptr() == embedding.data_ptr():
        return True
    floats = not any(fault_of_dtype(tensor.dtype) for tensor in (head, embedding))
    return floats and bool((head == embedding.to(head.device)).all())


def _state_dicts(weights: Any, above: int = 0) -> dict[str, Mapping[str, Any]]:
    """What holds weights in a thing that was saved, by its place; "" is the thing itself."""
    if isinstance(weights, AveragedModel):
        return _state_dicts(weights.module)  # without the count of averages
    if isinstance(weights, torch.nn.Module):
        return {"": weights.state_dict()}
    if not isinstance(weights, Mapping) or above > _DEEPEST:
        return {}
    if any(isinstance(value, Tensor) for value in weights.values()):
        # The state of an optimizer holds tensors too, further down, and not by names of modules.
        return {"": weights} if above < 2 or any("." in str(name) for name in weights) else {}
    return {
        repr(key) + (f", {place}" if place else ""): inner
        for key, value in weights.items()
        for place, inner in _state_dicts(value, above + 1).items()
    }


def _fault(name: Any, value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"{name} is a {type(value).__name__} and no tensor"
    if hasattr(value, "full_tensor"):
        return f"tensor {name} is a part of one: gather it (full_state_dict=True, full_tensor())"
    if value.is_meta or is_lazy(value):
        return f"tensor {name} has a shape and no values: load or materialise it"
    if value.is_nested or value.layout != torch.strided:
        return f"tensor {name} is not stored as a dense array: call its to_dense()"
    # Fake ones, and those of libraries for quantisation: numpy would not see what they mean.
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"tensor {name} is a {type(value).__name__}: make it a plain tensor (dequantise it?)"
    return None
