"""All figures of a run, as files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from matplotlib.figure import Figure

from conescope.errors import KernelError, StoreError, TrainingError
from conescope.report.analysis import Analysis, compared, plots
from conescope.report.figures.drawn import draw, draw_side_by_side
from conescope.report.figures.plots import (
    distance_after,
    distance_from,
    distance_matrix,
    embedding,
    overview,
    training,
)
from conescope.report.figures.style import PAPER, Style, in_force
from conescope.report.summary import state
from conescope.runs.reader import Run

logger = logging.getLogger(__name__)

FIGURES: Mapping[str, Callable[[Run, Style], Figure]] = MappingProxyType(
    {
        "overview": lambda run, style: overview(run.series, style),
        "distance-from": lambda run, style: distance_from(run.series, style=style),
        "distance-after": lambda run, style: distance_after(run.series, style=style),
        "embedding-2d": lambda run, style: embedding(run.series, 2, style),
        "embedding-3d": lambda run, style: embedding(run.series, 3, style),
        "distance-matrix": lambda run, style: distance_matrix(run.series, style),
        "training": training,
    }
)
"""File name → how that figure of a run is drawn with the default choices."""


def save_figures(run: Run, folder: Path, style: Style = PAPER) -> list[Path]:
    """Write every figure of a run as PDF and as PNG; the same run gives the same bytes.

    A figure that the run has too few kernels for is left out, and a warning on this module's
    logger says why. Figures of an unfinished run are marked as such.

    Args:
        run: the run.
        folder: where to write; made if missing.
        style: matplotlib's rc parameters for all figures.

    Returns:
        The files written.

    Raises:
        StoreError: if a file cannot be written.
    """
    written: list[Path] = []
    for name, figure_of in FIGURES.items():
        try:
            figure = figure_of(run, style)
        except (KernelError, TrainingError) as reason:
            logger.warning("no figure %s: %s", name, reason)
            continue
        written += _save_of_run(figure, folder / name, run, style)
    return written


def save_analysis(analysis: Analysis, folder: Path, style: Style = PAPER) -> list[Path]:
    """Write the plots of a run's analysis as PDF and as PNG, as `save_figures` does.

    Raises:
        StoreError: if a file cannot be written.
    """
    written: list[Path] = []
    for name, plot in plots(analysis).items():
        written += _save_of_run(draw(plot, style), folder / name, analysis.run, style)
    return written


def save_comparison(analyses: Sequence[Analysis], folder: Path, style: Style = PAPER) -> list[Path]:
    """Write one figure of several runs side by side, "compare", as PDF and as PNG.

    Raises:
        StoreError: if a file cannot be written.
    """
    figure = draw_side_by_side(compared(analyses), style)
    with in_force(style):
        return save_figure(figure, folder / "compare", "comparison of runs")


def _save_of_run(figure: Figure, stem: Path, run: Run, style: Style) -> list[Path]:
    """Save a figure; that of an unfinished run is marked as such."""
    with in_force(style):
        if not run.finished:
            figure.supxlabel(state(run), fontsize="small")
        return save_figure(figure, stem, run.name)


def save_figure(figure: Figure, stem: Path, title: str) -> list[Path]:
    """Write a figure as PDF and as PNG, within the style in force.

    Args:
        figure: what to write.
        stem: the files' path without suffix; its folder is made if missing.
        title: the files' title.

    Raises:
        StoreError: if a file cannot be written.
    """
    metadata = {".pdf": {"Title": title, "CreationDate": None}, ".png": {"Title": title}}
    files = {stem.with_name(stem.name + suffix): metadata[suffix] for suffix in metadata}
    for file, fields in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(file, metadata=fields)
        except OSError as reason:
            raise StoreError(
                f"cannot write the figure {file}: {reason.strerror}; free space there or choose "
                "another folder"
            ) from reason
    return list(files)
