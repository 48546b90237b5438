"""Children of perturbed snapshots: what they start from, where they end, and what is refused."""

import math
import shutil
from itertools import count

import numpy as np
import pytest
import torch

from conescope.cli import main
from conescope.errors import ConescopeError, RecipeError, StoreError
from conescope.experiments.branches import branch_recipe
from conescope.experiments.experiment import Experiment
from conescope.experiments.perturb import (
    QUANTITIES,
    TABLE,
    plan_perturbation,
    read_perturbation,
    read_table,
    write_table,
)
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run, read_recipe
from conescope.experiments.switch import carry_out
from conescope.kernel.distance import kernel_distance
from conescope.report.page import report_page
from conescope.runs.snapshots import find_snapshot, read_snapshot
from conescope.runs.store import Folder
from conescope.training.perturbation import norm, perturb
from conescope.training.recipe_reading import load_recipe, recipe_from_dict
from stored_runs import assert_same_run, everything

TINY = [
    "--model.name=mlp", "--model.width=0.2", "--training.steps=60", "--training.batch_size=16",
    "--training.evaluate=0, every 20", "--probe.size=20", "--kernel.when=0, every 10",
    "--snapshots.keep=0, every 30", "--snapshots.resume=never", "--optimizer.momentum=0.9",
]  # fmt: skip


def begun(folder, *options):
    recipe = load_recipe("digits", [*TINY, *options])
    run_experiment(recipe, folder, command="test")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return begun(tmp_path_factory.mktemp("perturb") / "parent")


@pytest.fixture
def parent(made, tmp_path):
    return shutil.copytree(made, tmp_path / "parent")


def finished(plan):
    for child in plan.to_do():
        assert carry_out(child, command="test")
    return read_perturbation(plan)


def start_of(recipe, parent, at):
    origin = read_snapshot(Folder(parent), find_snapshot(Folder(parent), at))
    return Experiment(recipe).begin(origin)[0], origin.weights


def test_a_step_has_its_size_and_a_direction_of_its_own(parent):
    moves = []
    for seed in (0, 1):
        fields = ["--branch.perturbation=0.01", f"--branch.perturbation_seed={seed}"]
        model, before = start_of(branch_recipe(parent, 30, fields), parent, 30)
        again, _ = start_of(branch_recipe(parent, 30, fields), parent, 30)
        moved = [p.detach() - before[name] for name, p in model.named_parameters()]
        whole = norm([before[name] for name, _ in model.named_parameters()])
        assert norm(moved) / whole == pytest.approx(0.01, rel=1e-4)
        assert all(
            torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
        )
        moves.append(torch.cat([m.double().flatten() for m in moved]))
    cosine = torch.nn.functional.cosine_similarity(*moves, dim=0).item()
    assert abs(cosine) < 5 / math.sqrt(len(moves[0]))


def test_buffers_and_frozen_parameters_stay():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    perturb(model, 0.1, seed=0)
    after = model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"0.bias", *(name for name, _ in model.named_buffers(prefix=""))}


def test_children_are_compared_with_their_run_and_with_each_other(parent):
    plan = plan_perturbation(parent, [0, 30], 1e-2, seeds=2)
    result = finished(plan)
    assert plan.to_do() == []
    series = load_run(parent).series
    ends = [load_run(child.path).series for child in plan.children[1]]
    assert [end.steps for end in ends] == [(60,), (60,)]
    by_hand = [kernel_distance(series.kernels[-1], end.kernels[0]) for end in ends]
    np.testing.assert_allclose(result.kernels[1], by_hand, rtol=1e-6)
    between = kernel_distance(ends[0].kernels[0], ends[1].kernels[0])
    np.testing.assert_allclose(result.kernels_between[1], [between] * 2, rtol=1e-6)

    def weights(path):
        held = sorted(everything(path).items())  # a file's own order is not that of another
        prefix = "snapshots/00000060.safetensors:model."
        return torch.cat([t.double().flatten() for n, t in held if n.startswith(prefix)])

    own = weights(parent)
    apart = [(weights(c.path) - own).norm() / own.norm() for c in plan.children[1]]
    np.testing.assert_allclose(result.weights[1], np.array(apart), rtol=1e-6)
    assert (result.weights > 0).all()
    assert (result.kernels > 0).all()


def test_without_the_step_a_child_is_the_run_itself(parent, tmp_path):
    recipe = plan_perturbation(parent, [30], 1e-3, seeds=1).children[0][0].recipe
    fields = recipe.to_dict()
    fields["branch"]["perturbation"] = 0.0
    run_experiment(recipe_from_dict(fields, "test"), tmp_path / "child", command="test")
    ours, theirs = everything(tmp_path / "child"), everything(parent)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "00000060" in name)


def test_a_stopped_child_goes_on_to_the_same_bits(parent, tmp_path):
    recipe = branch_recipe(
        parent, 30, ["--branch.perturbation=0.01", "--branch.optimizer=restored"]
    )
    assert run_experiment(recipe, tmp_path / "whole", command="test")
    asked = count()
    assert not run_experiment(
        recipe, tmp_path / "parts", command="test", should_stop=lambda: next(asked) >= 10
    )
    assert run_experiment(recipe, tmp_path / "parts", command="test")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_another_seed_or_size_is_another_child(parent):
    plans = [plan_perturbation(parent, [30], size) for size in (1e-3, 1e-2)]
    paths = {child.path for plan in plans for child in plan.children[0]}
    assert len(paths) == 6
    assert branch_recipe(parent, 30).id == branch_recipe(parent, 30, ["--branch.perturbation=0"]).id


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--at", "30", "--size", "0"], 2, "--size is 0, and a perturbation is a finite number"),
        (["--at", "30", "--size", "nan"], 2, "--size is nan, and a perturbation is"),
        (["--at", "30", "--size", "-1"], 2, "--size is -1, and"),
        (["--at", "30", "--size", "inf"], 2, "--size is inf, and"),
        (["--at", "30", "--size", "1e-12"], 2, "changes none of them; choose a larger one"),
        (["--at", "31"], 1, "holds no snapshot at iteration 31; the nearest are at 30 and 60"),
        (["--at", "30,0"], 2, "the iterations must rise, each named once"),
        (["--at", "soon"], 2, "--at takes iterations such as 0,500,2000, not 'soon'"),
        (["--at", "60"], 2, "a branch from iteration 60 has nothing to do until iteration 60"),
        (["--at", "30", "--seeds", "0"], 2, "--seeds is 0; give at least 1"),
        (["--at", "0", "--until", "31"], 1, "holds no snapshot at iteration 31"),
    ],
)
def test_bad_input_is_one_line(made, capsys, words, status, message):
    assert main(["perturb", str(made), *words]) == status
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert said.count("error") == 1
    assert "Traceback" not in said


def test_a_run_without_a_kernel_at_the_end_is_named(tmp_path):
    path = begun(tmp_path / "run", "--kernel.when=0, 10")
    with pytest.raises(StoreError, match="holds no kernel at iteration 60, where all are compared"):
        plan_perturbation(path, [0], 1e-3)


def test_children_of_another_run_are_refused(parent, tmp_path):
    other = begun(tmp_path / "other", "--seed=1")
    plan, theirs = (plan_perturbation(path, [30], 1e-2, seeds=1) for path in (parent, other))
    finished(theirs)
    shutil.copytree(theirs.children[0][0].path, plan.children[0][0].path)
    with pytest.raises(StoreError, match="children of different runs are not compared"):
        read_perturbation(plan)
    table = write_table(theirs, read_perturbation(theirs), tmp_path / TABLE)
    with pytest.raises(StoreError, match="is of children of"):
        read_table(read_recipe(parent).id, table)


def test_a_child_that_diverges_is_left_out(parent, monkeypatch):
    plan = plan_perturbation(parent, [30], 1e5, seeds=2)
    result = finished(plan)
    for name in QUANTITIES:
        assert np.isnan(getattr(result, name)).all()
    assert "2 diverged" in report_with(parent, plan, result)


def report_with(parent, plan, result):
    write_table(plan, result, parent / "figures" / TABLE)
    return report_page(load_run(parent))


def test_the_command_tells_draws_and_reports(parent, capsys):
    assert main(["perturb", str(parent), "--at", "0,30", "--size", "1e-2", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "perturb.png" in out
    assert "weights to run" in out
    for name in ("perturb.png", "perturb.pdf", TABLE):
        assert (parent / "figures" / name).stat().st_size > 100
    assert main(["perturb", str(parent), "--at", "0,30", "--size", "1e-2", "--seeds", "2"]) == 0
    assert "children to train" not in capsys.readouterr().err
    assert "Perturbed children" in report_page(load_run(parent))


def test_a_report_without_children_or_with_a_damaged_table_says_so(parent):
    assert "Perturbed children" not in report_page(load_run(parent))
    file = parent / "figures" / TABLE
    file.parent.mkdir(exist_ok=True)
    for text in ("", "run,at\n", "a,b\n1,2\n", "run,at,seed,until,size\nx,1,0,9,1\n"):
        file.write_text(text)
        with pytest.raises(ConescopeError, match="is no table of perturbed children"):
            read_table("x", file)
        assert "is no table of perturbed children" in report_page(load_run(parent))


def test_the_table_is_read_back_as_it_was(parent, tmp_path):
    plan = plan_perturbation(parent, [0, 30], 1e-2, seeds=2)
    result = finished(plan)
    found = read_table(read_recipe(parent).id, write_table(plan, result, tmp_path / TABLE))
    for name in QUANTITIES:
        np.testing.assert_array_equal(getattr(found, name), getattr(result, name))
    assert (found.points, found.until, found.size) == ((0, 30), 60, 1e-2)


def test_a_perturbation_without_a_branch_is_refused():
    with pytest.raises(RecipeError, match="perturbation and its seed are for a branch"):
        load_recipe("digits", ["--branch.perturbation=0.1"])


def test_a_report_that_there_is_shows_the_children_and_is_verified(parent, capsys):
    assert main(["report", str(parent)]) == 0
    assert main(["perturb", str(parent), "--at=30", "--seeds=2"]) == 0
    assert "perturbed at 30" in (parent / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["verify", str(parent), "--share=0.1"]) == 0, capsys.readouterr().out

    archive = parent.parent / "mine.zip"
    assert main(["export", str(parent), "--weights", "--out", str(archive)]) == 0
    assert main(["import", str(archive), "--out", str(parent.parent / "theirs")]) == 0
    capsys.readouterr()
    assert main(["verify", str(archive), "--share=0.1"]) == 0, capsys.readouterr().out
    assert (parent.parent / "theirs" / "figures" / TABLE).exists()


def test_children_that_would_train_otherwise_than_the_run_are_refused(parent, tmp_path):
    cosine = begun(tmp_path / "cosine", "--lr_schedule.name=cosine")
    with pytest.raises(RecipeError, match="cosine depends on the length of a training"):
        plan_perturbation(cosine, [0], 1e-3, until=30)
    assert plan_perturbation(cosine, [0], 1e-3).until == 60
    assert plan_perturbation(parent, [0], 1e-3, until=30).until == 30
    out = tmp_path / "linear"
    words = ["run", "--from", str(parent), "--at", "30", "--dynamics.kind=linearised"]
    assert main([*words, "--out", str(out)]) == 0
    with pytest.raises(RecipeError, match="is linearised, and its children would train the"):
        plan_perturbation(out, [30], 1e-3)
