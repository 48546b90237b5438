import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conescope.errors import TrainingError
from conescope.training.loop import train
from conescope.training.lr_schedules import build_lr_schedule
from conescope.training.optimizers import build_optimizer
from conescope.training.recipe_fields import LearningRateRecipe, OptimizerRecipe


def problem(dropout: float = 0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))
    inputs, labels = torch.randn(12, 4, 5), torch.randint(0, 3, (12, 4))
    return model, lambda step: (inputs[step], labels[step])


def run(model, batches, start=0, stop=12, seed=0, optimizer=None):
    optimizer = optimizer or build_optimizer(OptimizerRecipe("sgd", 0.1, 0.9, 1e-3), model)
    return train(model, optimizer, batches, lambda _: 1.0, start=start, stop=stop, seed=seed)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_is_the_textbook_loop():
    model, batches = problem()
    steps = [snapshot.step for snapshot in run(model, batches)]
    assert steps == list(range(13))
    other, _ = problem()
    optimizer = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    for step in range(12):
        inputs, labels = batches(step)
        optimizer.zero_grad()
        F.cross_entropy(other(inputs), labels).backward()
        optimizer.step()
    assert torch.equal(weights(model), weights(other))


def test_looking_in_between_changes_nothing_even_with_dropout():
    model, batches = problem(dropout=0.5)
    for snapshot in run(model, batches):
        torch.rand(snapshot.step + 1)
        snapshot.model.eval()
        snapshot.model(torch.randn(6, 5))
    other, _ = problem(dropout=0.5)
    list(run(other, batches))
    assert torch.equal(weights(model), weights(other))
    third, _ = problem(dropout=0.5)
    list(run(third, batches, seed=1))
    assert not torch.equal(weights(model), weights(third))


def test_a_loss_that_is_no_number_stops_before_the_update():
    model, batches = problem()

    def poisoned(step):
        inputs, labels = batches(step)
        return (inputs * float("nan"), labels) if step == 5 else (inputs, labels)

    snapshots = run(model, poisoned)
    before = [weights(next(snapshots).model) for _ in range(6)]
    with pytest.raises(TrainingError, match="loss is nan in iteration 6: training diverged; lower"):
        next(snapshots)
    assert torch.equal(weights(model), before[-1])


def test_the_learning_rate_warms_up_and_drops():
    recipe = LearningRateRecipe(warmup=4, drops="6, 8", factor=0.1)
    multiplier = build_lr_schedule(recipe, (6, 8), steps=10, iterations_per_epoch=4)
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [multiplier(step) for step in range(10)] == pytest.approx(expected)
    model, batches = problem()
    optimizer = build_optimizer(OptimizerRecipe("sgd", 0.5), model)
    snapshots = train(model, optimizer, batches, multiplier, start=0, stop=10, seed=0)
    rates = [s.optimizer.param_groups[0]["lr"] for s in snapshots]
    assert rates[:10] == pytest.approx([0.5 * value for value in expected])


@pytest.mark.parametrize(
    ("name", "family"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_optimisers_are_torchs_own(name, family):
    optimizer = build_optimizer(OptimizerRecipe(name, lr=0.3, weight_decay=0.2), nn.Linear(2, 2))
    assert type(optimizer) is family
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.2
