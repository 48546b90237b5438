"""Models over several devices, and settings of the caller that must not matter."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import conescope as cs
import pretend
from conescope.engine import entk, estimate_entk, plan
from conescope.engine.compute.budget import parse_memory
from conescope.engine.compute.products import full_precision
from conescope.errors import ModelError
from problems import PROBLEMS, Apply, Problem

PLACES = {
    "from the machine to a GPU": ("cpu", "cuda:0"),
    "over two GPUs": ("cuda:0", "cuda:1"),
    "back to the machine": ("cuda:1", "cpu"),
}


class Pipeline(nn.Module):
    """A model that moves its activations from the device of each stage to that of the next."""

    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x.to(next(stage.parameters()).device))
        return x


def image_stages() -> tuple[list[nn.Module], Tensor]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=True))
    first[1] = nn.GroupNorm(2, 4)
    second = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(64, 5), nn.LayerNorm(5))
    return [first, second, nn.Linear(5, 3)], torch.randn(5, 3, 6, 6).double()


def token_stages() -> tuple[list[nn.Module], Tensor]:
    torch.manual_seed(0)
    raw = Apply(lambda m, x: (x * m.gain).tanh().mean(1), gain=nn.Parameter(torch.rand(6)))
    return [nn.Embedding(11, 6), raw, nn.Linear(6, 3)], torch.randint(0, 11, (5, 4))


@pytest.mark.parametrize("stages", [image_stages, token_stages])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_a_model_over_several_devices(stages, places: tuple[str, str], outputs, monkeypatch):
    put_back = pretend.lend_gpus(monkeypatch)
    parts, x = stages()
    model = Pipeline(*parts).double().eval()
    expected = entk(copy.deepcopy(model), x, outputs=outputs, by_layer=True)
    with pretend.Devices():
        for number, part in enumerate(parts):
            if (place := places[number % 2]) != "cpu":
                pretend.moved(part, place)
        found = entk(model, x, outputs=outputs, by_layer=True)
    assert {f"cuda:{number}" for number in put_back} == set(places) - {"cpu"}
    assert str(found.values.device) == places[0]
    assert found.routes == expected.routes
    assert found.by_layer.keys() == expected.by_layer.keys()
    values = getattr(found.values, "plain", found.values)
    torch.testing.assert_close(values, expected.values, rtol=0, atol=1e-12)


def test_all_that_is_asked_of_a_model_over_two_gpus(monkeypatch):
    pretend.lend_gpus(monkeypatch)
    parts, x = image_stages()
    model = Pipeline(*parts).double().eval()
    single = copy.deepcopy(model)
    with pretend.Devices():
        for number, part in enumerate(parts):
            pretend.moved(part, f"cuda:{number % 2}")
        estimate, two_sets = estimate_entk(model, x), entk(model, x[:2], x[2:])
        planned = plan(model, x)
    assert {layer.layer for layer in planned.layers} == {
        layer.layer for layer in plan(single, x).layers
    }
    for found, expected in (
        (estimate, estimate_entk(single, x)), (two_sets, entk(single, x[:2], x[2:]))
    ):  # fmt: skip
        torch.testing.assert_close(found.values.plain, expected.values, rtol=0, atol=1e-12)


def mixing(m: nn.Module, x: Tensor) -> Tensor:
    y = m.layer(x)
    if y.requires_grad:
        y.register_hook(lambda g: g / g.sum())
    return y


def test_mixed_gradients_on_a_gpu_are_refused(monkeypatch):
    pretend.lend_gpus(monkeypatch)
    torch.manual_seed(0)
    parts = [nn.Linear(4, 4), Apply(mixing, layer=nn.Linear(4, 3))]
    model = Pipeline(*parts).double().eval()
    with pretend.Devices():
        for number, part in enumerate(parts):
            pretend.moved(part, f"cuda:{number}")
        with pytest.raises(ModelError, match="gradients change with the others"):
            entk(model, torch.rand(5, 4).double())


def test_the_memory_is_that_of_the_smallest_gpu(monkeypatch):
    pretend.lend_gpus(monkeypatch, memory=80 * 10**9)
    machine = parse_memory(None, [torch.device("cpu")])
    assert parse_memory(None, [torch.device("cpu"), torch.device("cuda", 1)]) == 20 * 10**9
    assert machine > 0
    assert machine != 20 * 10**9
    assert parse_memory("1GB", [torch.device("cuda", 0)]) == 10**9


def test_an_input_on_another_device_than_the_model(monkeypatch):
    pretend.lend_gpus(monkeypatch)
    with pretend.Devices(), pytest.raises(ModelError, match=r"on cpu \(.*on cuda:0\).*device"):
        entk(pretend.moved(nn.Linear(4, 3), "cuda:0"), torch.randn(5, 4))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_no_tensor_is_made_on_the_default_device(problem: Problem):
    model, x = problem.build(torch.float32), problem.samples(4, torch.float32)
    expected = entk(copy.deepcopy(model), x, outputs="full", by_layer=True)
    estimate = estimate_entk(copy.deepcopy(model), x)
    with torch.device("meta"):  # whose tensors hold nothing
        found = entk(copy.deepcopy(model), x, outputs="full", by_layer=True)
        again = estimate_entk(copy.deepcopy(model), x)
        cs.kernel_distance(expected, found)
    assert torch.equal(found.values, expected.values)
    assert found.routes == expected.routes
    assert torch.equal(again.draws, estimate.draws)


REDUCED = {
    "for all libraries": lambda: torch.set_float32_matmul_precision("medium"),
    "for GPUs, the old way": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "for GPUs": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "for CPUs": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
}


def settings() -> list[str]:
    matmuls = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    try:
        overall = torch.get_float32_matmul_precision()
    except RuntimeError:
        overall = "of one library"
    return [overall, *(matmul.fp32_precision for matmul in matmuls)]


@pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="torch has one setting for all libraries"
)
@pytest.mark.parametrize("reduce", REDUCED.values(), ids=REDUCED)
def test_products_keep_their_precision_and_the_network_its_own(reduce):
    first = settings()
    try:
        reduce()
        inside, before = [], settings()
        with full_precision():
            inside = settings()
        assert "tf32" not in inside
        assert "bf16" not in inside
        assert inside[0] == "highest"
        assert settings() == before
        assert "tf32" in before or "bf16" in before
    finally:
        torch.set_float32_matmul_precision("highest")
        for matmul, value in zip(
            (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul), first[1:], strict=True
        ):
            matmul.fp32_precision = value
    assert settings() == first
