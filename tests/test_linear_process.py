"""The atlas's linear process of the weights, against closed forms."""

from __future__ import annotations

import json
import math

import pytest
import torch
from benchmarks.atlas.linear_process import (
    Landscape,
    Weighted,
    inclusion,
    largest_eigenvalue,
    linear_process,
)
from benchmarks.atlas.ornstein_uhlenbeck import TRAINING, Comparison, compare
from benchmarks.atlas.ornstein_uhlenbeck_report import COLUMNS, LOOKS
from benchmarks.atlas.ornstein_uhlenbeck_report import main as report
from benchmarks.atlas.trained_stretch import Stretch
from scipy.linalg import solve_discrete_lyapunov
from torch import nn
from torch.nn.utils import parameters_to_vector

from conescope.training.losses import LOSSES
from conescope.training.recipe_reading import load_recipe


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.8, 0.0), (0.5, 0.3)])
def test_linear_regression_has_the_covariance_of_its_lyapunov_equation(momentum, decay):
    """SGD with batches of 4 on 50 samples, at the least-squares solution; 4,000 chains."""
    chains, batch, rate = 4000, 4, 0.15
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0.7, 0.4])
    y = torch.randn(50, generator=generator, dtype=torch.float64)
    slopes = x * (x @ torch.linalg.lstsq(x, y[:, None]).solution - y[:, None])
    curvature = x.T @ x / len(x)

    def force(_: int, offset: torch.Tensor) -> torch.Tensor:
        chosen = torch.randint(len(x), (chains, batch), generator=generator)
        return (offset.view(chains, 3) @ curvature + slopes[chosen].mean(dim=1)).flatten()

    options = {"rate": rate, "momentum": momentum, "decay": decay, "dtype": torch.float64}
    *_, last = linear_process(force, 3 * chains, steps=300, **options)
    found = last.view(chains, 3).T @ last.view(chains, 3) / chains

    one, pull = torch.eye(3), curvature + decay * torch.eye(3)
    step = torch.cat([torch.cat([one - rate * pull, -rate * momentum * one], dim=1),
                      torch.cat([pull, momentum * one], dim=1)])  # fmt: skip
    push = torch.cat([-rate * one, one])
    noise = push.double() @ (slopes.T @ slopes / len(x) / batch) @ push.T.double()
    expected = torch.from_numpy(solve_discrete_lyapunov(step.double().numpy(), noise.numpy()))
    error = (found - expected[:3, :3]).norm() / expected[:3, :3].norm()
    assert float(error) < 0.06


def test_the_process_is_torchs_sgd_on_a_quadratic():
    curvature = torch.diag(torch.tensor([2.0, 0.5]))
    noise = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    weights = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weights], lr=0.05, momentum=0.9, weight_decay=0.1)
    process = linear_process(
        lambda t, offset: curvature @ offset + noise[t], 2, steps=20, rate=0.05,
        momentum=0.9, decay=0.1,
    )  # fmt: skip
    for t, offset in enumerate(process):
        weights.grad = curvature @ weights.detach() + noise[t]
        optimizer.step()
        torch.testing.assert_close(offset, weights.detach())


@pytest.fixture(params=["cross_entropy", "squared"])
def small(request) -> tuple[Landscape, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A small network in float64, its parameters, ten samples and their labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    point = parameters_to_vector(model.parameters()).detach()
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randint(3, (10,))
    return Landscape(model, LOSSES[request.param]), point, x, y


def test_curvatures_are_those_of_autograd(small):
    landscape, point, x, y = small
    weights = torch.rand(10, dtype=torch.float64)
    samples = Weighted(x, y, weights)
    direction = torch.randn_like(point)

    def loss(i: int, logits: torch.Tensor) -> torch.Tensor:
        return landscape.loss_of(logits[None], y[i : i + 1])

    whole = torch.zeros(len(point), len(point), dtype=torch.float64)
    outer = whole.clone()
    for i, w in enumerate(weights):
        at = x[i : i + 1]
        one = torch.autograd.functional.hessian(
            lambda v, i=i, at=at: loss(i, landscape.logits(v, at)[0]), point
        )
        rows = torch.autograd.functional.jacobian(
            lambda v, at=at: landscape.logits(v, at)[0], point
        )
        inner = torch.autograd.functional.hessian(
            lambda z, i=i: loss(i, z), landscape.logits(point, at)[0]
        )
        whole += w * one
        outer += w * rows.T @ inner @ rows
    torch.testing.assert_close(landscape.hessian(point, samples)(direction), whole @ direction)
    product = landscape.gauss_newton(point, samples)
    torch.testing.assert_close(product(direction), outer @ direction)
    top = float(torch.linalg.eigvalsh(outer)[-1])
    found = largest_eigenvalue(lambda v: product(v.double()), len(point), steps=200)
    assert found == pytest.approx(top, rel=1e-3)


def test_a_batchs_gradient_to_first_order(small):
    landscape, point, x, y = small
    offset = torch.randn_like(point)
    size = 1e-6
    found = landscape.linearised_gradient(point, offset, x, y)
    there, back = (landscape.gradient(point + s * offset, x, y) for s in (size, -size))
    slope = (there - back) / (2 * size)
    torch.testing.assert_close(found, landscape.gradient(point, x, y) + slope, rtol=1e-6, atol=1e-8)


def test_chosen_samples_stand_for_all(small):
    """The mean over many choices of the weighted curvature is that of all samples."""
    landscape, point, x, y = small
    direction = torch.randn_like(point)
    everything = Weighted(x, y, torch.full((10,), 0.1, dtype=torch.float64))
    expected = landscape.gauss_newton(point, everything)(direction)
    found = []
    for seed in range(400):
        chosen = landscape.choose(point, x, y, 6, torch.Generator().manual_seed(seed))
        assert len(chosen.labels) == 6
        found.append(landscape.gauss_newton(point, chosen)(direction))
    rows = torch.stack(found)
    error = (rows.mean(dim=0) - expected) / (rows.std(dim=0) / math.sqrt(len(rows)) + 1e-12)
    assert float(error.abs().max()) < 5


def test_probabilities_add_up_and_stay_below_one():
    chance = inclusion(torch.tensor([100.0, 10.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64), 3)
    torch.testing.assert_close(chance, torch.tensor([1, 1, *[0.25] * 4], dtype=torch.float64))
    assert inclusion(torch.rand(3), 5).tolist() == [1, 1, 1]


def test_batchnorm_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="choose a cell without it"):
        Landscape(model, LOSSES["squared"])


def test_a_comparison_and_its_report(tmp_path, capsys):
    """A tiny run: every process moves the kernel, and the report has a line for each."""
    recipe = load_recipe(
        "digits",
        ["--model.name=mlp", "--model.width=0.1", "--probe.size=10", "--optimizer.momentum=0.5"],
    )
    stretch = Stretch(first=100, last=140, gap=2, lead=20)
    rows = compare(recipe, stretch, 50)
    assert {row["series"] for row in rows} == {TRAINING, *LOOKS}
    assert all(row["grows"] or row["R"] > 0 for row in rows)
    assert 0 < rows[0]["linear_share"] < 1
    files = [("a", 0, 1.0), ("a", 1, 1.0), ("b", 0, 2.0), ("c", 0, 3.0)]
    for place, (cell, seed, factor) in enumerate(files):
        held = [{"cell": cell, "seed": seed} | row for row in rows]
        for row in held:
            size = factor if row["series"] == TRAINING else factor**2
            row |= dict.fromkeys(COLUMNS, size) | {"grows": False, "p_mixed": 1.0, "first": 1000}
        (tmp_path / f"{place}.json").write_text(json.dumps(held), "utf-8")
    table, figure = tmp_path / "table.parquet", tmp_path / "figure.png"
    report(["--table", str(table), "--runs", str(tmp_path), "--figure", str(figure)])
    printed = capsys.readouterr().out
    assert "| Gauss-Newton | 4, 3 | 1.82 (0.46 to 7.22) | 2.12 | 1 | 1.00 |" in printed
    assert len([line for line in printed.splitlines() if line.startswith(("| a,", "| b,"))]) == 3
    assert figure.stat().st_size > 0


def test_the_comparison_is_of_the_stretch():
    recipe = load_recipe(
        "digits",
        ["--model.name=mlp", "--model.width=0.1", "--probe.size=10", "--optimizer.momentum=0"],
    )
    stretch = Stretch(first=6, last=10, gap=2, lead=3)
    case = Comparison(recipe, stretch, 50)
    assert len(case.trained.weights) == 3
    offsets = case.simulated(lambda t, _: torch.full_like(case.centre, 1e-3 * t))
    assert offsets is not None
    sums = 1e-3 * torch.tensor([3.0, 10.0, 21.0])
    torch.testing.assert_close(offsets[:, 0], -recipe.optimizer.lr * sums)
    assert case.simulated(lambda t, _: torch.full_like(case.centre, 1e9)) is None
    steps = range(case.order.iterations_per_epoch - 1)
    total = sum(case.noise(t) * recipe.training.batch_size for t in steps)
    last = case.order.iterations_per_epoch - 1
    total = total + case.noise(last) * len(case.batch(last)[1])
    assert float(total.norm()) < 1e-2 * float(case.noise(0).norm()) * len(case.labels)
