"""Averaged weights, kernels by layer and the probe's labels: what a run stores beside the rest."""

import dataclasses
from itertools import count

import pytest
import torch
from torch import nn

from conescope.errors import RecipeError
from conescope.experiments.forecast import forecast
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.report.run_analysis import analyse
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from conescope.training.loop import average_of, train
from conescope.training.recipe_reading import load_recipe


@pytest.fixture
def recipe(tiny_overrides):
    return load_recipe(
        "digits", [*tiny_overrides, "--training.average=0.9", "--kernel.by_layer=true"]
    )


@pytest.fixture
def finished(recipe, tmp_path):
    run_experiment(recipe, tmp_path / "whole", command="test")
    return tmp_path / "whole"


def tensors(path, kind):
    folder = Folder(path)
    return {e.values["step"]: folder.read_tensors(e) for e in folder.files(kind)}


def test_the_average_is_exponential_from_the_first_iteration_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.randn(40, 4), torch.randint(3, (40,))
    average = average_of(model, 0.7)
    expected: dict[str, torch.Tensor] = {}
    snapshots = train(
        model, optimizer, lambda _: data, lambda _: 1.0, start=0, stop=12, seed=0, average=average
    )
    for snapshot in snapshots:
        assert snapshot.average is average
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if snapshot.step <= 1:
                expected[name] = tensor.clone()
            else:
                expected[name] = 0.7 * expected[name] + 0.3 * tensor
            found = average.module.state_dict()[name]
            assert torch.allclose(found, expected[name], atol=1e-6), (name, snapshot.step)


def test_the_average_leaves_the_training_as_it_is(finished, tmp_path, tiny_overrides):
    plain = load_recipe("digits", tiny_overrides)
    run_experiment(plain, tmp_path / "plain", command="test")
    without, beside = load_run(tmp_path / "plain"), load_run(finished)
    assert without.averaged is None
    assert beside.averaged is not None
    assert beside.averaged.steps == beside.series.steps == without.series.steps
    for kernel, same in zip(beside.series.kernels, without.series.kernels, strict=True):
        assert torch.allclose(kernel.values, same.values, rtol=1e-5)
    assert torch.equal(beside.averaged.kernels[0].values, beside.series.kernels[0].values)
    assert not torch.equal(beside.averaged.kernels[-1].values, beside.series.kernels[-1].values)


def test_a_resumed_average_is_the_same_bit_for_bit(recipe, finished, tmp_path):
    path, asked = tmp_path / "stopped", count(1)
    while not run_experiment(
        recipe, path, command="test", should_stop=lambda: next(asked) % 11 == 0
    ):
        pass
    for kind in (Kind.KERNEL, Kind.AVERAGED_KERNEL):
        whole, stopped = tensors(finished, kind), tensors(path, kind)
        assert len(whole) == 7
        assert whole.keys() == stopped.keys()
        for step in whole:
            for name, tensor in whole[step].items():
                assert torch.equal(tensor, stopped[step][name]), (kind, step, name)
    one, other = (tensors(p, Kind.SNAPSHOT)[60] for p in (finished, path))
    assert any(name.startswith("average.module.") for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_lost_kernel_of_the_average_is_made_again(recipe, finished):
    lost = finished / "averaged/00000040.safetensors"
    before = lost.read_bytes()
    lost.unlink()
    with pytest.warns(UserWarning, match=r"averaged/00000040.safetensors is missing"):
        run_experiment(recipe, finished, command="test")
    assert lost.read_bytes() == before


def test_kernels_by_layer_are_stored_and_add_up(finished):
    run = load_run(finished)
    for series in (run.series, run.averaged):
        assert series is not None
        for kernel in series.kernels:
            assert kernel.by_layer.keys() == {"fc1", "fc2", "fc3"}
            total = torch.stack(list(kernel.by_layer.values())).sum(dim=0)
            assert torch.allclose(total, kernel.values, rtol=1e-5)


def test_the_labels_of_the_probe_are_stored(finished):
    run = load_run(finished)
    assert run.labels is not None
    assert run.labels.bincount().tolist() == [2] * 10
    read = analyse(dataclasses.replace(run, labels=None)).labels
    assert read is not None
    assert torch.equal(read, run.labels)


def test_the_forecast_counts_both_kernels_and_the_layers(recipe, finished, tmp_path):
    cost = forecast(recipe)
    assert cost.kernels == 14
    kept = [finished / f"snapshots/{step:08d}.safetensors" for step in (0, 30, 60)]
    files = [*finished.glob("kernels/*"), *finished.glob("averaged/*"), *kept]
    assert cost.stored_bytes == pytest.approx(sum(f.stat().st_size for f in files), rel=0.2)


@pytest.mark.parametrize("decay", ["1", "-0.1", "1.5"])
def test_a_decay_out_of_range(decay):
    with pytest.raises(RecipeError, match=r"training.average is at least 0 and below 1"):
        load_recipe("digits", [f"--training.average={decay}"])
