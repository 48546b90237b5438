"""Every kind of plot, drawn by both renderers: a table of plot values."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.colors import to_hex

from conescope.report.figures import FIGURES
from conescope.report.html import chart_div
from conescope.report.matplotlib_drawing import draw
from conescope.report.plot import (
    BarPlot,
    Line,
    LinePlot,
    Mark,
    MatrixPlot,
    Panels,
    PathPlot,
)
from conescope.report.plotly_drawing import chart
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections import contents
from conescope.report.style import LINE_COLOURS, PAPER
from conescope.report.thinned import thinned
from made_runs import layered, made_run, made_series

STEPS = np.array([0, 10, 40, 100])
WORDS = ("A title", "A caption.")
BAND = Line("with *t*", STEPS, STEPS + 1.0, STEPS + 0.5, STEPS + 2.0)
GAPPED = Line("of one data", STEPS, np.array([3.0, np.nan, 1.0, 2.0]), style="dashed")
POINTS = Line("points", STEPS, STEPS / 10.0, style="points")
CROSSES = Line("crosses", STEPS, STEPS / 20.0, style="crosses", colour=4)
MARKS = (
    Mark("*t**", "x", 30.0, 20.0, 50.0),
    Mark("height", "y", 2.0, 2.0, 2.0, style="dash-dotted"),
)
LINES = LinePlot(*WORDS, "*y*", [BAND, GAPPED], "*x* (unit)")
RNG = np.random.default_rng(0)
MATRIX = MatrixPlot(*WORDS, "a", "b", "c", ["0", "1", "2"], RNG.random((3, 3)), percent=True)
PATH = PathPlot(*WORDS, ["one", "two"], RNG.random((4, 2)), STEPS.tolist(), list("abcd"))
HEAT = MatrixPlot(
    *WORDS, "a", "b", "c", ["0", "1", "2"], np.array([[0.1, 0.9, np.nan], [0.4, 0.5, 0.6]]),
    rows=["u", "v"], texts=[["i", "j", ""], ["k", "l", "m"]], most=1.0,
)  # fmt: skip
PLOTS = {
    "lines": LINES,
    "one line": LinePlot(*WORDS, "y", [GAPPED]),
    "nothing finite": LinePlot(
        *WORDS, "y", [Line("lost", STEPS, np.full(4, np.nan))], y_scale="readable"
    ),
    "points and marks": LinePlot(*WORDS, "y", [POINTS, CROSSES, BAND], marks=MARKS),
    "logarithmic": LinePlot(
        *WORDS, "y", [Line("a", STEPS[1:], STEPS[1:] ** 2.0)], "x", (), "log", "log", (1.0, 1e5)
    ),
    "readable": replace(LINES, y_scale="readable"),
    "shares": replace(LINES, percent=True, from_zero=False),
    "many lines": LinePlot(*WORDS, "y", [Line(str(k), STEPS, STEPS + 1.0 * k) for k in range(16)]),
    "bars": BarPlot(*WORDS, "share", ["a", "b"], {"*t* = 1": np.array([0.4, -0.1])}),
    "groups of bars": BarPlot(
        *WORDS, "share", ["a", "b"], {"u": np.array([0.4, -0.1]), "v": np.array([0.2, 0.3])}
    ),
    "matrix of names": MATRIX,
    "matrix of iterations": MatrixPlot(
        *WORDS, "a", "b", "c", STEPS.tolist(), RNG.random((4, 4)), colour="square root"
    ),
    "matrix of zeros": MatrixPlot(*WORDS, "a", "b", "c", [0, 1], np.zeros((2, 2))),
    "matrix of other rows, with texts and a gap": HEAT,
    "lines against small numbers": replace(LINES, x_whole=False),
    "path": PATH,
    "path in space": replace(PATH, labels=["1", "2", "3"], points=RNG.random((4, 3))),
    "lines in a column": Panels(*WORDS, [LINES, replace(LINES, y_scale="log")], note="a note"),
    "lines in a row": Panels(*WORDS, [LINES, LINES, LINES], "row"),
    "one panel": Panels(*WORDS, [LINES]),
    "mixed in a row": Panels(*WORDS, [LINES, PATH, MATRIX], "row"),
    "mixed in a column": Panels(
        *WORDS, [replace(PATH, labels=["1", "2", "3"], points=RNG.random((4, 3))), LINES, MATRIX]
    ),
}
RUN = made_run(layered(made_series(range(0, 1001, 20), samples=12)))
PLOTS |= {name: figure_of(RUN) for name, figure_of in FIGURES.items()}
for part in contents(RunAnalysis(RUN)):
    PLOTS |= part.plots


def parts(plot):
    return plot.panels if isinstance(plot, Panels) else [plot]


def italics(label):
    return re.sub(r"\*([^*]+)\*", r"<i>\1</i>", label)


def numbers(values):
    """An array of a chart, as the page's script has it."""
    if isinstance(values, dict):
        flat = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
        shape = values.get("shape")
        return flat.reshape([int(n) for n in shape.split(",")]) if shape else flat
    return np.array(values, dtype=float)


@pytest.mark.parametrize("name", PLOTS)
def test_matplotlib_draws_the_values(name):
    plot = PLOTS[name]
    figure = draw(plot, note="unfinished")
    figure.draw_without_rendering()
    assert figure.get_supxlabel().endswith("unfinished")
    axes = [part for part in figure.axes if part.get_label() != "<colorbar>"]
    for panel, drawn in zip(parts(plot), axes, strict=True):
        if isinstance(panel, LinePlot):
            lines = drawn.get_lines()[len(panel.marks) :]
            for line, one in zip(panel.lines, lines, strict=True):
                np.testing.assert_array_equal(one.get_ydata(), line.y)
                np.testing.assert_array_equal(one.get_xdata(), line.x)
            assert drawn.get_yscale() == panel.vertical_scale
            assert drawn.get_ylabel().replace("$", "").replace(r"\,", "") == (
                panel.y_label.replace("*", "")
            )
        elif isinstance(panel, BarPlot):
            widths = [bar.get_width() for bar in drawn.patches]
            assert widths == pytest.approx(np.concatenate(list(panel.shares.values())))
        elif isinstance(panel, MatrixPlot):
            cells = np.ma.filled(drawn.collections[0].get_array(), np.nan)
            np.testing.assert_array_equal(cells, panel.values)
        else:
            later, first = drawn.collections
            np.testing.assert_array_equal(later.get_array(), panel.steps[1:])
            assert to_hex(first.get_facecolor()[0]) == "#000000"
            assert drawn.get_aspect() in (1.0, "equal")
            if panel.points.shape[1] == 2:
                np.testing.assert_allclose(later.get_offsets(), panel.points[1:])


@pytest.mark.parametrize("name", PLOTS)
def test_the_chart_has_the_same_numbers_as_the_figure(name):
    plot = PLOTS[name]
    drawn = json.loads(chart(plot).to_json())
    traces = [t for t in drawn["data"] if t.get("hoverinfo") != "skip"]
    for panel in parts(plot):
        if isinstance(panel, LinePlot):
            for line in panel.lines:
                trace = traces.pop(0)
                assert trace["name"] == italics(line.label)
                np.testing.assert_array_equal(numbers(trace["y"]), line.y)
                np.testing.assert_array_equal(numbers(trace["x"]), line.x)
        elif isinstance(panel, BarPlot):
            for shares in panel.shares.values():
                np.testing.assert_array_equal(numbers(traces.pop(0)["x"]), shares)
        elif isinstance(panel, MatrixPlot):
            heat = traces.pop(0)
            np.testing.assert_allclose(numbers(heat["z"]), panel.values, rtol=1e-6)
            assert list(heat["x"]) == list(panel.places)
        else:
            points, start = traces.pop(0), traces.pop(0)
            for axis, column in zip("xyz", panel.points.T, strict=False):
                np.testing.assert_array_equal(numbers(points[axis]), column)
                np.testing.assert_array_equal(numbers(start[axis]), column[:1])
            np.testing.assert_array_equal(points["marker"]["color"], panel.steps)
            assert start["marker"]["color"] == "#000000"
    assert traces == []


@pytest.mark.parametrize("name", [n for n, p in PLOTS.items() if isinstance(p, LinePlot)])
def test_both_have_the_same_colours_scales_and_marks(name):
    plot = PLOTS[name]
    axes, drawn = draw(plot).axes[0], chart(plot)
    traces = [t for t in drawn.data if t.hoverinfo != "skip"]
    for one, trace in zip(axes.get_lines()[len(plot.marks) :], traces, strict=True):
        assert to_hex(one.get_color()) == trace.marker.color.lower()
        assert (one.get_marker() in (".", "o", "x")) == ("markers" in trace.mode)
    assert drawn.layout.yaxis.type == axes.get_yscale()
    assert drawn.layout.xaxis.type in (None, axes.get_xscale())
    assert drawn.layout.xaxis.title.text == italics(plot.x_label)
    lines = [shape for shape in drawn.layout.shapes if shape.type == "line"]
    ends = [(shape.x0, shape.y0) for shape in lines]
    assert [end["xy".index(m.axis)] for end, m in zip(ends, plot.marks, strict=True)] == [
        mark.value for mark in plot.marks
    ]
    bands = [shape for shape in drawn.layout.shapes if shape.type == "rect"]
    assert len(bands) == sum(mark.high > mark.low for mark in plot.marks)


def test_a_band_of_few_points_has_no_markers():
    few = np.arange(3.0)
    line = Line("", few, few, few - 1, few + 1)
    band = chart(LinePlot("", "", y_label="", lines=[line])).data[0]
    assert band.fill == "toself"
    assert band.mode == "lines"


def test_cells_with_texts_have_them_in_both():
    axes, drawn = draw(HEAT).axes[0], chart(HEAT)
    assert [text.get_text() for text in axes.texts] == ["i", "j", "", "k", "l", "m"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["u", "v"]
    assert axes.collections[0].get_clim() == (0.0, 1.0)
    heat = drawn.data[0]
    assert [list(row) for row in heat.text] == HEAT.texts
    assert (list(heat.y), heat.zmin, heat.zmax) == (["u", "v"], 0.0, 1.0)


def test_a_matrix_without_a_number_still_has_its_places_and_texts():
    (heat,) = chart(replace(HEAT, values=np.full((2, 3), np.nan))).data
    assert np.isfinite(heat.z).any()  # plotly leaves the trace out, and the axes empty, otherwise
    assert heat.opacity == 0.0
    assert not heat.showscale
    assert [list(row) for row in heat.text] == HEAT.texts


def test_symbols_are_in_italics():
    axes = draw(LinePlot(*WORDS, "*S(θ(t), θ(1,000))*", [BAND], "lag *dt* of $5")).axes[0]
    assert axes.get_xlabel() == r"lag $dt$ of \$5"
    assert axes.get_ylabel() == r"$S(θ(t),\, θ(1{,}000))$"
    axes.figure.draw_without_rendering()
    assert chart(LINES).layout.xaxis.title.text == "<i>x</i> (unit)"


def test_lines_beyond_the_palette_are_told_by_their_dashes():
    plot = PLOTS["many lines"]
    looks = [(t.line.color, t.line.dash) for t in chart(plot).data]
    assert looks[:2] == [(LINE_COLOURS[0], "solid"), (LINE_COLOURS[1], "solid")]
    assert looks[7] == (LINE_COLOURS[0], "dash")
    assert len(set(looks)) == 16
    drawn = [(line.get_color(), line.get_linestyle()) for line in draw(plot).axes[0].get_lines()]
    assert len(set(drawn)) == 16


def test_panels_of_lines_share_one_legend_and_in_a_column_their_axis():
    figure = draw(PLOTS["lines in a column"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["with $t$", "of one data"]
    upper, lower = figure.axes
    assert (upper.get_xlabel(), lower.get_xlabel()) == ("", "$x$ (unit)")
    assert upper.get_shared_x_axes().joined(upper, lower)
    assert figure.get_supxlabel() == "a note"
    drawn = chart(PLOTS["lines in a column"])
    shown = [t.name for t in drawn.data if t.hoverinfo != "skip" and t.showlegend is not False]
    assert shown == ["with <i>t</i>", "of one data"]
    assert drawn.layout.xaxis.matches == "x2"


def test_panels_of_other_kinds_have_their_own_axes_and_colour_bars():
    drawn = chart(PLOTS["mixed in a row"])
    assert drawn.layout.yaxis2.scaleanchor == "x2"
    assert drawn.layout.yaxis3.scaleanchor == "x3"
    path = next(t for t in drawn.data if t.text is not None)
    heat = next(t for t in drawn.data if isinstance(t, go.Heatmap))
    assert path.marker.colorbar.y == drawn.layout.yaxis2.domain[1]
    assert heat.colorbar.len == pytest.approx(np.diff(drawn.layout.yaxis3.domain)[0])


def test_cells_lie_at_the_real_iterations():
    mesh = draw(PLOTS["matrix of iterations"]).axes[0].collections[0]
    edges = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(edges, [0, 5, 25, 70, 100])


def test_names_run_downwards_and_iterations_upwards():
    for name, downwards in (("matrix of names", True), ("matrix of iterations", False)):
        axes, drawn = draw(PLOTS[name]).axes[0], chart(PLOTS[name])
        assert axes.yaxis_inverted() == downwards
        assert (drawn.layout.yaxis.autorange == "reversed") == downwards


def test_ticks_of_a_single_moment():
    figure = draw(LinePlot(*WORDS, "y", [Line("a", np.array([0]), np.array([1.0]))]))
    figure.canvas.draw()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown.count("0") == 1
    assert "−0" not in shown


def test_style_is_a_value():
    figure = draw(LINES, {**PAPER, "figure.figsize": (7.0, 4.0)})
    assert tuple(figure.get_size_inches()) == (7.0, 4.0)
    assert tuple(draw(LINES).get_size_inches()) == PAPER["figure.figsize"]


def test_a_large_matrix_is_thinned_and_says_so():
    steps = list(range(0, 10_000, 10))
    values = np.arange(1000.0)[:, None] + np.arange(1000.0)
    plot = MatrixPlot("A title.", "A caption.", "t", "s", "S", steps, values)
    drawn = thinned(plot)
    assert (drawn.places[0], drawn.places[-1], len(drawn.places)) == (0, 9990, 250)
    rows = [place // 10 for place in drawn.places]
    assert (drawn.values == values[rows][:, rows]).all()
    assert drawn.caption == "A caption. Of 1,000 kernels 250 are drawn here, evenly spread."
    assert len(chart_div(drawn, "matrix")) < 600_000
    assert thinned(drawn) is drawn
