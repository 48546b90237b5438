import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conescope.engine import entk
from conescope.experiments.experiment import measure_kernel
from conescope.measuring.undisturbed import evaluate, recalibrated
from conescope.training.recipe_fields import KernelRecipe


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    model(torch.randn(32, 4) * 3 + 1)
    return model


def test_measuring_leaves_no_trace(network):
    network[1].eval()  # a layer whose mode differs from the others'
    network(torch.randn(5, 4)).sum().backward()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [p.grad.clone() for p in network.parameters()]
    random = torch.get_rng_state()
    for batchnorm in ("running", "recalibrated"):
        recipe = KernelRecipe(batchnorm=batchnorm)
        measure_kernel(network, torch.zeros(3, 4), recipe, calibration=torch.randn(50, 4))
        torch.set_rng_state(random)
        measure_kernel(network, torch.zeros(3, 4), recipe, calibration=torch.zeros(50, 4))
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    after = [p.grad for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(gradients, after, strict=True))
    assert [module.training for module in network] == [True, False, True, True]
    assert all(p.requires_grad for p in network.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_running_statistics_are_those_of_evaluation_mode(network):
    probe = torch.randn(5, 4)
    kernel, _ = measure_kernel(
        network, probe, KernelRecipe(outputs="sum"), calibration=torch.zeros(9, 4)
    )
    expected = entk(network.eval(), probe, outputs="sum")
    assert torch.equal(kernel.values, expected.values)
    assert kernel.outputs == "sum"


def test_recalibrated_statistics_are_the_averages_over_the_batches(network):
    inputs = torch.randn(400, 4)
    fresh = recalibrated(network, inputs)
    hidden = network[0](inputs)
    batches = hidden.split(200)
    mean = torch.stack([b.mean(0) for b in batches]).mean(0)
    variance = torch.stack([b.var(0) for b in batches]).mean(0)
    torch.testing.assert_close(fresh[1].running_mean, mean)
    torch.testing.assert_close(fresh[1].running_var, variance)
    assert not fresh.training
    assert torch.equal(fresh[0].weight, network[0].weight)


def test_evaluation_is_the_mean_over_all_samples_in_evaluation_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))
    inputs, labels = torch.randn(1203, 5), torch.randint(0, 3, (1203,))
    found = evaluate(model, lambda part: inputs[part], labels)
    assert model.training
    with torch.no_grad():
        logits = model.eval()(inputs)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert found["accuracy"] == (logits.argmax(1) == labels).double().mean().item()
