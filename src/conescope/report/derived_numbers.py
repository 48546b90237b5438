"""Derived numbers of a run as plain values: what its figures, report and tables show."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from conescope.errors import KernelError, TrainingError
from conescope.report.figures import FIGURES
from conescope.report.json_values import json_value
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections import SECTIONS, contents
from conescope.report.summary import main_numbers
from conescope.runs.reader import Run

FILE = "numbers.json"
"""The file of an archive that holds them."""


def derived(analysis: RunAnalysis) -> dict[str, Any]:
    """Return the numbers and the figures' data of a run, as JSON values.

    Returns:
        "steps", the iterations of the kernels, [T]; "distances", S between all pairs (eq. 4 of
        arXiv:2503.16316), [T, T]; "cosines", C = 1 − S, [T, T]; "velocity", S / dt between
        neighbours (eq. 5), per iteration, [T − 1]; "numbers", "sections" and "figures", which are
        what the report shows. NaN is null.
    """
    run = analysis.run
    distances = run.series.distances()
    steps = np.array(run.series.steps)
    figures: dict[str, Any] = {}
    for name, figure_of in FIGURES.items():
        try:
            figures[name] = asdict(figure_of(run))
        except (KernelError, TrainingError) as reason:
            figures[name] = str(reason)
    sections = {
        section.title: {
            "numbers": dict(content.numbers),
            "plots": {name: asdict(plot) for name, plot in content.plots.items()},
            "missing": list(content.missing),
        }
        for section, content in zip(SECTIONS, contents(analysis), strict=True)
    }
    return json_value(
        {
            "run": run.name,
            "steps": steps,
            "distances": distances,
            "cosines": 1 - distances,
            "velocity": np.diagonal(distances, 1) / np.diff(steps),
            "numbers": main_numbers(run),
            "sections": sections,
            "figures": figures,
        }
    )


def derived_bytes(analysis: RunAnalysis) -> bytes:
    """Return `derived` as JSON text; the same run gives the same bytes."""
    return json.dumps(derived(analysis), indent=1, allow_nan=False).encode() + b"\n"


def numbers_of(run: Run) -> bytes:
    """Return `derived_bytes` of a run, with the labels of its probe only if they are stored.

    So a reader without the run's data set comes to the same numbers.
    """
    return derived_bytes(RunAnalysis(run, run.labels))
