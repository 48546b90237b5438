"""Colours of a dark page: every colour of a chart has its own there, and they can be told apart."""

import re
from itertools import combinations

import numpy as np
import pytest

from conescope.report.page import report_page
from conescope.report.plotly_looks import AT_NIGHT
from conescope.report.style import LINE_COLOURS, LINE_COLOURS_AT_NIGHT
from made_runs import layered, made_run, made_series

BOTH = {"#777777", "#999999"}
"""Greys that are seen on light and on dark pages."""

SEEN_BY = {
    "all cones": np.eye(3),
    "no long ones": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
    "no middle ones": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "no short ones": np.array(
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]
    ),
}
"""What of linear RGB is left (Machado et al., 2009, at full severity)."""


def linear(colour):
    values = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The ratio by which WCAG judges two colours."""
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.0888]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_lines_are_seen_on_a_dark_page():
    page = AT_NIGHT["#ffffff"]
    assert min(contrast(colour, page) for colour in LINE_COLOURS_AT_NIGHT) >= 4.5
    assert contrast(AT_NIGHT["#1a1a1a"], page) >= 7


@pytest.mark.parametrize("eyes", SEEN_BY)
@pytest.mark.parametrize("colours", [LINE_COLOURS, LINE_COLOURS_AT_NIGHT])
def test_the_colour_blind_tell_lines_apart(colours, eyes):
    seen = [lab(SEEN_BY[eyes] @ linear(colour)) for colour in colours]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 15


def test_the_way_to_the_night_and_back_is_one():
    assert len(set(AT_NIGHT.values())) == len(AT_NIGHT)


def test_every_colour_of_a_page_is_known_at_night():
    page = report_page(made_run(layered(made_series(range(0, 1001, 20), samples=20))))
    charts = "".join(re.findall(r'data-chart="[^"]*">(.*?)</script>', page, re.DOTALL))
    found = set(re.findall(r'"[a-z_]*color":"([^"]*)"', charts))
    found |= set(re.findall(r'[0-9.]+,"(#[0-9a-fA-F]{6})"\]', charts))
    assert len(found) > 70
    assert found - BOTH <= AT_NIGHT.keys()
