"""The figure of a run: time against problem, one panel for each kind of outputs."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contenders import CONTENDERS
from benchmarks.problems import PROBLEMS
from benchmarks.report import OWN, Contest, contests

_STYLES = {
    "conescope": ("#000000", "o"),
    "tutorial": ("#E69F00", "v"),
    "torch-func": ("#56B4E9", "^"),
    "nngeometry": ("#009E73", "s"),
    "backpack": ("#F0E442", "D"),
    "vivit": ("#0072B2", "P"),
    "asdl": ("#D55E00", "X"),
    "neural-tangents": ("#CC79A7", "*"),
}
"""The eight colours of Okabe and Ito, told apart with any colour vision, and a marker each."""


def draw(record: dict, path: Path) -> None:
    """Save the figure: rows are allocators, columns kinds of outputs, seconds on a log scale."""
    found = contests(record)
    allocators = list(dict.fromkeys(contest.allocator for contest in found))
    outputs = list(dict.fromkeys(contest.outputs for contest in found))
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(3.4 * len(outputs) + 1.8, 2.9 * len(allocators) + 0.4))
        grid = figure.subplots(len(allocators), len(outputs), squeeze=False, sharey="row")
        for line, allocator in zip(grid, allocators, strict=True):
            for axes, kind in zip(line, outputs, strict=True):
                panel = [c for c in found if c.allocator == allocator and c.outputs == kind]
                _panel(axes, panel)
                axes.set_title(f"{kind} ({allocator} allocator)", fontsize=9)
            line[0].set_ylabel("seconds a kernel")
        entries = {
            label: handle
            for axes in grid.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(entries.values(), entries.keys(), loc="center right", frameon=False)
        figure.tight_layout(rect=(0, 0, 1 - 1.7 / figure.get_figwidth(), 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)


def _panel(axes: Axes, panel: list[Contest]) -> None:
    for column, (name, (colour, marker)) in enumerate(_STYLES.items()):
        offset = 0.08 * (column - (len(_STYLES) - 1) / 2)
        points = [
            (place + offset, row.seconds)
            for place, contest in enumerate(panel)
            for row in contest.rows
            if row.contender == name and row.seconds is not None
        ]
        if points:
            axes.scatter(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                edgecolor="black",
                linewidth=0.5,
                s=60 if name == OWN else 36,
                zorder=3 if name == OWN else 2,
                label=CONTENDERS[name].label,
            )
    floors = [(place, contest.floor) for place, contest in enumerate(panel) if contest.floor]
    if floors:
        axes.scatter(*zip(*floors, strict=True), color="black", marker="_", s=200, label="floor")
    axes.set_yscale("log")
    axes.set_xlim(-0.5, len(panel) - 0.5)
    labels = [PROBLEMS[contest.problem].label.replace(", ", "\n") for contest in panel]
    axes.set_xticks(range(len(panel)), labels, fontsize=7)
    axes.grid(axis="y", alpha=0.3)
