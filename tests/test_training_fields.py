"""The loss, label noise, number of training samples, depth and normalisation of a recipe."""

from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

from conescope.errors import DataError, RecipeError
from conescope.experiments.experiment import Experiment
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.experiments.switch import plan_switch, read_switch
from conescope.measuring.undisturbed import evaluate
from conescope.report.figures.training import training
from conescope.report.run_analysis import analyse
from conescope.report.summary import main_numbers
from conescope.training.data.sampling import load_chosen
from conescope.training.loop import Snapshot
from conescope.training.losses import loss_of_guessing, squared_error
from conescope.training.models.lenet import LeNet5
from conescope.training.models.mlp import MLP
from conescope.training.recipe_fields import DataRecipe
from conescope.training.recipe_reading import load_recipe
from stored_runs import assert_same_run

SQUARED = "--training.loss=squared"
NOISE = "--data.label_noise=0.4"
FEWER = "--data.train_size=300"
DEEP = "--model.layers=3"
NORMS = ("--model.norm=batch", "--model.norm=layer")


@pytest.fixture
def recipe_of(tiny_overrides):
    return lambda *options: load_recipe("digits", [*tiny_overrides, *options])


def weights_after(experiment, steps):
    model, optimizer = experiment.begin()
    list(experiment.train(Snapshot(0, model, optimizer), 0, steps))
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_squared_error_is_half_the_squared_distance_to_the_one_hot_labels():
    logits, labels = torch.randn(7, 4), torch.arange(7) % 4
    by_hand = sum(
        0.5 * (float(logits[n, c]) - (c == int(labels[n]))) ** 2 for n in range(7) for c in range(4)
    )
    assert squared_error(logits, labels, reduction="sum").item() == pytest.approx(by_hand, rel=1e-6)
    assert squared_error(logits, labels).item() == pytest.approx(by_hand / 7, rel=1e-6)
    places = logits.expand(3, 7, 4).movedim(-1, 1), labels.expand(3, 7)
    assert squared_error(*places).item() == pytest.approx(by_hand / 7, rel=1e-6)


def test_guessing_is_the_best_that_constant_logits_can_do():
    labels = torch.arange(40) % 10
    best = torch.full((40, 10), 0.1)
    assert loss_of_guessing("squared", 10) == pytest.approx(squared_error(best, labels).item())
    guessed = nn.functional.cross_entropy(best, labels).item()
    assert loss_of_guessing("cross_entropy", 10) == pytest.approx(guessed)


def test_training_on_squared_error_is_the_textbook_loop(recipe_of):
    experiment = Experiment(recipe_of(SQUARED))
    found = weights_after(experiment, 5)
    model, optimizer = experiment.begin()
    for step in range(5):
        inputs, labels = experiment.batch(step)
        targets = torch.eye(10)[labels]
        loss = ((model.train()(inputs) - targets) ** 2).sum(1).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, found[name], rtol=1e-5, atol=1e-7)
    usual = weights_after(Experiment(recipe_of()), 5)
    assert any(not torch.equal(value, usual[name]) for name, value in found.items())


def test_what_is_evaluated_is_the_loss_that_is_trained(recipe_of):
    experiment = Experiment(recipe_of(SQUARED, "--data.label_noise=0.5"))
    model, optimizer = experiment.begin()
    values = experiment.evaluate(Snapshot(0, model, optimizer))
    data = experiment.data
    for name, split in (("train", data.train), ("test", data.test)):
        inputs = experiment.normalize(split.inputs)
        with torch.no_grad():
            loss = squared_error(model.eval()(inputs), split.labels).item()
        assert values[f"{name}_loss"] == pytest.approx(loss, rel=1e-5)
    inputs = experiment.normalize(data.test.inputs)
    usual = evaluate(model, lambda part: inputs[part], data.test.labels)
    assert usual["loss"] != pytest.approx(values["test_loss"])


def test_label_noise_draws_a_share_of_the_training_labels_by_the_seed():
    clean = load_chosen(DataRecipe(), 0)
    noisy, again, other = (
        load_chosen(DataRecipe(label_noise=0.4), seed).train.labels for seed in (0, 0, 1)
    )
    changed = (noisy != clean.train.labels).double().mean().item()
    assert changed == pytest.approx(0.4 * 0.9, abs=0.05)  # a tenth comes out as it was
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    assert torch.equal(load_chosen(DataRecipe(label_noise=0.4), 0).test.labels, clean.test.labels)
    assert torch.bincount(noisy[noisy != clean.train.labels], minlength=10).min() > 20


def test_fewer_training_samples_are_a_part_of_more_with_the_same_noise():
    def pairs(size):
        chosen = load_chosen(DataRecipe(train_size=size, label_noise=0.5), 3).train
        return {
            (x.numpy().tobytes(), int(y)) for x, y in zip(chosen.inputs, chosen.labels, strict=True)
        }

    assert len(load_chosen(DataRecipe(train_size=200), 3).train) == 200
    assert pairs(200) < pairs(500)
    assert pairs(500) < pairs(None)


def test_more_training_samples_than_there_are_is_one_line(recipe_of):
    with pytest.raises(DataError, match=r"train_size is 2,000, but digits has only 1,437") as told:
        Experiment(recipe_of("--data.train_size=2000"))
    assert "\n" not in str(told.value)
    with pytest.raises(DataError, match=r"batch_size is 16, but there are only 12 training"):
        Experiment(recipe_of("--data.train_size=12", "--probe.size=5"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--training.loss=hinge", "cross_entropy or squared"),
        ("--data.label_noise=1", "at least 0 and below 1, not 1"),
        ("--data.label_noise=-0.1", "at least 0 and below 1"),
        ("--data.label_noise=nan", "data.label_noise takes a number, not 'nan'"),
        ("--data.train_size=0", "data.train_size must be at least 1, or null, not 0"),
        ("--model.norm=instance", "none or batch or layer"),
        ("--model.layers=two", "model.layers takes a whole number"),
    ],
)
def test_bad_values_are_one_line(recipe_of, option, message):
    with pytest.raises(RecipeError, match=message) as told:
        recipe_of(option)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("layers", [0, -1, True, 1.5])
@pytest.mark.parametrize("build", [lambda **o: MLP((4,), **o), LeNet5])
def test_layers_are_whole_numbers_of_at_least_one(build, layers):
    with pytest.raises(RecipeError, match="give an integer of at least 1"):
        build(layers=layers)


@pytest.mark.parametrize("build", [lambda **o: MLP((1, 28, 28), **o), LeNet5])
def test_an_unknown_norm_is_one_line(build):
    with pytest.raises(RecipeError, match='choose "none", "batch" or "layer"'):
        build(norm="instance")


@pytest.mark.parametrize(("build", "hidden"), [(lambda **o: MLP((1, 28, 28), **o), 0), (LeNet5, 2)])
def test_depth_and_normalisation_are_what_they_say(build, hidden):
    for layers in (1, 2, 4):
        model = build(layers=layers)
        assert sum(isinstance(m, nn.Linear) for m in model) == layers + 1
    norms = {"batch": nn.modules.batchnorm._BatchNorm, "layer": nn.LayerNorm}
    for name, kind in norms.items():
        model = build(norm=name, layers=3)
        assert sum(isinstance(m, kind) for m in model.modules()) == 3 + hidden
        assert model(torch.randn(5, 1, 28, 28)).shape == (5, 10)
    torch.manual_seed(0)
    usual = build().state_dict()
    torch.manual_seed(0)
    for name, value in build(norm="none", layers=2).state_dict().items():
        assert torch.equal(value, usual[name])


@pytest.mark.parametrize(
    "options", [(SQUARED,), (NOISE,), (FEWER,), (DEEP,), *((n,) for n in NORMS),
                (SQUARED, NOISE, FEWER, DEEP, NORMS[0], "--model.name=mlp")], ids=str,
)  # fmt: skip
def test_stopped_and_gone_on_with_it_ends_in_the_same_bits(recipe_of, options, tmp_path):
    recipe = recipe_of(*options)
    assert recipe.id != recipe_of().id
    assert run_experiment(recipe, tmp_path / "whole", command="test")
    asked = count()
    assert not run_experiment(
        recipe, tmp_path / "parts", command="test", should_stop=lambda: next(asked) >= 25
    )
    assert run_experiment(recipe, tmp_path / "parts", command="test")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_numbers_and_captions_say_what_is_not_the_usual(recipe_of, tmp_path):
    run_experiment(recipe_of(SQUARED, NOISE, FEWER), tmp_path / "run", command="test")
    run = load_run(tmp_path / "run")
    numbers = main_numbers(run)
    assert numbers["loss"] == "squared"
    assert numbers["training labels drawn anew"] == "40%"
    assert numbers["training samples"] == "300"
    assert "half the squared distance" in training(run).caption
    run_experiment(recipe_of(), tmp_path / "usual", command="test")
    usual = load_run(tmp_path / "usual")
    assert {"loss", "training labels drawn anew", "training samples"}.isdisjoint(
        main_numbers(usual)
    )
    assert "in nats" in training(usual).caption


def test_an_analysis_sees_the_labels_that_were_trained_on(recipe_of, tmp_path):
    recipe = recipe_of(NOISE, FEWER)
    run_experiment(recipe, tmp_path / "run", command="test")
    seen, experiment = analyse(load_run(tmp_path / "run")), Experiment(recipe)
    assert list(seen.labels) == experiment.probe_labels
    np.testing.assert_array_equal(experiment.normalize(seen.inputs), experiment.probe)


def test_a_switch_by_squared_error_is_judged_by_the_guessing_of_squared_error(recipe_of, tmp_path):
    recipe = recipe_of(SQUARED, "--training.evaluate=0, every 20")
    run_experiment(recipe, tmp_path / "run", command="test")
    switch = plan_switch([tmp_path / "run"], [30])
    for child in switch.to_do():
        run_experiment(child.recipe, child.path, command="test")
    result = read_switch(switch)
    for dynamics, ended in result.diverged.items():
        loss = result.children[dynamics]["train_loss"][0, 0]
        assert bool(ended[0, 0]) == (loss > 0.45)
