from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from benchmarks.simulated_motions import CONFINED, simulate_drop

import conescope as cs
from conescope.errors import KernelError
from conescope.report.comparison import compared, comparison, distinct_names, numbers_over_seeds
from conescope.report.matplotlib_drawing import draw
from conescope.report.plot import LinePlot
from conescope.report.run_analysis import RunAnalysis, analyse
from conescope.report.save import save_plot, save_plots
from conescope.report.sections import contents
from conescope.report.sections.curvature import curvature
from conescope.report.sections.error_bars import sampled_curves
from conescope.report.sections.movement import movements
from conescope.report.sections.noise import noise_tests
from conescope.report.sections.wording import text_of
from conescope.report.style import PAPER
from conescope.statistics.attribution import attribution
from conescope.statistics.cone import Estimate, over_seeds
from conescope.statistics.uncertainty import sampled_distance
from conescope.training.recipe_reading import load_recipe
from made_runs import layered, made_run, made_series

LESS = replace(CONFINED, confined=CONFINED.confined / 10, jitter=CONFINED.jitter / 10)
LABELS = torch.arange(12) % 3
ALWAYS = {
    "cone-displacement",
    "cone-velocity",
    "cone-angle",
    "cone-eigenvalues",
    "cone-effective-rank",
    "cone-overlap",
    "cone-samples",
}


def numbers(analysis):
    return {name: text for part in contents(analysis) for name, text in part.numbers.items()}


def plots(analysis):
    return {name: plot for part in contents(analysis) for name, plot in part.plots.items()}


def calmer(series, amount):
    """The kernels of a series, drawn towards its last one."""
    last = series.kernels[-1].values
    values = (last + amount * (k.values - last) for k in series.kernels[:-1])
    return cs.KernelSeries(series.steps[:-1], [cs.Kernel(v) for v in values])


@pytest.fixture(scope="module")
def run():
    series = layered(made_series(range(0, 1001, 20), samples=12))
    recipe = load_recipe("digits", ["--optimizer.momentum=0.5"])
    return made_run(series, averaged=calmer(series, 0.01), recipe=recipe)


@pytest.fixture(scope="module")
def found(run):
    return RunAnalysis(run, LABELS)


def test_its_parts_are_those_of_the_statistics(run, found):
    series = run.series
    kernels = dict(zip(series.steps, series.kernels, strict=True))
    assert found.cone.radius == cs.cone(series).radius
    steps, velocities = series.velocities(20)
    assert plots(found)["cone-velocity"].lines[0].y == pytest.approx(velocities)
    start, after = sampled_curves(series)
    assert start.to == "H(0)"
    assert after.to == "H(t + 20)"
    assert start.found[3] == sampled_distance(kernels[start.steps[3]], kernels[0])
    assert after.found[0] == sampled_distance(kernels[0], kernels[20])
    assert set(after.steps) <= set(steps)
    moved = attribution(series.kernels[0], series.kernels[-1], LABELS)
    assert movements(found)["0 to 1,000"].layers == moved.layers


def test_the_stretches_are_the_whole_and_the_phases(found):
    assert found.cone.boundary is not None
    middle = f"{found.cone.first:,}"
    assert list(movements(found)) == [f"0 to {middle}", "0 to 1,000", f"{middle} to 1,000"]


def test_curvature_stands_against_the_optimisers_limit(found):
    curved = curvature(found)
    assert curved is not None
    top = found.spectra.eigenvalues[:, 0]
    assert curved[0] == pytest.approx(top / (12 * 3))
    assert curved[1] == pytest.approx(np.full(51, 2 * 1.5 / 0.1))


def test_optimisers_that_rescale_have_no_such_limit(run):
    adam = load_recipe("digits", ["--optimizer.name=adam", "--optimizer.momentum=0"])
    curved = curvature(RunAnalysis(replace(run, recipe=adam), LABELS))
    assert curved is not None
    assert np.isnan(curved[1]).all()


def test_labels_of_another_training_say_nothing_of_its_outputs(run):
    found = RunAnalysis(replace(run, recipe=None, source={"name": "x", "description": "y"}), LABELS)
    assert curvature(found) is None
    assert "target alignment" in numbers(found)
    assert movements(found)["0 to 1,000"].blocks is not None


def test_without_labels_nothing_is_said_of_classes(run):
    found = RunAnalysis(run)
    assert curvature(found) is None
    assert not {"cone-alignment", "cone-classes", "cone-sharpness", "cone-blocks"} & set(
        plots(found)
    )
    assert not any("align" in name or "class" in name for name in numbers(found))


def test_a_small_probe_has_no_error_bars():
    found = RunAnalysis(made_run())
    assert plots(found).keys() == ALWAYS
    assert "numerical floor of S" in numbers(found)


def test_numbers_are_the_values_own(found):
    shown = numbers(found)
    assert shown["verdict"] == found.cone.verdict
    assert shown["plateau R"] == text_of(found.cone.radius)
    assert (
        f"{sampled_curves(found.run.series)[0].found[-1].plain:.3g}" in shown["S(H(1,000), H(0))"]
    )
    layers = shown["moved by layers, 0 to 1,000"]
    assert layers == "last 70.0%, first 30.0%"
    assert f"{found.spectra.effective_rank[-1]:.3g} at last" in shown["effective rank"]
    assert shown["stable below, last"] == "30"


def test_an_estimate_as_text():
    assert text_of(Estimate(1234.5678, 0.00012345, 2e5), "s") == "1,235 (0.000123 to 200,000) s"


@pytest.mark.parametrize(("amount", "answer"), [(0.01, "yes: "), (1.0, "no: ")])
def test_whether_the_floor_is_only_noise(run, amount, answer):
    shown = numbers(RunAnalysis(replace(run, averaged=calmer(run.series, amount)), LABELS))
    assert shown["averaged weights: floor is noise?"].startswith(answer)
    assert "averaged weights: floor is noise?" not in numbers(
        RunAnalysis(replace(run, averaged=None))
    )


def test_too_few_averaged_kernels_say_so(run):
    few = cs.KernelSeries(run.series.steps[-9:], run.series.kernels[-9:])
    found = RunAnalysis(replace(run, averaged=few))
    assert numbers(found)["averaged weights"].startswith("tells nothing of noise: it takes 10")
    assert "cone-noise" not in plots(found)


def dropping(series, drop, *, averaged=None):
    """A run whose learning rate falls to a tenth at a step, evaluated as often as measured."""
    steps = np.array(series.steps)
    rates = np.where(steps < drop, 0.1, 0.01)
    scalars = made_run(series).scalars | {"step": steps, "learning_rate": rates}
    return made_run(series, scalars=scalars, averaged=averaged)


@pytest.mark.parametrize(
    ("after", "plateau", "floor"),
    [(LESS, "yes: ", "cannot be told: the floor falls"), (CONFINED, "no: ", "no: ")],
)
def test_a_drop_of_the_learning_rate_tells_noise(after, plateau, floor):
    series = simulate_drop(CONFINED, after, (40, 40), seed=0).series
    found = RunAnalysis(dropping(series, 4000))
    assert [(part.first, part.last, part.kernels) for part in found.stretches] == [
        (0, 3900, 40),
        (4000, 7900, 40),
    ]
    assert (found.cone.first, found.cone.last, found.cone.boundary) == (0, 3900, None)
    (test,) = noise_tests(found)
    assert test.name == "drop to 0.01 at 4,000"
    assert test.found is not None
    assert test.found.radius.alone == pytest.approx(0.1**0.5)
    shown = numbers(found)
    assert shown["learning rate in phase II"] == "0.1, in a run at 0.1, then 0.01"
    assert text_of(test.found.radius.ratio) in shown["drop to 0.01 at 4,000: plateau R"]
    assert shown["drop to 0.01 at 4,000: plateau is noise?"].startswith(plateau)
    assert shown["drop to 0.01 at 4,000: floor is noise?"].startswith(floor)
    plot = plots(found)["cone-noise"]
    assert [line.label for line in plot.lines] == ["weights, *η* = 0.1", "weights, *η* = 0.01"]
    np.testing.assert_array_equal(plot.lines[1].y, test.found.calm.displacement.mean)
    marks = plots(found)["cone-velocity"].marks
    assert [(mark.label, mark.value, mark.style) for mark in marks] == [
        ("drop to *η* = 0.01", 4000, "dashed")
    ]


def test_kernels_between_two_evaluations_about_a_drop_do_not_count():
    series = simulate_drop(CONFINED, LESS, (40, 40), seed=0).series
    run = dropping(series, 4000, averaged=series)
    seldom = {name: values[::15] for name, values in run.scalars.items()}
    found = RunAnalysis(replace(run, scalars=seldom))
    assert [(s.first, s.last, s.kernels) for s in found.stretches] == [
        (0, 3000, 31),
        (4500, 7900, 35),
    ]
    lines = plots(found)["cone-noise"].lines
    assert [line.label for line in lines] == [
        "weights, *η* = 0.1",
        "averaged weights, *η* = 0.1",
        "weights, *η* = 0.01",
    ]
    assert lines[1].y == pytest.approx(lines[0].y)


def test_a_drop_with_few_kernels_behind_it_says_so():
    series = simulate_drop(CONFINED, LESS, (40, 9), seed=0).series
    found = RunAnalysis(dropping(series, 4000))
    assert noise_tests(found)[0].found is None
    shown = numbers(found)
    assert shown["drop to 0.01 at 4,000"].startswith("tells nothing of noise")
    assert not any("plateau is noise" in name for name in shown)
    early = RunAnalysis(dropping(simulate_drop(CONFINED, LESS, (12, 40), seed=0).series, 1200))
    assert early.cone.first >= 1200  # the first stretch is too short for a verdict


def test_seeds_together(run, found):
    other = RunAnalysis(replace(run, recipe=replace(run.recipe, seed=1)), LABELS)
    shown = numbers_over_seeds([found, other])
    expected = over_seeds([found.cone, other.cone])
    assert shown["plateau R"] == text_of(expected.radius)
    assert shown["verdicts of the runs"] == f"{found.cone.verdict}, {other.cone.verdict}"
    with pytest.raises(KernelError, match="at least two runs, not 1"):
        numbers_over_seeds([found])
    with pytest.raises(KernelError, match="same seed"):
        numbers_over_seeds([found, found])
    changed = RunAnalysis(replace(run, recipe=load_recipe("digits", ["--seed=1"])))
    with pytest.raises(KernelError, match="more than their seed; use 'conescope compare'"):
        numbers_over_seeds([found, changed])


def test_runs_side_by_side(found):
    source = {"name": "x", "description": "y"}
    bare = RunAnalysis(made_run(recipe=None, source=source, path=Path("there/made")))
    runs = [contents(found), contents(bare)]
    table = comparison(runs)
    assert table["verdict"] == [found.cone.verdict, bare.cone.verdict]
    assert table["network"] == ["cnn", "–"]
    assert table["target alignment, last"][1] == "–"
    plot = compared({"one": runs[0], "other": runs[1]})
    assert plot.layout == "row"
    displacement, from_first, _ = plot.panels
    for panel in plot.panels:
        assert [(line.label, line.colour) for line in panel.lines] == [("one", 0), ("other", 1)]
    np.testing.assert_array_equal(from_first.lines[1].y, bare.run.series.distances_from(0))
    np.testing.assert_array_equal(displacement.lines[0].y, found.cone.displacement.mean)
    assert distinct_names([found, bare]) == ["runs/made", "there/made"]


def test_a_short_run_beside_a_long_one(found):
    short = RunAnalysis(made_run(made_series(range(0, 80, 20)), path=Path("short")))
    runs = [contents(short), contents(found)]
    table = comparison(runs)
    assert table["verdict"] == ["–", found.cone.verdict]
    assert list(table) == list(comparison(runs[::-1]))
    displacement, from_first, _ = compared({"short": runs[0], "long": runs[1]}).panels
    assert [(line.label, line.colour) for line in displacement.lines] == [("long", 1)]
    assert [line.colour for line in from_first.lines] == [0, 1]
    single = contents(RunAnalysis(made_run(made_series([0]))))
    with pytest.raises(KernelError, match="nothing to draw"):
        compared({"a": single, "b": single})


@pytest.mark.parametrize("name", ["_run", "run*{*1", "a$b$c", "* *"])
def test_any_name_of_a_folder_stands_in_the_legend_of_a_comparison(name):
    found = contents(RunAnalysis(made_run(made_series([0, 20, 40]))))
    figure = draw(compared({name: found, "b": found}))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    shown = legend.get_texts()[0].get_text().strip().replace("\\$", "$").replace("∗", "*")
    assert shown == name


def test_the_labels_of_a_recipes_probe(run):
    read = analyse(run).labels
    assert read is not None
    assert len(read) == 200
    assert read.bincount().tolist() == [20] * 10
    stored = torch.tensor([3, 1])
    assert analyse(replace(run, labels=stored)).labels is stored
    assert analyse(made_run()).labels is None
    remote = load_recipe("lenet-mnist")
    assert analyse(replace(run, recipe=remote)).labels is None
    missing = load_recipe("lenet-mnist", ["--data.path=nowhere"])
    assert analyse(replace(run, recipe=missing)).labels is None


def test_intervals_are_bands_and_marks(found):
    plot = plots(found)["cone-error-bars"]
    assert isinstance(plot, LinePlot)
    banded = [line for line in plot.lines if line.low is not None]
    assert len(banded) == 2
    assert all((line.low <= line.y).all() and (line.y <= line.high).all() for line in banded)
    assert len(draw(plot).axes[0].collections) == 2
    velocity = plots(found)["cone-velocity"]
    assert isinstance(velocity, LinePlot)
    assert draw(velocity).axes[0].get_lines()[0].get_linestyle() == ":"
    (mark,) = velocity.marks
    assert (mark.value, mark.low, mark.high) == (
        found.cone.boundary.value,
        found.cone.boundary.low,
        found.cone.boundary.high,
    )


def test_shares_that_are_drawn_add_up(found):
    shown = plots(found)
    for shares in shown["cone-layers"].shares.values():
        assert shares.sum() == pytest.approx(1.0)
    assert shown["cone-blocks"].values.sum() == pytest.approx(1.0)
    parts = {line.label: line.y for line in shown["cone-displacement"].lines}
    total = sum(parts[part] for part in found.cone.fitted_parts)
    assert parts["best model"] == pytest.approx(total)


def test_layers_are_in_the_order_of_their_numbers(run):
    names = ["block.10.fc", "block.2.fc"]
    kernels = [
        replace(k, by_layer=dict(zip(names, k.by_layer.values(), strict=True)))
        for k in run.series.kernels
    ]
    found = RunAnalysis(replace(run, series=cs.KernelSeries(run.series.steps, kernels)))
    assert plots(found)["cone-layers"].names == ["block.2.fc", "block.10.fc"]
    assert plots(found)["cone-layers"].shares["*t* = 0 to 1,000"] == pytest.approx([0.7, 0.3])


@pytest.mark.rendered
def test_files_of_an_analysis_and_of_a_comparison(tmp_path):
    before = dict(matplotlib.rcParams)
    found = RunAnalysis(made_run())
    style = {**PAPER, "savefig.dpi": 40}
    files = save_plots(found.run, plots(found), tmp_path / "one", style)
    assert {file.name for file in files} == {
        f"{name}.{suffix}" for name in ALWAYS for suffix in ("pdf", "png")
    }
    plot = compared(dict.fromkeys("ab", contents(found)))
    again = save_plot(plot, tmp_path / "two" / "compare", "comparison", style=style)
    assert [file.name for file in again] == ["compare.pdf", "compare.png"]
    assert all(file.stat().st_size > 1000 for file in [*files, *again])
    assert dict(matplotlib.rcParams) == before


def test_expensive_values_are_computed_once(run, monkeypatch):
    counted = []
    cone = cs.cone
    monkeypatch.setattr(
        "conescope.report.run_analysis.cone", lambda *a, **k: counted.append(1) or cone(*a, **k)
    )
    contents(RunAnalysis(run, LABELS))
    assert len(counted) == 1


def test_the_analysis_of_a_run_has_its_labels(run):
    stored = torch.arange(12)
    assert analyse(replace(run, labels=stored)).labels is stored
