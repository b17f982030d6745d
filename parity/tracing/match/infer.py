"""Rules from names and shapes: which tensor of one model is which of the other."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.optimize import linear_sum_assignment

from parity.tracing.match.leftovers import by_values, fingerprint, fused, singles
from parity.tracing.match.names import parse
from parity.tracing.match.rules import Link, usual_operation

# Costs of a pairing, in arbitrary units: what is sure outweighs all that is only likely.
_SAME_VALUES, _OTHER_INDEX, _OTHER_WORDS, _ALONE, _OTHER_ORDER = -1000.0, 15.0, 20.0, 10.0, 8.0
_IMPOSSIBLE = 1e6


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
    prints = {name: fingerprint(array) for name, array in torch.items()}
    prints_2 = {name: fingerprint(array) for name, array in flax.items()}
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
    matched = [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(cost), strict=True)]
    for i, j in sorted(_uncrossed(matched, leaves)):
        for one, other in leaves[i, j] if cost[i, j] < _IMPOSSIBLE else []:
            operation = usual_operation(one, other, torch[one].shape, flax[other].shape)
            if one not in usual:
                operation = by_values(torch[one], flax[other]) or operation
            assert operation is not None  # or they were no pair
            links.append(Link(one, other, operation))
            sure = prints[one] is not None and prints[one] == prints_2[other]
            evidence.append("values" if sure else "names")
    left = {name: torch[name].shape for name in torch if name not in {k.torch for k in links}}
    right = {name: flax[name].shape for name in flax if name not in {k.flax for k in links}}
    for group, why in fused(torch, flax, left, right, usual):
        links += group
        evidence += [why] * len(group)
    for link, why in singles(torch, flax, left, right, usual):
        links.append(link)
        evidence.append(why)
    return Inferred(links, evidence, left, right)


def _uncrossed(
    matched: Sequence[tuple[int, int]], leaves: Mapping[tuple[int, int], list[tuple[str, str]]]
) -> list[tuple[int, int]]:
    """Layers that equal values cross, against both their names and their order, set right.

    So lie the tensors of two layers that were exchanged when they were carried over.
    """

    def alike(i: int, j: int) -> bool:
        pairs = leaves.get((i, j), [])
        return bool(pairs) and parse(pairs[0][0])[:2] == parse(pairs[0][1])[:2]

    partner = dict(matched)
    for i, k in itertools.combinations(sorted(partner), 2):
        j, m = partner[i], partner[k]
        if j > m and alike(i, m) and alike(k, j) and not (alike(i, j) or alike(k, m)):
            partner[i], partner[k] = m, j
    return list(partner.items())


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
    kinds = {parse(name)[2]: name for name in names_2}
    pairs = []
    for one in names:
        other = kinds.get(parse(one)[2])
        if other is None:
            continue
        if usual_operation(one, other, torch[one].shape, flax[other].shape) is None:
            return []
        pairs.append((one, other))
    return pairs


def _names_apart(one: str, other: str) -> float:
    """How unlike two names are."""
    (words, numbers, _), (words_2, numbers_2, _) = parse(one), parse(other)
    common, either = len(words & words_2), len(words | words_2)
    apart = _OTHER_WORDS * (1 - common / either if either else 0)
    if common and numbers and numbers_2:  # numbers of other things say nothing
        apart += _OTHER_INDEX * (numbers[0] != numbers_2[0])
    return apart
