import logging

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from conescope.errors import KernelError, StoreError, TrainingError
from conescope.report.figures import FIGURES
from conescope.report.figures.distance_after import distance_after
from conescope.report.figures.distance_from import distance_from
from conescope.report.figures.distance_matrix import distance_matrix
from conescope.report.figures.embedding_2d import embedding_2d
from conescope.report.figures.embedding_3d import embedding_3d
from conescope.report.figures.overview import overview
from conescope.report.figures.training import training
from conescope.report.matplotlib_drawing import draw
from conescope.report.plot import ITERATION
from conescope.report.save import figure, save_figures, save_plots
from made_runs import constant_series, made_run, made_series, without_evaluations

pytestmark = pytest.mark.rendered

UNEVEN = (0, 1, 2, 5, 10, 20, 50, 100)


@pytest.fixture(scope="module")
def run():
    return made_run(made_series(range(0, 1001, 20)))


def test_distance_from_has_columns_of_the_matrix(run):
    plot, taus = distance_from(run), (0, 200, 400, 600, 800)
    assert [line.label for line in plot.lines] == [f"*τ* = {tau}" for tau in taus]
    assert (plot.x_label, plot.y_label) == (ITERATION, "*S(θ(t), θ(τ))*")
    for tau, line in zip(taus, plot.lines, strict=True):
        np.testing.assert_array_equal(line.x, run.series.steps)
        np.testing.assert_array_equal(line.y, run.series.distances_from(tau))


def test_distance_after_has_off_diagonals_of_the_matrix(run):
    plot = distance_after(run)
    for dt, line in zip((20, 40, 60, 80, 100), plot.lines, strict=True):
        steps, distances = run.series.distances_after(dt)
        assert line.label == f"*dt* = {dt}"
        np.testing.assert_array_equal(line.x, steps)
        np.testing.assert_array_equal(line.y, distances)
    assert plot.vertical_scale == "log"


@pytest.mark.parametrize(("figure", "dimensions"), [(embedding_2d, 2), (embedding_3d, 3)])
def test_embedding_has_the_coordinates_and_their_shares(run, figure, dimensions):
    plot, found = figure(run), run.series.embedding(dimensions)
    np.testing.assert_array_equal(plot.points, found.coordinates)
    assert plot.steps == run.series.steps
    assert plot.names[0] == "*H(0)*"
    assert len(plot.labels) == dimensions
    assert f"({found.shares[1]:.0%}" in plot.labels[1]


def test_distances_of_an_embedding_are_chords(run):
    few = made_run(made_series((0, 20, 40)))  # three points lie in a plane
    points = embedding_2d(few).points
    chords = np.linalg.norm(points[:, None] - points[None, :], axis=2)
    np.testing.assert_allclose(chords**2 / 2, few.series.distances(), atol=1e-12)


def test_matrix_holds_all_distances_at_the_real_iterations():
    run = made_run(made_series(UNEVEN))
    plot = distance_matrix(run)
    np.testing.assert_array_equal(plot.values, run.series.distances())
    assert plot.places == UNEVEN
    assert not plot.has_names


def test_overview_is_the_papers_three(run):
    panels = overview(run).panels
    assert [p.title for p in panels] == [
        f(run).title for f in (distance_from, distance_after, embedding_2d)
    ]
    assert overview(run).layout == "row"


def test_training_has_the_scalars():
    run = made_run()
    loss, accuracy = training(run).panels
    assert loss.vertical_scale == "log"
    assert accuracy.percent
    for line, name in zip(
        [*loss.lines, *accuracy.lines], ["train_loss", "test_loss", "test_accuracy"], strict=True
    ):
        np.testing.assert_array_equal(line.x, run.scalars["step"])
        np.testing.assert_array_equal(line.y, run.scalars[name])
    assert {line.label: line.colour for line in (*loss.lines[1:], *accuracy.lines)} == {
        "test data": 1
    }


@pytest.mark.parametrize("lost", [slice(25, None), slice(None)])
def test_a_loss_that_is_not_finite_is_a_gap(lost):
    run = made_run()
    run.scalars["train_loss"][lost] = np.nan
    figure = draw(training(run))
    figure.draw_without_rendering()
    np.testing.assert_array_equal(
        np.isnan(figure.axes[0].get_lines()[0].get_ydata()), np.isnan(run.scalars["train_loss"])
    )


def test_later_is_darker(run):
    dots = draw(embedding_2d(run)).axes[0].collections[0]
    luminance = dots.cmap(dots.norm(run.series.steps))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < 0).all()


def test_every_axis_has_a_label():
    for figure_of in FIGURES.values():
        figure = draw(figure_of(made_run()))
        axes = figure.axes[0]
        assert axes.get_ylabel()
        assert any(other.get_xlabel() for other in figure.axes)


def test_every_figure_has_a_title_and_a_caption():
    for name, figure_of in FIGURES.items():
        plot = figure_of(made_run())
        assert plot.title, name
        assert plot.caption.endswith("."), name


def test_nothing_global_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    save_figures(made_run(), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_saved_as_pdf_and_png_with_the_same_bytes_each_time(tmp_path):
    first, second = (save_figures(made_run(), tmp_path / name) for name in "ab")
    expected = {f"{name}.{suffix}" for name in FIGURES for suffix in ("pdf", "png")}
    assert {file.name for file in first} == expected
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_figures_name_the_journal_that_they_were_made_from(tmp_path):
    plots = {"training": FIGURES["training"](made_run())}
    pdf, png = save_plots(made_run(head="0123456789abcdef"), plots, tmp_path)
    about = b"made from the run whose journal ends with 0123456789abcdef"
    assert about in pdf.read_bytes()
    assert about in png.read_bytes()


def test_damage_is_written_on_the_figure(tmp_path):
    plots = {"training": FIGURES["training"](made_run())}
    (one, _), (other, _) = (
        save_plots(made_run(lost=lost), plots, tmp_path / name)
        for name, lost in (("whole", ()), ("damaged", ("line 3 is missing",)))
    )
    assert one.read_bytes() != other.read_bytes()


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
    for figure_of in FIGURES.values():
        draw(figure_of(made_run(made_series(steps)))).draw_without_rendering()


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


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "training"])
def test_one_kernel_is_too_few(name):
    with pytest.raises(KernelError):
        FIGURES[name](made_run(made_series([0])))


def test_folder_that_cannot_be_made(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(
        StoreError, match=r"cannot write .*: (Not a directory|File exists); free space"
    ):
        save_figures(made_run(), blocked)


def test_a_figure_of_a_run_shows_itself_in_a_notebook():
    drawn = figure(made_run(), "overview")
    assert drawn._repr_png_().startswith(b"\x89PNG")


def test_an_unknown_figure_is_refused_with_those_that_there_are():
    with pytest.raises(KernelError, match="no figure 'overvew'; there are overview, distance-from"):
        figure(made_run(), "overvew")
