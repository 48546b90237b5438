"""Plots of who moved the kernel."""

from __future__ import annotations

import re

import numpy as np

from conescope.report.analysis.of_run import Analysis
from conescope.report.plot import BarPlot, GridPlot
from conescope.statistics.attribution import Attribution

IMAGES = 15
"""Images that are drawn, those that moved the kernel most."""


def layers(analysis: Analysis) -> BarPlot | None:
    """Shares by layer and stretch of training; None without kernels by layer."""
    shares = {stretch: moved.layers for stretch, moved in analysis.movements.items()}
    layers = sorted(next(iter(shares.values())), key=_by_numbers)
    if not layers:
        return None
    return BarPlot(
        title="Which layers moved the kernel",
        caption="Share of the squared chord between two times that each layer's summand of the "
        "kernel makes; the shares add up to 100 %. A layer that moved against the whole has a "
        "negative share.",
        x_label="share of the movement",
        names=layers,
        shares={
            f"t = {stretch}": np.array([moved[layer] for layer in layers])
            for stretch, moved in shares.items()
        },
    )


def blocks(analysis: Analysis) -> GridPlot | None:
    """Shares by class and class in the last stretch; None if labels are not known."""
    stretch, moved = _last_movement(analysis)
    if moved.blocks is None:
        return None
    return GridPlot(
        title="Which classes moved the kernel",
        caption=f"Share of the squared chord from t = {stretch} that the kernel's entries between "
        "images of two classes make; the squares add up to 100 %.",
        label="class",
        names=[str(label) for label in moved.classes],
        shares=moved.blocks,
    )


def images(analysis: Analysis) -> BarPlot:
    """Shares of the images that moved the kernel most in the last stretch."""
    stretch, moved = _last_movement(analysis)
    leading = np.argsort(-moved.images)[:IMAGES]
    return BarPlot(
        title="Which images moved the kernel",
        caption=f"Share of the squared chord from t = {stretch} that each image makes, "
        f"with every entry by halves to its two images: the {len(leading)} leading ones of "
        f"{len(moved.images)}, by their place in the probe. Equal shares would be "
        f"{1 / len(moved.images):.2%}.",
        x_label="share of the movement",
        names=[f"image {place}" for place in leading],
        shares={f"t = {stretch}": moved.images[leading]},
    )


def _by_numbers(name: str) -> list[str | int]:
    """Names in the order of the numbers in them: layer 2 before layer 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _last_movement(analysis: Analysis) -> tuple[str, Attribution]:
    return list(analysis.movements.items())[-1]
