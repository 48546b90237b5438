"""Learning-rate schedules against torch's own schedulers, run along a real optimiser."""

import sys
import types
from itertools import count

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from conescope.errors import RecipeError
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.runs.store import Folder
from conescope.training.lr_schedules import LR_SCHEDULES, TORCH, build_lr_schedule
from conescope.training.recipe_fields import LearningRateRecipe
from conescope.training.recipe_reading import load_recipe

STEPS, RATE = 40, 0.3

OPTIONS = {
    "constantlr": {"total_iters": 7},
    "linearlr": {"start_factor": 0.2, "total_iters": 9},
    "steplr": {"step_size": 6, "gamma": 0.7},
    "multisteplr": {"milestones": [5, 11]},
    "exponentiallr": {"gamma": 0.95},
    "polynomiallr": {"total_iters": 30, "power": 2.0},
    "cosineannealinglr": {"T_max": 13},
    "cosineannealingwarmrestarts": {"T_0": 5, "T_mult": 2},
    "cycliclr": {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 4, "cycle_momentum": False},
    "onecyclelr": {"max_lr": 1.0, "total_steps": STEPS, "cycle_momentum": False},
}
ABSOLUTE = ("base_lr", "max_lr", "eta_min")


def rates_of_torch(build, steps=STEPS, start=0):
    """Learning rates of each iteration of a real training of a real optimiser."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    scheduler, rates = build(optimizer), []
    for _ in range(start, steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        if len(rates) < steps - start:
            scheduler.step()
    return rates


def rates(recipe, drops=(), steps=STEPS):
    multiplier = build_lr_schedule(recipe, drops, steps, iterations_per_epoch=8)
    return [RATE * multiplier(step) for step in range(steps)]


def test_every_scheduler_of_torch_has_a_row_or_is_refused():
    assert OPTIONS.keys() == TORCH.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_torchs_schedulers_are_torchs(name):
    options = OPTIONS[name]
    absolute = {key: value * RATE if key in ABSOLUTE else value for key, value in options.items()}
    # the recipe's factor takes the place of torch's own default
    absolute |= {"factor": 0.1} if name == "constantlr" else {}
    absolute |= {"gamma": 0.1} if name == "multisteplr" else {}
    kind = getattr(lr_scheduler, TORCH[name].partition(":")[2])
    expected = rates_of_torch(lambda optimizer: kind(optimizer, **absolute))
    assert rates(LearningRateRecipe(name, options=options)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_cosine_is_torchs_over_what_the_warmup_leaves(warmup):
    found = rates(LearningRateRecipe("cosine", warmup=warmup))
    rising = [RATE * (step + 1) / warmup for step in range(warmup)]
    falling = rates_of_torch(
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS - warmup), start=warmup
    )
    assert found == pytest.approx([*rising, *falling], rel=1e-12)
    assert min(found) >= 0


def test_one_cycle_is_torchs_over_the_whole_length():
    expected = rates_of_torch(
        lambda o: lr_scheduler.OneCycleLR(o, RATE, total_steps=STEPS, cycle_momentum=False)
    )
    assert rates(LearningRateRecipe("one-cycle")) == pytest.approx(expected, rel=1e-12)
    assert max(expected) == pytest.approx(RATE, rel=1e-2)


def test_after_the_last_iteration_the_last_value_stays():
    multiplier = build_lr_schedule(LearningRateRecipe("cosine"), (), STEPS, 8)
    assert multiplier(STEPS) == multiplier(STEPS + 1000) == multiplier(STEPS - 1)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (LearningRateRecipe("ReduceLROnPlateau"), "it depends on the loss"),
        (LearningRateRecipe("LambdaLR"), "it needs a function"),
        (LearningRateRecipe("SequentialLR"), "made of other schedulers"),
        (LearningRateRecipe("one-cycle", warmup=3), "warmup is 3, and one-cycle takes none"),
        (LearningRateRecipe("cosine", drops="5"), "drops is 5, and cosine takes none"),
        (LearningRateRecipe("steplr", warmup=3, options={"step_size": 3}), "steplr takes none"),
        (LearningRateRecipe("cosine", warmup=STEPS), "leaves nothing of 40 iterations"),
        (LearningRateRecipe("steplr"), "steplr needs a value"),
        (LearningRateRecipe("steplr", options={"step_size": 3, "gama": 1}),
         r"did you mean lr_schedule\.gamma\? steplr has the options step_size, gamma"),
        (LearningRateRecipe("steplr", options={"step_size": 0}), "torch refuses steplr so: "),
        (LearningRateRecipe("onecyclelr", options={"max_lr": 1.0, "total_steps": 9}),
         "torch refuses onecyclelr so: "),
        (LearningRateRecipe("onecyclelr", options={"max_lr": 1.0, "total_steps": STEPS}),
         "changes the momentum, too"),
        (LearningRateRecipe("exponentiallr", options={"gamma": -1.0}), "multiplies .* by -1.0"),
        (LearningRateRecipe("cosin"), r"did you mean cosine\?"),
    ],
)  # fmt: skip
def test_what_is_no_schedule_here_is_refused(recipe, words):
    with pytest.raises(RecipeError, match=words):
        rates(recipe)


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_short_trainings(name):
    for steps in (1, 2, 3):
        assert len(rates(LearningRateRecipe(name), steps=steps)) == steps


@pytest.fixture
def own(monkeypatch):
    module = types.ModuleType("mine")
    module.root = lambda steps, scale=1.0: lambda step: scale / (1 + step) ** 0.5
    module.epochs = lambda iterations_per_epoch, warmup: (
        lambda step: min(1.0, (step + 1) / max(1, warmup)) * 0.5 ** (step // iterations_per_epoch)
    )
    module.number = lambda: 0.5
    module.endless = lambda: lambda step: float("nan") if step == 7 else 1.0
    monkeypatch.setitem(sys.modules, "mine", module)


def test_own_schedules(own):
    found = rates(LearningRateRecipe("mine:root", options={"scale": 2.0}))
    assert found == pytest.approx([RATE * 2 / (1 + step) ** 0.5 for step in range(STEPS)])
    assert rates(LearningRateRecipe("mine:epochs", warmup=2))[:10] == pytest.approx(
        [RATE / 2, *[RATE] * 7, RATE / 2, RATE / 2]
    )
    with pytest.raises(RecipeError, match="warmup is 2, and mine:root takes none"):
        rates(LearningRateRecipe("mine:root", warmup=2))
    with pytest.raises(RecipeError, match="gives a float, not a function"):
        rates(LearningRateRecipe("mine:number"))
    with pytest.raises(RecipeError, match="by nan in iteration 8"):
        rates(LearningRateRecipe("mine:endless"))


@pytest.mark.parametrize(
    "words",
    [
        ["--lr_schedule.name=cosine", "--lr_schedule.warmup=9"],
        ["--lr_schedule.name=one-cycle"],
        ["--lr_schedule.name=CyclicLR", "--lr_schedule.base_lr=0.1", "--lr_schedule.max_lr=1",
         "--lr_schedule.step_size_up=7", "--lr_schedule.cycle_momentum=false"],
        ["--lr_schedule.name=mine:root"],
    ],
)  # fmt: skip
def test_a_stopped_training_goes_on_to_the_same_bits(words, own, tmp_path, tiny_overrides):
    recipe = load_recipe("digits", [*tiny_overrides, *words])
    run_experiment(recipe, tmp_path / "whole", command="test")
    asked = count(1)
    while not run_experiment(
        recipe, tmp_path / "stopped", command="test", should_stop=lambda: next(asked) % 11 == 0
    ):
        pass
    last = [Folder(tmp_path / name).files("snapshot")[-1] for name in ("whole", "stopped")]
    assert last[0].values["sha256"] == last[1].values["sha256"]
    scalars = [load_run(tmp_path / name).scalars["learning_rate"] for name in ("whole", "stopped")]
    assert scalars[0].tolist() == scalars[1].tolist()
