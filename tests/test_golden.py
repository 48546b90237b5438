"""Run folders of the first version, which every later one must read and go on with.

`golden/run` was made by `conescope run digits --name golden --model.name=mlp --model.width=0.1
--training.steps=20 --training.batch_size=16 --training.evaluate="0, every 10" --probe.size=10
--kernel.when="0, every 10" --snapshots.keep="0, end"`; `golden/watch` by `train_watched` below.
Both: conescope 0.1.0, torch 2.13.0, one CPU thread. The numbers here are those that it printed.
"""

import hashlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import conescope as cs
from conescope.errors import DamageWarning
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run, read_recipe, read_status
from conescope.runs.journal import LINES
from conescope.runs.store import Folder

GOLDEN = Path(__file__).parent / "golden"
KERNELS = {
    "run": ("e87ad86ee3dedfd6", "c139d77a639239f5", "77aa969a88243455"),
    "watch": ("4a7a65f80fe5f9ab", "e96ed623ebb6d1b0", "8ce11657803474ce"),
}
DRAWS = ("6cd3ac2e94aab214", "8f706984bb90845e", "b84b064b828575c9")


@pytest.fixture
def copied(tmp_path):
    """Copy a golden folder, to go on with it."""
    return lambda name: Path(shutil.copytree(GOLDEN / name, tmp_path / name))


@pytest.fixture(autouse=True)
def another_machine():
    """Versions and machine, and so the last digits, may differ from those of the folders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamageWarning)
        yield


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def kernels(run):
    return {s: k.values for s, k in zip(run.series.steps, run.series.kernels, strict=True)}


def train_watched(path, last=20):
    """Train a small network, and return the steps at which its kernel was measured."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((torch.arange(p.numel()) % 7 - 3).reshape(p.shape) / 8)
    probe = torch.arange(18.0).reshape(6, 3) / 8 - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    labels = [0, 1, 2, 3, 0, 1]
    measured = []
    with cs.Watch(model, probe, when="0, every 10", out=path, draws=3, labels=labels) as watch:
        for step in range(last + 1):
            if step > 0:
                optimizer.zero_grad()
                (model(probe) - 1).square().mean().backward()
                optimizer.step()
            if watch.step(step):
                measured.append(step)
    return measured


def test_the_first_versions_runs_are_read():
    run = load_run(GOLDEN / "run")
    assert run.finished
    assert run.recipe is not None
    assert run.recipe.model.name == "mlp"
    assert run.series.steps == (0, 10, 20)
    assert tuple(digest(k.values) for k in run.series.kernels) == KERNELS["run"]
    np.testing.assert_allclose(
        run.series.distances_from(0), [0.0, 0.03102926097349857, 0.08713227219725306], rtol=1e-9
    )
    assert run.scalars["step"].tolist() == [0, 10, 20]
    assert run.scalars["test_accuracy"][-1] == 0.23333333333333334
    assert read_status(GOLDEN / "run").snapshots == (0, 20)
    assert run.estimates == {}


def test_journals_of_the_first_version_are_read_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_run(GOLDEN / "run").lost == load_run(GOLDEN / "watch").lost == ()


def test_the_first_versions_watches_are_read_with_their_draws():
    run = load_run(GOLDEN / "watch")
    assert run.finished
    assert run.recipe is None
    assert (run.name, run.seconds, run.total_steps) == ("watch", 0.128, None)
    assert run.labels is not None
    assert run.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert run.series.steps == tuple(run.estimates) == (0, 10, 20)
    assert tuple(digest(k.values) for k in run.series.kernels) == KERNELS["watch"]
    assert tuple(digest(k.draws) for k in run.estimates.values()) == DRAWS
    assert cs.estimate_distance(run.estimates[0], run.estimates[20]) == pytest.approx(
        (0.00896488597852699, 0.005112973701568238), rel=1e-9
    )


def test_a_run_of_the_first_version_is_gone_on_with(copied):
    path = copied("run")
    before = load_run(path)
    for file in ("kernels/00000010.safetensors", "snapshots/00000020.safetensors"):
        (path / file).unlink()
    with pytest.warns(DamageWarning, match="is missing or damaged"):
        assert run_experiment(read_recipe(path), path, command="again")
    after = load_run(path)
    assert after.finished
    assert after.command == before.command
    assert after.seconds > before.seconds
    for step in (0, 20):  # what is whole stays
        assert torch.equal(kernels(after)[step], kernels(before)[step])
    torch.testing.assert_close(kernels(after)[10], kernels(before)[10], rtol=1e-4, atol=1e-4)
    assert read_status(path).snapshots == (0, 20)


def test_a_watch_of_the_first_version_is_gone_on_with(copied):
    path = copied("watch")
    before = load_run(path)
    assert train_watched(path, last=30) == [30]
    after = load_run(path)
    assert after.finished
    assert after.series.steps == tuple(after.estimates) == (0, 10, 20, 30)
    for step, kernel in before.estimates.items():
        assert torch.equal(kernel.draws, after.estimates[step].draws)
    assert after.seconds > before.seconds


def test_a_watch_gives_the_numbers_of_the_first_version(tmp_path):
    assert train_watched(tmp_path / "watch") == [0, 10, 20]
    old, new = load_run(GOLDEN / "watch"), load_run(tmp_path / "watch")
    for step, kernel in old.estimates.items():
        torch.testing.assert_close(new.estimates[step].draws, kernel.draws, rtol=1e-4, atol=1e-5)
    assert {**new.source, "name": ""} == {**old.source, "name": ""}


@pytest.mark.parametrize("name", ["run", "watch"])
def test_the_journals_of_the_first_version_hold_what_is_declared(name):
    folder = Folder(GOLDEN / name)
    entries = folder.entries(*LINES)
    assert len(entries) == len((GOLDEN / name / "journal.jsonl").read_text().splitlines())
    for entry in entries:
        assert entry.values.keys() <= set(LINES[entry.kind].fields)
