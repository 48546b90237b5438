"""A run as one self-contained HTML file."""

from conescope.report.page import write_report

__all__ = ["write_report"]
