"""Every section of the analysis stands alone: it says what it can, and why the rest is absent."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import conescope as cs
from conescope.report.plot import LinePlot
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections import SECTIONS, contents
from conescope.statistics.spectrum import spectrum
from conescope.training.recipe_reading import load_recipe
from made_runs import constant_series, layered, made_run, made_series, without_evaluations

LABELS = torch.arange(12) % 3


def content(title, run, labels=None):
    (section,) = (section for section in SECTIONS if section.title == title)
    return section.content(RunAnalysis(run, labels))


def titles_that_speak(run, labels=None):
    found = contents(RunAnalysis(run, labels))
    return {s.title for s, c in zip(SECTIONS, found, strict=True) if c.says_something}


def recipe_run(series, **changes):
    return made_run(series, recipe=load_recipe("digits", ["--optimizer.momentum=0.5"]), **changes)


def broken(series, place, kernel):
    kernels = list(series.kernels)
    kernels[place] = kernel
    return cs.KernelSeries(series.steps, kernels)


def test_every_section_says_what_it_is():
    assert len({section.title for section in SECTIONS}) == len(SECTIONS)
    assert all(section.about.endswith(".") for section in SECTIONS)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {"Spectrum", "Curvature", "Alignment"}),
        (2, {"Spectrum", "Curvature", "Alignment", "Distances and velocity", "Attribution",
             "Error bars"}),
        (9, {"Spectrum", "Curvature", "Alignment", "Distances and velocity", "Attribution",
             "Error bars"}),
        (10, {"Spectrum", "Curvature", "Alignment", "Distances and velocity", "Attribution",
              "Error bars", "The cone as a test"}),
    ],
)  # fmt: skip
def test_what_speaks_from_how_many_kernels_on(count, expected):
    run = recipe_run(made_series(range(0, 20 * count, 20), samples=12))
    assert titles_that_speak(run, LABELS) == expected


def test_nothing_is_both_absent_and_silent_about_it():
    for count in (1, 2, 9, 10):
        for labels in (None, LABELS):
            run = made_run(made_series(range(0, 20 * count, 20), samples=12), recipe=None,
                           source={"name": "x", "description": "y"})  # fmt: skip
            for section, part in zip(SECTIONS, contents(RunAnalysis(run, labels)), strict=True):
                assert part.says_something or part.missing or part.column, section.title
                assert all(reason and not reason.endswith(".") for reason in part.missing)


def test_one_kernel_has_its_eigenvalues_against_their_rank():
    values = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0], dtype=torch.float64))
    found = content("Spectrum", made_run(cs.KernelSeries([7], [cs.Kernel(values)])))
    assert found.numbers["trace"] == "10"
    assert found.numbers["largest eigenvalue, share of the trace"] == "0.4"
    rank = np.exp(-sum(p * np.log(p) for p in (0.4, 0.3, 0.2, 0.1)))
    assert found.numbers["effective rank"] == f"{rank:.3g}"
    (line,) = found.plots["cone-eigenvalues"].lines
    np.testing.assert_allclose(line.x, [1, 2, 3, 4])
    np.testing.assert_allclose(line.y, [0.4, 0.3, 0.2, 0.1])
    assert "overlap of top eigenspaces, first and last" not in found.numbers


def test_all_eigenvalues_of_one_kernel_are_drawn():
    series = made_series([0], samples=25)  # of 20 features, so of rank 20
    (line,) = content("Spectrum", made_run(series)).plots["cone-eigenvalues"].lines
    expected = spectrum(series.kernels[0], top=25)
    np.testing.assert_array_equal(line.y, expected.eigenvalues[:20] / expected.trace)


def test_nine_kernels_have_spectra_of_known_values():
    kernels = [
        cs.Kernel(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]).double()) + k * torch.eye(4))
        for k in range(9)
    ]
    found = content("Spectrum", made_run(cs.KernelSeries(range(9), kernels)))
    lines = {line.label: line.y for line in found.plots["cone-eigenvalues"].lines}
    k = np.arange(9)
    np.testing.assert_allclose(lines["λ₁"], (4 + k) / (10 + 4 * k))
    np.testing.assert_allclose(lines["λ₄"], (1 + k) / (10 + 4 * k))
    assert not any("beyond" in label for label in lines)
    assert found.numbers["trace"] == "10 at first, 42 at last"


def test_alignment_of_one_kernel_with_its_labels():
    labels = torch.tensor([0, 0, 1, 1])
    same = (labels[:, None] == labels[None, :]).double()
    found = content("Alignment", made_run(cs.KernelSeries([0], [cs.Kernel(same)])), labels)
    assert found.numbers["target alignment"] == "1"
    assert (found.numbers["mean within classes"], found.numbers["mean between classes"]) == (
        "1",
        "0",
    )
    assert not any("first kernel" in name for name in found.numbers)
    assert found.plots == {}


def test_without_labels_the_rest_speaks():
    run = recipe_run(layered(made_series(range(0, 400, 20), samples=12)))
    assert titles_that_speak(run) == {
        "The cone as a test", "Error bars", "Distances and velocity", "Spectrum", "Attribution",
    }  # fmt: skip
    assert "needs the labels" in content("Alignment", run).missing[0]
    assert content("Attribution", run).missing == [
        "by class: needs the labels of the probe's samples"
    ]
    assert content("Attribution", run).plots.keys() == {"cone-layers", "cone-samples"}
    assert "needs a run of a recipe" in content("Curvature", run).missing[0]


def test_without_kernels_by_layer_the_option_is_named():
    run = made_run(made_series([0, 20], samples=12))
    found = content("Attribution", run, LABELS)
    (missing,) = found.missing
    for option in ("--kernel.by_layer true", "--by-layer", "by_layer=True"):
        assert option in missing
    assert found.plots.keys() == {"cone-blocks", "cone-samples"}


def test_without_a_recipe_only_the_curvature_is_absent():
    series = made_series(range(0, 400, 20), samples=12)
    other = made_run(series, recipe=None, source={"name": "x", "description": "y"})
    run = recipe_run(series)
    assert titles_that_speak(run, LABELS) - titles_that_speak(other, LABELS) == {"Curvature"}


def test_a_loss_that_is_not_finite_hides_no_section():
    run = recipe_run(made_series(range(0, 400, 20), samples=12))
    lost = {**run.scalars, "train_loss": np.full(20, np.nan), "test_loss": np.full(20, np.nan)}
    assert titles_that_speak(replace(run, scalars=lost), LABELS) == titles_that_speak(run, LABELS)
    bare = replace(run, scalars=without_evaluations(run.scalars))
    assert titles_that_speak(bare, LABELS) == titles_that_speak(run, LABELS)
    assert "stable below, last" not in content("Curvature", bare, LABELS).numbers


def test_noise_needs_something_that_makes_it_less():
    run = made_run(made_series(range(0, 400, 20), samples=12))
    assert "--training.average" in content("Noise", run).missing[0]
    own = content("Noise", replace(run, recipe=None))
    assert "which only runs of a recipe have" in own.missing[0]
    assert content("Noise", made_run(made_series([0, 20]))).missing[0].startswith("the motion of 2")


def test_a_small_probe_says_how_large_it_has_to_be():
    found = content("Error bars", made_run(made_series([0, 20], samples=9)))
    assert found.missing == [
        "needs a probe of at least 10 samples, and this one has 9; take a larger one"
    ]


def test_labels_that_do_not_fit_are_told_by_those_that_need_them():
    run = made_run(made_series(range(0, 400, 20), samples=12))
    for title in ("Alignment", "Attribution"):
        assert "needs 12 labels" in content(title, run, LABELS[:5]).missing[0]
    assert content("Spectrum", run, LABELS[:5]).numbers


def test_kernels_that_are_none_or_identical():
    series = made_series(range(0, 400, 20), samples=12)
    nan = cs.Kernel(torch.full((12, 12), torch.nan, dtype=torch.float64))
    run = made_run(broken(series, 7, nan))
    for title in ("The cone as a test", "Spectrum", "Distances and velocity"):
        assert "NaN" in content(title, run).missing[0], title
    same = made_run(broken(series, 7, series.kernels[3]))
    (reason,) = content("The cone as a test", same).missing
    assert "steps 60 and 140 are identical" in reason
    assert content("Spectrum", same).says_something
    assert not titles_that_speak(made_run(constant_series([0, 1, 2]))) & {"Attribution"}


def test_velocity_needs_no_cone():
    run = made_run(made_series([0, 20, 100]))
    plot = content("Distances and velocity", run).plots["cone-velocity"]
    assert isinstance(plot, LinePlot)
    distances = np.diagonal(run.series.distances(), 1)
    np.testing.assert_allclose(plot.lines[0].y, distances / [20, 80])
    assert plot.lines[0].x.tolist() == [10.0, 60.0]
    assert plot.marks == []
