"""Training in bfloat16, in channels-last memory and compiled: what it changes, and what not."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conescope.errors import RecipeError
from conescope.experiments.experiment import Experiment
from conescope.experiments.forecast import forecast
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.report.summary import main_numbers
from conescope.training.arithmetic import check_arithmetic, compiled
from conescope.training.loop import train
from conescope.training.recipe_reading import load_recipe
from stored_runs import assert_same_run

LOW = "--training.precision=bfloat16"
LAST = "--training.memory_format=channels_last"
LINEARISED = "--dynamics.kind=linearised"
COMPILED = "--training.compile=true"
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs the C++ compiler g++ on a CPU"
)


@pytest.fixture
def recipe_of(tiny_overrides):
    network = "--model.name=cnn"
    return lambda *options: load_recipe("digits", [*tiny_overrides, network, *options])


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write a module whose function `build(classes)` returns the layers in a row."""

    def write(name, layers):
        (tmp_path / f"{name}.py").write_text(
            f"from torch import nn\ndef build(classes):\n    return nn.Sequential({layers})\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)

    return write


def weights_after(experiment, steps):
    model, optimizer = experiment.begin()
    snapshots = train(
        model, optimizer, experiment.batch, experiment.multiplier,
        start=0, stop=steps, seed=0, autocast=experiment.autocast,
        is_compiled=experiment.recipe.training.compile,
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


@pytest.mark.parametrize("options", [(LOW,), (LAST,), (LOW, LAST), (LOW, LINEARISED)], ids=str)
def test_stopped_and_gone_on_with_it_ends_in_the_same_bits(recipe_of, options, tmp_path):
    assert_goes_on(recipe_of(*options), tmp_path)


@needs_compiler
def test_compiled_dropout_goes_on_in_the_same_bits(recipe_of, own_module, tmp_path):
    own_module("dropping", "nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, classes)")
    name = "--model.name=dropping:build"
    assert_goes_on(recipe_of(name, "--model.width=1", COMPILED), tmp_path)


@needs_compiler
def test_every_network_of_a_process_is_compiled(recipe_of):
    counters = torch._dynamo.utils.counters
    for _ in range(torch._dynamo.config.recompile_limit + 1):
        counters.clear()
        weights_after(Experiment(recipe_of(COMPILED)), 1)
        assert counters["stats"]["unique_graphs"] == 1


@needs_compiler
def test_a_plan_does_not_time_the_compiler(recipe_of, monkeypatch):
    counters = torch._dynamo.utils.counters
    counters.clear()

    def seconds_of(work):
        before = counters["stats"]["unique_graphs"]
        work()
        assert counters["stats"]["unique_graphs"] == before
        return 0.03

    monkeypatch.setattr("conescope.experiments.forecast.seconds_of", seconds_of)
    smaller_last_batch = ("--data.train_size=24", "--probe.stratified=false")
    assert forecast(recipe_of(COMPILED, *smaller_last_batch)).iteration_seconds == 0.03
    assert counters["stats"]["unique_graphs"] > 0


def assert_goes_on(recipe, tmp_path):
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


@needs_compiler
@pytest.mark.parametrize("options", [(), (LOW,)], ids=str)
def test_compiled_code_changes_rounding_only(recipe_of, options):
    counters = torch._dynamo.utils.counters
    counters.clear()
    usual, fast = (weights_after(Experiment(recipe_of(*options, *o)), 5) for o in ((), (COMPILED,)))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    tolerance = 1e-2 if options else 1e-4
    for name, value in usual.items():
        torch.testing.assert_close(fast[name], value, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("layers", [None, "nn.Flatten(), nn.Linear(64, classes)"])
def test_a_machine_without_a_compiler_is_told_so(own_module, layers, tmp_path):
    command = [sys.executable, "-m", "conescope", "run", "digits", COMPILED, "--out", "run"]
    if layers is not None:  # of which only the backward pass needs the compiler
        own_module("linear", layers)
        command += ["--model.name=linear:build", "--model.width=1"]
    environment = os.environ | {"CXX": "/none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "training.compile: torch cannot compile this network here" in done.stderr
    assert "No working C++ compiler" in done.stderr
    assert "set it to false" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_the_network_itself_is_not_said_to_be_the_compiler_s():
    class Misfit(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.zeros(len(x) + 1, 2)

    with pytest.raises(RuntimeError, match=r"size of tensor a \(4\) must match"):
        compiled(Misfit(3, 2))[0](torch.ones(4, 3))


@needs_compiler
def test_a_network_is_not_compiled_anew_for_ever(monkeypatch):
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    forward, _ = compiled(Counting(3, 2))
    for _ in range(2):
        forward(torch.ones(4, 3))
    with pytest.raises(RecipeError, match="compile this network anew again and again"):
        forward(torch.ones(4, 3))


def test_linearised_networks_are_not_compiled(recipe_of):
    with pytest.raises(RecipeError, match="cannot compile linearised networks; set it to false"):
        Experiment(recipe_of(COMPILED, LINEARISED))


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
        check_arithmetic(recipe_of(LOW, "--device=cuda:1"))


def test_channels_last_is_refused_where_torch_is_wrong(recipe_of, own_module):
    own_module("strided", "nn.Conv2d(1, 4, 1, stride=2), nn.Flatten(), nn.Linear(64, classes)")
    recipe = recipe_of("--model.name=strided:build", "--model.width=1", LAST)
    with pytest.raises(RecipeError, match="strides, such as 0, may corrupt memory"):
        Experiment(recipe).begin()


def test_channels_last_is_refused_for_samples_that_are_no_images(tiny_overrides):
    tokens = ["--data.name=modular-addition", "--model.name=transformer", "--model.width=1", LAST]
    recipe = load_recipe("digits", [*tiny_overrides, *tokens])
    with pytest.raises(RecipeError, match="channels_last is for images"):
        Experiment(recipe).begin()
