import re

import pytest
import yaml

from conescope.errors import RecipeError
from conescope.experiments.experiment import Experiment
from conescope.training.models import build_model
from conescope.training.recipe import FIELDS, Recipe
from conescope.training.recipe_fields import OptimizerRecipe
from conescope.training.recipe_reading import (
    field_parser,
    load_recipe,
    packaged_recipes,
    recipe_from_dict,
)


def test_every_packaged_recipe_loads_and_describes_itself():
    recipes = packaged_recipes()
    assert {"digits", "lenet-mnist", "grokking", "bytes-lm"} <= set(recipes)
    for name, description in recipes.items():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description == description != ""


SHAPES = {
    "digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32),
    "modular-addition": (3,), "text": (64,),
}  # fmt: skip


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_fits_together(name):
    recipe = load_recipe(name)
    shape = SHAPES[recipe.data.name]
    vocabulary = 11 if len(shape) == 1 else None
    assert count_parameters(build_model(recipe.model, shape, 10, vocabulary)) > 0
    for name, field in FIELDS.items():
        if "schedule" in field.metadata:
            recipe.schedule(name, iterations_per_epoch=391)


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
        (
            ["--optimizer.name", "adam"],
            ["optimizer.momentum is 0.9, and adam takes none; set it to 0.0"],
        ),
        (["--optimizer.momentum", "1"], ["optimizer.momentum is at least 0 and below 1, not 1"]),
        (["--threads", "0"], ["threads must be at least 1, or null"]),
        (
            ["--model.name=vgg16", "--model.haed=x"],
            ["model.head? vgg16 has the options head, norm"],
        ),
        (
            ["--model.name=vgg16", "--model.head=smal"],
            ["model.head takes large or small", "mean small?"],
        ),
        (["--model.depth", "3"], ["unknown field model.depth", "cnn has no options"]),
        (["--optimizer.nesterov", "maybe"], ["optimizer.nesterov takes true or false", "'maybe'"]),
        (["--optimizer.name=nadm"], ["optimizer.name takes", "did you mean nadam?"]),
        (["--lr_schedule.name=ReduceLROnPlateau"], ["it depends on the loss"]),
        (["--lr_schedule.name=one-cycle", "--lr_schedule.warmup=3"], ["one-cycle takes none"]),
        (["--data.name=mnits"], ["digits or mnist or cifar10", "did you mean mnist?"]),
        (["--model.name=no.such:build"], ["there is no module 'no'", "model.name"]),
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
        ("a: b: c", "cannot be read as YAML"),
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
    with pytest.raises(RecipeError, match=r"cannot read .*none\.yaml: No such file"):
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


@pytest.mark.parametrize(
    ("name", "overrides", "digits"),
    [
        ("resnet20-cifar10", ["--model.norm=layer"], "a29c6fcd"),
        ("resnet20-cifar10", ["--model.norm=layer", "--model.shortcut=B"], "20c476fd"),
        ("resnet20-cifar10", ["--model.norm=batch"], "429fa855"),
        ("vgg16-cifar10", [], "bb2f9df5"),
        ("vgg16-cifar10", ["--model.head=small"], "16c04d6d"),
        ("vgg16-cifar10", ["--model.head=small", "--model.norm=layer"], "92fa42d5"),
        ("vgg16-cifar10", ["--model.head=large"], "9443f5ec"),
        ("digits", ["--optimizer.name=adamw", "--optimizer.momentum=0"], "24328100"),
    ],
)
def test_ids_of_variants_are_those_of_the_first_version(name, overrides, digits):
    assert load_recipe(name, overrides).id == f"{name}-{digits}"


def test_options_of_old_journals_that_are_null_are_not_given():
    old = {"name": "old", "model": {"name": "mlp", "norm": None, "shortcut": None, "head": None}}
    assert recipe_from_dict(old, "test") == recipe_from_dict(
        {"name": "old", "model": {"name": "mlp"}}, "test"
    )
    small = {"model": {"name": "vgg16", "norm": None, "shortcut": None, "head": "small"}}
    recipe = recipe_from_dict(small, "test")
    assert recipe.model.options == {"head": "small"}
    assert recipe.id == recipe_from_dict({"model": {"name": "vgg16", "head": "small"}}, "test").id
    assert "null" not in yaml.safe_dump(recipe.to_dict()["model"])


@pytest.mark.parametrize("value", ["3", "1e-3", "true", "a: b", 3, 3.5, True, [1, "2"], {"a": 1}])
def test_stored_options_are_read_as_they_are(value):
    values = {"model": {"name": "nowhere:build", "option": value}}
    recipe = recipe_from_dict(values, "test")
    assert recipe.model.options == {"option": value}
    assert type(recipe.model.options["option"]) is type(value)
    assert recipe_from_dict(recipe.to_dict(), "test").id == recipe.id


def test_an_option_is_taken_back_by_null():
    recipe = recipe_from_dict(
        {"model": {"name": "vgg16", "head": "small"}}, "test", ["--model.head=null"]
    )
    assert recipe.model.options == {}
    other = recipe_from_dict(
        {"optimizer": {"name": "sgd", "nesterov": True}},
        "test",
        ["--optimizer.name=adam", "--optimizer.nesterov=null"],
    )
    assert other.optimizer.options == {}


@pytest.mark.parametrize("name", ["NAdam", "nadam", "NADAM"])
def test_names_of_torchs_are_one_however_they_are_written(name):
    words = ["--optimizer.momentum=0", "--optimizer.momentum_decay", "0.01"]
    recipe = load_recipe("digits", [f"--optimizer.name={name}", *words])
    assert recipe.optimizer.name == "nadam"
    assert recipe.optimizer.options == {"momentum_decay": 0.01}
    assert recipe_from_dict(recipe.to_dict(), "test") == recipe
    assert recipe_from_dict(yaml.safe_load(recipe.to_yaml()), "test", []) == recipe


def test_every_field_has_a_documented_name():
    assert "optimizer.lr" in FIELDS
    shown = field_parser({}).format_help()
    for name in FIELDS:
        assert re.search(rf"^  --{name} .*\n? +\S", shown, re.MULTILINE), name


@pytest.mark.parametrize("name", ["name", "seed", "device", "optimizer.lr", "data.augmentation"])
def test_null_is_refused_where_it_means_nothing(name, tmp_path):
    section, _, field = name.rpartition(".")
    text = f"{section}: {{{field}: null}}" if section else f"{field}: null"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match=rf"{name} cannot be null; its default is "):
        load_recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "seed is written twice"),
        ("model: {name: mlp, width: 2, width: 3}", "width is written twice"),
        ("a: [" + "[" * 99, r"nested more than 32 deep \(line 1\)"),
        ("a: &a [1]\nb: [" + "*a, " * 9 + "]", r"more than 8 aliases.*\(line 2\)"),
        ("a: &a [*a]", "stands inside of what it names"),
        ("seed: " + "9" * 5000, "more than 40 characters"),
        ('name: "\\e[31m"', r"control characters; leave them out \(line 1\)"),
        ("seed: !!int ''", "has the tag"),
        ("? [1]\n: 2", "has to be text"),
        ("# " + "x" * 300_000, "is larger than"),
        ("name: a\\b", "cannot be"),
        ("name: " + "x" * 200, "can have 150 bytes, not 200"),
        ("optimizer: {weight_decay: .inf}", "weight_decay must be at least 0, not inf"),
    ],
)
def test_yaml_that_would_be_read_otherwise_than_it_looks_is_refused(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_a_text_of_several_lines_is_refused_in_one():
    with pytest.raises(RecipeError, match=r"nesterov takes true or false or null, not 'a b'$"):
        load_recipe("digits", ["--optimizer.nesterov=a\nb"])


def test_no_field_is_suggested_that_does_not_exist():
    with pytest.raises(RecipeError, match=r"did you mean data\.augmentation\?"):
        load_recipe("digits", ["--data.augmentatio=none"])
    with pytest.raises(RecipeError, match=r"unknown field lr_schedule\.last_epoch; Exp"):
        load_recipe("digits", ["--lr_schedule.name=ExponentialLR", "--lr_schedule.last_epoch=3"])


def test_an_option_that_a_part_needs_is_missed_before_any_data_are_loaded():
    recipe = load_recipe("lenet-mnist", ["--lr_schedule.name=ExponentialLR"])
    with pytest.raises(RecipeError, match=r"lr_schedule\.gamma: exponentiallr needs a value"):
        Experiment(recipe)
