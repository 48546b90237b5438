import re

import pytest
import torch

from conescope.cli import main
from conescope.cli.terminal import STDOUT, print_columns, print_table
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.kernel.matrix import Kernel
from conescope.report import answer, write_report
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.noise import noise_tests
from conescope.report.sections.wording import text_of
from conescope.runs.writer import RunWriter
from conescope.training.recipe_reading import load_recipe
from made_runs import made_series


def stored(path, steps=range(0, 1001, 50), samples=12, **fields):
    """A run folder of made kernels."""
    recipe = load_recipe("digits", [f"--{name}={value}" for name, value in fields.items()])
    series = made_series(steps, samples)
    with RunWriter(path) as writer:
        labels = (torch.arange(samples) % 3).tolist()
        writer.begin_recipe(recipe.to_dict(), recipe.to_yaml(), "conescope run", labels)
        writer.begin_session("cpu")
        for step, kernel in zip(series.steps, series.kernels, strict=True):
            writer.write_kernel(step, Kernel(kernel.values))
        writer.finish()
    return str(path)


@pytest.fixture(autouse=True)
def few_files(monkeypatch):
    """Only one plot of an analysis is drawn, since files take long."""
    from conescope.report import save

    save_plots = save.save_plots

    def save_one(run, plots, *rest):
        return save_plots(run, {name: plots[name] for name in list(plots)[:1]}, *rest)

    monkeypatch.setattr(save, "save_plots", save_one)


def test_cone_prints_the_verdict_and_draws(tmp_path, capsys):
    run = stored(tmp_path / "run")
    assert main(["cone", run]) == 0
    out = capsys.readouterr().out
    assert re.search(r"verdict +\w+", out)
    assert re.search(r"plateau R +0\.\d+ \(0\.\d+ to", out)
    assert re.search(r"target alignment +0\.\d+ at first", out)
    assert "over seeds" not in out
    assert f"\n{answer(load_run(run))}\n" in out
    assert (tmp_path / "run/figures/cone-displacement.png").exists()


def test_a_run_whose_learning_rate_drops_sets_the_motion_before_against_that_after(
    tmp_path, capsys, tiny_overrides
):
    fields = ["--lr_schedule.drops=30", "--kernel.when=0, every 2", "--training.evaluate=every 2"]
    recipe = load_recipe("digits", [*tiny_overrides, *fields])
    run_experiment(recipe, tmp_path / "run", command="conescope run digits")
    assert main(["cone", str(tmp_path / "run")]) == 0
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    page = re.sub(r"\s+", " ", write_report(load_run(tmp_path / "run"), tmp_path / "x").read_text())
    found = RunAnalysis(load_run(tmp_path / "run"))
    (test,) = noise_tests(found)
    assert [stretch.kernels for stretch in found.stretches] == [15, 16]
    assert test.found is not None
    ratio = text_of(test.found.radius.ratio)
    assert f"ratio {ratio}" in page
    assert f"ratio {ratio}" in out
    for name in ("plateau R", "half-angle (radians)", "floor is noise?", "plateau is noise?"):
        assert f"drop to 0.005 at 30: {name}" in page
    assert 'id="cone-noise"' in page


def test_cone_of_seeds_puts_them_together(tmp_path, capsys):
    runs = [stored(tmp_path / f"run-{seed}", seed=seed) for seed in (0, 1)]
    assert main(["cone", *runs, "--out", str(tmp_path / "drawn")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"over seeds +2 runs", out)
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"run-0", "run-1"}
    assert not (tmp_path / "run-0/figures").exists()


def test_short_runs_print_what_there_is_and_say_why_the_cone_is_absent(tmp_path, capsys):
    for count, numbers in ((9, ("trace", "S(H(8), H(0))", "target alignment")), (1, ("trace",))):
        run = stored(tmp_path / f"{count}", steps=range(count))
        assert main(["cone", run]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        assert all(number in shown.out for number in numbers)
        assert f"absent: The cone as a test: the motion of {count} kernels" in shown.out
        assert "verdict" not in shown.out


def test_kernels_of_which_nothing_can_be_said_are_an_error(tmp_path, capsys):
    run = stored(tmp_path / "run", steps=range(2))
    with RunWriter(tmp_path / "run") as writer:
        for step in range(2):
            writer.write_kernel(step, Kernel(torch.full((12, 12), torch.nan)))
    assert main(["cone", run]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(r"error: .*/run says nothing of the cone yet; .*\d", shown.err)
    assert len(shown.err.strip().splitlines()) == 1


def test_seeds_of_which_one_is_too_short_are_shown_one_by_one(tmp_path, capsys):
    runs = [
        stored(tmp_path / f"run-{k}", steps=range(count), seed=k) for k, count in ((0, 9), (1, 20))
    ]
    assert main(["cone", *runs]) == 0
    out = capsys.readouterr().out
    assert re.search(r"absent: numbers over seeds: .*run-0: the motion of 9 kernels", out)
    assert out.count("verdict ") == 1


def test_compare_takes_runs_without_a_verdict(tmp_path, capsys):
    runs = [stored(tmp_path / name, steps=range(n)) for name, n in (("one", 1), ("long", 20))]
    assert main(["compare", *runs, "--out", str(tmp_path / "drawn")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"verdict +– ", out)
    assert re.search(r"effective rank, last +\d", out)
    assert (tmp_path / "drawn/compare.png").exists()
    alike = stored(tmp_path / "other", steps=range(1))
    assert main(["compare", runs[0], alike, "--out", str(tmp_path / "none")]) == 0
    assert "absent: the figure: no run has two kernels" in capsys.readouterr().out


def test_compare_has_a_column_for_each_run(tmp_path, capsys):
    runs = [stored(tmp_path / f"lr-{rate}", **{"optimizer.lr": rate}) for rate in (0.1, 0.2)]
    assert main(["compare", *runs, "--out", str(tmp_path / "drawn")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +lr-0.1 +lr-0.2", out)
    assert re.search(r"learning rate +0.1 \(sgd\) +0.2 \(sgd\)", out)
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {"compare.pdf", "compare.png", "compare.html"}


@pytest.mark.parametrize("width", [40, 60, 80])
def test_long_names_are_whole_on_a_narrow_terminal(tmp_path, capsys, monkeypatch, width):
    monkeypatch.setattr(STDOUT, "width", width)
    names = [f"resnet20-cifar10-with-a-long-name-{seed}" for seed in range(3)]
    print_columns(["", *names], {"verdict": ["confined", "free diffusion", "drift"]})
    print_table({"run": names[0], "a name of a number that is longer than its column": names[1]})
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= width
    assert all(re.search(rf"-{seed}\b", out) for seed in range(3))
    if width == 40:  # one column at a time, so that a name's lines follow each other
        letters = re.sub(r"\s", "", out)
        assert all(name in letters for name in names)
        assert "freediffusion" in letters


def test_mistakes_are_one_line_that_names_the_run(tmp_path, capsys):
    one, other = (stored(tmp_path / f"{rate}", **{"optimizer.lr": rate}) for rate in (0.1, 0.2))
    for words, status, message in (
        (["cone", one, other], 1, "differ in more than their seed; use 'conescope compare'"),
        (["compare", one], 2, "name at least two"),
        (["cone", str(tmp_path / "nowhere")], 1, "nowhere holds no run"),
    ):
        assert main(words) == status
        err = capsys.readouterr().err
        assert message in err
        assert len(err.strip().splitlines()) == 1
