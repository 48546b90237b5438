import logging

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from conescope.errors import KernelError, StoreError, TrainingError
from conescope.report.figures import (
    FIGURES,
    PAPER,
    distance_after,
    distance_from,
    distance_matrix,
    embedding,
    save_figures,
    training,
)
from made_runs import constant_series, made_run, made_series, without_evaluations

UNEVEN = (0, 1, 2, 5, 10, 20, 50, 100)


@pytest.fixture
def series():
    return made_series(range(0, 1001, 20))


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


def test_distance_from_plots_columns_of_the_matrix(series):
    figure = distance_from(series, [0, 400])
    assert list(lines(figure)) == [r"$\tau$ = 0", r"$\tau$ = 400"]
    for tau, line in zip([0, 400], lines(figure).values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), series.steps)
        np.testing.assert_array_equal(line.get_ydata(), series.distances_from(tau))


def test_distance_after_plots_off_diagonals_of_the_matrix(series):
    figure = distance_after(series, [20, 100])
    for dt, line in zip([20, 100], lines(figure).values(), strict=True):
        steps, distances = series.distances_after(dt)
        np.testing.assert_array_equal(line.get_xdata(), steps)
        np.testing.assert_array_equal(line.get_ydata(), distances)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_embedding_marks_the_start_and_colours_by_iteration(series, dimensions):
    figure = embedding(series, dimensions)
    axes = figure.axes[0]
    later, start = axes.collections
    coordinates = series.embedding(dimensions).coordinates
    np.testing.assert_array_equal(later.get_array(), series.steps[1:])
    assert matplotlib.colors.to_hex(start.get_facecolor()[0]) == "#000000"
    if dimensions == 2:
        np.testing.assert_allclose(later.get_offsets(), coordinates[1:])
        np.testing.assert_allclose(start.get_offsets(), coordinates[:1])
    assert axes.get_legend().get_texts()[0].get_text() == "$H(0)$"
    assert f"({series.embedding(dimensions).shares[0]:.0%}" in axes.get_xlabel()


def test_later_is_darker(series):
    dots = embedding(series).axes[0].collections[0]
    luminance = dots.cmap(dots.norm(series.steps))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < 0).all()


def test_embedding_has_one_scale_for_all_axes(series):
    for dimensions in (2, 3):
        assert embedding(series, dimensions).axes[0].get_aspect() in (1.0, "equal")


def test_matrix_has_cells_at_the_real_iterations():
    series = made_series(UNEVEN)
    mesh = distance_matrix(series).axes[0].collections[0]
    np.testing.assert_array_equal(mesh.get_array(), series.distances())
    edges = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(edges[1:-1], (np.array(UNEVEN[1:]) + UNEVEN[:-1]) / 2)
    assert all(edges[i] <= step <= edges[i + 1] for i, step in enumerate(UNEVEN))
    assert (edges[0], edges[-1]) == (UNEVEN[0], UNEVEN[-1])


def test_ticks_of_a_single_moment():
    figure = distance_after(made_series([0, 20]))
    figure.canvas.draw()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown.count("0") == 1
    assert "−0" not in shown


def test_training_plots_the_scalars():
    run = made_run()
    upper, lower = training(run).axes
    for line, name in zip(
        [*upper.get_lines(), *lower.get_lines()],
        ["train_loss", "test_loss", "test_accuracy"],
        strict=True,
    ):
        np.testing.assert_array_equal(line.get_xdata(), run.scalars["step"])
        np.testing.assert_array_equal(line.get_ydata(), run.scalars[name])
    assert upper.get_yscale() == "log"


def test_every_axis_has_a_label():
    for draw in FIGURES.values():
        figure = draw(made_run(), PAPER)
        axes = figure.axes[0]
        assert axes.get_ylabel()
        assert any(other.get_xlabel() for other in figure.axes)


def test_nothing_global_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    save_figures(made_run(), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_style_is_a_value():
    figure = distance_from(made_series(range(5)), style={**PAPER, "figure.figsize": (7.0, 4.0)})
    assert tuple(figure.get_size_inches()) == (7.0, 4.0)


def test_saved_as_pdf_and_png_with_the_same_bytes_each_time(tmp_path):
    first, second = (save_figures(made_run(), tmp_path / name) for name in "ab")
    expected = {f"{name}.{suffix}" for name in FIGURES for suffix in ("pdf", "png")}
    assert {file.name for file in first} == expected
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_unfinished_is_written_on_the_figure(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *_, **__: notes.append(self._supxlabel)
    )
    save_figures(made_run(finished=True), tmp_path)
    assert notes == [None] * len(notes)
    notes.clear()
    save_figures(made_run(finished=False, total_steps=5000), tmp_path)
    texts = {note.get_text() for note in notes}
    assert texts == {"unfinished: kernels up to step 1,000 of 5,000"}


@pytest.mark.parametrize("steps", [(0, 3), (0, 3, 5), UNEVEN])
def test_few_or_uneven_kernels_have_all_figures(steps):
    for draw in FIGURES.values():
        draw(made_run(made_series(steps)), PAPER).draw_without_rendering()


def test_one_kernel_has_only_the_training_figure(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        files = save_figures(made_run(made_series([0])), tmp_path)
    assert {file.stem for file in files} == {"training"}
    assert len(caplog.messages) == len(FIGURES) - 1
    assert any("no figure embedding-3d: " in message for message in caplog.messages)


def test_equal_kernels_have_no_embedding(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        files = save_figures(made_run(constant_series(range(0, 50, 10))), tmp_path)
    assert {f.stem for f in files} == set(FIGURES) - {"overview", "embedding-2d", "embedding-3d"}
    assert all("all kernels are the same" in message for message in caplog.messages)


def test_nothing_evaluated_yet():
    run = made_run(scalars=without_evaluations(made_run().scalars))
    with pytest.raises(TrainingError, match="not been evaluated"):
        training(run)


@pytest.mark.parametrize("draw", [distance_from, distance_after, distance_matrix, embedding])
def test_one_kernel_is_too_few(draw):
    with pytest.raises(KernelError):
        draw(made_series([0]))


def test_folder_that_cannot_be_made(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StoreError, match="cannot write the figure"):
        save_figures(made_run(), blocked)
