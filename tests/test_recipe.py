import pytest
import yaml

from conescope.errors import RecipeError
from conescope.training.models import build_model
from conescope.training.recipe import SCHEDULES, Recipe, field_names
from conescope.training.recipe_fields import OptimizerRecipe
from conescope.training.recipe_reading import load_recipe, packaged_recipes, recipe_from_dict


def test_every_packaged_recipe_loads_and_describes_itself():
    recipes = packaged_recipes()
    assert {"digits", "lenet-mnist"} <= set(recipes)
    for name, description in recipes.items():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description == description != ""


SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_fits_together(name):
    recipe = load_recipe(name)
    assert count_parameters(build_model(recipe.model, SHAPES[recipe.data.name], 10)) > 0
    for field in SCHEDULES:
        recipe.schedule(field, iterations_per_epoch=391)


@pytest.mark.parametrize(
    ("name", "rate", "warmup"),
    [
        ("resnet20-cifar10", 0.1, 0),
        ("resnet20-cifar10-low", 0.01, 0),
        ("resnet20-cifar10-warmup", 0.03, 30_000),
        ("vgg16-cifar10", 0.1, 0),
        ("vgg16-cifar10-low", 0.01, 0),
        ("vgg16-cifar10-warmup", 0.1, 30_000),
    ],
)
def test_recipes_of_the_papers_networks_on_cifar(name, rate, warmup):
    recipe = load_recipe(name)
    assert recipe.optimizer == OptimizerRecipe("sgd", rate, momentum=0.9, weight_decay=1e-4)
    assert recipe.training.batch_size == 128
    assert recipe.training.steps == 160 * 391
    assert recipe.lr_schedule.warmup == warmup
    assert recipe.schedule("lr_schedule.drops", 391) == (80 * 391, 120 * 391)
    assert recipe.data.augmentation == "flip-crop"
    assert recipe.schedule("kernel.when", 391)[:101] == tuple(range(0, 10_001, 100))


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_command_line_beats_file_beats_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("optimizer: {lr: 0.02, momentum: 0.5}\nseed: 3\n")
    recipe = load_recipe(str(file), ["--optimizer.lr", "0.03", "--model.width=2"])
    assert recipe.optimizer.lr == 0.03
    assert recipe.optimizer.momentum == 0.5
    assert recipe.seed == 3
    assert recipe.model.width == 2.0
    assert recipe.training == Recipe().training
    assert recipe.name == "mine"


def test_yaml_and_dict_round_trips():
    recipe = load_recipe("digits", ["--kernel.outputs=3", "--probe.stratified=false"])
    assert recipe_from_dict(yaml.safe_load(recipe.to_yaml()), "test") == recipe
    assert recipe_from_dict(recipe.to_dict(), "test") == recipe
    assert recipe.kernel.outputs == 3
    assert recipe.probe.stratified is False


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--optimzer.lr", "1"], ["unknown field optimzer.lr", "did you mean optimizer.lr?"]),
        (["--lr", "1"], ["unknown field lr", "did you mean optimizer.lr?"]),
        (["--optimizer.lr", "fast"], ["optimizer.lr takes a number", "'fast'"]),
        (["--seed", "1.5"], ["seed takes a whole number", "'1.5'"]),
        (["--model.name", "lenet"], ["model.name takes cnn", "did you mean lenet5?"]),
        (["--kernel.outputs", "ful"], ["kernel.outputs takes trace", "did you mean full?"]),
        (["--kernel.when", "evry 3"], ["kernel.when", "is no schedule", "write for example"]),
        (["--probe.size", "0"], ["probe.size must be at least 1"]),
        (["--optimizer.lr", "-1"], ["optimizer.lr must be positive"]),
        (["--optimizer.lr", ".nan"], ["optimizer.lr must be positive"]),
        (["--model.width", ".inf"], ["model.width must be positive"]),
        (["--optimizer.name", "adam"], ["optimizer.momentum is for sgd"]),
        (["--optimizer.momentum", "1"], ["optimizer.momentum is at least 0 and below 1, not 1"]),
        (["--threads", "0"], ["threads must be at least 1, or null"]),
        (["--name", "a/b"], ["name becomes part of a folder's name"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_field_and_cure(overrides, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("sed: 1", "unknown field sed; did you mean seed?"),
        ("optimizer: {lrr: 1}", "unknown field optimizer.lrr; did you mean optimizer.lr?"),
        ("optimizer: 3", "optimizer is a group of fields"),
        ("optimizer: {lr: [1]}", "optimizer.lr takes a number"),
        ("- 1", "holds no fields"),
        ("a: b: c", "is no YAML file"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, word):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml|optimizer") as caught:
        load_recipe(str(file))
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_recipes_and_missing_files_are_named(tmp_path):
    with pytest.raises(RecipeError, match=r"unknown recipe digts; did you mean digits\?"):
        load_recipe("digts")
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none\.yaml: No such file"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_a_schedule_that_never_fires_is_refused_unless_it_says_never():
    recipe = load_recipe("digits", ["--kernel.when=5000"])
    with pytest.raises(RecipeError, match=r"kernel\.when: '5000' never fires in 2000 iterations"):
        recipe.schedule("kernel.when", 1)
    assert load_recipe("digits", ["--kernel.when=never"]).schedule("kernel.when", 1) == ()


def test_ids_hash_what_changes_numbers_and_nothing_else():
    digits = load_recipe("digits")
    assert digits.id == "digits-f54b1b1b"
    assert load_recipe("lenet-mnist").id == "lenet-mnist-55f07507"
    assert load_recipe("digits", ["--data.path=elsewhere"]).id == digits.id
    assert load_recipe("digits", ["--description=other"]).id == digits.id
    assert load_recipe("digits", ["--name=x"]).id.removeprefix("x") == digits.id.removeprefix(
        "digits"
    )
    assert load_recipe("digits", ["--optimizer.lr=0.051"]).id != digits.id


def test_every_field_has_a_documented_name():
    assert "optimizer.lr" in field_names()
    assert len(field_names()) == len(set(field_names()))
