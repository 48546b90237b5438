"""Sweeps of branches, of switch points and of measurements."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from conescope.cli import main
from conescope.cli.terminal import stopping
from conescope.errors import RecipeError, StoreError
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.experiments.sweep.children import branch_axes, branch_grid, switch_axes, switch_grid
from conescope.experiments.sweep.sweep_folder import read_sweep
from conescope.experiments.switch import plan_switch
from conescope.report.sweep_table import load_sweep
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from conescope.training.recipe_reading import load_recipe
from conftest import TINY_OVERRIDES
from stored_runs import everything

FAST = ["--kernel.when=0, every 20", "--training.batch_size=8", "--probe.size=10",
        "--training.evaluate=0, every 20"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three runs that differ in their seeds, with snapshots at 0, 30 and 60."""
    folder = tmp_path_factory.mktemp("trained")
    for seed in range(3):
        recipe = load_recipe("digits", [*TINY_OVERRIDES, *FAST, f"--seed={seed}"])
        run_experiment(recipe, folder / str(seed), command="test")
    return folder


@pytest.fixture
def parents(trained, tmp_path, monkeypatch):
    """Copies of them, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "parents")
    return [Path("parents", str(seed)) for seed in range(3)]


def branches(parents, at, *overrides):
    return branch_grid(branch_axes(parents, at, overrides))


def test_a_branch_of_a_sweep_is_the_one_that_run_makes(parents):
    points = branches(parents[:1], "0,30", "--optimizer.lr=0.01,0.02", "--seed=3,4")
    assert len(points) == 8
    last = points[-1]
    assert dict(last.values) == {"branch.at": 30, "optimizer.lr": 0.02, "seed": 4}
    words = ["run", "--from", str(parents[0]), "--at", "30", "--optimizer.lr=0.02", "--seed=4"]
    assert main([*words, "--out", "alone"]) == 0
    assert load_run("alone").recipe == last.recipe


def test_parents_that_differ_in_their_seeds_are_an_axis_of_seeds(parents):
    points = branches(parents, "30", "--optimizer.lr=0.01,0.02")
    assert [point.values["seed"] for point in points] == [0, 0, 1, 1, 2, 2]
    assert [point.recipe.seed for point in points] == [0, 0, 1, 1, 2, 2]
    again = branches(parents, "30", "--seed=7")
    assert [point.values for point in again] == [{"run": str(parent)} for parent in parents]


def test_parents_of_a_sweep_keep_its_axes(parents, tiny_overrides):
    words = [*tiny_overrides[:2], "--training.steps=1", "--kernel.when=never"]
    others = []
    for lr in (0.1, 0.2):
        recipe = load_recipe("digits", [*words, f"--optimizer.lr={lr}", "--snapshots.keep=0"])
        others.append(parents[0].with_name(str(lr)))
        run_experiment(recipe, others[-1], command="test")
    points = branches(others, "0", "--seed=0,1")
    assert [dict(point.values) for point in points] == [
        {"optimizer.lr": lr, "seed": seed} for lr in (0.1, 0.2) for seed in (0, 1)
    ]
    assert [point.recipe.optimizer.lr for point in points] == [0.1, 0.1, 0.2, 0.2]


def test_branches_are_carried_out_to_the_same_bits(parents, tmp_path):
    words = ["sweep", "branch", *map(str, parents[:2]), "--at=30", "--optimizer.lr=0.01,0.02"]
    assert main([*words, "--out=s", "--slots=2"]) == 0
    sweep = read_sweep("s")
    assert sweep.axes == ("seed", "optimizer.lr")
    assert [run.state() for run in sweep.runs] == ["finished"] * 4
    for run in sweep.runs:
        run_experiment(run.recipe, tmp_path / "alone" / run.id, command="test")
        one, other = everything(run.path), everything(tmp_path / "alone" / run.id)
        assert one.keys() == other.keys()
        assert all(torch.equal(values, other[name]) for name, values in one.items())
    table = load_sweep("s").table()
    assert table["branch.at"].to_pylist() == [30] * 4
    assert main(["sweep", "report", "s"]) == 0


def test_a_swept_switch_experiment_is_found_done_by_conescope_switch(parents, capsys):
    words = ["--at", "0,30", "--optimizer.lr", "0.01"]
    assert main(["sweep", "switch", *map(str, parents[:2]), *words, "--out=s", "--slots=2"]) == 0
    sweep = read_sweep("s")
    assert sweep.lengths == {"seed": 2, "branch.at": 2, "dynamics.kind": 2}
    switch = plan_switch(parents[:2], [0, 30], ["--optimizer.lr", "0.01"])
    assert switch.to_do() == []
    children = {child.path for rows in switch.children.values() for row in rows for child in row}
    assert {run.path for run in sweep.runs} == children
    capsys.readouterr()
    assert main(["switch", *map(str, parents[:2]), *words, "--out=drawn"]) == 0
    assert "child" not in capsys.readouterr().err
    assert main(["sweep", "report", "s"]) == 0
    page = (sweep.path / "report.html").read_text()
    assert "Test accuracy against branch.at" in page
    assert "Verdict over" not in page  # children have no kernels


WRONG = {
    "holds no snapshot at iteration 31; the nearest are at 30 and": ("branch", ["--at=30,31"]),
    "has nothing to do until iteration 60": ("branch", ["--at=0,60"]),
    "branch.at must be at least 0, not -1": ("branch", ["--at=-1"]),
    "branch.at takes a whole number, not 'a'": ("branch", ["--at=a"]),
    "the axis branch.at has no values": ("branch", ["--at=,"]),
    "has the value 30 twice": ("branch", ["--at=30,30"]),
    "--branch.at is what RUN and --at say": ("branch", ["--at=0", "--branch.at", "30"]),
    "was not evaluated at iteration 50": ("switch", ["--at=0", "--training.steps=50"]),
    "--kernel.when is given by the switch experiment itself": (
        "switch",
        ["--at=0", "--kernel.when", "0"],
    ),
}


@pytest.mark.parametrize(("message", "what"), WRONG.items())
def test_wrong_children_are_refused(parents, capsys, message, what):
    command, words = what
    assert main(["sweep", command, str(parents[0]), *words, "--out=s"]) != 0
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_parents_have_to_be_different_runs(parents, tmp_path):
    with pytest.raises(RecipeError, match="a run is named twice"):
        branches([parents[0], parents[0].absolute()], "30")
    with pytest.raises(StoreError, match="holds no run"):
        branches([tmp_path / "none"], "30")
    with pytest.raises(RecipeError, match="given by the switch experiment"):
        switch_axes(parents, "0", ["--dynamics.kind=standard"])
    assert len(switch_grid(switch_axes(parents, "0", []))) == 6


def test_many_runs_are_measured_again_in_several_ways(parents, capsys):
    words = ["sweep", "measure", *map(str, parents), "--outputs=trace,0", "--when=0, 30|60"]
    assert main([*words, "--out=s", "--slots=2", "--by-layer"]) == 0
    sweep = read_sweep("s")
    assert sweep.kind == "measurement"
    assert sweep.lengths == {"series": 3, "outputs": 2, "when": 2}
    for run in sweep.runs:
        assert run.state() == "finished"
        measured = load_run(run.path)
        assert measured.series.steps == ((60,) if run.values["when"] == "60" else (0, 30))
        assert measured.series.measured[0].outputs == run.values["outputs"]
        assert measured.series.measured[0].by_layer
    capsys.readouterr()
    assert main([*words, "--out=s", "--slots=2", "--by-layer"]) == 0
    assert "12, of which 0 are to do" in capsys.readouterr().out
    table = load_sweep("s").table()
    assert table["kernels"].to_pylist() == [2, 1] * 6
    assert set(table["state"].to_pylist()) == {"finished"}
    assert main(["sweep", "status", "s"]) == 0
    assert main(["sweep", "report", "s"]) == 0


def test_a_measurement_goes_by_numbers_not_by_places(parents):
    words = ["sweep", "measure", str(parents[0]), "--draws=4,8"]
    assert main([*words, "--out=a"]) == 0
    assert main([*words, "--memory=1GB", "--out=b", "--dry-run", "--runs=a/runs"]) == 0
    assert [run.values for run in read_sweep("a").runs] == [{"draws": 4}, {"draws": 8}]
    assert load_run(read_sweep("a").runs[1].path).series.measured[0].draws.shape[0] == 8


@pytest.mark.parametrize(
    ("words", "kernels", "rows", "matrices"),
    [
        (("--when=0, 30, 60",), 3, 10, 1),
        (("--when=0, 30", "--outputs=full"), 2, 100, 1),
        (("--draws=4", "--when=60"), 1, 10, 5),
        (("--by-layer", "--when=60"), 1, 10, 4),
        (("--projection=16", "--when=60"), 1, 10, 1.6),
    ],
)
def test_the_cost_of_measurements_is_forecast(parents, capsys, words, kernels, rows, matrices):
    asked = ["sweep", "measure", *map(str, parents[:2]), *words, "--out=s"]
    assert main([*asked, "--dry-run", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    assert (cost["kinds"], cost["timed"]) == (2, 2)
    numbers = rows**2 * matrices + 10 * 10  # and 10 outputs on each sample of the probe
    assert cost["stored_bytes"] == pytest.approx(2 * kernels * numbers * 4)
    assert cost["seconds"] > 0
    assert (cost["memory"] > 0) == ("--projection=16" not in words)
    assert main([*asked, "--slots=2"]) == 0
    for run in read_sweep("s").runs:
        stored = Folder(run.path).files(Kind.KERNEL)
        assert len(stored) == kernels
        tensors = [t for entry in stored for t in Folder(run.path).read_tensors(entry).values()]
        assert sum(tensor.nbytes for tensor in tensors) == cost["stored_bytes"] / 2


WRONG_MEASUREMENTS = {
    "there is no missing to measure": ["missing", "--model=a:b", "--probe=c"],
    "named twice": ["parents/0", "parents/0"],
    "are the same; name each value once": ["parents/0", "--draws=4,04"],
    "is no schedule": ["parents/0", "--when=often"],
    "--outputs has no value": ["parents/0", "--outputs=,"],
}


@pytest.mark.parametrize(("message", "words"), WRONG_MEASUREMENTS.items())
def test_wrong_measurements_are_refused(parents, capsys, message, words):
    assert main(["sweep", "measure", *words, "--out=s"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert main(["sweep", "measure", "parents/0", "--draws=4,a", "--out=s"]) == 2
    assert re.search(r"--draws: invalid int value: 'a'", capsys.readouterr().err)


def test_a_measurement_that_cannot_be_made_is_given_up_and_named(parents, capfd):
    assert main(["sweep", "measure", str(parents[0]), "--when=0|5", "--out=s", "--slots=1"]) == 1
    out, shown = capfd.readouterr()
    assert "(from 1 of 2 kinds)" in out
    assert shown.count("kept no snapshot at '5'; it has those of 0, 30, ") == 2
    assert "its output is in" in shown
    assert "Traceback" not in shown
    assert [run.state() for run in read_sweep("s").runs] == ["finished", "failed"]
    words = ["sweep", "measure", str(parents[0]), "--probe=a.npz,b.npz", "--out=t"]
    assert main(words) == 2  # none can be made, so that nothing is begun
    assert "is a run, which takes no --probe" in capfd.readouterr().err
    assert not Path("t").exists()


def test_a_signal_that_a_sweep_ignores_is_not_heard_by_its_measurements():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping() as received:
            os.kill(os.getpid(), signal.SIGINT)
        assert received == []
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_sweep_of_another_kind_in_the_same_folder_is_damage(parents):
    assert main(["sweep", "measure", str(parents[0]), "--out=s"]) == 0
    held = json.loads((read_sweep("s").path / "sweep.json").read_text())
    held["kind"] = "baking"
    (read_sweep("s").path / "sweep.json").write_text(json.dumps(held))
    with pytest.raises(StoreError, match="is damaged"):
        read_sweep("s")
