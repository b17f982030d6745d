"""The plots of the report: SVG whose text is text and whose colours come from the page's CSS.

Matplotlib draws with placeholder colours, one for each role; each is then replaced by a CSS
variable, so that one drawing serves light and dark pages.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from collections.abc import Sequence
from typing import Any

from parity.check.curves import (
    BACKWARD,
    BACKWARD_POSITIONS,
    DECODE_POSITIONS,
    FORWARD,
    FORWARD_POSITIONS,
    LOSS,
    LOSS_ERROR,
    Curve,
)
from parity.check.lines import ACTIVATION_BOUND, GRADIENT_BOUND

# A colour for each side, a marker and a line for each dtype: neither carries a meaning alone.
_COLOURS = {
    "torch": "#010101",
    "flax": "#020202",
    "control": "#030303",
    "ink": "#040404",
    "grid": "#050505",
    "bound": "#060606",
}
_MARKERS = {
    ("torch", "float64"): "s",
    ("flax", "float64"): "D",
    ("torch", "float32"): "o",
    ("flax", "float32"): "^",
    ("torch", "bfloat16"): "P",
    ("flax", "bfloat16"): "X",
    ("control", "float64"): "+",
    ("control", "float32"): "x",
}
_DASHES: dict[str, Any] = {"float64": (0, (1, 1.5)), "float32": "-", "bfloat16": (0, (5, 2))}
_SIDES = {"torch": "PyTorch", "flax": "JAX", "control": "one ulp moved"}
_LEAST = 1e-18  # where an error of exactly 0 is drawn


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot of the report: its heading, what it shows in words, and its SVG."""

    title: str
    caption: str
    svg: str


@dataclasses.dataclass(frozen=True)
class _Kind:
    title: str
    caption: str
    x: str
    y: str
    bound: float | None = None


_KINDS = {
    FORWARD: _Kind(
        "Forward, by layer",
        "Relative error of all module outputs of a layer against the float64 truth.",
        "layer",
        "relative L2 error",
        ACTIVATION_BOUND,
    ),
    BACKWARD: _Kind(
        "Backward, by layer",
        "Relative error of all gradients of a layer against the float64 truth.",
        "layer",
        "relative L2 error",
        GRADIENT_BOUND,
    ),
    FORWARD_POSITIONS: _Kind(
        "Forward, by position",
        "Relative error of the logits at each position, the worst of the rows.",
        "position",
        "relative L2 error",
        ACTIVATION_BOUND,
    ),
    BACKWARD_POSITIONS: _Kind(
        "Backward, by position",
        "Relative error of the loss's gradient by what the embedding gives at each position, the "
        "worst of the rows.",
        "position",
        "relative L2 error",
        GRADIENT_BOUND,
    ),
    DECODE_POSITIONS: _Kind(
        "Cached decoding, by position",
        "Logits of cached decoding against one full forward in float64, the worst of the rows.",
        "position",
        "relative L2 error",
        ACTIVATION_BOUND,
    ),
    LOSS: _Kind(
        "Training, loss",
        "Cross-entropy at each step. The curves are one where the twins agree.",
        "step",
        "loss",
    ),
    LOSS_ERROR: _Kind(
        "Training, error of the loss",
        "The largest relative error against the float64 curve up to each step. The control is the "
        "same run with one weight moved by one unit in the last place.",
        "step",
        "largest relative error so far",
    ),
}


def figures(curves: Sequence[Curve], models: int) -> list[Figure]:
    """Every plot there are curves for.

    Args:
        curves: of one model, or the worst of several.
        models: of how many.
    """
    found = []
    for number, (name, kind) in enumerate(_KINDS.items()):
        chosen = [curve for curve in curves if curve.figure == name]
        if chosen:
            caption = kind.caption
            if models > 1:
                caption += f" Each point is the largest of {models} models."
            found.append(Figure(kind.title, caption, _draw(chosen, kind, f"plot{number}")))
    return found


def _draw(curves: Sequence[Curve], kind: _Kind, prefix: str) -> str:
    # Imported here: a check without a report does not need it.
    import matplotlib
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import LogLocator, MaxNLocator

    ink = _COLOURS["ink"]
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "text.color": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(4.9, 3.5), layout="constrained")
        axes = canvas.add_subplot()
        layers = list(dict.fromkeys(x for curve in curves for x in curve.x if isinstance(x, str)))
        for curve in curves:
            _line(axes, curve, [layers.index(x) if isinstance(x, str) else x for x in curve.x])
        if kind.y != "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=8))
            axes.minorticks_off()
        if kind.bound and any(curve.dtype == "float64" for curve in curves):
            axes.axhline(kind.bound, color=_COLOURS["bound"], linewidth=1.4)
            axes.annotate(
                f"float64 bound {kind.bound:.0e}",
                (1, kind.bound),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                horizontalalignment="right",
                color=_COLOURS["bound"],
            )
        axes.grid(axis="y", color=_COLOURS["grid"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(kind.x)
        axes.set_ylabel(kind.y)
        if layers:
            shown = range(0, len(layers), -(-len(layers) // 12))
            axes.set_xticks(list(shown), [layers[i] for i in shown])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        canvas.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=3.2)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue(), prefix, f"{kind.title}. {kind.caption}")


def _line(axes: Any, curve: Curve, x: list[int]) -> None:
    """One curve, with a dozen markers where it has many points."""
    y = list(curve.y)
    if curve.figure == LOSS_ERROR:  # which falls to 0 at single steps: what it grows to counts
        y = list(itertools.accumulate(y, max))
    if curve.figure != LOSS:
        y = [max(value, _LEAST) for value in y]
    axes.plot(
        x,
        y,
        color=_COLOURS[curve.side],
        linestyle=_DASHES[curve.dtype],
        linewidth=1.3,
        marker=_MARKERS[curve.side, curve.dtype],
        markersize=4.5,
        markevery=max(1, len(x) // 12),
        markerfacecolor="none",
        label=f"{_SIDES[curve.side]}, {curve.dtype}",
    )


def _inline(svg: str, prefix: str, label: str) -> str:
    """An SVG file as an element of a page: no prolog, ids of its own, colours from the CSS."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r" font-family: [^;]*;", "", svg)  # that of the page
    for role, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{role})")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace('xlink:href="#', f'href="#{prefix}-')
    svg = svg.replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
