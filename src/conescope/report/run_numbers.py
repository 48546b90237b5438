"""The numbers of one run as a table of many runs has them, stored in its folder once it has ended.

Reading a cone's verdict takes seconds, so that a table of thousands of runs cannot compute it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from conescope.experiments.stored import read_recipe, read_run, read_status
from conescope.experiments.sweep.sweep_folder import DIGEST, ENDED, store_numbers
from conescope.kernel.series import KernelSeries
from conescope.report.run_analysis import RunAnalysis
from conescope.report.summary import default_lags
from conescope.runs.journal import Kind
from conescope.runs.reader import read_scalars
from conescope.runs.store import Folder
from conescope.statistics.cone import Cone
from conescope.statistics.cone.verdict import KINDS

NUMBERS: Mapping[str, str] = MappingProxyType(
    {
        "iterations": "the newest iteration of which something is stored",
        "kernels": "number of kernels",
        "seconds": "wall time over all sessions",
        "train_loss": "last loss on training data; cross-entropy is in nats",
        "test_loss": "last loss on test data; cross-entropy is in nats",
        "test_accuracy": "last accuracy on test data, 0 to 1",
        "S": "kernel distance of the last kernel to the first (eq. 4), 0 to 1",
        "v": "mean kernel velocity (eq. 5) of the second half at the shortest lag",
        "R": "plateau of the confined motion in phase II, a chord",
        "R_low": "lower end of R's 95 % interval",
        "R_high": "upper end of R's 95 % interval",
        "half_angle": "half-angle of the cone, in degrees",
        "half_angle_low": "lower end of the half-angle's 95 % interval",
        "half_angle_high": "upper end of the half-angle's 95 % interval",
        "phase_boundary": "t*, the iteration at which phase II begins",
        **{f"p_{kind.replace(' ', '_')}": f"probability of the motion {kind}" for kind in KINDS},
    }
)
"""Name of a number → what it is; empty where a run is too short for it."""


def store_run_numbers(path: Path) -> None:
    """Compute the numbers of a run that has ended, and store them in its folder.

    Raises:
        StoreError: if the folder holds no run, a kernel is damaged, or they cannot be written.
    """
    numbers = run_numbers(path)
    if numbers["state"] in ENDED:
        store_numbers(path, numbers)


def _digest(folder: Folder) -> str | None:
    """Return what tells a run's recipe from all others; None if it has no recipe."""
    run = folder.entries(Kind.RUN)[-1]
    return read_recipe(folder).digest if "recipe" in run.values else None


def run_numbers(path: Path) -> dict[str, Any]:
    """Return state, recipe, verdict and each of `NUMBERS` of a run; None for what it lacks.

    "likeliest" is the most probable kind of motion, and "probability" its probability; the verdict
    is the same kind, or undecided if the probability is below 0.9.

    Raises:
        StoreError: if the folder holds no run, or a kernel is damaged.
    """
    folder = Folder(path)
    status, scalars = read_status(folder), read_scalars(folder)
    ends = {"finished": status.finished, "diverged": status.diverged}
    found: dict[str, Any] = dict.fromkeys(("verdict", "likeliest", "probability", *NUMBERS))
    found |= {
        "state": next((state for state, holds in ends.items() if holds), "stopped"),
        DIGEST: _digest(folder),
        "iterations": status.step,
        "kernels": status.kernels,
        "seconds": status.seconds,
    }
    for name in ("train_loss", "test_loss", "test_accuracy"):
        if len(scalars[name]):
            found[name] = float(scalars[name][-1])
    if status.kernels:
        found |= kernel_numbers(RunAnalysis(read_run(folder)))
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in found.items()
    }


def kernel_numbers(analysis: RunAnalysis) -> dict[str, Any]:
    """Return those of the numbers, and of the verdict, that come from the kernels of a run."""
    series = analysis.run.series
    found: dict[str, Any] = _distances(series) if len(series) > 1 else {}
    motion = analysis.cone_if_any
    return found if motion is None else found | _motion(motion)


def _distances(series: KernelSeries) -> dict[str, float]:
    distances = series.distances()
    found = {"S": float(distances[0, -1])}
    for dt in default_lags(series)[:1]:
        starts, ends = series.pairs_after(dt)
        late = np.array(series.steps)[starts] >= series.steps[-1] / 2
        if late.any():
            found["v"] = float(distances[starts, ends][late].mean()) / dt
    return found


def _motion(motion: Cone) -> dict[str, Any]:
    likeliest = max(motion.probability, key=lambda kind: motion.probability[kind])
    radius, angle = motion.radius, motion.half_angle
    return {
        "verdict": motion.verdict,
        "likeliest": likeliest,
        "probability": motion.probability[likeliest],
        "R": radius.value,
        "R_low": radius.low,
        "R_high": radius.high,
        "half_angle": math.degrees(angle.value),
        "half_angle_low": math.degrees(angle.low),
        "half_angle_high": math.degrees(angle.high),
        "phase_boundary": None if motion.boundary is None else motion.boundary.value,
        **{f"p_{kind.replace(' ', '_')}": p for kind, p in motion.probability.items()},
    }
