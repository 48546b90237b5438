"""Is a fine-tuning lazy? A model and its linearisation are trained alike, and compared."""

from conescope.experiments.lazy.lazy_report import LazyReport, lazy_report

__all__ = ["LazyReport", "lazy_report"]
