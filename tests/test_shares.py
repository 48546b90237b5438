"""Axes of shares end at 0 and 100 % or a line's width beyond, whatever the shares are."""

import numpy as np
import pytest

from conescope.report.matplotlib_drawing import draw
from conescope.report.plot import Line, LinePlot, Mark
from conescope.report.plotly_drawing import chart


def plot_of(values, **changes):
    line = Line("accuracy", np.arange(len(values)), np.array(values))
    return LinePlot("", "", "accuracy", [line], percent=True, **changes)


@pytest.mark.parametrize("from_zero", [True, False])
@pytest.mark.parametrize("values", [[0.0], [0.1] * 3, [1.0] * 3, [0.9, 1.0], [np.nan, 1.0]])
def test_an_axis_of_shares_goes_no_further_than_they_can(values, from_zero):
    plot = plot_of(values, from_zero=from_zero)
    for low, high in (
        draw(plot).axes[0].get_ylim(),
        chart(plot).layout.yaxis.range,
    ):
        assert 0 <= low < np.nanmin(values) or low == 0
        assert np.nanmax(values) < high <= 1.04
        assert (low == 0) or not from_zero


def test_bands_and_marks_are_held():
    mark = Mark("chance", "y", 0.3, 0.2, 0.4)
    line = Line("a", np.arange(2), np.array([0.5, 0.5]), np.array([0.1, 0.4]), np.array([0.6, 0.8]))
    plot = LinePlot("", "", "accuracy", [line], marks=[mark], percent=True, from_zero=False)
    low, high = plot.vertical_limits
    assert 0.05 < low < 0.1
    assert 0.8 < high < 0.85


def test_what_is_no_share_of_one_whole_is_left_to_who_draws():
    assert plot_of([-0.2, 1.0]).vertical_limits is None
    assert plot_of([0.2, 1.3]).vertical_limits is None
    assert plot_of([np.nan]).vertical_limits is None
