"""Stand-in for the stored run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conescope.series import KernelSeries


@dataclass(frozen=True)
class Recipe:
    """Stand-in for a recipe."""

    description: str
    yaml: str

    def to_yaml(self) -> str:
        """The recipe as YAML."""
        return self.yaml


@dataclass(frozen=True)
class Run:
    """Stand-in for a run read from its folder."""

    path: Path
    name: str
    recipe: Recipe
    series: KernelSeries
    scalars: Mapping[str, np.ndarray]
    environment: Mapping[str, str]
    command: str
    total_steps: int
    finished: bool
    seconds: float
