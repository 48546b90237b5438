"""Training in bfloat16 and in channels-last memory: what it changes, and what it does not."""

from dataclasses import replace
from itertools import count

import pytest
import torch
import torch.nn.functional as F

from conescope.errors import RecipeError
from conescope.experiments.experiment import Experiment
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.report.summary import main_numbers
from conescope.training.arithmetic import check_bfloat16
from conescope.training.loop import train
from conescope.training.recipe_reading import load_recipe
from stored_runs import assert_same_run

LOW = "--training.precision=bfloat16"
LAST = "--training.memory_format=channels_last"


@pytest.fixture
def recipe_of(tiny_overrides):
    network = "--model.name=cnn"
    return lambda *options: load_recipe("digits", [*tiny_overrides, network, *options])


def weights_after(experiment, steps):
    model, optimizer = experiment.begin()
    snapshots = train(
        model, optimizer, experiment.batch, experiment.multiplier,
        start=0, stop=steps, seed=0, autocast=experiment.autocast,
    )  # fmt: skip
    list(snapshots)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_bfloat16_is_the_textbook_loop_under_autocast(recipe_of):
    experiment = Experiment(recipe_of(LOW))
    found = weights_after(experiment, 5)
    model, optimizer = experiment.begin()
    for step in range(5):
        inputs, labels = experiment.batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model.train()(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert value.dtype == found[name].dtype
        assert torch.equal(value, found[name])
    full = weights_after(Experiment(recipe_of()), 5)
    assert any(not torch.equal(value, full[name]) for name, value in found.items())


def test_channels_last_changes_rounding_only(recipe_of):
    last, usual = (weights_after(Experiment(recipe_of(*o)), 5) for o in ((LAST,), ()))
    assert any(not value.is_contiguous() for value in last.values())
    assert all(value.is_contiguous() for value in usual.values())
    for name, value in usual.items():
        torch.testing.assert_close(last[name], value, rtol=1e-4, atol=1e-5)


LINEARISED = "--dynamics.kind=linearised"


@pytest.mark.parametrize("options", [(LOW,), (LAST,), (LOW, LAST), (LOW, LINEARISED)], ids=str)
def test_stopped_and_gone_on_with_it_ends_in_the_same_bits(recipe_of, options, tmp_path):
    recipe = recipe_of(*options)
    assert run_experiment(recipe, tmp_path / "whole", command="test")
    asked = count()
    assert not run_experiment(
        recipe, tmp_path / "parts", command="test", should_stop=lambda: next(asked) >= 25
    )
    assert run_experiment(recipe, tmp_path / "parts", command="test")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_kernels_and_evaluations_stay_in_the_recipes_dtype(recipe_of):
    low, full = (Experiment(recipe_of(*options)) for options in ((LOW,), ()))
    models = [experiment.begin()[0] for experiment in (low, full)]
    kernels = [e.measure(m) for e, m in zip((low, full), models, strict=True)]
    assert kernels[0].values.dtype == torch.float32
    assert torch.equal(kernels[0].values, kernels[1].values)


def test_it_is_part_of_the_id_and_of_the_numbers(recipe_of, tmp_path):
    recipe = recipe_of(LOW, LAST)
    assert len({recipe_of(*o).id for o in ((), (LOW,), (LAST,), (LOW, LAST))}) == 4
    run_experiment(recipe, tmp_path / "run", command="test")
    numbers = main_numbers(load_run(tmp_path / "run"))
    assert numbers["precision of training"] == "bfloat16"
    assert numbers["memory format"] == "channels_last"
    run = replace(load_run(tmp_path / "run"), recipe=recipe_of())
    assert "precision of training" not in main_numbers(run)


def test_linearised_training_in_bfloat16_is_near_that_in_full(recipe_of):
    low, full, start = (
        weights_after(Experiment(recipe_of(LINEARISED, *options)), steps)
        for options, steps in (((LOW,), 5), ((), 5), ((), 0))
    )
    moved = {name: value - start[name] for name, value in full.items() if value.is_floating_point()}
    apart = sum((low[name] - full[name]).square().sum() for name in moved)
    assert 0 < apart < 0.05**2 * sum(value.square().sum() for value in moved.values())


def test_bfloat16_is_refused_for_weights_of_another_type(recipe_of):
    with pytest.raises(RecipeError, match="precision: bfloat16 is for a network of dtype float32"):
        Experiment(recipe_of(LOW, "--dtype=float64"))


def test_a_device_without_bfloat16_is_refused(recipe_of, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(RecipeError, match="'cuda:1' does not compute in bfloat16; set it to full"):
        check_bfloat16(recipe_of(LOW, "--device=cuda:1"))


def test_channels_last_is_refused_where_torch_is_wrong(recipe_of, tmp_path, monkeypatch):
    (tmp_path / "strided.py").write_text(
        "from torch import nn\n"
        "def build(classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 1, stride=2), nn.Flatten(),\n"
        "                         nn.Linear(64, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipe_of("--model.name=strided:build", "--model.width=1", LAST)
    with pytest.raises(RecipeError, match="strides, such as 0, may corrupt memory"):
        Experiment(recipe).begin()


def test_channels_last_is_refused_for_samples_that_are_no_images(tiny_overrides):
    tokens = ["--data.name=modular-addition", "--model.name=transformer", "--model.width=1", LAST]
    recipe = load_recipe("digits", [*tiny_overrides, *tokens])
    with pytest.raises(RecipeError, match="channels_last is for images"):
        Experiment(recipe).begin()
