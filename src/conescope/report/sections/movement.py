"""Shares of the movement of the kernel by layer, by class and by sample."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from conescope.report.plot import BarPlot, MatrixPlot, SinglePlot
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content, Section
from conescope.report.summary import require_pair
from conescope.statistics.attribution import Attribution, attribution

LEADING = 15
"""Samples that are drawn, those with the largest shares."""


def movements(analysis: RunAnalysis) -> dict[str, Attribution]:
    """Return a stretch of training → shares of its movement: of the whole run, and of each phase.

    Raises:
        KernelError: if there are fewer than two kernels, the two ends are the same, or the labels
            or the kernels by layer do not fit.
    """
    series, found = analysis.run.series, analysis.cone_if_any
    require_pair(series)
    first, last = series.steps[0], series.steps[-1]
    spans = {(first, last)}
    if found is not None and found.boundary is not None:
        spans |= {(first, found.first), (found.first, found.last)}
    return {
        f"{start:,} to {stop:,}": attribution(
            series.kernels[series.index(start)],
            series.kernels[series.index(stop)],
            analysis.labels,
        )
        for start, stop in sorted(spans)
        if start < stop
    }


def _content(analysis: RunAnalysis) -> Content:
    found = movements(analysis)
    stretch, last = list(found.items())[-1]
    plots: dict[str, SinglePlot] = {}
    missing = []
    if last.layers:
        plots["cone-layers"] = _layers(found)
    else:
        missing.append(
            "by layer: needs kernels by layer; run with --kernel.by_layer true, measure with "
            "--by-layer, or watch with by_layer=True"
        )
    if last.blocks is not None:
        plots["cone-blocks"] = _blocks(stretch, last)
    else:
        missing.append("by class: needs the labels of the probe's samples")
    plots["cone-samples"] = _samples(stretch, last)
    numbers = {name: text for item in found.items() for name, text in _numbers(*item).items()}
    return Content(numbers, plots, missing=missing)


def _numbers(stretch: str, moved: Attribution) -> dict[str, str]:
    rows = {}
    layers = sorted(moved.layers.items(), key=lambda item: -item[1])
    if layers:
        shares = ", ".join(f"{layer} {share:.1%}" for layer, share in layers)
        rows[f"moved by layers, {stretch}"] = shares
    if moved.blocks is not None:
        within = float(np.trace(moved.blocks))
        rows[f"moved within classes, {stretch}"] = f"{within:.1%}"
    tenth = max(1, len(moved.images) // 10)
    largest = float(np.sort(moved.images)[-tenth:].sum())
    rows[f"moved by the {tenth:,} leading samples of {len(moved.images):,}, {stretch}"] = (
        f"{largest:.1%}"
    )
    return rows


def _layers(found: Mapping[str, Attribution]) -> BarPlot:
    names = sorted(next(iter(found.values())).layers, key=_by_numbers)
    return BarPlot(
        title="Shares of the movement by layer",
        caption="Share of the squared chord 2 S between two times that each layer's summand of the "
        "kernel makes; the shares add up to 100 %. A layer that moved against the whole has a "
        "negative share.",
        x_label="share of the movement",
        names=names,
        shares={
            f"*t* = {stretch}": np.array([moved.layers[layer] for layer in names])
            for stretch, moved in found.items()
        },
    )


def _blocks(stretch: str, moved: Attribution) -> MatrixPlot:
    assert moved.blocks is not None
    return MatrixPlot(
        title="Shares of the movement by class",
        caption=f"Share of the squared chord 2 S from t = {stretch} that the kernel's entries "
        "between samples of two classes make; the cells add up to 100 %.",
        x_label="class",
        y_label="class",
        value_label="share of the movement",
        places=[str(label) for label in moved.classes],
        values=moved.blocks,
        percent=True,
    )


def _samples(stretch: str, moved: Attribution) -> BarPlot:
    leading = np.argsort(-moved.images)[:LEADING]
    return BarPlot(
        title="Shares of the movement by sample",
        caption=f"Share of the squared chord 2 S from t = {stretch} that each sample makes, "
        f"with every entry by halves to its two samples: the {len(leading)} leading ones of "
        f"{len(moved.images)}, by their place in the probe. Equal shares would be "
        f"{1 / len(moved.images):.2%}.",
        x_label="share of the movement",
        names=[f"sample {place}" for place in leading],
        shares={f"*t* = {stretch}": moved.images[leading]},
    )


def _by_numbers(name: str) -> list[str | int]:
    """Return a key that sorts names by the numbers in them: layer 2 before layer 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


SECTION = Section(
    "Attribution",
    "Shares of the movement of the kernel between two times by layer, by class and by sample. "
    "What is shared is the squared chord 2 S, which is a sum over entries and over layers.",
    _content,
)
