"""Which one number predicts the cone: a logistic curve for each candidate, and its error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from benchmarks.atlas.table import CANDIDATES, Row, by_cell, mean

_LAG = 20


@dataclass(frozen=True)
class Curve:
    """p(confined) = 1 / (1 + exp(−(offset + slope log₁₀ T))).

    Attributes:
        candidate: the column of T.
        offset: see above.
        slope: see above.
    """

    candidate: str
    offset: float
    slope: float

    def __call__(self, value: np.ndarray | float) -> np.ndarray:
        """Return the probability at a value of T."""
        return _logistic(self.offset + self.slope * np.log10(value))

    @property
    def threshold(self) -> float:
        """The value of T at which the probability is ½."""
        return 10 ** (-self.offset / self.slope)


@dataclass(frozen=True)
class Score:
    """How well a curve predicts cells.

    Attributes:
        cells: the number of cells.
        wrong: share of the cells on the wrong side of ½.
        squared: mean squared error of a cell's probability.
    """

    cells: int
    wrong: float
    squared: float


def usable(rows: list[Row]) -> list[Row]:
    """Return the runs by SGD that have a probability and all candidates above 0."""
    return [
        row for row in rows
        if row["p_confined"] is not None and all((row[name] or 0) > 0 for name in CANDIDATES)
    ]  # fmt: skip


def fitted(rows: list[Row], candidate: str) -> Curve:
    """Fit a curve to the probabilities of runs, by least cross-entropy."""
    x = np.log10([row[candidate] for row in rows])
    p = np.array([row["p_confined"] for row in rows])

    def loss(parameters: np.ndarray) -> float:
        z = parameters[0] + parameters[1] * (x - x.mean())
        return float(np.mean(np.logaddexp(0, z) - p * z)) + 1e-4 * float(parameters[1] ** 2)

    offset, slope = minimize(loss, np.zeros(2)).x
    return Curve(candidate, offset - slope * x.mean(), slope)


def score(curve: Curve, rows: list[Row]) -> Score:
    """Compare a curve with the cells of rows: means over their seeds on both sides."""
    cells = by_cell(rows)
    found = np.array([mean(held, "p_confined") for held in cells.values()])
    said = np.array([curve([r[curve.candidate] for r in held]).mean() for held in cells.values()])
    wrong = float(np.mean((found > 0.5) != (said > 0.5)))
    return Score(len(cells), wrong, float(np.mean((found - said) ** 2)))


def score_of_constant(fit: list[Row], test: list[Row]) -> Score:
    """Return the score of the mean probability of the cells `fit` as the prediction for all."""
    value = float(np.mean([mean(held, "p_confined") for held in by_cell(fit).values()]))
    found = np.array([mean(held, "p_confined") for held in by_cell(test).values()])
    wrong = float(np.mean((found > 0.5) != (value > 0.5)))
    return Score(len(found), wrong, float(np.mean((found - value) ** 2)))


@dataclass(frozen=True)
class Power:
    """floor = 10^offset · T^slope, with the floor S(t, t + 20) of the second half of a run.

    Attributes:
        candidate: the column of T.
        offset: see above.
        slope: see above.
    """

    candidate: str
    offset: float
    slope: float

    def error(self, rows: list[Row]) -> tuple[int, float]:
        """Return the number of cells, and the root mean square of log₁₀(found / predicted)."""
        cells = by_cell(rows).values()
        found = np.array([np.log10([row["v"] * _LAG for row in held]).mean() for held in cells])
        x = np.array([np.log10([row[self.candidate] for row in held]).mean() for held in cells])
        return len(x), float(np.sqrt(np.mean((found - self.offset - self.slope * x) ** 2)))


def fitted_power(rows: list[Row], candidate: str) -> Power:
    """Fit the floor of runs by least squares in logarithms."""
    x = np.log10([row[candidate] for row in rows])
    slope, offset = np.polyfit(x, np.log10([row["v"] * _LAG for row in rows]), 1)
    return Power(candidate, float(offset), float(slope))


def _logistic(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))
