"""Which tensor is which, where names are not quite those of the table in `diy_core.mapping`.

Models are saved under prefixes (DistributedDataParallel, torch.compile, PEFT, a model of several),
with buffers that follow from the config, or with one of two tied tensors. Where every tensor of the
config is then there under one reading, and nothing else, that reading is taken, with a note.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Literal

from diy_core.buffers import Buffers, Pieces, Shapes, find_buffers
from diy_core.config import DIYConfig
from diy_core.mapping import TIED_EMBEDDING, TIED_HEAD, match, tensors

World = Literal["hf", "torch"]
_WORLDS: tuple[World, ...] = ("hf", "torch")
_SOURCE = {"hf": "config.json", "torch": "the config"}
_SAYS = {"hf": "Hugging Face's", "torch": "the PyTorch twin's"}
# Parts of a name that a wrapper around a module puts there, at any level, and who it is.
WRAPPERS = {
    "module": "DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "a trainer",
    "base_layer": "PEFT",
}
_FIRST = {"hf": "layers.0.input_layernorm.weight", "torch": "layers.0.attention_norm.weight"}
_ADAPTERS = (
    "there are adapters beside the weights: merge them (peft's merge_and_unload), and save that"
)
_ADAPTED = re.compile(r"\.(lora_|base_layer\.)")
_MOST_PREFIXES = 8  # of a file that is worth a look


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the names of a checkpoint were found to mean.

    Attributes:
        names: of each tensor of the config, how it is called where it was found.
        buffers: what else there is, and is left out.
        notes: a sentence for each thing that was not as usual.
        faults: what is missing, too much, or misshapen; then `names` has gaps.
    """

    names: dict[str, str]
    buffers: Buffers
    notes: list[str]
    faults: list[str]


def read_names(found: Shapes, config: DIYConfig, values: Pieces, world: World = "hf") -> Reading:
    """Find each tensor of a config among names.

    Args:
        found: all names, with shapes.
        config: of the model.
        values: of a tensor by name, for those that may be without effect.
        world: whose names are expected, and are the keys of the result's `names`.
    """
    few = tensors(dataclasses.replace(config, num_hidden_layers=1))
    buffers = find_buffers(found, [getattr(tensor, world) for tensor in few], values)
    rest = {name: tuple(found[name]) for name in found if name not in buffers.names}
    layers = config.num_hidden_layers
    if layers > len(rest):  # and the table of all their names could fill the memory
        fault = f"{_SOURCE[world]} says num_hidden_layers: {layers}, with {len(rest)} tensors"
        return Reading({}, buffers, [], [fault])
    wanted = {getattr(tensor, world): tensor.shape for tensor in tensors(config)}
    best: Reading | None = None
    for named, note in _readings(rest, config, world):
        names, notes = dict(named), [note] if note else []
        if config.tie_word_embeddings and TIED_HEAD in names and TIED_EMBEDDING not in names:
            names[TIED_EMBEDDING] = names.pop(TIED_HEAD)
            notes.append(
                f"there is no {TIED_EMBEDDING}: {names[TIED_EMBEDDING]} was taken, to which the "
                "config ties it"
            )
        faults = _faults(names, rest, wanted, config, _SOURCE[world])
        reading = Reading(names, buffers, notes, faults)
        if not faults:
            return reading
        if best is None or len(names.keys() & wanted) > len(best.names.keys() & wanted):
            hint = [f"{note}: even so, not all tensors fit"] if note else []
            hint += [_ADAPTERS] if any(_ADAPTED.search(name) for name in rest) else []
            hint += [
                f"{name} is called as a mask, and is none of causal attention"
                for name in buffers.other[:1]
            ]
            best = dataclasses.replace(reading, faults=hint + faults)
    assert best is not None
    return best


def _readings(
    rest: Shapes, config: DIYConfig, world: World
) -> Iterator[tuple[dict[str, str], str]]:
    """Ways to take the names, the usual one first: expected name to found name, and a note."""
    yield {name: name for name in rest}, ""
    bare = {name: _unwrapped(name) for name in rest}
    unwrapping = _on_wrappers(rest)
    for theirs in (world, *(other for other in _WORLDS if other != world)):
        translated = {
            getattr(tensor, theirs): getattr(tensor, world) for tensor in tensors(config)
        } | {TIED_HEAD: TIED_HEAD}
        known = translated.keys() | set(translated.values())
        first = _FIRST[theirs]
        prefixes = {name.removesuffix(first) for name in bare.values() if name.endswith(first)}
        for prefix in sorted(p for p in prefixes if not p or p.endswith("."))[:_MOST_PREFIXES]:
            named: dict[str, str] = {}
            strays: list[str] = []
            for name, plain in bare.items():
                usual = _usual(plain, prefix, known)
                if usual in known and usual not in (plain, *_under(plain, prefix)):
                    strays.append(f"{name} was taken for {usual}")
                named.setdefault(translated.get(usual, usual), name)
            notes = [unwrapping] if unwrapping else []
            notes += [_on_prefix(prefix)] if prefix != "model." else []
            notes += [f"the names are {_SAYS[theirs]}"] if theirs != world else []
            notes += (
                strays[:1] if len(strays) < 2 else [f"{strays[0]}, and {len(strays) - 1} more so"]
            )
            yield named, "; ".join(notes)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _usual(name: str, prefix: str, known: Set[str]) -> str:
    """A name under its usual prefix: `model.` for the body, none for the head.

    Not all names of a file need have the prefix: transformers too looks at each for itself.
    """
    if name in known:
        return name
    under = _under(name, prefix)
    if name.endswith(f".{TIED_HEAD}"):
        return TIED_HEAD
    ways = (*under, f"model.{name}")
    return next((way for way in ways if way in known), under[0] if under else name)


def _under(name: str, prefix: str) -> list[str]:
    """What a name means where it has the prefix: in the body, or beside it, as the head is."""
    above = re.sub(r"(^|(?<=\.))model\.$", "", prefix)
    if name in (TIED_HEAD, above + TIED_HEAD):
        return [TIED_HEAD]
    return [f"model.{name.removeprefix(prefix)}"] if name.startswith(prefix) else []


def _on_wrappers(names: Iterable[str]) -> str:
    """A note on the wrappers whose names are taken off, or nothing."""
    found = {part for name in names for part in name.split(".")}
    parts = [f"{part!r} (of {whose})" for part, whose in WRAPPERS.items() if part in found]
    were = "was" if len(parts) == 1 else "were"
    return f"{' and '.join(parts)} {were} taken off the names" if parts else ""


def _on_prefix(prefix: str) -> str:
    if not prefix:
        return "the names have no 'model.' in front, as of a bare LlamaModel"
    return f"the names begin with {prefix!r} in place of 'model.'"


def _faults(
    names: Mapping[str, str], rest: Shapes, wanted: Shapes, config: DIYConfig, source: str
) -> list[str]:
    """Faults of one way to take the names; what is too much keeps the name that it has."""
    optional = {}
    if config.tie_word_embeddings and TIED_HEAD in names:
        optional[TIED_HEAD] = wanted[TIED_EMBEDDING]
    expected = {**wanted, **optional}
    found = {usual if usual in expected else name: rest[name] for usual, name in names.items()}
    spare = rest.keys() - set(names.values())  # of two that would be one, the second
    found |= {name: rest[name] for name in rest if name in spare and name not in names}
    faults = match(found, expected)
    faults += [
        f"tensor {name} is there twice, also as {names[name]}"
        for name in sorted(spare & names.keys())
    ]
    if not config.tie_word_embeddings:
        for one, other in ((TIED_HEAD, TIED_EMBEDDING), (TIED_EMBEDDING, TIED_HEAD)):
            if one not in names and other in names:
                faults.append(
                    f"{source} says (or means) tie_word_embeddings: false, and there is no "
                    f"{one}; set it to true if the head is the embedding"
                )
    return faults
