"""Which tensor of a PyTorch model is which of a Flax model, and what lies between their layouts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from parity.tracing.match.operations import Rearrange, candidates, permutation

Operation = Callable[[Any], Any]
Shapes = Mapping[str, tuple[int, ...]]
Place = tuple[int, int] | None  # which of how many layers in a stack
_INDEX = "{i}"


class RuleError(ValueError):
    """Rules that do not fit the two models; the message says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table of names.

        Rule("layers.{i}.attention.q_proj.weight", "layers_{i}/attention/q_proj/kernel", (1, 0))
        Rule("h.{i}.attn.c_attn.weight", ("h_{i}/q/kernel", "h_{i}/k/kernel", "h_{i}/v/kernel"))
        Rule("h.{i}.attn.c_proj.weight", "h/attn/o/kernel", stack=0)

    Attributes:
        torch: the name in `state_dict()`, or several that are joined; `{i}` stands for any number.
        flax: the path in the variables without `params/`, or several that the tensor is split into.
        axes: the order of the axes that leads from torch's layout to Flax's; None: found from the
            shapes, for linear layers and convolutions as both frameworks have them.
        axis: where several are joined, or one is split, counted in torch's layout.
        stack: the axis of the Flax tensor along which the tensors of all layers lie, in the order
            of their numbers, as `nn.scan` keeps them; `torch` then has an `{i}` that `flax` lacks.
    """

    torch: str | tuple[str, ...]
    flax: str | tuple[str, ...]
    axes: tuple[int, ...] | None = None
    axis: int = 0
    stack: int | None = None


@dataclasses.dataclass(frozen=True)
class Link:
    """A tensor, or a part of one, on both sides.

    Attributes:
        torch: its name in `state_dict()`.
        flax: its path.
        operation: from the part in torch's layout to the part in Flax's.
        torch_part: `(axis, start, stop)` of the torch tensor, or None for all of it.
        flax_part: the same of the Flax tensor, in its own layout.
        fixed: whether a rule says the operation; else it is the usual one.
    """

    torch: str
    flax: str
    operation: Rearrange
    torch_part: tuple[int, int, int] | None = None
    flax_part: tuple[int, int, int] | None = None
    fixed: bool = False

    def cut_torch(self, array: Any) -> Any:
        """The part of a torch tensor, in its own layout."""
        return _part(array, self.torch_part)

    def from_torch(self, array: Any) -> Any:
        """The part of a torch tensor, in Flax's layout."""
        return self.operation(self.cut_torch(array))

    def from_flax(self, array: Any) -> Any:
        """The part of a Flax tensor."""
        return _part(array, self.flax_part)


def _part(array: Any, part: tuple[int, int, int] | None) -> Any:
    if part is None:
        return array
    axis, start, stop = part
    return array[(slice(None),) * axis + (slice(start, stop),)]


def twin_rules(config: DIYConfig) -> list[Rule]:
    """The rules of this project's own two models, from its table of names."""
    return [Rule(t.torch, "/".join(t.flax), t.to_flax.axes) for t in tensors(config)]


def links_of(rules: Iterable[Rule], torch: Shapes, flax: Shapes) -> list[Link]:
    """What the rules say of two concrete models.

    Raises:
        RuleError: a rule that matches nothing, two that match the same tensor, or shapes that no
            operation leads between; all faults in one message.
    """
    links: list[Link] = []
    faults: list[str] = []
    seen: dict[tuple[str, str, Any], Rule] = {}
    rules = list(rules)
    if not rules:
        faults.append("there are none")
    for rule in rules:
        found = list(_expand(rule, torch))
        if not found:
            faults.append(f"{_shown(rule.torch)} matches no tensor of the PyTorch model")
        for one, other, place in found:
            try:
                new = _links(rule, one, other, place, torch, flax)
            except RuleError as error:
                faults.append(str(error))
                continue
            for link in new:
                keys = (
                    ("PyTorch", link.torch, link.torch_part),
                    ("Flax", link.flax, link.flax_part),
                )
                for key in keys:
                    if key in seen:
                        faults.append(
                            f"two rules match the {key[0]} tensor {key[1]}: "
                            f"{_shown(seen[key].torch)} and {_shown(rule.torch)}"
                        )
                    seen[key] = rule
            links += new
    if faults:
        hint = "infer_rules(torch_module, flax_variables) prints a table to start from"
        raise RuleError("\n".join([f"{len(faults)} faults in the rules; {hint}", *faults]))
    return links


def _expand(rule: Rule, torch: Shapes) -> Iterable[tuple[list[str], list[str], Place]]:
    """The concrete names that a rule stands for, torch's and Flax's, and the place in a stack."""
    ones, others = _names(rule.torch), _names(rule.flax)
    pattern = re.compile(re.escape(ones[0]).replace(re.escape(_INDEX), r"(\d+)"))
    stacks: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for name in torch:
        if found := pattern.fullmatch(name):
            numbers = found.groups()
            stacks.setdefault(tuple(_fill(n, numbers) for n in others), []).append(numbers)
    for filled, layers in stacks.items():
        for i, numbers in enumerate(sorted(layers, key=lambda texts: [*map(int, texts)])):
            place = None if rule.stack is None else (i, len(layers))
            yield [_fill(n, numbers) for n in ones], list(filled), place


def _names(names: str | tuple[str, ...]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _fill(name: str, numbers: Sequence[str]) -> str:
    for number in numbers:
        name = name.replace(_INDEX, number, 1)
    return name


def _shown(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else " + ".join(names)


def _links(
    rule: Rule, ones: list[str], others: list[str], place: Place, torch: Shapes, flax: Shapes
) -> list[Link]:
    for side, names, shapes in (("PyTorch", ones, torch), ("Flax", others, flax)):
        if missing := [name for name in names if name not in shapes]:
            raise RuleError(f"{missing[0]} is not a tensor of the {side} model")
    if place is not None and rule.stack is not None:
        return _stacked(rule, rule.stack, ones, others, place, torch, flax)
    if len(ones) == len(others) == 1:
        return [_link(rule, ones[0], others[0], torch[ones[0]], flax[others[0]])]
    if len(ones) == 1:
        return _split(rule, ones[0], others, torch, flax)
    if len(others) == 1:
        return _join(rule, ones, others[0], torch, flax)
    raise RuleError(f"{_shown(rule.torch)}: either side may have several names, not both")


def _stacked(
    rule: Rule,
    axis: int,
    ones: list[str],
    others: list[str],
    place: tuple[int, int],
    torch: Shapes,
    flax: Shapes,
) -> list[Link]:
    """The links to one layer of a stack; a layer keeps an axis of size 1 where the stack has it."""
    number, count = place
    layer = {}
    for other in others:
        shape = flax[other]
        if not 0 <= axis < len(shape) or shape[axis] != count:
            raise RuleError(f"{other} {shape} does not hold {count} layers along axis {axis}")
        layer[other] = (*shape[:axis], *shape[axis + 1 :])
    found = _links(rule, ones, others, None, torch, layer)
    if len(ones) > 1:
        raise RuleError(f"{_shown(rule.torch)}: tensors that are joined cannot be stacked as well")
    links = []
    for link in found:
        merged = link.operation.merged
        kept = dataclasses.replace(link.operation, merged=(*merged[:axis], 1, *merged[axis:]))
        part = (axis, number, number + 1)
        links.append(dataclasses.replace(link, operation=kept, flax_part=part))
    return links


def _link(
    rule: Rule, one: str, other: str, shape: tuple[int, ...], target: tuple[int, ...], **parts: Any
) -> Link:
    if rule.axes is not None:
        operation = permutation(shape, rule.axes) if len(rule.axes) == len(shape) else None
        if operation is None or operation.merged != target:
            raise RuleError(f"{one} {shape} does not become {other} {target} by axes {rule.axes}")
    else:
        operation = usual_operation(one, other, shape, target)
        if operation is None:
            raise RuleError(f"{one} {shape} and {other} {target}: no operation leads between them")
    return Link(one, other, operation, **parts, fixed=rule.axes is not None)


def _split(rule: Rule, one: str, others: list[str], torch: Shapes, flax: Shapes) -> list[Link]:
    shape, start, links = torch[one], 0, []
    rest = int(np.prod(shape)) // shape[rule.axis]
    for other in others:
        size = int(np.prod(flax[other])) // rest
        part = (*shape[: rule.axis], size, *shape[rule.axis + 1 :])
        where = (rule.axis, start, start + size)
        links.append(_link(rule, one, other, part, flax[other], torch_part=where))
        start += size
    if start != shape[rule.axis]:
        raise RuleError(
            f"{one} {shape} is not split by {', '.join(others)}: {start} of {shape[rule.axis]} "
            f"on axis {rule.axis}"
        )
    return links


def _join(rule: Rule, ones: list[str], other: str, torch: Shapes, flax: Shapes) -> list[Link]:
    joined = [*torch[ones[0]]]
    joined[rule.axis] = sum(torch[one][rule.axis] for one in ones)
    whole = _link(rule, ones[0], other, tuple(joined), flax[other]).operation
    if whole.split != whole.source or len(whole.merged) != len(whole.source):
        raise RuleError(f"{other} {flax[other]}: parts can be joined along a plain axis only")
    axis, start, links = whole.axes.index(rule.axis), 0, []
    for one in ones:
        size = torch[one][rule.axis]
        where = (axis, start, start + size)
        operation = permutation(torch[one], whole.axes)
        fixed = rule.axes is not None
        links.append(Link(one, other, operation, flax_part=where, fixed=fixed))
        start += size
    return links


def usual_operation(
    one: str, other: str, shape: tuple[int, ...], target: tuple[int, ...]
) -> Rearrange | None:
    """The operation that lies between the two frameworks' layers, or None where none fits.

    A `weight` that is a `kernel` in Flax has its axes turned: (out, in) to (in, out), and
    (O, I, H, W) to (H, W, I, O). Any other tensor keeps its layout where the shapes allow it.
    """
    found = list(candidates(shape, target))
    weight = re.search(r"(^|[._])weight(_|$)", one)  # or `in_proj_weight`, `weight_hh_l0`
    if other.rpartition("/")[2] == "kernel" and weight:
        turned = (*range(2, len(shape)), 1, 0)
        found.sort(key=lambda o: o.axes != turned if o.split == o.source else not _output_last(o))
    return found[0] if found else None


def _output_last(operation: Rearrange) -> bool:
    """Whether the result's last axis runs along the first axis of the source, the outputs."""
    numbers = operation(np.arange(np.prod(operation.source)).reshape(operation.source))
    ends = numbers.reshape(-1, numbers.shape[-1])[0]
    return len(ends) < 2 or bool(ends[1] - ends[0] == np.prod(operation.source[1:]))
