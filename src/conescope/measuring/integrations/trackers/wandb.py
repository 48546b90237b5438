"""Weights & Biases: a run of `wandb` or the module `trackio` takes all scalars of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD = "log"


def write(writer: Any, scalars: Mapping[str, float], step: int) -> None:
    """Write the scalars of a step."""
    writer.log({**scalars}, step=step)
