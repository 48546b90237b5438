"""What a run's kernels say, as values, texts and plots that every way of showing them shares."""

from conescope.report.analysis.of_run import Analysis, analyse, known_labels
from conescope.report.analysis.plots import compared, distinct_names, plots
from conescope.report.analysis.text import comparison, numbers, numbers_over_seeds

__all__ = [
    "Analysis",
    "analyse",
    "compared",
    "comparison",
    "distinct_names",
    "known_labels",
    "numbers",
    "numbers_over_seeds",
    "plots",
]
