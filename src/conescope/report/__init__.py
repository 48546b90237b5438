"""Show what a run measured: sections of its analysis, figures, and a self-contained HTML page."""

from conescope.report.page import write_report

__all__ = ["write_report"]
