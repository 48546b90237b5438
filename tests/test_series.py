import numpy as np
import pytest
import torch

import conescope as cs
from conescope.errors import ArgumentError, KernelError
from conescope.kernel.multidimensional_scaling import classical_mds


def series_on_a_circle(angles, steps=None):
    """Kernels that turn in a plane: S between two of them is 1 − cos of the angle between."""
    u, v = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64).flip(0)
    kernels = [cs.Kernel(np.cos(a) * u + np.sin(a) * v) for a in angles]
    return cs.KernelSeries(steps or range(0, 10 * len(angles), 10), kernels)


def test_distances_and_cosines_are_those_of_the_angles():
    angles = np.linspace(0, 1.2, 9)
    series = series_on_a_circle(angles)
    between = angles[:, None] - angles[None, :]
    np.testing.assert_allclose(series.cosines(), np.cos(between), atol=1e-14)
    np.testing.assert_allclose(series.distances(), 1 - np.cos(between), atol=1e-14)


def test_figure_1a_is_a_column_and_figure_1b_an_off_diagonal():
    series = series_on_a_circle(np.linspace(0, 1.2, 9))
    np.testing.assert_array_equal(series.distances_from(30), series.distances()[:, 3])
    steps, distances = series.distances_after(20)
    np.testing.assert_array_equal(steps, range(0, 70, 10))
    np.testing.assert_array_equal(distances, np.diagonal(series.distances(), offset=2))
    np.testing.assert_array_equal(series.velocities(20)[1], distances / 20)


def test_uneven_steps_pair_only_what_is_dt_apart():
    series = series_on_a_circle([0.0, 0.1, 0.2, 0.3], steps=[0, 5, 10, 20])
    steps, distances = series.distances_after(10)
    np.testing.assert_array_equal(steps, [0, 10])
    np.testing.assert_allclose(distances, [1 - np.cos(0.2), 1 - np.cos(0.1)], atol=1e-14)
    assert len(series.distances_after(7)[0]) == 0


def test_what_it_hands_out_can_be_changed_without_harm():
    series = series_on_a_circle([0.0, 0.5, 1.0])
    series.distances()[:] = 7
    series.distances_from(0)[:] = 7
    assert series.distances().max() < 1


def test_the_embedding_keeps_chords_and_dimension():
    angles = np.linspace(0, 1.2, 9)
    series = series_on_a_circle(angles)
    points = series.embedding(3)
    chords = np.linalg.norm(points.coordinates[:, None] - points.coordinates[None, :], axis=-1)
    np.testing.assert_allclose(chords, np.sqrt(2 * series.distances()), atol=1e-7)
    assert points.shares[:2].sum() == pytest.approx(1.0)
    assert points.shares[2] == pytest.approx(0.0, abs=1e-12)
    assert points.coordinates[0, 0] < 0


def test_more_dimensions_than_kernels_are_empty():
    points = series_on_a_circle([0.0, 1.0]).embedding(3)
    assert points.coordinates.shape == (2, 3)
    np.testing.assert_allclose(points.coordinates[:, 1:], 0, atol=1e-7)


def test_one_kernel_is_a_series():
    series = series_on_a_circle([0.3])
    assert series.distances().tolist() == [[0.0]]
    assert series.cosines().tolist() == [[1.0]]
    assert series.distances_from(0).tolist() == [0.0]
    assert len(series.velocities(10)[1]) == 0


def test_distances_name_the_step_of_a_bad_kernel():
    bad = cs.Kernel(torch.full((2, 2), torch.nan))
    series = cs.KernelSeries([0, 10], [cs.Kernel(torch.eye(2)), bad])
    with pytest.raises(KernelError, match=r"at step 10, .*NaN"):
        series.distances()


def test_an_embedding_of_nothing_is_refused():
    with pytest.raises(KernelError, match="at least one dimension, not -1"):
        series_on_a_circle([0.0, 0.5]).embedding(-1)
    with pytest.raises(KernelError, match="at least two"):
        series_on_a_circle([0.0]).embedding()
    with pytest.raises(KernelError, match="the same"):
        classical_mds(np.zeros((3, 3)), 2)


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ([0, 10], "2 steps but 3"),
        ([0, 10, 10], "must rise"),
        ([10, 0, 20], "must rise"),
        ([0.2, 0.7, 1.5], "each a whole number"),
        ([-5, 0, 5], "at least 0, not -5"),
    ],
)
def test_steps_must_rise_and_fit(steps, word):
    with pytest.raises((KernelError, ArgumentError), match=word):
        cs.KernelSeries(steps, [cs.Kernel(torch.eye(2))] * 3)


@pytest.mark.parametrize("steps", [np.arange(3), torch.arange(3)])
def test_steps_of_any_integer_type(steps):
    assert cs.KernelSeries(steps, [cs.Kernel(torch.eye(2))] * 3).steps == (0, 1, 2)


def test_bad_questions_have_clear_answers():
    series = series_on_a_circle([0.0, 0.1, 0.2])
    with pytest.raises(KernelError, match="no kernel at step 12; the nearest is at step 10"):
        series.distances_from(12)
    with pytest.raises(KernelError, match="at least 1"):
        series.distances_after(0)
    with pytest.raises(KernelError, match="at least one kernel"):
        cs.KernelSeries([], [])
    with pytest.raises(KernelError, match="different conventions"):
        cs.KernelSeries([0, 1], [cs.Kernel(torch.eye(2)), cs.Kernel(torch.eye(2), outputs="sum")])
