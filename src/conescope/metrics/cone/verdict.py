"""Which motion rules: models weighed by an information criterion, and what each would mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from conescope.metrics.cone.models import Fit

Kind = Literal["frozen", "confined", "free diffusion", "drift", "mixed"]
"""What a motion can be."""

Verdict = Kind | Literal["undecided"]
"""What can be said of a motion."""

RULING = 2 / 3
"""Share of the mean squared displacement from which one part rules alone."""

CERTAIN = 0.9
"""Probability from which a verdict is given."""

RULES: dict[str, Kind] = {"confined": "confined", "diffusion": "free diffusion", "drift": "drift"}


@dataclass(frozen=True)
class Evidence:
    """What the data say of one model.

    Attributes:
        parts: the motions that the model sums.
        criterion: Bayesian information criterion, −2 log-likelihood + p log N, above the best
            model's; N = Σ_k q_k counts the independent numbers in the data.
        probability: e^(−criterion / 2), normalised over the models (Schwarz, Annals of
            Statistics 6:461, 1978; Kass & Raftery, JASA 90:773, 1995).
        kind: what the motion is if this model holds.
        shares: "noise", "confined", "diffusion", "drift" → share of the mean squared
            displacement at a lag of the phase's own length; they add up to 1.
    """

    parts: tuple[str, ...]
    criterion: float
    probability: float
    kind: Kind
    shares: dict[str, float]


def weigh(fits: Sequence[Fit], size: float, duration: float, floor: float) -> tuple[Evidence, ...]:
    """The models' evidence, in the order of the fits.

    Args:
        fits: the models at their best.
        size: number N of independent numbers in the data.
        duration: length L of the phase, the lag at which shares are taken.
        floor: the S that noise in the measurement alone makes.
    """
    criteria = np.array([fit.deviance + fit.freedom * math.log(size) for fit in fits])
    criteria -= criteria.min()
    weights = np.exp(-criteria / 2)
    weights /= weights.sum()
    return tuple(
        Evidence(fit.parts, float(criterion), float(weight), *_meaning(fit, duration, floor))
        for fit, criterion, weight in zip(fits, criteria, weights, strict=True)
    )


def _meaning(fit: Fit, duration: float, floor: float) -> tuple[Kind, dict[str, float]]:
    """Kind and shares of a motion.

    Jitter above the floor is confined motion that relaxes faster than kernels are taken.
    """
    amplitudes = {"confined": 0.0, "diffusion": 0.0, "drift": 0.0, **fit.amplitudes}
    noise = min(2 * amplitudes["jitter"], 2 * floor)
    confined = 2 * amplitudes["jitter"] - noise
    if "confined" in fit.parts:
        relaxed = -math.expm1(-duration / math.exp(fit.shape))
        confined += 2 * amplitudes["confined"] * relaxed
    moved = {
        "noise": noise,
        "confined": confined,
        "diffusion": amplitudes["diffusion"],
        "drift": amplitudes["drift"],
    }
    total = sum(moved.values())
    shares = {part: square / total for part, square in moved.items()}
    if total <= 2 * floor:
        return "frozen", shares
    ruling = max(RULES, key=lambda part: shares[part])
    beyond = 1.0 - shares["noise"]
    return RULES[ruling] if shares[ruling] >= RULING * beyond else "mixed", shares


def probabilities(evidence: Sequence[Evidence]) -> dict[Kind, float]:
    """Kind of motion → the sum of the probabilities of the models that say so."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    return {
        kind: sum(model.probability for model in evidence if model.kind == kind) for kind in kinds
    }


def mean_shares(evidence: Sequence[Evidence]) -> dict[str, float]:
    """The shares, averaged over the models by their probability."""
    return {
        part: sum(model.probability * model.shares[part] for model in evidence)
        for part in evidence[0].shares
    }


def decide(probability: dict[Kind, float]) -> Verdict:
    """The kind that is certain enough, or "undecided"."""
    best = max(probability, key=lambda kind: probability[kind])
    return best if probability[best] >= CERTAIN else "undecided"
