"""The main numbers of a run, and the choice of τ and dt for its figures.

Figures, report and command line all take both from here, so they cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from conescope.errors import KernelError, TrainingError
from conescope.kernel.distance import Float64Array
from conescope.kernel.estimates import jackknife
from conescope.kernel.features import Features
from conescope.kernel.series import KernelSeries
from conescope.report.stage_marks import stages_of
from conescope.runs.reader import Run
from conescope.training.recipe import FIELDS, Recipe

Curves = dict[int, tuple[np.ndarray, Float64Array, Float64Array | None]]
"""τ or dt → the iterations t, [T'], the distances S there, [T'], and their standard errors, [T'];
None for exact kernels."""


def default_taus(series: KernelSeries) -> tuple[int, ...]:
    """Return the reference points τ of figure 1a: the first kernel, and four spread over the run.

    The four are the kernels nearest to 1/5, 2/5, 3/5 and 4/5 of the way from the first step to
    the last; for kernels up to 10,000 these are the paper's 2000, 4000, 6000 and 8000.
    """
    first, last = series.steps[0], series.steps[-1]
    wanted = [first + (last - first) * fifth / 5 for fifth in range(5)]
    return tuple(sorted({min(series.steps, key=lambda s: abs(s - w)) for w in wanted}))


def default_lags(series: KernelSeries) -> tuple[int, ...]:
    """Return the lags dt of figure 1b: one to five times the usual gap between two kernels.

    Lags that no pair of kernels has are left out, so a single kernel has none. For a kernel
    every 100 iterations these are the paper's 100, 200, 300, 400 and 500.
    """
    gaps = np.diff(series.steps)
    if len(gaps) == 0:
        return ()
    counts = Counter(gaps.tolist())
    cadence = min(counts, key=lambda gap: (-counts[gap], gap))
    multiples = (cadence * m for m in range(1, 6))
    return tuple(dt for dt in multiples if len(series.distances_after(dt)[0]))


def curves_from(series: KernelSeries) -> Curves:
    """Return S(θ(t), θ(τ)) against t for each of `default_taus` (arXiv:2503.16316, figure 1a).

    Raises:
        KernelError: if there are fewer than two kernels.
    """
    require_pair(series)
    steps = np.array(series.steps)
    errors = _errors(series)
    return {
        tau: (
            steps,
            series.distances_from(tau),
            None if errors is None else errors[:, series.index(tau)],
        )
        for tau in default_taus(series)
    }


def curves_after(series: KernelSeries) -> Curves:
    """Return S(θ(t), θ(t + dt)) against t for each of `default_lags` (figure 1b).

    Raises:
        KernelError: if there are fewer than two kernels.
    """
    require_pair(series)
    errors = _errors(series)
    return {
        dt: (
            *series.distances_after(dt),
            None if errors is None else errors[series.pairs_after(dt)],
        )
        for dt in default_lags(series)
    }


def _errors(series: KernelSeries) -> Float64Array | None:
    return None if series.draws is None else series.standard_errors()


def estimated_by(series: KernelSeries) -> str | None:
    """Return how the kernels were estimated, such as "by 4 random cotangents"; None if exact."""
    first = series.measured[0]
    if isinstance(first, Features):
        return f"by a projection to {first.values.shape[1]:,} dimensions"
    if first.draws is None:
        return None
    count = len(first.draws)
    return f"by {count} random cotangent{'' if count == 1 else 's'}"


def about_errors(series: KernelSeries) -> str:
    """Return the sentences that a caption adds for estimates; nothing for exact kernels."""
    estimated = estimated_by(series)
    if estimated is None:
        return ""
    about = f" The kernels are estimated {estimated}"
    if series.draws is None:
        return f"{about}."
    return f"{about}; bands are ± one standard error of the estimate, and 0 is less than its noise."


def require_pair(series: KernelSeries) -> None:
    """Raise `KernelError` unless there are two kernels to have a distance."""
    if len(series) < 2:
        raise KernelError(
            f"a distance needs two kernels, and there is only the one at step {series.steps[0]}; "
            "let the run go on to its next kernel"
        )


def evaluations(run: Run) -> Mapping[str, np.ndarray]:
    """Return the run's losses and accuracy, [E] each.

    Raises:
        TrainingError: if nothing has been evaluated yet.
    """
    if len(run.scalars["step"]) == 0:
        if run.recipe is None:
            raise TrainingError(
                "loss and accuracy were not recorded, only kernels; look at their distances instead"
            )
        raise TrainingError(
            "loss and accuracy have not been evaluated yet; let the run go on to its first "
            "evaluation"
        )
    return run.scalars


def state(run: Run) -> str:
    """Return whether the run is finished, if not how far its kernels reach, and what it lost."""
    lost = f"; lost to damage: {'; '.join(run.lost)}" if run.lost else ""
    if run.finished:
        return f"finished{lost}"
    end = "" if run.total_steps is None else f" of {run.total_steps:,}"
    return f"unfinished: kernels up to step {run.series.steps[-1]:,}{end}{lost}"


def main_numbers(run: Run) -> dict[str, str]:
    """Return the main numbers of a run: name → value as text, in the order to show them.

    The second half of a run counts from half of the last kernel's step. Numbers that a short
    run does not have yet are left out.
    """
    return {
        **_extent(run),
        **_performance(run),
        **distance_numbers(run.series),
        **neighbour_numbers(run.series),
    }


def _extent(run: Run) -> dict[str, str]:
    series = run.series
    first, estimated = series.measured[0], estimated_by(series)
    span = f"steps {series.steps[0]:,} to {series.steps[-1]:,}"
    skipped = {"skipped to save time": f"{len(run.skipped):,} iterations"} if run.skipped else {}
    lineage = run.recipe.lineage if run.recipe else None
    return {
        "state": state(run),
        **({"training": lineage} if lineage else {}),
        **_changed(run),
        "iterations": f"{series.steps[-1] if run.total_steps is None else run.total_steps:,}",
        "kernels": f"{len(series):,}, {span}",
        **({"stages": stages_of(run.stages)} if run.stages else {}),
        **skipped,
        "probe": f"n = {first.values.shape[0]:,}",
        "kernel outputs": "trace" if isinstance(first, Features) else str(first.outputs),
        **({} if estimated is None else {"kernel": f"estimated {estimated}"}),
        "time": _duration(run.seconds),
    }


_CHANGED = {
    "training.loss": "loss",
    "data.label_noise": "training labels drawn anew",
    "data.train_size": "training samples",
    "training.replacement": "batches with replacement",
    "training.precision": "precision of training",
    "training.memory_format": "memory format",
    "training.compile": "compiled",
}
"""Field of a recipe that is shown where it differs from its default → what it is called."""


def _changed(run: Run) -> dict[str, str]:
    """Return what of a training's loss, data and arithmetic is not the usual."""
    if not isinstance(run.recipe, Recipe):
        return {}
    found = {name: (run.recipe.get(field), field) for field, name in _CHANGED.items()}
    return {
        name: f"{100 * value:.3g}%" if isinstance(value, float) else str(value)
        for name, (value, field) in found.items()
        if value != FIELDS[field].default
    }


def _performance(run: Run) -> dict[str, str]:
    formats = {"test_accuracy": "{:.2%}", "test_loss": "{:.4g}", "train_loss": "{:.4g}"}
    return {
        f"{name.replace('_', ' ')}, last": text.format(float(run.scalars[name][-1]))
        for name, text in formats.items()
        if len(run.scalars[name])
    }


def distance_numbers(series: KernelSeries) -> dict[str, str]:
    """Return the kernel distance S between the last kernel and the first."""
    if len(series) < 2:
        return {}
    first, last = series.steps[0], series.steps[-1]
    return {f"S({last:,}, {first:,})": _text(series, lambda s: s[0, -1], "{:.3g}")}


def neighbour_numbers(series: KernelSeries) -> dict[str, str]:
    """Return distances and velocities between neighbours, at first and in the second half."""
    if len(series) < 2:
        return {}
    late = _late_pairs(series)
    numbers = {
        f"mean S(t, t + {dt:,}), second half": _text(
            series, lambda s, pairs=pairs: s[pairs].mean(), "{:.3g}"
        )
        for dt, pairs in late.items()
    }
    dt = min(default_lags(series))
    starts, ends = series.pairs_after(dt)
    velocity, unit = "{:.2e}", " per iteration"
    numbers[f"velocity at t = {series.steps[starts[0]]:,}, dt = {dt:,}"] = (
        _text(series, lambda s: float(s[starts[0], ends[0]]) / dt, velocity) + unit
    )
    if dt in late:
        numbers[f"mean velocity, second half, dt = {dt:,}"] = (
            _text(series, lambda s: s[late[dt]].mean() / dt, velocity) + unit
        )
    return numbers


def _late_pairs(series: KernelSeries) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return lag → the pairs of kernels that begin in the second half, for lags that have some."""
    found = {}
    for dt in default_lags(series):
        starts, ends = series.pairs_after(dt)
        late = np.array(series.steps)[starts] >= series.steps[-1] / 2
        if late.any():
            found[dt] = (starts[late], ends[late])
    return found


def _text(series: KernelSeries, read: Callable[[Float64Array], float], form: str) -> str:
    """Return a number that is read from the distances, of estimates with its standard error."""
    text = form.format(read(series.distances()))
    if series.draws is None:
        return text
    found = series.estimated
    without = np.array([read(distances) for distances in found.without])
    _, error = jackknife(np.array(read(found.plain)), without)
    return f"{text} ± {float(error):.1g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
