"""Rules from names and shapes: which tensor of one model is which of the other."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.optimize import linear_sum_assignment

from parity.tracing.operations import Rearrange, candidates
from parity.tracing.rules import Link, usual_operation

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "running_mean": "mean",
    "running_var": "var",
}
# Words that different authors use for one thing.
_SYNONYMS = {
    "attention": "attn self_attn self_attention mha multi_head_attention",
    "feedforward": "mlp ffn feed_forward ff",
    "norm": "ln layernorm layer_norm rmsnorm rms_norm bn batchnorm",
    "embed": "embedding embeddings embed_tokens wte tok_embeddings token_embedding tokens",
    "position": "wpe positions pos_embed position_embeddings pos",
    "layer": "layers h blocks block blk encoderblock",
    "query": "q q_proj wq query_proj attn_q",
    "key": "k k_proj wk key_proj attn_k",
    "value": "v v_proj wv value_proj attn_v",
    "out": "o o_proj wo out_proj c_proj proj attn_output output dense",
    "gate": "gate_proj w1",
    "down": "down_proj w2 fc2 wo_mlp",
    "up": "up_proj w3 fc1 c_fc fc_in",
    "head": "lm_head classifier",
    "final": "ln_f norm_f final_norm",
    "input": "input_layernorm attention_norm ln_1 norm1",
    "post": "post_attention_layernorm feedforward_norm ffn_norm ln_2 norm2",
}
_MEANS = {word: name for name, words in _SYNONYMS.items() for word in [name, *words.split()]}
_IGNORED = {"model", "transformer", "params", "module", "net", "backbone"}
# Costs of a pairing, in arbitrary units: what is sure outweighs all that is only likely.
_SAME_VALUES, _OTHER_INDEX, _OTHER_WORDS, _ALONE, _OTHER_ORDER = -1000.0, 15.0, 20.0, 10.0, 8.0
_IMPOSSIBLE = 1e6
_PART = 1 << 18  # values at a time


@dataclasses.dataclass
class Inferred:
    """Rules that were guessed, and what they leave out.

    Attributes:
        links: which tensor is which; `evidence` says why: `values` or `names`.
        torch_left: names of PyTorch tensors without a partner, with their shapes.
        flax_left: paths of Flax tensors without a partner, with their shapes.
    """

    links: list[Link]
    evidence: list[str]
    torch_left: dict[str, tuple[int, ...]]
    flax_left: dict[str, tuple[int, ...]]

    def table(self) -> Table:
        """The table that would be used, and what could not be matched."""
        table = Table(box=None, pad_edge=False)
        for column in ("PyTorch", "Flax", "operation", "by"):
            table.add_column(column, overflow="fold")
        for link, why in zip(self.links, self.evidence, strict=True):
            one = escape(link.torch + _range(link.torch_part))
            other = escape(link.flax + _range(link.flax_part))
            table.add_row(one, other, str(link.operation), why)
        for name, shape in self.torch_left.items():
            table.add_row(f"{name} {shape}", "[red]no partner[/]", "", "")
        for name, shape in self.flax_left.items():
            table.add_row("[red]no partner[/]", f"{name} {shape}", "", "")
        return table

    def print(self, console: Console | None = None) -> None:
        """Show the table."""
        (console or Console()).print(self.table())


def _range(part: tuple[int, int, int] | None) -> str:
    if part is None:
        return ""
    axis, start, stop = part
    return f"[{':, ' * axis}{start}:{stop}]"


def infer(
    torch: Mapping[str, NDArray[Any]],
    flax: Mapping[str, NDArray[Any]],
    usual: Container[str] = (),
) -> Inferred:
    """Match two sets of named tensors, each in the order in which its model uses them.

    Layer by layer: two layers can be the same where the usual operations lead from the tensors of
    the one to those of the other. Equal values (in any order) are the surest sign, then names and
    numbers in names, then the place in the order. What remains is tried as a tensor that is one on
    the one side and several on the other (a fused query, key and value).

    Args:
        torch: and flax: the tensors by name.
        usual: names of PyTorch tensors of layers that both frameworks have, such as `nn.Linear`,
            where the operation is known; for any other one equal values decide, where shapes leave
            a choice.
    """
    sides = (_layers(torch), _layers(flax))
    prints = {name: _fingerprint(array) for name, array in torch.items()}
    prints_2 = {name: _fingerprint(array) for name, array in flax.items()}
    paths = [list(side) for side in sides]
    cost = np.full((len(paths[0]), len(paths[1])), _IMPOSSIBLE)
    leaves: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for i, one in enumerate(paths[0]):
        for j, other in enumerate(paths[1]):
            names, names_2 = sides[0][one], sides[1][other]
            pairs = leaves[i, j] = _leaf_pairs(names, names_2, torch, flax)
            if not pairs:
                continue
            same = sum(prints[a] is not None and prints[a] == prints_2[b] for a, b in pairs)
            # Squares are least where two rows of layers are matched without crossings.
            order = (i / len(paths[0]) - j / len(paths[1])) ** 2
            alone = len(names) + len(names_2) - 2 * len(pairs)
            cost[i, j] = _names_apart(pairs[0][0], pairs[0][1]) + _OTHER_ORDER * order
            cost[i, j] += _ALONE * alone + _SAME_VALUES * same / len(pairs)
    links, evidence = [], []
    for i, j in sorted(zip(*linear_sum_assignment(cost), strict=True)):
        for one, other in leaves[i, j] if cost[i, j] < _IMPOSSIBLE else []:
            operation = usual_operation(one, other, torch[one].shape, flax[other].shape)
            if one not in usual:
                operation = _by_values(torch[one], flax[other]) or operation
            assert operation is not None  # or they were no pair
            links.append(Link(one, other, operation))
            sure = prints[one] is not None and prints[one] == prints_2[other]
            evidence.append("values" if sure else "names")
    left = {name: torch[name].shape for name in torch if name not in {k.torch for k in links}}
    right = {name: flax[name].shape for name in flax if name not in {k.flax for k in links}}
    for fused in _fused(torch, flax, left, right):
        links += fused
        evidence += ["shapes"] * len(fused)
    return Inferred(links, evidence, left, right)


def _layers(arrays: Mapping[str, NDArray[Any]]) -> dict[str, list[str]]:
    """The tensors of each module that has some, in order."""
    found: dict[str, list[str]] = {}
    for name in arrays:
        path = re.split(r"[./](?=[^./]*$)", name.rpartition(":")[2])
        found.setdefault(path[0] if len(path) > 1 else "", []).append(name)
    return found


def _leaf_pairs(
    names: Sequence[str],
    names_2: Sequence[str],
    torch: Mapping[str, NDArray[Any]],
    flax: Mapping[str, NDArray[Any]],
) -> list[tuple[str, str]]:
    """The tensors of two layers that can be the same; none where one of a kind cannot."""
    kinds = {_parse(name)[2]: name for name in names_2}
    pairs = []
    for one in names:
        other = kinds.get(_parse(one)[2])
        if other is None:
            continue
        if usual_operation(one, other, torch[one].shape, flax[other].shape) is None:
            return []
        pairs.append((one, other))
    return pairs


def _by_values(one: NDArray[Any], other: NDArray[Any]) -> Rearrange | None:
    """The operation that leads to equal values, if there is one."""
    operations = candidates(one.shape, other.shape)
    return next((o for o in operations if np.array_equal(o(one), other)), None)


def _fingerprint(array: NDArray[Any]) -> tuple[int, int] | None:
    """Equal for equal values in any order; None for tensors of one value, which say nothing.

    The sum of a hash of each value, the finalizer of SplitMix64 (Steele et al. 2014).
    """
    flat, total = array.reshape(-1), 0
    if array.size == 0 or (flat == flat[0]).all():
        return None
    for start in range(0, flat.size, _PART):
        part = flat[start : start + _PART].astype(np.float64) + 0.0  # one zero, not two
        bits = part.view(np.uint64)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += int((bits ^ (bits >> np.uint64(31))).sum(dtype=np.uint64))
    return flat.size, total % 2**64


def _names_apart(one: str, other: str) -> float:
    """How unlike two names are."""
    (words, numbers, _), (words_2, numbers_2, _) = _parse(one), _parse(other)
    common, either = len(words & words_2), len(words | words_2)
    apart = _OTHER_WORDS * (1 - common / either if either else 0)
    if common and numbers and numbers_2:  # numbers of other things say nothing
        apart += _OTHER_INDEX * (numbers[0] != numbers_2[0])
    return apart


def _parse(name: str) -> tuple[set[str], list[int], str]:
    """The words of a name in one author's language, its numbers, and the leaf."""
    *parts, leaf = re.split(r"[./]", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    words, numbers = set(), []
    for part in parts:
        found = re.fullmatch(r"(.*?)_?(\d+)", part)
        if found and part not in _MEANS:
            part = found[1]
            numbers.append(int(found[2]))
        if part in _MEANS:
            words.add(_MEANS[part])
        else:
            words |= {_MEANS.get(word, word) for word in part.split("_") if word}
    return words - _IGNORED, numbers, _LEAVES.get(leaf, leaf)


def words_of(path: str) -> set[str]:
    """The words of a module's path in one author's language: `self_attn.q_proj` has `query`."""
    return _parse(f"{path}.weight")[0]


def _fused(
    torch: Mapping[str, NDArray[Any]],
    flax: Mapping[str, NDArray[Any]],
    left: dict[str, tuple[int, ...]],
    right: dict[str, tuple[int, ...]],
) -> list[list[Link]]:
    """One tensor against several of the same leaf whose sizes add up; found ones leave the rest."""
    found = []
    for one in list(left):
        for group in _groups(list(right)):
            if links := _split_links(one, torch[one], {n: flax[n].shape for n in group}):
                found.append(links)
                del left[one]
                for name in group:
                    del right[name]
                break
    for other in list(right):
        for group in _groups(list(left)):
            if links := _join_links(other, flax[other], {n: torch[n].shape for n in group}):
                found.append(links)
                del right[other]
                for name in group:
                    del left[name]
                break
    return found


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Names that differ in one word only, as q, k and v of a layer do."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        head, _, leaf = re.sub("/", ".", name).rpartition(".")
        groups.setdefault((head.rpartition(".")[0], leaf), []).append(name)
    order = ("query", "key", "value")

    def rank(name: str) -> int:
        words = _parse(name)[0]
        return next((i for i, word in enumerate(order) if word in words), len(order))

    return [
        sorted(group[:n], key=rank) for group in groups.values() for n in range(len(group), 1, -1)
    ]


def _split_links(one: str, array: NDArray[Any], parts: Mapping[str, tuple[int, ...]]) -> list[Link]:
    for axis in range(array.ndim):
        rest = array.size // array.shape[axis]
        sizes = [int(np.prod(shape)) / rest for shape in parts.values()]
        if sum(sizes) != array.shape[axis] or any(size != int(size) for size in sizes):
            continue
        links, start = [], 0
        for (other, target), size in zip(parts.items(), map(int, sizes), strict=True):
            shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
            operation = usual_operation(one, other, shape, target)
            if operation is None:
                break
            links.append(Link(one, other, operation, torch_part=(axis, start, start + size)))
            start += size
        if len(links) == len(parts):
            return links
    return []


def _join_links(
    other: str, array: NDArray[Any], parts: Mapping[str, tuple[int, ...]]
) -> list[Link]:
    for axis in range(array.ndim):
        rest = array.size // array.shape[axis]
        sizes = [int(np.prod(shape)) / rest for shape in parts.values()]
        if sum(sizes) != array.shape[axis] or any(size != int(size) for size in sizes):
            continue
        links, start = [], 0
        for (one, shape), size in zip(parts.items(), map(int, sizes), strict=True):
            target = (*array.shape[:axis], size, *array.shape[axis + 1 :])
            operation = usual_operation(one, other, shape, target)
            if operation is None:
                break
            links.append(Link(one, other, operation, flax_part=(axis, start, start + size)))
            start += size
        if len(links) == len(parts):
            return links
    return []
