"""Figures of runs, as files."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from conescope.errors import KernelError, TrainingError
from conescope.report.figures import FIGURES
from conescope.report.matplotlib_drawing import draw
from conescope.report.plot import Plot
from conescope.report.style import PAPER, Style, in_force
from conescope.report.summary import state
from conescope.runs.reader import Run
from conescope.runs.shared_files import write_result

logger = logging.getLogger(__name__)


def figure(run: Run, name: str, style: Style = PAPER) -> Figure:
    """Draw one figure of a run, which a notebook shows and `savefig` writes.

    Args:
        run: finished or not.
        name: one of `conescope.report.figures.FIGURES`, such as "overview" or "distance-from".
        style: matplotlib's rc parameters.

    Raises:
        KernelError: if there is no figure of this name, or the run has too few kernels for it.
        TrainingError: if the run has no evaluations for it.
    """
    if name not in FIGURES:
        raise KernelError(f"there is no figure {name!r}; there are {', '.join(FIGURES)}")
    return draw(FIGURES[name](run), style)


def save_figures(run: Run, folder: Path, style: Style = PAPER) -> list[Path]:
    """Write every figure of a run as PDF and as PNG; the same run gives the same bytes.

    A figure that the run has too few kernels for is left out, and a warning on this module's
    logger says why; kernels of another program's training have no losses, and that is no warning.
    Figures of an unfinished run are marked as such.

    Args:
        run: finished or not.
        folder: where to write; made if missing.
        style: matplotlib's rc parameters for all figures.

    Returns:
        The files written.

    Raises:
        StoreError: if a file cannot be written.
    """
    plots: dict[str, Plot] = {}
    for name, figure_of in FIGURES.items():
        try:
            plots[name] = figure_of(run)
        except (KernelError, TrainingError) as reason:
            is_news = isinstance(reason, KernelError) or run.recipe is not None
            logger.log(
                logging.WARNING if is_news else logging.INFO, "no figure %s: %s", name, reason
            )
    return save_plots(run, plots, folder, style)


def save_plots(
    run: Run, plots: Mapping[str, Plot], folder: Path, style: Style = PAPER
) -> list[Path]:
    """Write some plots of a run as `save_figures` writes its figures.

    Raises:
        StoreError: if a file cannot be written.
    """
    note = "" if run.finished and not run.lost else state(run)
    files = (
        save_plot(plot, folder / name, run.name, note, style, made_from=run.head)
        for name, plot in plots.items()
    )
    return [file for pair in files for file in pair]


def save_plot(
    plot: Plot,
    stem: Path,
    title: str,
    note: str = "",
    style: Style = PAPER,
    *,
    made_from: str = "",
) -> list[Path]:
    """Draw a plot and write it as PDF and as PNG.

    Args:
        plot: what to draw.
        stem: the files' path without suffix; its folder is made if missing.
        title: the files' title.
        note: text below the figure.
        style: matplotlib's rc parameters.
        made_from: the head of the journal of each run that the plot shows (`Run.head`), which the
            files' metadata name; "" to name none.

    Raises:
        StoreError: if a file cannot be written.
    """
    drawn = draw(plot, style, note)
    metadata = {".pdf": {"Title": title, "CreationDate": None}, ".png": {"Title": title}}
    if made_from:
        about = f"made from the run whose journal ends with {made_from}"
        metadata[".pdf"]["Subject"] = metadata[".png"]["Description"] = about
    files = {stem.with_name(stem.name + suffix): metadata[suffix] for suffix in metadata}
    for file, fields in files.items():
        drawing = io.BytesIO()
        with in_force(style):
            drawn.savefig(drawing, format=file.suffix[1:], metadata=fields)
        write_result(file, drawing.getvalue())
    return list(files)
