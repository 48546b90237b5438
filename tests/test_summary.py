import numpy as np
import pytest

from conescope.errors import KernelError, TrainingError
from conescope.report.plot import readable_scale
from conescope.report.summary import (
    curves_after,
    curves_from,
    default_lags,
    default_taus,
    evaluations,
    main_numbers,
)
from made_runs import constant_series, made_run, made_series, without_evaluations


def test_defaults_are_the_papers_on_the_papers_schedule():
    series = constant_series(range(0, 10_001, 100))
    assert default_taus(series) == (0, 2000, 4000, 6000, 8000)
    assert default_lags(series) == (100, 200, 300, 400, 500)


@pytest.mark.parametrize(
    "steps", [(0,), (7,), (0, 1), (0, 50, *range(100, 901, 100)), (0, 1, 2, 4, 8, 16, 32, 64)]
)
def test_defaults_exist_on_any_schedule(steps):
    series = constant_series(steps)
    taus, lags = default_taus(series), default_lags(series)
    assert taus[0] == steps[0]
    assert list(taus) == sorted(set(taus))
    assert set(taus) <= set(steps)
    assert all(len(series.distances_after(dt)[0]) for dt in lags)
    assert bool(lags) == (len(steps) > 1)


def test_usual_gap_ignores_denser_kernels_at_the_start():
    assert default_lags(constant_series((0, 50, *range(100, 901, 100))))[0] == 100


def test_curves_are_the_series_own():
    series = made_series(range(0, 101, 10))
    from_fixed, after = curves_from(series), curves_after(series)
    assert (tuple(from_fixed), tuple(after)) == (default_taus(series), default_lags(series))
    for tau, (steps, distances, _) in from_fixed.items():
        assert tuple(steps) == series.steps
        np.testing.assert_array_equal(distances, series.distances_from(tau))
    for dt, (steps, distances, _) in after.items():
        np.testing.assert_array_equal(steps, series.distances_after(dt)[0])
        np.testing.assert_array_equal(distances, series.distances_after(dt)[1])


@pytest.mark.parametrize("curves", [curves_from, curves_after])
def test_one_kernel_has_no_distance(curves):
    with pytest.raises(KernelError, match="only the one at step 5"):
        curves(made_series([5]))


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.02, 0.3], "log"),
        ([0.05, 0.3], "linear"),
        ([0.0, 0.3], "linear"),
        ([np.nan, 0.02, 0.3, np.inf], "log"),
        ([np.nan], "linear"),
        ([], "linear"),
    ],
)
def test_scale_is_logarithmic_over_more_than_a_decade_of_positive_values(values, scale):
    assert readable_scale([np.array(values)]) == scale


def test_main_numbers_are_the_series_own():
    run = made_run()
    numbers = main_numbers(run)
    steps, distances = run.series.distances_after(20)
    late = distances[steps >= 500].mean()
    assert numbers["S(1,000, 0)"] == f"{run.series.distances_from(0)[-1]:.3g}"
    assert numbers["mean S(t, t + 20), second half"] == f"{late:.3g}"
    assert numbers["velocity at t = 0, dt = 20"] == f"{distances[0] / 20:.2e} per iteration"
    assert numbers["mean velocity, second half, dt = 20"] == f"{late / 20:.2e} per iteration"
    assert numbers["test accuracy, last"] == f"{run.scalars['test_accuracy'][-1]:.2%}"
    assert numbers["probe"] == "n = 8"
    assert numbers["time"] == "1 min 15 s"


def test_main_numbers_of_a_run_just_begun():
    run = made_run(made_series([0]), finished=False, total_steps=1000)
    numbers = main_numbers(
        made_run(
            run.series,
            scalars=without_evaluations(run.scalars),
            finished=False,
            total_steps=1000,
        )
    )
    assert numbers["state"] == "unfinished: kernels up to step 0 of 1,000"
    assert not any(name.startswith(("S(", "mean", "velocity", "test")) for name in numbers)


def test_nothing_evaluated_yet():
    run = made_run()
    with pytest.raises(TrainingError, match="not been evaluated yet"):
        evaluations(made_run(scalars=without_evaluations(run.scalars)))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9.94, "9.9 s"), (59.99, "1 min 00 s"), (3599.7, "1 h 00 min"), (7384, "2 h 03 min")],
)
def test_time_is_said_in_the_largest_units(seconds, text):
    assert main_numbers(made_run(seconds=seconds))["time"] == text


def test_a_run_says_what_it_is_in_one_line():
    assert repr(made_run()) == "Run('made-1a2b3c4d', finished, 51 kernels, steps 0 to 1,000)"
    one = repr(made_run(made_series([5]), finished=False))
    assert one == "Run('made-1a2b3c4d', unfinished, 1 kernel, steps 5 to 5)"
