"""Which calls belong together: by the tensors that they use."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.tracing.match.align import Alignment, align
from parity.tracing.match.fused import cut, views
from parity.tracing.match.operations import permutation
from parity.tracing.match.rules import Link
from parity.tracing.record.calls import Call, Numbering, Site

Tree = dict[str, Any]  # what is called in a call, by path; `path.method` and `path:Class` may be


def calls_of(tree: Tree, shapes: dict[str, tuple[int, ...]] | None = None) -> dict[Site, Call[Any]]:
    """The calls of a model whose root calls these, in order."""
    numbering, found = Numbering(), dict[Site, Call[Any]]()

    def enter(path: str, parts: Tree, parent: Site | None) -> None:
        path, _, kind = path.partition(":")
        path, _, method = path.partition("!")
        site = numbering.next(path.split("#")[0], method or "__call__")
        output = np.zeros((shapes or {}).get(site.path, (2,)))
        found[site] = Call(site, parent, kind, outputs={"": output})
        for part, inner in parts.items():
            enter(part, inner, site)

    enter("", tree, None)
    return found


def aligned(torch: Tree, flax: Tree, links: dict[str, str], **tied: str) -> Alignment:
    found = [Link(a, b, permutation((1,), (0,))) for a, b in links.items()]
    names = {name.replace("_", "."): other.replace("_", ".") for name, other in tied.items()}
    return align(found, calls_of(torch), calls_of(flax), names)


def shown(alignment: Alignment) -> list[tuple[str, str]]:
    return [
        (" + ".join(map(str, pair.torch)), " + ".join(map(str, pair.flax)))
        for pair in alignment.pairs
    ]


ROOT = ("(root)", "(root)")


def test_calls_of_the_same_tensors_in_the_order_of_the_flax_side() -> None:
    torch = {"up": {}, "block": {"block.fc": {}}}
    flax = {"Block_0": {"Block_0/Dense_0": {}}, "Dense_0": {}}
    links = {"up.weight": "Dense_0/kernel", "block.fc.weight": "Block_0/Dense_0/kernel"}
    found = aligned(torch, flax, {**links, "block.scale": "Block_0/scale"})
    pairs = [("block", "Block_0"), ("block.fc", "Block_0/Dense_0"), ("up", "Dense_0")]
    assert shown(found) == [ROOT, *pairs]
    assert [str(p.torch[0]) for p in found.children(found.pairs[1])] == ["block.fc"]
    assert {str(p.torch[0]) for p in found.inside(found.pairs[1])} == {"block", "block.fc"}
    assert found.children(None) == found.pairs[:1]
    assert found.torch_alone == found.flax_alone == []


def test_a_layer_belongs_to_the_layer_in_a_wrapper() -> None:
    """The wrapper may apply an activation, as a `Sequential` does."""
    links = {"0.weight": "fc/Dense_0/kernel", "0.bias": "fc/Dense_0/bias"}
    assert shown(aligned({"0": {}}, {"fc": {"fc/Dense_0": {}}}, links)) == [
        ROOT,
        ("0", "fc/Dense_0"),
    ]
    links = {"fc.0.weight": "Dense_0/kernel", "other.weight": "other/kernel"}
    torch = {"fc": {"fc.0": {}, "fc.1": {}}, "other": {}}
    found = aligned(torch, {"Dense_0": {}, "other": {}}, links)
    assert shown(found) == [ROOT, ("fc.0", "Dense_0"), ("other", "other")]
    assert found.torch_alone == []  # its part is compared


def test_of_two_wrappers_the_outermost_and_the_innermost_belong_together() -> None:
    torch = {"a": {"a.b": {"a.b.c": {}}}, "z": {}}
    flax = {"A": {"A/C": {}}, "Z": {}}
    found = aligned(torch, flax, {"a.b.c.weight": "A/C/kernel", "z.weight": "Z/kernel"})
    assert shown(found) == [ROOT, ("a", "A"), ("a.b.c", "A/C"), ("z", "Z")]


def test_the_roots_belong_together_whatever_they_are() -> None:
    found = aligned({"module": {"module.fc": {}}}, {"fc": {}}, {"module.fc.weight": "fc/kernel"})
    assert shown(found)[0] == ROOT
    assert ("module.fc", "fc") in shown(found)


def test_a_module_that_is_called_again() -> None:
    links = {"cell.weight": "cell/kernel", "z.weight": "z/kernel"}
    found = aligned({"cell": {}, "cell#": {}, "z": {}}, {"cell": {}, "cell#": {}, "z": {}}, links)
    calls = [("cell", "cell"), ("cell (call 2)", "cell (call 2)")]
    assert shown(found) == [ROOT, *calls, ("z", "z")]
    first, second = found.pairs[1:3]
    assert found.sharing(first) == found.sharing(second) == {first, second}
    assert found.sharing(found.pairs[3]) == {found.pairs[3]}


def test_called_more_often_on_one_side() -> None:
    links = {"cell.weight": "cell/kernel", "z.weight": "z/kernel"}
    found = aligned({"cell": {}, "cell#": {}, "z": {}}, {"cell": {}, "z": {}}, links)
    assert shown(found) == [ROOT, ("cell", "cell"), ("z", "z")]
    assert [str(site) for site in found.torch_alone] == ["cell (call 2)"]


def test_a_tied_head_is_the_attend_of_the_embedding() -> None:
    torch = {"wte": {}, "fc": {}, "head": {}}
    flax = {"tok": {}, "fc": {}, "tok!attend": {}}
    links = {"wte.weight": "tok/embedding", "fc.weight": "fc/kernel"}
    found = aligned(torch, flax, links, head_weight="wte_weight")
    assert shown(found) == [ROOT, ("wte", "tok"), ("fc", "fc"), ("head", "tok.attend")]
    embedding, head = found.pairs[1], found.pairs[3]
    assert found.sharing(head) == {embedding, head}


def test_a_fused_call_is_that_of_its_parts() -> None:
    parts = {"q": {}, "k": {}, "v": {}}
    links = [
        Link("qkv.weight", f"{name}/kernel", permutation((1,), (0,)), (0, i, i + 1))
        for i, name in enumerate(parts)
    ]
    found = align(links, calls_of({"qkv": {}}), calls_of(parts), {})
    assert shown(found) == [ROOT, ("qkv", "q + k + v")]
    links = [Link(f"{n}.weight", "qkv/kernel", permutation((1,), (0,))) for n in parts]
    found = align(links, calls_of(parts), calls_of({"qkv": {}}), {})
    assert shown(found) == [ROOT, ("q + k + v", "qkv")]


def test_what_of_a_fused_call_is_which_part() -> None:
    shapes = {"qkv": (2, 5, 24), "q": (2, 5, 4, 3), "k": (2, 5, 2, 3), "v": (2, 5, 2, 3)}
    whole, parts = {"qkv": {}}, {"q": {}, "k": {}, "v": {}}
    links = [Link("qkv.weight", f"{n}/kernel", permutation((1,), (0,))) for n in parts]
    torch, flax = calls_of(whole, shapes), calls_of(parts, shapes)
    pair = align(links, torch, flax, {}).pairs[1]
    cuts = [(2, 0, 12), (2, 12, 18), (2, 18, 24)]
    assert [(str(v.flax), v.torch_cut) for v in views(pair, torch, flax)] == [
        *zip(parts, cuts, strict=True)
    ]
    array = np.arange(240).reshape(2, 5, 24)
    np.testing.assert_array_equal(cut({"": array}, cuts[1])[""], array[..., 12:18])
    # Channels of a convolution are on the second axis.
    shapes |= {"qkv": (2, 8, 5, 5), "q": (2, 5, 5, 4), "k": (2, 5, 5, 2), "v": (2, 5, 5, 2)}
    torch, flax = calls_of(whole, shapes), calls_of(parts, shapes)
    assert [v.torch_cut for v in views(pair, torch, flax)] == [(1, 0, 4), (1, 4, 6), (1, 6, 8)]
    torch = calls_of(whole, shapes | {"qkv": (2, 7, 5, 5)})
    assert views(pair, torch, flax) == []  # nothing that adds up


def test_calls_without_tensors_are_matched_by_what_they_are() -> None:
    links = {"fc.weight": "fc/kernel", "out.weight": "out/kernel"}
    torch = {
        "fc": {},
        "act:GELU": {},
        "drop:Dropout": {},
        "rope:LlamaRotaryEmbedding": {},
        "out": {},
    }
    flax = {"fc": {}, "Dropout_0:Dropout": {}, "positions:RotaryEmbedding": {}, "out": {}}
    found = aligned(torch, flax, links)
    assert shown(found)[2:4] == [("drop", "Dropout_0"), ("rope", "positions")]
    # Not as many on both sides: none is guessed.
    flax = {"fc": {}, "Dropout_0:Dropout": {}, "Dropout_1:Dropout": {}, "out": {}}
    assert shown(aligned(torch, flax, links)) == [ROOT, ("fc", "fc"), ("out", "out")]
