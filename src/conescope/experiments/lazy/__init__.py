"""Is a fine-tuning lazy? A model and its linearisation are trained alike, and compared."""

from conescope.experiments.lazy.lazy_report import lazy_report
from conescope.experiments.lazy.outcome import LazyReport

__all__ = ["LazyReport", "lazy_report"]
