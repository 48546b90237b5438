"""MLflow: the module `mlflow`, or a logger of Lightning, takes all scalars of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD = "log_metrics"


def write(writer: Any, scalars: Mapping[str, float], step: int) -> None:
    """Write the scalars of a step."""
    writer.log_metrics({**scalars}, step=step)
