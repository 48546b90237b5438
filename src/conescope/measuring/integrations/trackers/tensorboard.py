"""TensorBoard: a `SummaryWriter` of torch or of tensorboardX takes one scalar at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD = "add_scalar"


def write(writer: Any, scalars: Mapping[str, float], step: int) -> None:
    """Write the scalars of a step."""
    for name, value in scalars.items():
        writer.add_scalar(name, value, step)
