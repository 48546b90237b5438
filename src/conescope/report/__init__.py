"""Show what a run measured: figures, tables and a page, made from the run folder alone."""

from conescope.report.opening import answer
from conescope.report.page import write_report
from conescope.report.save import figure

__all__ = ["answer", "figure", "write_report"]
