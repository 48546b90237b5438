import csv
import math
from dataclasses import replace

import numpy as np
import pytest

from conescope.cli import main
from conescope.cli.reproduce import _of_the_result
from conescope.errors import RecipeError, StoreError
from conescope.experiments import switch as switch_module
from conescope.experiments.branches import branch_recipe
from conescope.experiments.reproductions import find_reproduction, networks, scales
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import read_recipe
from conescope.experiments.switch import (
    SwitchResult,
    carry_out,
    plan_switch,
    read_switch,
    switch_seconds,
)
from conescope.report.figures.switched import switched
from conescope.report.matplotlib_drawing import draw
from conescope.runs.reader import read_scalars
from conescope.training.recipe_fields import OptimizerRecipe
from conescope.training.recipe_reading import load_recipe

POINTS = (0, 30)
TINY = ["--model.name=mlp", "--model.width=0.2", "--training.batch_size=16", "--probe.size=20"]


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("switch")
    overrides = [
        *TINY, "--training.steps=60", "--training.evaluate=0, every 20", "--kernel.when=0, 60",
        "--snapshots.keep=0, 30", "--optimizer.momentum=0.9",
    ]  # fmt: skip
    paths = [folder / f"seed-{seed}" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        recipe = load_recipe("digits", [*overrides, f"--seed={seed}"])
        run_experiment(recipe, path, command="test")
    return paths


def finished(switch):
    for child in switch.to_do():
        assert carry_out(child, command="test")
    return read_switch(switch)


def test_what_is_compared(parents):
    switch = plan_switch(parents, POINTS)
    assert len(switch.to_do()) == 8
    assert 0 < switch_seconds(switch) < 60
    result = finished(switch)
    assert switch.to_do() == []
    assert result.until == 60
    for row, parent in enumerate(parents):
        end = read_scalars(parent)["test_loss"][-1]
        assert result.parents["test_loss"][row] == end
        assert result.children["standard"]["test_loss"][row, 0] == end  # from 0: the same run
        child = switch.children["linearised"][row][1]
        assert read_recipe(child.path).branch.at == 30
        found = read_scalars(child.path)["test_accuracy"][-1]
        assert result.children["linearised"]["test_accuracy"][row, 1] == found
    linearised, standard = (result.children[d]["train_loss"] for d in ("linearised", "standard"))
    assert (linearised != standard).all()
    assert not result.diverged["linearised"].any()


def test_with_restored_momentum_the_control_is_the_parent(parents):
    result = finished(plan_switch(parents, POINTS, ["--branch.optimizer=restored"]))
    for quantity, ends in result.parents.items():
        np.testing.assert_array_equal(
            result.children["standard"][quantity], np.stack([ends, ends], axis=1)
        )


def test_what_diverges_is_marked_and_the_rest_goes_on(parents, tmp_path):
    switch = plan_switch(parents[:1], POINTS, ["--optimizer.lr=1e3"])
    result = finished(switch)
    assert result.diverged["standard"].all()
    lost = result.children["standard"]["train_loss"]
    assert (np.isnan(lost) | (lost > math.log(10))).all()
    assert switch.to_do() == []
    draw(switched(result)).savefig(tmp_path / "figure.png")


def test_the_command_goes_on_where_a_trial_diverges(parents, tmp_path, capsys):
    words = ["switch", str(parents[0]), "--at", str(POINTS[0]), "--out", str(tmp_path)]
    assert main([*words, "--optimizer.lr=1e4"]) == 0
    shown = capsys.readouterr()
    assert "a trial of them diverges" in shown.err + shown.out
    assert "diverged" in shown.out


def test_the_figure_shows_means_ranges_and_crosses():
    values = np.array([[0.5, 0.9], [0.7, 0.8]])
    children = {d: dict.fromkeys(("test_accuracy", "test_loss"), values) for d in
                ("linearised", "standard")}  # fmt: skip
    never = np.zeros((2, 2), dtype=bool)
    once = np.array([[True, False], [False, False]])
    parents = dict.fromkeys(("test_accuracy", "test_loss"), np.array([0.9, 0.95]))
    result = SwitchResult((0, 100), 200, children, parents, {"linearised": once, "standard": never})
    plot = switched(result, "a narrow network")
    upper, lower = plot.panels
    lines = {line.label: line for line in upper.lines if line.style != "crosses"}
    linearised, control = (
        lines[name] for name in ("linearised from *t*", "not linearised, restarted at *t*")
    )
    np.testing.assert_allclose(linearised.y, [0.7, 0.85])
    np.testing.assert_allclose([linearised.low, linearised.high], [[0.7, 0.8], [0.7, 0.9]])
    np.testing.assert_allclose(control.y, [0.6, 0.85])
    (mark,) = upper.marks
    assert (mark.label, mark.axis, mark.low, mark.high) == ("never linearised", "y", 0.9, 0.95)
    assert mark.value == pytest.approx(0.925)
    (cross,) = (line for line in upper.lines if line.style == "crosses")
    assert (cross.x.tolist(), cross.y.tolist()) == ([0], [0.5])
    assert (cross.label, cross.colour) == ("diverged", linearised.colour)
    assert (upper.percent, lower.percent) == (True, False)
    assert plot.note == "T = 200 iterations, mean and range of 2 runs\na narrow network"
    figure = draw(plot)
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(drawn["linearised from $t$"], [0.7, 0.85])
    assert figure.get_supxlabel() == plot.note
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(shown) == sorted({*shown})


@pytest.mark.parametrize(("worst", "scale"), [(15.0, "linear"), (40.0, "log")])
def test_one_huge_loss_does_not_hide_the_others(worst, scale):
    lost = np.array([[worst, 1.2, 0.9]])
    children = {"linearised": {"test_accuracy": 1 / lost, "test_loss": lost}}
    children["standard"] = {"test_accuracy": 1 / lost, "test_loss": np.ones((1, 3))}
    parents = {"test_accuracy": np.array([0.9]), "test_loss": np.array([1.0])}
    gone = {"linearised": lost > 10, "standard": np.zeros((1, 3), dtype=bool)}
    upper, lower = switched(SwitchResult((0, 50, 100), 200, children, parents, gone)).panels
    assert (upper.vertical_scale, lower.vertical_scale) == ("linear", scale)


def test_a_run_counts_once(parents):
    with pytest.raises(RecipeError, match="named twice"):
        plan_switch([parents[0], parents[0]], (0,))


def test_runs_of_different_recipes_are_refused(parents, monkeypatch):
    held = {parent: read_recipe(parent) for parent in parents}
    held[parents[1]] = replace(held[parents[1]], optimizer=OptimizerRecipe(lr=0.011))
    monkeypatch.setattr(switch_module, "read_recipe", held.__getitem__)
    with pytest.raises(RecipeError, match=r"not seeds of one recipe: optimizer\.lr is 0\.\d+ and"):
        plan_switch(parents, (0,))


def test_captions_leave_out_what_is_of_the_machine():
    words = ["--data.path", "/here", "--seed=1", "--threads=2", "--training.steps", "100"]
    assert _of_the_result(words) == ["--seed=1", "--training.steps", "100"]


def test_points_without_snapshot_and_ends_without_evaluation(parents):
    with pytest.raises(StoreError, match="no snapshot at iteration 20; the nearest are at 0 and"):
        plan_switch(parents, [0, 20])
    with pytest.raises(StoreError, match="was not evaluated at iteration 50"):
        plan_switch(parents, [0], ["--training.steps=50"])
    for points in ([], [30, 0], [0, 0]):
        with pytest.raises(RecipeError, match="must rise"):
            plan_switch(parents, points)
    with pytest.raises(StoreError, match="is not done"):
        read_switch(plan_switch(parents, POINTS, ["--optimizer.lr=0.011"]))


@pytest.mark.rendered
def test_the_command_prints_draws_and_skips_what_is_done(parents, tmp_path, capsys):
    words = ["switch", *map(str, parents), "--at", "0,30", "--out", str(tmp_path)]
    assert main(words) == 0
    first = capsys.readouterr()
    assert "never" in first.out
    rows = list(csv.DictReader((tmp_path / "switch.csv").read_text().splitlines()))
    assert len(rows) == 10
    assert {row["dynamics"] for row in rows} == {"parent", "linearised", "standard"}
    assert (tmp_path / "switch.pdf").stat().st_size > 1000
    assert main(words) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err == ""
    assert main([*words[:3], "--at", "soon"]) == 2


@pytest.mark.parametrize("network", networks())
@pytest.mark.parametrize("scale", scales())
def test_reproductions_keep_what_their_figures_need(network, scale):
    reproduction = find_reproduction(network, scale)
    recipe = reproduction.recipe(seed=3)
    assert recipe.seed == 3
    assert len(reproduction.points) >= 4
    per_epoch = 391
    assert set(reproduction.points) <= set(recipe.schedule("snapshots.keep", per_epoch))
    assert max(reproduction.points) < recipe.training.steps
    assert recipe.training.steps in recipe.schedule("training.evaluate", per_epoch)
    kernels = set(recipe.schedule("kernel.when", per_epoch))
    assert {recipe.training.steps * fifth // 5 for fifth in range(5)} <= kernels


def test_reproduce_trains_draws_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fields = [*TINY, "--data.name=digits", "--training.steps=300", "--kernel.when=0, every 100"]
    words = ["--network", "lenet5", "--seeds", "0,1", *fields]
    assert main(["reproduce", "fig3", *words]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("fig3-lenet5-two-cores-lenet-mnist") == 4
    assert captured.err.count("conescope: cost:") == 2
    assert main(["reproduce", "fig2", *words]) == 0
    captured = capsys.readouterr()
    assert "4 of 4 children" in captured.err
    assert "trainings of 300 iterations: no switch at 500, 2000, 4000, 8000" in captured.err
    assert "runs/fig2-lenet5-two-cores.png" in captured.out
    assert branch_recipe(next((tmp_path / "runs").glob("lenet-mnist-*")), 200).branch.at == 200
    assert main(["reproduce", "fig2", "--network", "lenet5", "--seeds", "one"]) == 2
