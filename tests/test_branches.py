import pytest
import torch

from conescope.cli import main
from conescope.errors import RecipeError, StoreError, TrainingError
from conescope.experiments.branches import branch_recipe
from conescope.experiments.experiment import Experiment
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run, read_status
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from conescope.tangent import linearize
from conescope.training.recipe_reading import load_recipe
from stored_runs import assert_same_run, everything

MOMENTUM = ["--optimizer.momentum=0.9", "--optimizer.weight_decay=0.01"]
LINEARISED = "--dynamics.kind=linearised"


@pytest.fixture
def parent(tiny_overrides, tmp_path):
    path = tmp_path / "parent"
    run_experiment(load_recipe("digits", [*tiny_overrides, *MOMENTUM]), path, command="test")
    return path


def weights_at(path, step):
    found = everything(path)
    prefix = f"snapshots/{step:08d}.safetensors:model."
    return {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}


def trained_by_hand(parent, recipe, at, start, momentum_of=None):
    """The branch's loop as one would write it with torch alone."""
    experiment = Experiment(recipe)
    model, _ = experiment.begin()
    model.load_state_dict(start)
    model = linearize(model)
    settings = recipe.optimizer
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, momentum=settings.momentum, weight_decay=0.0
    )
    for step in range(at, recipe.training.steps):
        inputs, labels = experiment.batch(step)
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        for name, p in model.named_parameters():
            towards = start[name] if settings.decay_towards == "start" else torch.zeros_like(p)
            loss = loss + settings.weight_decay / 2 * (p - towards).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def test_a_standard_branch_with_its_momentum_is_its_parent(parent, tmp_path):
    recipe = branch_recipe(parent, 30, ["--branch.optimizer=restored"])
    run_experiment(recipe, tmp_path / "child", command="test")
    ours, theirs = everything(tmp_path / "child"), everything(parent)
    shared = [name for name in theirs if int(name.split("/")[1][:8]) >= 30 and name in ours]
    assert len(shared) > 10
    for name in shared:
        assert torch.equal(ours[name], theirs[name]), name
    run = load_run(tmp_path / "child")
    assert run.series.steps == (30, 40, 50, 60)
    assert run.scalars["step"].tolist() == [40, 60]
    assert run.recipe.branch.parent == load_run(parent).name


def test_fresh_momentum_gives_another_training(parent, tmp_path):
    run_experiment(branch_recipe(parent, 30), tmp_path / "child", command="test")
    ours, theirs = weights_at(tmp_path / "child", 60), weights_at(parent, 60)
    assert any(not torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("towards", ["zero", "start"])
def test_a_linearised_branch_trains_the_taylor_model(parent, tmp_path, towards):
    overrides = [LINEARISED, f"--optimizer.decay_towards={towards}", "--dtype=float64"]
    recipe = branch_recipe(parent, 30, overrides)
    run_experiment(recipe, tmp_path / "child", command="test")
    ours = weights_at(tmp_path / "child", 60)
    start = {name: tensor.double() for name, tensor in weights_at(parent, 30).items()}
    standard = branch_recipe(parent, 30, overrides[1:])
    expected = trained_by_hand(parent, standard, 30, start)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-10, atol=1e-12)


def test_a_linearised_networks_kernel_does_not_move(parent, tmp_path):
    run_experiment(branch_recipe(parent, 30, [LINEARISED]), tmp_path / "child", command="test")
    assert load_run(tmp_path / "child").series.distances().max() < 1e-9
    assert load_run(parent).series.distances_from(30)[-1] > 1e-5


def test_a_stopped_branch_goes_on_without_its_parent(parent, tmp_path):
    recipe = branch_recipe(parent, 30, [LINEARISED])
    run_experiment(recipe, tmp_path / "whole", command="test")
    calls = iter(range(100))
    halted = run_experiment(
        recipe, tmp_path / "halved", command="test", should_stop=lambda: next(calls) == 11
    )
    assert not halted
    parent.rename(tmp_path / "gone")
    assert run_experiment(recipe, tmp_path / "halved", command="test")
    assert_same_run(tmp_path / "whole", tmp_path / "halved")


def test_a_branch_of_a_linearised_branch_starts_from_its_weights(parent, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run_experiment(branch_recipe(parent, 0, [LINEARISED]), first, command="test")
    run_experiment(branch_recipe(first, 30), second, command="test")
    [entry] = Folder(second).files(Kind.ORIGIN)
    origin = Folder(second).read_tensors(entry)
    names = {name.removeprefix("model.") for name in origin if name.startswith("model.")}
    assert names == weights_at(parent, 30).keys()
    for name in names:
        assert torch.equal(origin[f"model.{name}"], weights_at(first, 30)[name])


def test_linearised_training_without_a_parent_starts_at_initialisation(tmp_path, tiny_overrides):
    recipe = load_recipe("digits", [*tiny_overrides, LINEARISED])
    assert run_experiment(recipe, tmp_path / "lazy", command="test")
    scalars = load_run(tmp_path / "lazy").scalars
    assert scalars["train_loss"][-1] < scalars["train_loss"][0]


def test_a_switch_point_without_snapshot_names_the_nearest(parent, tmp_path):
    with pytest.raises(StoreError, match="no snapshot at iteration 40; the nearest are at 30 and"):
        run_experiment(branch_recipe(parent, 40), tmp_path / "child", command="test")
    assert not Folder(tmp_path / "child").entries(Kind.RUN)


def test_a_snapshot_that_does_not_fit_is_refused(parent, tmp_path):
    recipe = branch_recipe(parent, 30, ["--model.width=0.4"])
    with pytest.raises(StoreError, match=r"iteration 30 does not fit the network: .* instead of"):
        run_experiment(recipe, tmp_path / "child", command="test")
    recipe = branch_recipe(parent, 30, ["--model.name=cnn"])
    with pytest.raises(StoreError, match="is missing"):
        run_experiment(recipe, tmp_path / "child", command="test")


def test_a_child_without_its_parent_says_which_it_misses(parent, tmp_path, tiny_overrides):
    recipe = branch_recipe(parent, 30)
    with pytest.raises(StoreError, match="holds no run"):
        branch_recipe(tmp_path / "nowhere", 30)
    parent.rename(tmp_path / "gone")
    with pytest.raises(StoreError, match="holds no run"):
        run_experiment(recipe, tmp_path / "child", command="test")
    run_experiment(load_recipe("digits", tiny_overrides), parent, command="test")
    with pytest.raises(StoreError, match="but the branch's parent is"):
        run_experiment(recipe, tmp_path / "child", command="test")


def test_restored_momentum_needs_the_same_optimiser(parent, tmp_path):
    with pytest.raises(RecipeError, match="sgd"):
        branch_recipe(
            parent,
            30,
            ["--branch.optimizer=restored", "--optimizer.name=adam", "--optimizer.momentum=0"],
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--branch.at=60"], "nothing to do"),
        (["--training.steps=30"], "nothing to do"),
        (["--optimizer.decay_towards=start", "--optimizer.name=adamw", "--optimizer.momentum=0"],
         "decay_towards"),
    ],
)  # fmt: skip
def test_recipes_that_make_no_sense_are_refused(parent, overrides, message):
    with pytest.raises(RecipeError, match=message):
        branch_recipe(parent, 30, overrides)


@pytest.mark.parametrize("field", ["branch.run=x", "branch.parent=x", "branch.at=3"])
def test_a_branch_is_not_made_by_hand(tiny_overrides, field):
    with pytest.raises(RecipeError, match="--from RUN --at STEP"):
        load_recipe("digits", [*tiny_overrides, f"--{field}"])


def test_a_diverging_branch_is_marked_and_not_tried_again(parent, tmp_path):
    child = tmp_path / "child"
    recipe = branch_recipe(parent, 30, ["--optimizer.lr=1e30"])
    with pytest.raises(TrainingError, match="diverged"):
        run_experiment(recipe, child, command="test")
    assert read_status(child).diverged
    entries = (child / "journal.jsonl").read_text()
    with pytest.raises(TrainingError, match="has diverged before: the loss is"):
        run_experiment(recipe, child, command="test")
    assert (child / "journal.jsonl").read_text() == entries
    assert main(["status", str(child)]) == 0


def test_the_command_line_starts_branches(parent, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["run", "--from", "parent", "--at", "30", "--dynamics.kind", "linearised"]
    assert main([*words, "--out", "child"]) == 0
    out = capsys.readouterr().out
    assert "S(60, 30)" in out
    assert "linearised from iteration 30 of" in " ".join(out.split())
    for wrong in (
        ["run"],
        ["run", "digits", "--at", "3"],
        ["run", "digits", *words[1:]],
        words[:3],
    ):
        assert main(wrong) == 2
        assert "--from RUN --at STEP" in capsys.readouterr().err
