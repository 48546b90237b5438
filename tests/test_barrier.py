"""The line between trained networks: its ends, convex losses, BatchNorm, and what is refused."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch

from conescope.cli import main
from conescope.errors import RecipeError, StoreError
from conescope.experiments.barrier import QUANTITIES, lines_between, write_lines
from conescope.experiments.experiment import Experiment
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import read_recipe
from conescope.experiments.switch import scalars_at
from conescope.measuring.undisturbed import recalibrated
from conescope.runs.snapshots import find_snapshot, read_snapshot
from conescope.runs.store import Folder
from conescope.training.recipe_reading import load_recipe

TINY = [
    "--model.name=mlp", "--model.width=0.2", "--training.steps=40", "--training.batch_size=16",
    "--training.evaluate=end", "--probe.size=10", "--kernel.when=never", "--threads=1",
    "--snapshots.keep=0, every 20", "--snapshots.resume=never", "--optimizer.lr=0.1",
]  # fmt: skip

LINEAR = """
import torch
from torch import nn

def build(classes, shape, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes))
"""


def trained(path, *options):
    run_experiment(load_recipe("digits", [*TINY, *options]), path, command="test")
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs of one kind from different weights and data orders."""
    folder = tmp_path_factory.mktemp("barrier")
    return [trained(folder / f"run-{seed}", f"--seed={seed}") for seed in (0, 1)]


def test_the_ends_are_what_the_runs_stored_and_their_functions_differ(pair):
    (line,) = lines_between(pair, points=3)
    assert line.runs == ("run-0", "run-1")
    assert line.steps == (40, 40)
    assert line.fractions.tolist() == [0, 0.5, 1]
    for place, path in ((0, pair[0]), (-1, pair[1])):
        stored = scalars_at(path, 40)
        for split in ("train", "test"):
            loss, error = (
                line.values["interpolated"][f"{split}_{name}"][place] for name in ("loss", "error")
            )
            assert loss == pytest.approx(stored[f"{split}_loss"], rel=1e-6)
            assert error == pytest.approx(1 - stored[f"{split}_accuracy"], abs=1e-12)
    assert list(line.values) == ["interpolated"]
    models = []
    for path in pair:
        experiment = Experiment(read_recipe(path))
        model, _ = experiment.begin()
        read_snapshot(Folder(path), find_snapshot(Folder(path), 40)).load_weights(model)
        models.append(model.eval())
    x = experiment.normalize(experiment.data.test.inputs)
    with torch.no_grad():
        p, q = (model(x).softmax(dim=1) for model in models)
    assert line.disagreement == pytest.approx((p.argmax(1) != q.argmax(1)).float().mean().item())
    assert line.function_distance == pytest.approx((p - q).norm(dim=1).mean().item(), rel=1e-5)
    weights = [torch.cat([w.flatten() for w in model.parameters()]) for model in models]
    norms = sum(w.norm() for w in weights) / 2
    assert line.distance == pytest.approx(((weights[0] - weights[1]).norm() / norms).item())


def test_the_barrier_is_the_most_above_the_line_between_the_ends(pair):
    (line,) = lines_between(pair, points=5)
    for quantity in QUANTITIES:
        found = line.values["interpolated"][quantity]
        above = [f - (found[0] + a * (found[-1] - found[0])) for a, f in zip(
            (0, 0.25, 0.5, 0.75, 1), found, strict=True
        )]  # fmt: skip
        assert line.barrier(quantity) == pytest.approx(max(above))
    assert line.barrier("train_loss") > 0.01  # different weights: permuted units lie between


def test_a_convex_loss_has_no_barrier(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "linear_for_barriers.py").write_text(LINEAR)
    own = ["--model.name=linear_for_barriers:build"]
    runs = [trained(tmp_path / f"{seed}", *own, f"--seed={seed}") for seed in (0, 1)]
    (line,) = lines_between(runs)
    for quantity in ("train_loss", "test_loss"):
        assert line.barrier(quantity) == pytest.approx(0, abs=1e-12)
        middle = line.values["interpolated"][quantity]
        assert (np.diff(middle, 2) > 0).all()


def test_a_copy_lies_at_no_distance_and_all_pairs_are_told(pair, tmp_path):
    copied = shutil.copytree(pair[0], tmp_path / "copy")
    lines = lines_between([*pair, copied], points=3)
    assert [line.runs for line in lines] == [
        ("run-0", "run-1"), ("run-0", "copy"), ("run-1", "copy"),
    ]  # fmt: skip
    same = lines[1]
    assert same.distance == same.disagreement == same.function_distance == 0
    for values in same.values["interpolated"].values():
        assert len(set(values)) == 1


def test_batchnorm_is_estimated_anew_on_the_line(tmp_path):
    runs = [
        trained(tmp_path / f"{seed}", f"--seed={seed}", "--model.norm=batch") for seed in (0, 1)
    ]
    (line,) = lines_between(runs, points=3)
    assert list(line.values) == ["interpolated", "estimated"]
    experiment = Experiment(read_recipe(runs[0]))
    model, _ = experiment.begin()
    states = [read_snapshot(Folder(r), find_snapshot(Folder(r), 40)).weights for r in runs]
    halfway = {
        name: (a + states[1][name]) / 2 if a.is_floating_point() else a
        for name, a in states[0].items()
    }
    model.load_state_dict(halfway)
    for kind, network in (
        ("interpolated", model),
        ("estimated", recalibrated(model, experiment.calibration)),
    ):
        expected = experiment.evaluate_network(network)["test_loss"]
        assert line.values[kind]["test_loss"][1] == pytest.approx(expected, rel=1e-5)


def test_children_of_one_parent_and_the_parent_itself(pair, tmp_path):
    children = []
    for seed in (3, 4):
        out = tmp_path / f"child-{seed}"
        words = ["run", "--from", str(pair[0]), "--at", "20", f"--seed={seed}", "--out", str(out)]
        assert main(words) == 0
        children.append(out)
    early, *_ = lines_between([*children, pair[0]], points=3)
    (apart,) = lines_between(pair, points=3)
    assert early.distance < apart.distance
    with pytest.raises(RecipeError, match="not of one parent"):
        lines_between([children[0], pair[1]])
    other = tmp_path / "other"
    assert main(["run", "--from", str(pair[1]), "--at", "20", "--out", str(other)]) == 0
    with pytest.raises(RecipeError, match="give children of one run, or runs without parents"):
        lines_between([children[0], other])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.width=0.3"], "differ in model; a barrier lies between networks of one kind"),
        (["--data.train_size=100"], "differ in data"),
        (["--training.loss=squared"], "trained by different losses"),
        (["--training.steps=30"], None),
    ],
)
def test_networks_that_are_not_on_one_line_are_refused(pair, tmp_path, options, message):
    other = trained(tmp_path / "other", *options)
    if message is None:
        assert lines_between([pair[0], other], points=3)[0].steps == (40, 30)
        return
    with pytest.raises(RecipeError, match=message):
        lines_between([pair[0], other])


def test_seeds_that_choose_labels_and_linearised_runs_are_refused(pair, tmp_path):
    noisy = [
        trained(tmp_path / f"n{seed}", "--data.label_noise=0.2", f"--seed={seed}")
        for seed in (0, 1)
    ]
    with pytest.raises(RecipeError, match="their seeds choose samples or labels"):
        lines_between(noisy)
    out = tmp_path / "linear"
    words = ["run", "--from", str(pair[0]), "--at", "20", "--dynamics.kind=linearised"]
    assert main([*words, "--out", str(out)]) == 0
    with pytest.raises(RecipeError, match="linear is linearised"):
        lines_between([pair[0], out])


def test_bad_input_is_one_line(pair, tmp_path, capsys):
    for runs, options, message in (
        (pair[:1], {}, "two or more different runs"),
        ([pair[0], pair[0]], {}, "two or more different runs"),
        (pair, {"points": 2}, "--points is 2"),
    ):
        with pytest.raises(RecipeError, match=message):
            lines_between(runs, **options)
    with pytest.raises(StoreError, match="no snapshot at iteration 7; the nearest are at 0 and 20"):
        lines_between(pair, at=7)
    assert main(["barrier", str(pair[0]), str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_prints_a_table_and_writes_figure_and_values(pair, tmp_path, capsys):
    words = ["barrier", *map(str, pair), "--points", "3", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "run-0, run-1" in said
    assert "BatchNorm" not in said
    (line,) = lines_between(pair, points=3)
    rows = list(csv.DictReader((tmp_path / "out" / "barrier.csv").read_text().splitlines()))
    for row, fraction, loss in zip(
        rows, line.fractions, line.values["interpolated"]["test_loss"], strict=True
    ):
        assert float(row["fraction"]) == fraction
        assert float(row["test_loss"]) == pytest.approx(loss)
    assert {file.suffix for file in (tmp_path / "out").iterdir()} >= {".png", ".pdf", ".csv"}
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["lines"][0]["barriers"]["interpolated"]["test_loss"] == pytest.approx(
        line.barrier("test_loss")
    )
    with pytest.raises(StoreError, match="cannot write"):
        write_lines([line], tmp_path / "out" / "barrier.csv" / "below")
    assert math.isfinite(line.distance)


def test_kinship_is_asked_of_each_pair_in_any_order(pair, tmp_path):
    child = tmp_path / "child"
    assert main(["run", "--from", str(pair[0]), "--at", "20", "--out", str(child)]) == 0
    for runs in ([pair[0], child, pair[1]], [child, pair[0], pair[1]]):
        with pytest.raises(RecipeError, match="not of one parent"):
            lines_between(runs)


def test_runs_of_one_name_are_told_apart_and_names_are_plain(pair, tmp_path, capsys):
    copies = [
        shutil.copytree(path, tmp_path / name / "lr[red]\x1b[31m")
        for path, name in zip(pair, "ab", strict=True)
    ]
    (line,) = lines_between(copies, points=3)
    assert line.runs == tuple(map(str, copies))
    moved = [pair[0], shutil.copytree(pair[1], tmp_path / "lr[red]\x1b[31m")]
    out = ["--points=3", "--out", str(tmp_path / "out")]
    assert main(["barrier", *map(str, moved), *out]) == 0
    said = capsys.readouterr().out
    assert "lr[red]\\x1b[31m" in said
    assert "\x1b" not in said
