"""Every optimiser of torch.optim, and a user's own: built as torch builds it, and resumed."""

import inspect
import sys
import types
from collections.abc import Iterable
from itertools import count

import pytest
import torch
from torch import nn

from conescope.errors import RecipeError, StoreError
from conescope.experiments.session import run_experiment
from conescope.runs.store import Folder
from conescope.training.optimizers import build_optimizer
from conescope.training.recipe_fields import OptimizerRecipe
from conescope.training.recipe_reading import load_recipe

ALL = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and name != "Optimizer"
)
REFUSED = {
    "LBFGS": "needs a closure",
    "SparseAdam": "is for sparse gradients",
    "Muon": "only supports 2D parameters",
}
OPTIONS = {
    "RMSprop": ["--optimizer.centered=true", "--optimizer.momentum=0.5"],
    "SGD": ["--optimizer.momentum=0.9", "--optimizer.nesterov=true"],
    "Adam": ["--optimizer.amsgrad=true", "--optimizer.betas=[0.8, 0.99]"],
    "NAdam": ["--optimizer.weight_decay=0.01"],
    "Adagrad": ["--optimizer.initial_accumulator_value=0.1"],
}


class Halving(torch.optim.Optimizer):
    """Gradient descent whose state is a number, a text, None and a list, beside a tensor."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, every: int = 10):
        super().__init__(parameters, {"lr": lr, "every": every})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {
                        "done": 0,
                        "scale": 1.0,
                        "phase": "a",
                        "nothing": None,
                        "pair": [1, 2],
                    }
                    state["mean"] = torch.zeros_like(p)
                state["done"] += 1
                state["phase"] = "b" if state["phase"] == "a" else "a"
                state["pair"] = [state["pair"][1], state["done"]]
                if state["done"] % group["every"] == 0:
                    state["scale"] /= 2
                state["mean"].lerp_(p.grad, 0.3)
                rate = group["lr"] * state["scale"] * (1.5 if state["phase"] == "a" else 1)
                p.sub_(state["mean"], alpha=rate * (1 + 0.01 * state["pair"][0]))


class Unstorable(Halving):
    def step(self, closure: None = None) -> None:
        super().step()
        for state in self.state.values():
            state["odd"] = {1, 2}


@pytest.fixture
def own(monkeypatch):
    """A module `mine` of the user's own."""
    module = types.ModuleType("mine")
    module.__dict__.update(Halving=Halving, Unstorable=Unstorable)
    module.build = lambda parameters, lr, **options: Halving(parameters, lr, **options)
    module.wrong = lambda parameters, lr: "no optimiser"
    module.rateless = lambda parameters: Halving(parameters, 0.1)
    module.closing = lambda parameters, lr: torch.optim.LBFGS(parameters, lr)
    monkeypatch.setitem(sys.modules, "mine", module)


def recipe_of(tiny_overrides, name, *more):
    words = ["--optimizer.momentum=0", "--optimizer.weight_decay=0", f"--optimizer.name={name}"]
    rate = ["--optimizer.lr=0.01", "--training.steps=24", "--training.evaluate=0, every 12"]
    moments = [
        "--kernel.when=0, every 8",
        "--snapshots.keep=0, every 8",
        "--snapshots.resume=every 3",
    ]
    return load_recipe("digits", [*tiny_overrides, *words, *rate, *moments, *more])


def assert_same_when_interrupted(recipe, tmp_path):
    run_experiment(recipe, tmp_path / "whole", command="test")
    asked = count(1)
    while not run_experiment(
        recipe, tmp_path / "stopped", command="test", should_stop=lambda: next(asked) % 5 == 0
    ):
        pass
    whole, stopped = (Folder(tmp_path / name) for name in ("whole", "stopped"))
    kept = {e.values["file"]: e for kind in ("kernel", "snapshot") for e in whole.files(kind)}
    found = {e.values["file"]: e for kind in ("kernel", "snapshot") for e in stopped.files(kind)}
    both = kept.keys() & found.keys()
    assert {"snapshots/00000016.safetensors", "snapshots/00000024.safetensors"} <= both
    for file in both:
        assert kept[file].values["sha256"] == found[file].values["sha256"], file
        for name in ("param_groups", "plain_slots"):
            assert kept[file].values.get(name) == found[file].values.get(name), (file, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ALL)
def test_interrupted_is_uninterrupted_or_refused(name, dtype, tmp_path, tiny_overrides):
    if name in REFUSED:
        with pytest.raises(RecipeError, match=REFUSED[name]):
            run_experiment(recipe_of(tiny_overrides, name), tmp_path, command="test")
        return
    words = [*OPTIONS.get(name, []), f"--dtype={dtype}"]
    assert_same_when_interrupted(recipe_of(tiny_overrides, name, *words), tmp_path)


def test_muon_goes_on_where_all_parameters_are_matrices():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    optimizer = build_optimizer(OptimizerRecipe("muon", 0.01, momentum=0.9), model)
    assert isinstance(optimizer, torch.optim.Muon)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("name", ["Halving", "build"])
def test_own_optimisers_go_on_with_state_of_any_plain_kind(name, own, tmp_path, tiny_overrides):
    recipe = recipe_of(tiny_overrides, f"mine:{name}", "--optimizer.every=4")
    assert recipe.optimizer.options == {"every": 4}
    assert_same_when_interrupted(recipe, tmp_path)


def test_state_that_cannot_be_stored_is_said(own, tmp_path, tiny_overrides):
    recipe = recipe_of(tiny_overrides, "mine:Unstorable")
    with pytest.raises(StoreError, match=r"optimiser.*'odd'.* is a set"):
        run_experiment(recipe, tmp_path, command="test")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong", "gives a str, not a torch.optim.Optimizer"),
        ("rateless", "takes no lr"),
        ("closing", "needs a closure"),
    ],
)
def test_what_is_no_optimiser_is_refused(own, name, words):
    with pytest.raises(RecipeError, match=words):
        build_optimizer(OptimizerRecipe(f"mine:{name}"), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("recipe", "kind", "expected"),
    [
        (OptimizerRecipe("sgd", 0.3, 0.9, 0.2, options={"nesterov": True}), torch.optim.SGD,
         {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.2, "nesterov": True}),
        (OptimizerRecipe("RMSprop", 0.3, options={"alpha": 0.9}), torch.optim.RMSprop,
         {"lr": 0.3, "momentum": 0.0, "weight_decay": 0.0, "alpha": 0.9}),
        (OptimizerRecipe("adamW", 0.3), torch.optim.AdamW, {"weight_decay": 0.0}),
        (OptimizerRecipe("rprop", 0.3, options={"etas": [0.4, 1.1]}), torch.optim.Rprop,
         {"etas": [0.4, 1.1]}),
    ],
)  # fmt: skip
def test_fields_and_options_reach_torch(recipe, kind, expected):
    optimizer = build_optimizer(recipe, nn.Linear(2, 2))
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (OptimizerRecipe("rprop", weight_decay=0.1), "weight_decay is 0.1, and rprop takes none"),
        (OptimizerRecipe("adam", momentum=0.1), "momentum is 0.1, and adam takes none"),
        (OptimizerRecipe("sgd", options={"nesterov": True}), "torch refuses sgd so: Nesterov"),
        (OptimizerRecipe("adam", options={"betas": [0.9]}), "torch refuses adam so: "),
        (OptimizerRecipe("adam", options={"differentiable": True}), "torch refuses adam so: "),
        (OptimizerRecipe("adam", options={"beta": 3}), r"did you mean optimizer\.betas\? adam has"),
        (OptimizerRecipe("nadam", weight_decay=0.1, decay_towards="start",
                         options={"decoupled_weight_decay": True}), "own decay goes to zero"),
        (OptimizerRecipe("Muon", decay_towards="start"), "own decay goes to zero"),
    ],
)  # fmt: skip
def test_what_an_optimiser_cannot_do_is_refused(recipe, words):
    with pytest.raises(RecipeError, match=words):
        build_optimizer(recipe, nn.Linear(2, 2))


def test_the_trial_of_a_step_leaves_the_weights_as_they_are():
    model = nn.Linear(2, 2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(OptimizerRecipe("adamw", 1.0, weight_decay=0.5), model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.state_dict()["state"] == {}
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Own:\n    def __init__(self, parameters, lr): pass", "gives a Own, not a"),
        ("class Own(torch.optim.SGD):\n    def __init__(self, parameters, lr):\n"
         "        super().__init__(parameters, lr=lr)\n"
         "        self.inner = torch.optim.Adam(parameters, lr=lr)",
         "holds another optimiser, 'inner'"),
    ],
)  # fmt: skip
def test_an_own_class_that_is_no_whole_optimiser_is_refused(text, message, tmp_path, monkeypatch):
    name = f"optimisers_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(f"import torch\n{text}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match=message):
        build_optimizer(OptimizerRecipe(f"{name}:Own"), torch.nn.Linear(2, 2))
