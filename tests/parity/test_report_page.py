"""The page: read as a browser reads it, it has every number and refers to nothing outside."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diy_core.errors import CheckpointError
from parity.batch import Batch
from parity.check.compare import Check, worst_tensor
from parity.check.curves import Curve
from parity.check.identity import Identity, Proven
from parity.check.lines import same_positions
from parity.check.model import Plan, Result
from parity.check.optimizers import RECIPE
from parity.environment import choose_device, describe
from parity.report.certificate import make
from parity.report.page import render, write_report

ROOT = Path(__file__).parents[2]
HOSTILE = '<script>alert("x")</script>&\'"><img src=http://evil.example/x.png>'
DIVERGENCE: dict[str, Any] = {
    "module_torch": "model.layers.3.attention",
    "module_flax": "model/layers_3/attention",
    "direction": "forward",
    "error": 0.25,
    "input_error": 3e-16,
    "suspects": [
        {
            "suspect": "rope pairing",
            "sentence": f"Rotations pair neighbours {HOSTILE}",
            "error_before": 0.25,
            "error_after": 2e-16,
        }
    ],
}


class Page(HTMLParser):
    """Tags with attributes, texts, and what is open, of one page."""

    VOID = ("meta", "br", "img", "path", "use", "link", "input", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def curves(factor: float = 1.0) -> list[Curve]:
    layers, places = ("embed", *map(str, range(30)), "norm", "logits"), tuple(range(70))
    found = []
    for dtype, error in (("float64", 1e-15), ("float32", 1e-7), ("bfloat16", 1e-2)):
        for side in ("torch", "flax"):
            for figure in ("forward by layer", "backward by layer"):
                found.append(Curve(figure, dtype, side, layers, (error * factor,) * len(layers)))
            for figure in ("forward by position", "decode by position"):
                found.append(Curve(figure, dtype, side, places, (error * factor,) * len(places)))
    steps = tuple(range(1, 101))
    for side in ("torch", "flax", "control"):
        found.append(Curve("training loss error", "float64", side, steps, (0.0, *[1e-16] * 99)))
    found.append(
        Curve("training loss", "float64", "torch", steps, tuple(4 - i / 50 for i in steps))
    )
    return found


def proven(
    name: str = "models/one",
    tensor: str = "model.layers.0",
    *,
    broken: bool = False,
    drawn: Sequence[Curve] = (),
) -> Proven:
    truth = {tensor: np.ones((3, 4)), "model.norm": np.ones(4)}
    found = {tensor: truth[tensor] * (1 + 1.25e-15), "model.norm": truth["model.norm"]}
    if broken:
        found["model.norm"] = np.array([1.0, np.nan, 1.0, 1.0])
    logits = np.random.default_rng(0).normal(size=(5, 7))
    batch = Batch(np.zeros((2, 3), np.int32), np.array([3, 2], np.int32))
    checks = [
        worst_tensor("blocks", truth, found, 1e-12, "float64", "cpu"),
        same_positions("decode torch", batch.place, logits * (1 + 1e-15), logits, "cpu"),
        Check("greedy tokens", "float64", "cpu", 40, 0, 0, True),
        Check(
            "training",
            "float32",
            "cpu",
            100,
            1.0625,
            2.0,
            True,
            "step 7",
            3.125e-9,
            reach="100 steps, 0-31",
        ),
    ]
    identity = Identity("c" * 64, {}, "agrees", 1234567)
    return Proven(name, identity, Plan(recipe=RECIPE), Result(checks, list(drawn)))


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    return describe(choose_device("cpu"))


def certificate(environment: dict[str, Any], *models: Proven, **options: Any) -> dict[str, Any]:
    return make(models or [proven()], "parity check models/one", environment, **options)


def assert_self_contained(page: Page, html: str) -> None:
    """Nothing is fetched, nothing runs, and every reference is to an element that exists once."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "audio", "video"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.removeprefix("#") in ids
        for value in attributes.values():
            assert all(target in ids for target in re.findall(r"url\(#?([^)]*)\)", value))
    styles = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert styles
    assert "url(" not in styles
    assert "@import" not in styles
    assert page.open == []


def test_the_page_says_the_verdict_and_every_number_of_the_certificate(
    tmp_path: Path, environment: dict[str, Any]
) -> None:
    record = certificate(environment)
    path = write_report(tmp_path, record)
    assert path == tmp_path / "report.html"
    assert json.loads((tmp_path / "certificate.json").read_text())["passed"] is True
    html = path.read_text()
    page = Page(html)
    assert_self_contained(page, html)
    assert "http" not in html
    assert page.text.index("The twins are equal") < page.text.index("What was compared")
    assert "All 4 checks passed" in page.text
    assert "1,234,567 parameters" in page.text
    values = {attributes["value"] for attributes in page.all("data")}
    for check in record["models"][0]["checks"]:
        for key in ("value", "bound", "control"):
            assert check[key] is None or str(check[key]) in values
        assert check["where"] in page.text
        assert check["reach"] in page.text
        for one in check["agreement"]:
            assert {str(one["kl_max"]), str(one["kl_mean"]), str(one["worst_error"])} <= values
        for tensor in check["tensors"]:
            assert {str(tensor["relative_l2"]), str(tensor["largest"])} <= values
            assert tensor["name"] in page.text
    for part in ("parity check models/one", "c" * 64, *environment["versions"].values()):
        assert part in page.text
    assert len(list(tmp_path.iterdir())) == 2


def test_a_plot_has_text_a_label_a_caption_and_the_colours_of_the_page(
    environment: dict[str, Any],
) -> None:
    html = render(certificate(environment, proven(drawn=curves())))
    page = Page(html)
    assert_self_contained(page, html)
    plots = page.all("svg")
    assert len(plots) == len(page.all("figcaption")) == 6
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 40 for plot in plots)
    assert all("width" not in plot and "viewbox" in plot for plot in plots)
    for text in (
        "PyTorch, float32",
        "JAX, bfloat16",
        "one ulp moved, float64",
        "position",
        "embed",
    ):
        assert text in page.text
    assert page.text.count("float64 bound 1e-12") == 3
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}", drawn)
    used = set(re.findall(r"var\((--[a-z]+)\)", html))
    light, dark = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    for palette in (light, dark):
        assert used <= set(re.findall(r"(--[a-z-]+):", palette))


def test_colours_can_be_told_from_the_page_in_both_palettes(environment: dict[str, Any]) -> None:
    """Contrast as WCAG 2.1 defines it: 4.5 for text, 3 for lines."""
    html = render(certificate(environment))

    def luminance(colour: str) -> float:
        channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for palette in re.findall(r":root \{(.*?)\}", html, re.DOTALL):
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", palette))
        for name in ("ink", "quiet", "bound", "good", "wrong"):
            assert contrast(colours[name], colours["page"]) >= 4.5
        for name in ("torch", "flax", "control"):
            assert contrast(colours[name], colours["page"]) >= 3
        assert contrast(colours["good"], colours["good-page"]) >= 4.5
        assert contrast(colours["wrong"], colours["wrong-page"]) >= 4.5
        assert contrast(colours["ink"], colours["wrong-page"]) >= 4.5


def test_a_failure_stands_on_top_with_the_first_divergence(environment: dict[str, Any]) -> None:
    record = certificate(environment, proven(broken=True), divergence=DIVERGENCE)
    html = render(record)
    page = Page(html)
    assert_self_contained(page, html)
    text = page.text
    assert "The twins are equal" not in text
    top = text.index("The twins differ 1 of 4 checks failed, first blocks in float64 at model.norm")
    assert top < text.index("First divergence") < text.index("What was compared")
    for part in ("model.layers.3.attention", "model/layers_3/attention", "rope pairing"):
        assert part in text
    values = {attributes["value"] for attributes in page.all("data")}
    assert {"0.25", "3e-16", "2e-16", "inf"} <= values
    assert "✗ failed" in text
    without = copy.deepcopy(record)
    without["divergence"]["suspects"] = []
    assert "No known cause explains it" in Page(render(without)).text


@pytest.mark.parametrize("models", [1, 2])
def test_hostile_names_are_text(models: int, environment: dict[str, Any]) -> None:
    hostile = proven(HOSTILE, tensor=HOSTILE, broken=True)
    record = make([hostile] * models, HOSTILE, environment, DIVERGENCE)
    html = render(record)
    page = Page(html)
    assert_self_contained(page, html)
    assert "http://evil.example" in page.text
    assert page.text.count(HOSTILE) >= 5


def test_of_several_models_the_closest_to_the_bound_is_shown_and_all_are_there(
    environment: dict[str, Any],
) -> None:
    one = proven("first model", drawn=curves())
    other = proven("second model", drawn=curves(2.0))
    worse = other.result.checks
    worse[3] = Check("training", "float32", "cpu", 100, 1.75, 2.0, True, "step 9", control=1e-9)
    page = Page(render(certificate(environment, one, other)))
    assert "All 8 checks passed, on 2 models" in page.text
    assert "Closest to its bound: training in float32, 1.75 x of 2.00 x" in page.text
    assert page.text.index("of second model") < page.text.index("Where the errors are")
    values = [attributes["value"] for attributes in page.all("data")]
    assert values.count("1.75") == 2  # above, and among its model's
    assert values.count("1.0625") == 1
    assert "Each point is the largest of 2 models" in page.text
    assert len(page.all("svg")) == 6


def test_what_was_not_asked_for_is_said(environment: dict[str, Any]) -> None:
    record = certificate(environment)
    record["models"][0]["not_checked"] = ["optimizer", "training"]
    assert "Not asked for: optimizer, training." in Page(render(record)).text


def test_the_template_is_installed() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    (pattern,) = patterns["package-data"]["parity.report"]
    files = set((ROOT / "parity" / "report").glob("*.jinja"))
    assert files == set((ROOT / "parity" / "report").glob(pattern)) != set()


def test_neither_file_is_replaced_where_one_is_a_directory(
    tmp_path: Path, environment: dict[str, Any]
) -> None:
    (tmp_path / "certificate.json").write_text("of the last check")
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match=r"report\.html: is a directory"):
        write_report(tmp_path, certificate(environment))
    assert (tmp_path / "certificate.json").read_text() == "of the last check"
    assert (tmp_path / "report.html" / "notes").read_text() == "mine"
