"""The sections of a run's analysis, each in a file of its own.

Command line, figures, comparison and report walk over `SECTIONS`. A new section is a file here that
defines a `Section` named `SECTION`, and a line in `_NAMES`.
"""

from collections.abc import Sequence
from importlib import import_module

from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content, Section

_NAMES = (
    "trained",
    "motion",
    "noise",
    "error_bars",
    "distances",
    "eigenvalues",
    "curvature",
    "label_alignment",
    "movement",
)

SECTIONS: Sequence[Section] = tuple(import_module(f"{__name__}.{name}").SECTION for name in _NAMES)
"""All sections, in the order to show them."""


def contents(analysis: RunAnalysis) -> list[Content]:
    """Return what each of `SECTIONS` says of a run."""
    return [section.content(analysis) for section in SECTIONS]


__all__ = ["SECTIONS", "Content", "Section", "contents"]
