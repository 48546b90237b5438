"""The figures of a run: each is one function from the run to a plot that is a value.

A new figure is a file here with such a function of the same name, and a line in `_NAMES`.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType

from conescope.report.plot import Plot
from conescope.runs.reader import Run

_NAMES = (
    "overview",
    "distance-from",
    "distance-after",
    "embedding-2d",
    "embedding-3d",
    "distance-matrix",
    "training",
)


def _figure(name: str) -> Callable[[Run], Plot]:
    word = name.replace("-", "_")
    return getattr(import_module(f"{__name__}.{word}"), word)


FIGURES: Mapping[str, Callable[[Run], Plot]] = MappingProxyType(
    {name: _figure(name) for name in _NAMES}
)
"""File name → the figure; it raises `KernelError` or `TrainingError` if the run is too short."""

__all__ = ["FIGURES"]
