import hashlib
import itertools
import json

import pytest

from conescope.cli import main
from conescope.errors import RecipeError, StoreError
from conescope.experiments.sweep import sweep_cost
from conescope.experiments.sweep.axes import read_axes
from conescope.experiments.sweep.grid import make_grid
from conescope.experiments.sweep.sweep_folder import read_sweep, store_sweep
from conescope.experiments.sweep.sweep_planning import plan_sweep
from conescope.training.recipe import FIELDS
from conescope.training.recipe_reading import load_recipe, recipe_from_dict


def grid(*words, sources=("digits",)):
    return make_grid(read_axes(sources, words))


def test_every_run_is_the_recipe_that_its_own_command_line_gives():
    names = ("optimizer.lr", "model.name", "seed", "optimizer.weight_decay", "training.evaluate")
    texts = [
        ("0.01", "1e-1"),
        ("cnn", "mlp"),
        ("0", "1", "2"),
        ("0", "0.5"),
        ("0, every 50", "never"),
    ]
    words = [
        "--optimizer.lr", "0.01,1e-1", "--model.name=cnn,mlp", "--seed", "0..2",
        "--optimizer.weight_decay", "0,0.5", "--training.evaluate=0, every 50|never",
    ]  # fmt: skip
    points = grid(*words)
    combinations = list(itertools.product(*texts))
    assert len(points) == len(combinations) == 48
    for point, values in zip(points, combinations, strict=True):
        alone = [f"--{name}={value}" for name, value in zip(names, values, strict=True)]
        expected = load_recipe("digits", alone)
        assert point.recipe == expected
        assert point.recipe.id == expected.id
        assert tuple(point.values) == names


def test_the_table_gives_back_its_recipes(tmp_path):
    points = grid("--model.name=cnn,mlp", "--model.width=0.5,1", "--optimizer.nesterov=true,null")
    sweep = plan_sweep(points, tmp_path / "a", "conescope sweep")
    store_sweep(sweep)
    held = read_sweep(tmp_path / "a")
    assert held.axes == ("model.name", "model.width", "optimizer.nesterov")
    assert held.lengths == {"model.name": 2, "model.width": 2, "optimizer.nesterov": 2}
    for run, point in zip(held.runs, points, strict=True):
        assert run.id == point.recipe.id
        assert run.recipe == point.recipe
        assert run.path == tmp_path / "a" / "runs" / run.id
        assert recipe_from_dict(run.fields, "here").id == run.id


def test_sweeps_may_share_their_run_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store_sweep(plan_sweep(grid("--seed=0,1"), tmp_path / "a", "", tmp_path / "runs"))
    run = read_sweep("a").runs[0]
    assert run.path.absolute() == tmp_path / "runs" / run.id


def test_a_file_of_axes(tmp_path):
    (tmp_path / "mine.yaml").write_text("description: mine\nseed: 7\n")
    (tmp_path / "axes.yaml").write_text(
        "recipe: [digits, mine.yaml]\n"
        "fields: {training: {steps: 300}, data.augmentation: none}\n"
        "axes:\n  optimizer.lr: [0.01, 1e-1]\n  kernel: {by_layer: [true, false]}\n"
        "exclude:\n  - {optimizer.lr: 0.1, recipe: mine.yaml}\n"
    )
    source = str(tmp_path / "axes.yaml")
    points = grid(sources=[source])
    assert len(points) == 6
    assert {point.recipe.training.steps for point in points} == {300}
    assert [point.recipe.seed for point in points] == [0] * 4 + [7] * 2
    assert {point.recipe.optimizer.lr for point in points if point.recipe.seed} == {0.01}
    more = grid("--training.steps=200", "--seed=0..1", sources=[source])
    assert len(more) == 12
    assert {point.recipe.training.steps for point in more} == {200}


def test_lists_of_an_option_are_values_of_an_axis():
    points = grid("--optimizer.name=adam", "--optimizer.betas=[0.9,0.99],[0.8,0.99]",
                  "--optimizer.momentum=0")  # fmt: skip
    assert [point.recipe.optimizer.options["betas"] for point in points] == [
        [0.9, 0.99],
        [0.8, 0.99],
    ]


WRONG = {
    "unknown field optimizer.lrr; did you mean optimizer.lr": ["--optimizer.lrr=1,2"],
    "axis seed has no values": ["--seed="],
    "seed takes a whole number, not 'a'": ["--seed=0,a"],
    "optimizer.lr takes a number, not 'high'": ["--optimizer.lr=0.1,high"],
    "optimizer.lr must be positive": ["--optimizer.lr=0.1,-1"],
    "has the value 0.1 twice": ["--optimizer.lr=0.1,0.10"],
    "takes no momentum|momentum": ["--optimizer.name=sgd,adam", "--optimizer.momentum=0,0.9"],
    "needs? .*value|no field with a value": ["--seed"],
    "up to 1,000,000": ["--seed=0..1000000"],
    r"no values from 4 to 0; write 0\.\.4": ["--seed=4..0"],
    "seed has an empty value in '0,,1'; write each value, with one comma": ["--seed=0,,1"],
    "kernel.when has an empty value .* with one bar": ["--kernel.when=0|every 5|"],
    "--seed is given twice; write all its values once": ["--seed=0,1", "--seed=3"],
}


@pytest.mark.parametrize(("message", "words"), WRONG.items())
def test_a_wrong_axis_is_refused(message, words):
    with pytest.raises(RecipeError, match=message) as caught:
        grid(*words)
    assert "\n" not in str(caught.value)


def test_the_digest_is_that_of_all_fields_and_options_that_differ_from_the_defaults():
    words = ["--optimizer.name=adam", "--optimizer.betas=[0.9,0.99]", "--data.path=x", "--seed=3"]
    recipe = load_recipe("digits", [*words, "--optimizer.momentum=0", "--name=other"])
    changed = {
        f"{section}.{name}" if section else name: value
        for section, held in [("", recipe.to_dict()), *recipe.to_dict().items()]
        for name, value in (held.items() if isinstance(held, dict) else ())
        if not isinstance(value, dict)
    }
    places = ("name", "description", "data.path", "branch.run")
    changed = {
        name: value
        for name, value in changed.items()
        if name not in places and (name not in FIELDS or value != FIELDS[name].default)
    }
    assert changed["optimizer.betas"] == [0.9, 0.99]
    text = json.dumps(changed, sort_keys=True).encode()
    assert recipe.digest == hashlib.sha256(text).hexdigest()


FILES = {
    "unknown key axis; a file of axes has": "axes: {seed: 0..1}\naxis: {}",
    "unknown field sead; did you mean seed": "axes: {sead: 0..1}",
    "exclude names seed, which is no axis": "axes: {optimizer.lr: [1, 2]}\nexclude: [{seed: 0}]",
    "matches no run": "axes: {seed: 0..3}\nexclude: [{seed: 7}]",
    "all runs of this sweep are excluded": "axes: {seed: [1, 2]}\nexclude: [{seed: [1, 2]}]",
    "axes maps fields to values": "axes: [seed]",
    "axis seed has no values": "axes: {seed: []}",
    "exclude is a list": "axes: {seed: [1, 2]}\nexclude: {seed: 1}",
    "named twice": "recipe: [digits, digits]\naxes: {seed: [1, 2]}",
    "unknown recipe digit;": "recipe: digit\naxes: {seed: [1, 2]}",
    "data.path changes no number": "axes: {data.path: [a, b]}",
    "cannot be read as YAML": "axes: [",
    "seed is in fields and in axes": "fields: {seed: 1}\naxes: {seed: 0..3}",
    "axes is empty": "axes:",
    "axes is written twice": "axes: {seed: 0..1}\naxes: {seed: 0..2}",
    "seed takes a whole number, not '2020-01-01'": "axes: {seed: [2020-01-01, 1]}",
    "write recipes as 'recipe: ": "axes: {recipe: [digits, mnist], seed: 0..3}",
}


@pytest.mark.parametrize(("message", "text"), FILES.items())
def test_a_wrong_file_of_axes_is_refused(tmp_path, message, text):
    (tmp_path / "axes.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        grid(sources=[str(tmp_path / "axes.yaml")])
    assert "\n" not in str(caught.value)


def test_two_runs_of_one_id_are_no_table(monkeypatch):
    from conescope.training.recipe import Recipe

    monkeypatch.setattr(Recipe, "digest", "0" * 64)
    with pytest.raises(RecipeError, match=r"two different runs.*same id digits-00000000"):
        grid("--seed=0,1")


def test_ten_thousand_runs_are_planned_by_two_trials(tmp_path, monkeypatch):
    trials = []

    def trial(recipe):
        trials.append(recipe)
        return replace_cost(recipe)

    monkeypatch.setattr(sweep_cost, "forecast", trial)
    points = grid("--model.width=0.25,1", "--optimizer.lr=0.001,0.003,0.01,0.03,0.1",
                  "--seed=0..999")  # fmt: skip
    sweep = plan_sweep(points, tmp_path, "")
    assert len(sweep.runs) == 10_000
    cost = sweep_cost.forecast_sweep(list(sweep.runs))
    assert [recipe.model.width for recipe in trials] == [0.25, 1]
    assert (cost.kinds, cost.timed) == (2, 2)
    assert cost.seconds == pytest.approx(5000 * (25 + 100))
    assert cost.stored_bytes == 10_000 * 7
    assert (cost.shortest, cost.longest) == (25, 100)
    assert cost.wall_seconds(4) == pytest.approx(cost.seconds / 4)


def replace_cost(recipe):
    from conescope.experiments.forecast import Forecast

    return Forecast(None, 0.0, 0, 100, recipe.model.width, 0, 0.0, 7)


def test_kinds_that_are_not_tried_count_as_the_mean(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_cost, "forecast", replace_cost)
    monkeypatch.setattr(sweep_cost, "_ENOUGH_SECONDS", -1.0)
    runs = list(plan_sweep(grid("--model.width=0.5,1,2"), tmp_path, "").runs)
    cost = sweep_cost.forecast_sweep(runs)
    assert (cost.kinds, cost.timed) == (3, 1)
    assert cost.seconds == 3 * 50


def test_a_dry_run_begins_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_cost, "forecast", replace_cost)
    words = ["sweep", "digits", "--seed=0..4", "--model.width=0.25,1", "--out=mine"]
    assert main([*words, "--dry-run", "--slots=2"]) == 0
    shown = capsys.readouterr().out
    assert "10, of which 10 are to do" in shown
    assert "seed (5), model.width (2)" in shown
    assert "on 2 slots" in shown
    assert not (tmp_path / "mine").exists()


def test_a_huge_grid_is_asked_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "digits", "--seed=0..999", "--optimizer.lr=" + ",".join("123456789"),
             "--probe.size=" + ",".join(map(str, range(10, 122))), "--out=mine"]  # fmt: skip
    assert main(words) == 2
    assert "this grid has 1,008,000 runs; say --yes" in capsys.readouterr().err


def test_a_folder_that_is_no_sweep(tmp_path):
    with pytest.raises(StoreError, match="is the folder of no sweep"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"axes": []}))
    with pytest.raises(StoreError, match="damaged; run the sweep's command again"):
        read_sweep(tmp_path)


def test_a_table_of_a_newer_version_says_so(tmp_path):
    store_sweep(plan_sweep(grid("--seed=0,1"), tmp_path, ""))
    held = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(held | {"format": 2, "conescope": "9.0"}))
    with pytest.raises(StoreError, match=r"was written by conescope 9\.0, and this one.*too old"):
        read_sweep(tmp_path)
    for damage in ({"runs": []}, {"runs": [["a"]]}, {"bases": []}, {"kind": None}, {"axes": 3}):
        (tmp_path / "sweep.json").write_text(json.dumps(held | damage))
        with pytest.raises(StoreError, match="is damaged; run the sweep's command again"):
            read_sweep(tmp_path)


def test_an_axis_is_no_obstacle_to_the_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "digits", "--optimizer.lr", "0.01,0.1", "--model.name=mlp", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--optimizer.lr" in shown
    assert "branch | switch | measure | status | report" in shown


def test_disk_and_memory_that_will_not_do_are_warned_of(tmp_path, monkeypatch, capsys):
    from conescope.cli import sweep_plan
    from conescope.engine import Plan

    def greedy(recipe):
        from dataclasses import replace

        plan = Plan.__new__(Plan)
        object.__setattr__(plan, "bytes", 10**12)
        return replace(replace_cost(recipe), kernel=plan, stored_bytes=10**18)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_cost, "forecast", greedy)
    words = ["sweep", "digits", "--seed=0,1", "--out=mine", "--dry-run", "--slots=2"]
    assert main(words) == 0
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2
    assert "the runs store about 2,000,000,000 GB, and" in warned[0]
    assert "kernels of 2 runs at a time take 2,000 GB, and this machine has" in warned[1]
    monkeypatch.setattr(sweep_plan, "_machine_bytes", lambda: 1e13)
    monkeypatch.setattr(sweep_plan, "_free_bytes", lambda _: 1e19)
    assert main(words) == 0
    assert capsys.readouterr().err == ""


def test_a_file_of_axes_is_given_alone(tmp_path):
    (tmp_path / "axes.yaml").write_text("axes: {seed: 0..3}")
    with pytest.raises(RecipeError, match=r"axes\.yaml is a file of axes, which is given alone"):
        read_axes([str(tmp_path / "axes.yaml"), "digits"])


@pytest.mark.parametrize("option", ["--out", "--runs"])
def test_a_file_is_no_folder_of_runs(tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    words = ["sweep", "digits", "--seed=0,1", "--out=mine", f"{option}=file"]
    assert main(words) == 2
    assert f"{option} file is a file; name a folder" in capsys.readouterr().err
