"""`report.html`: a certificate as one page that opens from disk, without network or scripts."""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from diy_core.checkpoints.atomic import atomic_file
from diy_core.system.places import place
from diy_core.system.utf8 import writable
from parity.check.curves import Curve, worst_of
from parity.report.plots import figures
from parity.report.table import as_text, number

CERTIFICATE, PAGE = "certificate.json", "report.html"
_WORST = 12  # tensors that are shown; all of them are in the certificate
Record = Mapping[str, Any]


def write_report(folder: str | Path, certificate: Record) -> Path:
    """Write `certificate.json` and `report.html`, each whole or not at all; the page's path.

    Raises:
        CheckpointError: the folder does not exist.
        OSError: they cannot be written.
    """
    folder = place(folder, "--report")
    page = writable(render(certificate))
    with contextlib.ExitStack() as both:  # neither is replaced where one cannot be
        temporary = both.enter_context(atomic_file(folder / PAGE))
        temporary.write_text(page, encoding="utf-8")
        temporary = both.enter_context(atomic_file(folder / CERTIFICATE))
        temporary.write_text(as_text(certificate), encoding="utf-8")
    return folder / PAGE


def render(certificate: Record) -> str:
    """The page of a certificate that `parity.report.certificate.make` made."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "share": _share}
    models = certificate["models"]
    curves = [
        Curve(**{**curve, "x": tuple(curve["x"]), "y": tuple(curve["y"])})
        for model in models
        for curve in model["curves"]
    ]
    plots = figures(worst_of(curves) if len(models) > 1 else curves, len(models))
    checks = [check for model in models for check in model["checks"]]
    return environment.get_template("page.html.jinja").render(
        certificate=certificate,
        checks=checks,
        failed=[check for check in checks if not check["passed"]],
        plots=[(plot, Markup(plot.svg)) for plot in plots],
        summary=list(_summary(models)),
        agreements=list(_agreements(models)),
        worst=list(_worst(models)),
        many=len(models) > 1,
    )


def _template(name: str) -> str:
    folder = importlib.resources.files("parity.report")
    return (folder / name).read_text(encoding="utf-8")


def _share(value: float) -> str:
    """1 is 100 %, and nothing else is."""
    return "100 %" if value == 1 else f"{min(value * 100, 99.99):.2f} %"


def _summary(models: list[Record]) -> Iterator[dict[str, Any]]:
    """One row for each check: of several models the one that came closest to its bound."""
    rows: dict[tuple[str, str], list[tuple[Record, Record]]] = {}
    for model in models:
        for check in model["checks"]:
            rows.setdefault((check["name"], check["dtype"]), []).append((model, check))
    for found in rows.values():
        model, check = max(found, key=lambda one: _closeness(one[1]))
        yield {
            **check,
            "model": model["name"],
            "compared": sum(one["compared"] for _, one in found),
            "failures": sum(not one["passed"] for _, one in found),
            "used": _closeness(check),
            "models": len(found),
        }


def _closeness(check: Record) -> float:
    """The measured value as a share of its bound; past it where the check failed."""
    if not check["passed"]:
        return float("inf")
    return float(check["value"] / check["bound"]) if check["bound"] else 0.0


def _agreements(models: list[Record]) -> Iterator[dict[str, Any]]:
    """How well the logits agree, by check and twin; of several models the worst of each figure."""
    rows: dict[tuple[str, str, str], list[Record]] = {}
    for model in models:
        for check in model["checks"]:
            for one in check["agreement"]:
                key = check["name"].split()[0], check["dtype"], one["side"]
                rows.setdefault(key, []).append(one)
    for (name, dtype, side), found in rows.items():
        tokens = sum(one["tokens"] for one in found)
        furthest = max(found, key=lambda one: one["worst_error"])
        yield {
            "name": name,
            "dtype": dtype,
            "side": side,
            "tokens": tokens,
            "kl_max": max(one["kl_max"] for one in found),
            "kl_mean": sum(one["kl_mean"] * one["tokens"] for one in found) / tokens,
            "top1": sum(one["top1"] * one["tokens"] for one in found) / tokens,
            "top5": sum(one["top5"] * one["tokens"] for one in found) / tokens,
            "worst": furthest["worst"],
            "worst_error": furthest["worst_error"],
        }


def _worst(models: list[Record]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The tensors that are furthest from the truth, by dtype, over all kinds of check."""
    by_dtype: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        for check in model["checks"]:
            for tensor in check["tensors"]:
                row = {**tensor, "check": check["name"], "model": model["name"]}
                by_dtype.setdefault(check["dtype"], []).append(row)
    for dtype, rows in by_dtype.items():
        rows.sort(key=lambda row: -row["relative_l2"])
        yield dtype, rows[:_WORST]
