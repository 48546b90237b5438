from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from benchmarks.cone import cones, covered
from benchmarks.cone import main as benchmark
from benchmarks.simulated_motions import CONFINED, MOTIONS, Motion, frozen, simulate, steps

import conescope as cs
from conescope.errors import KernelError
from conescope.statistics.cone import cone, mean_squared_displacement, over_seeds
from conescope.statistics.cone.motions import FULL, Likelihood
from conescope.statistics.cone.tangent_plane import tangents_at_axis
from conescope.statistics.cone.time_modes import time_modes
from conescope.statistics.cone.verdict import RULES

NUMBER = 30


@cache
def simulated_cones(name: str):
    return list(cones(name, 100, 10))


@pytest.mark.parametrize("name", MOTIONS)
def test_verdicts_are_right_and_never_wrong_and_intervals_hold_the_truth(name):
    pairs = list(cones(name, 100, NUMBER))
    right = MOTIONS[name].kind(9900)
    verdicts = [found.verdict for _, found in pairs]
    assert verdicts.count(right) >= 0.93 * NUMBER
    assert set(verdicts) <= {right, "undecided"}
    outcomes = [covered(*pair) for pair in pairs]
    for quantity in outcomes[0]:
        # An interval that covers in 95 of 100 cases does so in fewer than 24 of 30 once in 1,700.
        assert sum(outcome[quantity] for outcome in outcomes) >= 0.8 * NUMBER, quantity


@pytest.mark.parametrize("what", ["table", "bootstrap", "time"])
def test_the_benchmark_runs(what, capsys):
    benchmark([what, "--series", "1", "--kernels", "24", "--samples", "12"])
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(("| drift |", "cone: "))]
    assert len(rows) == (1 if what == "time" else 2)
    assert "nan" not in out


def test_rounding_errors_are_frozen():
    assert all(cone(frozen(100, seed)).verdict == "frozen" for seed in range(5))


@pytest.mark.parametrize("name", ["confined", "free diffusion", "mixed"])
def test_little_data_are_undecided_rather_than_wrong(name):
    for truth, found in cones(name, 25, 10):
        assert found.verdict in ("undecided", truth.motion.kind(truth.late[-1]))
    assert all(found.verdict == "undecided" for _, found in cones(name, 12, 5))


@pytest.mark.parametrize("seed", range(8))
def test_the_dimension_of_a_motion_about_as_fast_as_the_kernels_come(seed: int):
    motion = Motion(confined=0.02, relaxation=40.0, diffusion=0.01)
    simulated = simulate(motion, 50, seed)
    truth = motion.participation(simulated.late)
    assert cone(simulated.series).dimension.value == pytest.approx(truth, rel=0.25)


def test_a_motion_below_the_floor_is_frozen_and_above_it_is_not():
    series = simulate(Motion(jitter=1e-3), 100, 0).series
    assert cone(series, floor=1.5e-3).verdict == "frozen"
    above = cone(series, floor=5e-4)
    assert above.verdict == "confined"
    assert above.shares["noise"] == pytest.approx(0.5, abs=0.05)


def test_shares_and_probabilities_add_up():
    _, found = simulated_cones("mixed")[0]
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert sum(model.probability for model in found.evidence) == pytest.approx(1.0)
    assert [m.criterion for m in found.evidence] == sorted(m.criterion for m in found.evidence)
    assert 0.0 <= sum(found.probability.values()) <= 1.0 + 1e-12
    assert set(found.shares) == {"noise", *RULES}


def test_the_scale_of_the_kernels_does_not_matter():
    series = simulate(CONFINED, 30, 3).series
    rng = np.random.default_rng(0)
    scaled = cs.KernelSeries(
        series.steps, [cs.Kernel(k.values * rng.uniform(0.1, 10)) for k in series.kernels]
    )
    one, other = cone(series), cone(scaled)
    assert other.radius.value == pytest.approx(one.radius.value, rel=1e-4)
    assert other.half_angle.value == pytest.approx(one.half_angle.value, rel=1e-9)


def test_the_axis_is_a_unit_vector_at_the_half_angle():
    series = simulate(replace(CONFINED, entrance=20), 60, 1).series
    found = cone(series)
    units = torch.stack([k.values.flatten() / k.values.norm() for k in series.kernels]).numpy()
    axis = found.axis @ units
    assert np.linalg.norm(axis) == pytest.approx(1.0)
    late = units[np.array(series.steps) >= found.first]
    angles = np.arccos(late @ axis)
    assert found.half_angle.value == pytest.approx(np.sqrt((angles**2).mean()), rel=1e-3)


def test_unresolved_relaxation_is_an_interval_from_zero():
    found = cone(simulate(Motion(jitter=0.01), 100, 0).series)
    assert found.relaxation_time is not None
    assert found.relaxation_time.low == found.relaxation_time.value == 0.0
    assert 0.0 < found.relaxation_time.high < 100.0


def test_the_first_phase_is_left_out():
    truth, found = simulated_cones("change point, then confined")[0]
    assert found.boundary is not None
    assert found.first == found.boundary.value
    assert found.last == truth.series.steps[-1]
    assert not found.axis[: truth.series.index(found.first)].any()


def test_tangent_vectors_are_the_spheres_logarithm():
    truth = simulate(replace(CONFINED, confined=0.3), 12, 0)
    units = np.array([k.values.flatten().numpy() for k in truth.series.kernels])
    axis = units.mean(axis=0) / np.linalg.norm(units.mean(axis=0))
    cosines = units @ axis
    across = units - np.outer(cosines, axis)
    logs = across * (np.arccos(cosines) / np.linalg.norm(across, axis=1))[:, None]
    found = tangents_at_axis(truth.series.distances())
    assert found.gram == pytest.approx(logs @ logs.T, abs=1e-12)
    assert found.angles == pytest.approx(np.arccos(cosines))


def test_a_great_circle_is_a_straight_line():
    angles = np.linspace(0, 1.2, 15)
    distances = 1 - np.cos(angles[:, None] - angles[None, :])
    modes = time_modes(angles, tangents_at_axis(distances).gram)
    assert modes.power[0] == pytest.approx(((angles - angles.mean()) ** 2).sum())
    assert modes.power[1:] == pytest.approx(np.zeros(13), abs=1e-12)


@pytest.mark.parametrize("even", [True, False])
def test_modes_of_time(even):
    when = steps(40, np.random.default_rng(0), even=even)
    points = np.random.default_rng(1).standard_normal((40, 7))
    modes = time_modes(when, points @ points.T)
    assert modes.basis.T @ modes.basis == pytest.approx(np.eye(39), abs=1e-10)
    assert modes.basis.sum(axis=0) == pytest.approx(np.zeros(39), abs=1e-9)
    centred = points - points.mean(axis=0)
    assert modes.power.sum() == pytest.approx((centred**2).sum())
    lags = np.abs(modes.times[:, None] - modes.times[None, :])
    assert modes.variances(lags**2)[1:] == pytest.approx(np.zeros(38), abs=1e-4)
    brownian = modes.covariance(lags)[1:, 1:]
    assert brownian == pytest.approx(np.diag(brownian.diagonal()), abs=1e-8 * lags.max() * 40)
    assert (np.diff(brownian.diagonal()) < 0).all()


def test_the_likelihoods_gradient_is_its_derivative():
    truth = simulate(MOTIONS["mixed"], 40, 0)
    likelihood = Likelihood(time_modes(truth.late, tangents_at_axis(truth.series.distances()).gram))
    point = np.array([-1.0, 0.3, -0.5, 0.2, np.log(700.0)])
    _, gradient = likelihood._objective(point, FULL)
    for k in range(len(point)):
        step = np.zeros(len(point))
        step[k] = 1e-6
        after, before = (likelihood._objective(point + s, FULL)[0] for s in (step, -step))
        assert gradient[k] == pytest.approx((after - before) / 2e-6, rel=1e-5, abs=1e-6)


def test_the_mean_squared_displacement_is_the_plain_mean():
    series = simulate(CONFINED, 20, 0).series
    found = mean_squared_displacement(np.array(series.steps), series.distances())
    for lag, mean, pairs in zip(found.lags, found.mean, found.pairs, strict=True):
        _, distances = series.distances_after(int(lag))
        assert len(distances) == pairs
        assert mean == pytest.approx(2 * distances.mean())


def test_one_kernel_has_no_displacement():
    with pytest.raises(KernelError, match="at least two kernels, not 1"):
        mean_squared_displacement(np.array([0]), np.zeros((1, 1)))


def test_the_fit_follows_the_displacement():
    _, found = simulated_cones("confined")[0]
    short = found.displacement.lags < 3000
    assert found.fitted[short] == pytest.approx(found.displacement.mean[short], rel=0.15)


def test_seeds_together():
    together = over_seeds([found for _, found in simulated_cones("confined")])
    assert together.verdict == "confined"
    assert np.sqrt(0.021) in together.radius
    assert together.boundary is None
    with pytest.raises(KernelError, match="at least two runs, not 1"):
        over_seeds([simulated_cones("confined")[0][1]])
    with pytest.raises(KernelError, match="level"):
        over_seeds([found for _, found in simulated_cones("confined")], level=1.0)


def test_seeds_that_disagree_are_undecided():
    kinds = [simulated_cones(name)[0][1] for name in ("confined", "drift")]
    assert over_seeds(kinds).verdict == "undecided"


def test_intervals_over_seeds_end_where_the_quantity_does():
    near, far = (simulated_cones(name)[0][1] for name in ("confined", "drift"))
    wide = over_seeds([near, far], level=0.999)
    for estimate in (wide.radius, wide.half_angle, wide.start_distance):
        assert estimate.low == 0 < estimate.value < estimate.high
    assert wide.exponent.low < 0


def kernels(count: int) -> list[cs.Kernel]:
    return list(simulate(CONFINED, count, 0).series.kernels)


def test_too_few_kernels():
    with pytest.raises(KernelError, match="9 kernels tells nothing: at least 10"):
        cone(cs.KernelSeries(range(9), kernels(9)))


def test_kernels_of_one_number_have_no_direction():
    some = [cs.Kernel(torch.rand(1, 1) + 0.1) for _ in range(12)]
    with pytest.raises(KernelError, match="one number has no direction"):
        cone(cs.KernelSeries(range(12), some))


def test_identical_kernels_are_named():
    some = kernels(12)
    some[7] = cs.Kernel(some[3].values.clone())
    with pytest.raises(KernelError, match=r"steps 3 and 7 are identical.*same file twice"):
        cone(cs.KernelSeries(range(12), some))


def test_kernels_that_differ_in_scale_only_have_no_motion():
    some = [cs.Kernel(torch.ones(4, 4) * 2.0**step) for step in range(12)]
    with pytest.raises(KernelError, match="from step 0 to 11 the kernels differ in their scale"):
        cone(cs.KernelSeries(range(12), some))


def test_a_kernel_of_nan_is_named():
    some = kernels(12)
    some[5] = cs.Kernel(torch.full_like(some[5].values, torch.nan))
    with pytest.raises(KernelError, match=r"at step 50, .*NaN"):
        cone(cs.KernelSeries(range(0, 120, 10), some))


def test_steps_out_of_order_and_mixed_conventions():
    some = kernels(12)
    with pytest.raises(KernelError, match="must rise"):
        cone(cs.KernelSeries([0, 2, 1, *range(3, 12)], some))
    some[2] = cs.Kernel(some[2].values, outputs="sum")
    with pytest.raises(KernelError, match="different conventions"):
        cone(cs.KernelSeries(range(12), some))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"floor": -1.0}, "at least 0, not -1"),
        ({"floor": float("nan")}, "at least 0, not nan"),
        ({"level": 0.0}, "between 0 and 1, not 0"),
        ({"level": 95}, "between 0 and 1, not 95"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(KernelError, match=message):
        cone(simulate(CONFINED, 12, 0).series, **arguments)
