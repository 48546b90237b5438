"""The verdict: models weighed by an information criterion, and the kind of motion each implies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from conescope.kernel.distance import Float64Array
from conescope.statistics.cone.motions import Fit

Kind = Literal["frozen", "confined", "free diffusion", "drift", "mixed"]
"""The kinds of motion."""

Verdict = Kind | Literal["undecided"]
"""The kind of a motion, or that it cannot be told."""

KINDS: tuple[Kind, ...] = get_args(Kind)

RULES: dict[str, Kind] = {"confined": "confined", "diffusion": "free diffusion", "drift": "drift"}
"""Part of the displacement → the kind of motion if that part rules."""

RULING = 2 / 3
"""Share of the mean squared displacement from which a part rules; if none does, it is mixed."""

CERTAIN = 0.9
"""Probability of a kind of motion from which it is the verdict."""

ENOUGH = 20
"""The fewest kernels in phase II from which kinds of motion are told apart: the criterion is an
approximation for many data, and with 12 kernels it was wrong in up to 15 % of series."""

DRAWS = 500
"""Draws of a model's parameters, by which the uncertainty of its kind of motion is counted."""


@dataclass(frozen=True)
class Evidence:
    """The evidence for one model.

    Attributes:
        parts: the motions that the model sums.
        criterion: Bayesian information criterion, −2 log-likelihood + p log N, minus that of the
            best model; N = Σ_k q_k counts the independent numbers in the data.
        probability: e^(−criterion / 2), normalised over the models (Schwarz, Annals of
            Statistics 6:461, 1978; Kass & Raftery, JASA 90:773, 1995).
        kinds: kind of motion → its probability if this model holds; 1 minus their sum is
            undecided.
        shares: "noise", "confined", "diffusion", "drift" → share of the mean squared
            displacement at a lag as long as the phase; they add up to 1.
    """

    parts: tuple[str, ...]
    criterion: float
    probability: float
    kinds: dict[Kind, float]
    shares: dict[str, float]


def weigh(fits: Sequence[Fit], size: float, duration: float, floor: float) -> tuple[Evidence, ...]:
    """Return the evidence for each model, in the order of the fits.

    Args:
        fits: the models at the maximum of their likelihoods.
        size: number N of independent numbers in the data.
        duration: length L of the phase, the lag at which shares are taken.
        floor: the S that noise in the measurement alone makes.
    """
    criteria = np.array([fit.deviance + fit.freedom * math.log(size) for fit in fits])
    criteria -= criteria.min()
    weights = np.exp(-criteria / 2)
    weights /= weights.sum()
    return tuple(
        Evidence(
            parts=fit.parts,
            criterion=float(criterion),
            probability=float(weight),
            kinds=_kinds(fit, duration, floor),
            shares=_shares(fit, duration, floor),
        )
        for fit, criterion, weight in zip(fits, criteria, weights, strict=True)
    )


def probabilities(evidence: Sequence[Evidence]) -> dict[Kind, float]:
    """Return each kind's probability over all models; 1 minus their sum is undecided."""
    return {kind: sum(e.probability * e.kinds[kind] for e in evidence) for kind in KINDS}


def mean_shares(evidence: Sequence[Evidence]) -> dict[str, float]:
    """Return the shares, averaged over the models by their probability."""
    return {
        part: sum(model.probability * model.shares[part] for model in evidence)
        for part in evidence[0].shares
    }


def decide(probability: dict[Kind, float], count: int) -> Verdict:
    """Return the kind that is certain enough, or "undecided".

    Args:
        probability: kind of motion → its probability.
        count: number of kernels in phase II.
    """
    best = max(probability, key=lambda kind: probability[kind])
    enough = count >= ENOUGH or best == "frozen"
    return best if enough and probability[best] >= CERTAIN else "undecided"


def _kinds(fit: Fit, duration: float, floor: float) -> dict[Kind, float]:
    """Return each kind's share of draws from the normal approximation of the likelihood.

    A confined motion reaches 95 % of its plateau at a lag of 3 τ. If the phase is shorter, it
    cannot be told from free diffusion: draws in which such a motion rules have no kind.
    """
    normal = np.random.default_rng(0).standard_normal((DRAWS, len(fit.covariance)))
    values, vectors = np.linalg.eigh(fit.covariance)
    steps = normal @ (vectors * np.sqrt(np.clip(values, 0.0, None))).T
    factors = np.exp(np.clip(steps[:, : len(fit.parts)], -30.0, 30.0)).T
    amplitudes = {
        part: fit.amplitudes[part] * factor for part, factor in zip(fit.parts, factors, strict=True)
    }
    times = duration * np.exp(np.clip(fit.shape + steps[:, -1] - math.log(duration), -30.0, 30.0))
    noise, moved, relaxing = _displacements(amplitudes, times, duration, floor)
    beyond = moved.sum(axis=0)
    still = beyond + noise <= 2 * floor
    open_end = (times > duration / 3) & (relaxing > (1 - RULING) * beyond) & ~still
    ruling = (moved >= RULING * beyond) & ~still & ~open_end
    mixed = ~(still | open_end | ruling.any(axis=0))
    rows = (still, *ruling, mixed)
    return {kind: float(row.mean()) for kind, row in zip(KINDS, rows, strict=True)}


def _shares(fit: Fit, duration: float, floor: float) -> dict[str, float]:
    amplitudes = {part: np.array([a]) for part, a in fit.amplitudes.items()}
    noise, moved, _ = _displacements(amplitudes, np.exp([fit.shape]), duration, floor)
    total = float(moved.sum() + noise[0])
    parts = {part: float(row[0]) / total for part, row in zip(RULES, moved, strict=True)}
    return {"noise": float(noise[0]) / total, **parts}


def _displacements(
    amplitudes: dict[str, Float64Array], times: Float64Array, duration: float, floor: float
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return mean squared displacements at the lag `duration`, for N draws of the parameters.

    They are of noise, [N]; of confined motion, diffusion and drift, [3, N]; and of the confined
    motion that is seen to relax, [N]. Jitter up to the floor is noise, and above it confined motion
    that relaxes faster than kernels are taken.
    """
    nothing = np.zeros_like(amplitudes["jitter"])
    jitter = 2 * amplitudes["jitter"]
    noise = np.minimum(jitter, 2 * floor)
    relaxing = nothing
    if "confined" in amplitudes:
        relaxing = -2 * amplitudes["confined"] * np.expm1(-duration / times)
    diffusion, drift = (amplitudes.get(part, nothing) for part in ("diffusion", "drift"))
    return noise, np.array([jitter - noise + relaxing, diffusion, drift]), relaxing
