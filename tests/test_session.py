import subprocess
import sys
import warnings
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch
import yaml

from conescope.errors import DamageWarning, RecipeError, StoreError, TrainingError
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run, read_status
from conescope.runs import contents
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from conescope.training.recipe_reading import load_recipe
from stored_runs import assert_same_run, everything


@pytest.fixture
def recipe(tiny_overrides):
    return load_recipe("digits", tiny_overrides)


@pytest.fixture
def finished(recipe, tmp_path):
    path = tmp_path / "whole"
    assert run_experiment(recipe, path, command="test")
    return path


def test_a_run_is_what_its_recipe_says(recipe, finished):
    run = load_run(finished)
    assert run.finished
    assert run.recipe == recipe
    assert run.name == recipe.id
    assert run.series.steps == tuple(range(0, 61, 10))
    assert run.series.kernels[0].values.shape == (20, 20)
    assert run.scalars["step"].tolist() == [0, 20, 40, 60]
    assert run.scalars["test_loss"][-1] < run.scalars["test_loss"][0]
    assert 0 <= run.scalars["test_accuracy"][-1] <= 1
    status = read_status(finished)
    assert status.finished
    assert not status.running
    assert status.step == status.total_steps == 60
    assert status.snapshots == (0, 30, 49, 56, 60)
    assert load_recipe(str(finished / "recipe.yaml")) == recipe


def test_same_recipe_same_bits_and_another_seed_others(recipe, finished, tmp_path, tiny_overrides):
    run_experiment(recipe, tmp_path / "again", command="test")
    assert_same_run(finished, tmp_path / "again")
    other = load_recipe("digits", [*tiny_overrides, "--seed=1"])
    run_experiment(other, tmp_path / "other", command="test")
    assert not torch.equal(
        load_run(finished).series.kernels[0].values,
        load_run(tmp_path / "other").series.kernels[0].values,
    )


def test_measuring_changes_nothing(finished, tmp_path, tiny_overrides):
    blind = load_recipe(
        "digits", [*tiny_overrides, "--kernel.when=never", "--training.evaluate=never"]
    )
    run_experiment(blind, tmp_path / "blind", command="test")
    with_kernels, without = everything(finished), everything(tmp_path / "blind")
    assert without
    for name, tensor in without.items():
        assert torch.equal(with_kernels[name], tensor)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_and_in_the_middle_of_writes(recipe, finished, tmp_path, seed):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    script = Path(__file__).with_name("interrupted.py")
    done = subprocess.run(
        [sys.executable, str(script), str(file), str(tmp_path / "killed"), str(seed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert sum(map(int, done.stdout.split())) >= 10, done.stdout
    assert_same_run(finished, tmp_path / "killed")


def test_a_stop_that_is_asked_for_loses_no_iteration(recipe, finished, tmp_path):
    path, asked = tmp_path / "stopped", [0]

    def stop_at_the_33rd_question():
        asked[0] += 1
        return asked[0] == 34

    assert not run_experiment(recipe, path, command="test", should_stop=stop_at_the_33rd_question)
    status = read_status(path)
    assert not status.finished
    assert status.step == 33
    assert 33 in status.snapshots
    assert run_experiment(recipe, path, command="test")
    assert_same_run(finished, path)


@pytest.mark.parametrize(
    "victim",
    [
        "kernels/00000020.safetensors",
        "kernels/00000060.safetensors",
        "snapshots/00000030.safetensors",
        "snapshots/00000060.safetensors",
    ],
)
def test_a_damaged_file_is_named_and_made_anew(recipe, finished, tmp_path, victim):
    whole = tmp_path / "copy"
    run_experiment(recipe, whole, command="test")
    file = finished / victim
    file.write_bytes(file.read_bytes()[:-9])
    if victim.startswith("kernels"):
        with pytest.raises(StoreError, match=f"{Path(victim).stem}.safetensors is damaged"):
            load_run(finished)
    with pytest.warns(DamageWarning, match=f"{Path(victim).stem}.safetensors is missing or dam"):
        assert run_experiment(recipe, finished, command="test")
    assert_same_run(whole, finished)


def test_repairs_leave_the_newest_snapshots(recipe, finished):
    before = read_status(finished).snapshots
    for damaged in ("kernels/00000010.safetensors", "snapshots/00000030.safetensors"):
        (finished / damaged).write_bytes(b"")
    with pytest.warns(DamageWarning):
        run_experiment(recipe, finished, command="test")
    assert read_status(finished).snapshots == before == (0, 30, 49, 56, 60)


@contextmanager
def warned():
    """Give a list that holds the texts of all warnings of damage, once the block is left."""
    told = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamageWarning)
        yield told
    told += [str(warning.message) for warning in caught]


@pytest.mark.parametrize("step", [0, 30, 49, 56, 60])
def test_after_a_resume_all_that_the_journal_names_is_whole(recipe, finished, step):
    (finished / f"snapshots/{step:08d}.safetensors").write_bytes(b"torn")
    with pytest.warns(DamageWarning, match=f"{step:08d}.safetensors is missing or damaged"):
        assert run_experiment(recipe, finished, command="test")
    assert contents.is_whole(Folder(finished))
    assert {0, 30, 60} <= set(read_status(finished).snapshots)
    assert read_status(finished).finished


@pytest.mark.parametrize(
    "kind", ["recipe", "session", "evaluation", "kernel", "removed", "finished"]
)
def test_a_damaged_line_is_named_and_what_it_said_is_made_anew(recipe, finished, tmp_path, kind):
    whole = tmp_path / "copy"
    run_experiment(recipe, whole, command="test")
    journal = finished / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines, 1) if f'"kind": "{kind}"'.encode() in line)
    lines[number - 1] = lines[number - 1].replace(b"kind", b"kinf")
    journal.write_bytes(b"".join(lines))
    with pytest.warns(DamageWarning, match=rf"line {number}( \({kind}.*\))? is damaged"):
        run = load_run(finished)
    assert f"line {number}" in "".join(run.lost)
    assert not run.finished
    with warned() as told:
        assert run_experiment(recipe, finished, command="test")
    assert f"line {number}" in told[0]
    assert_same_run(whole, finished)
    assert load_run(finished).lost == ()
    assert contents.is_whole(Folder(finished))


def test_a_lost_first_line_is_refused_by_name(recipe, finished):
    journal = finished / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"seed": 0', b'"seed": 1', 1))
    with (
        pytest.warns(DamageWarning),
        pytest.raises(StoreError, match=r"journal\.jsonl names: line 1 \(run\) is damaged"),
    ):
        load_run(finished)
    with (
        pytest.warns(DamageWarning),
        pytest.raises(StoreError, match=r"journal\.jsonl has lost its first line.*; move the fol"),
    ):
        run_experiment(recipe, finished, command="test")


def test_a_journal_that_lost_all_kernels_is_named(finished):
    journal = finished / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    first = next(place for place, line in enumerate(lines) if b'"kind": "kernel"' in line)
    journal.write_bytes(b"".join(lines[:first]))
    with (
        pytest.warns(DamageWarning, match=r"journal\.jsonl has lost its end"),
        pytest.raises(StoreError, match=r"holds no kernel yet that its journal\.jsonl names"),
    ):
        load_run(finished)


def test_a_journal_that_lost_its_end_is_named(recipe, finished, tmp_path):
    whole = tmp_path / "copy"
    run_experiment(recipe, whole, command="test")
    journal = finished / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:15]))
    with pytest.warns(DamageWarning, match=r"journal\.jsonl has lost its end"):
        run = load_run(finished)
    assert not run.finished
    assert "the line of kernels/00000060.safetensors is missing" in run.lost
    with warned():
        assert run_experiment(recipe, finished, command="test")
    assert_same_run(whole, finished)
    assert load_run(finished).lost == ()


def test_a_changed_recipe_file_is_named_and_written_anew(recipe, finished):
    file = finished / "recipe.yaml"
    before = file.read_text()
    file.write_text(before.replace("seed: 0", "seed: 1"))
    with pytest.warns(DamageWarning, match=r"recipe\.yaml is missing or not what this run"):
        assert load_run(finished).recipe == recipe
    with warned() as told:
        run_experiment(recipe, finished, command="test")
    assert all("recipe.yaml is missing or " in text for text in told)
    assert file.read_text() == before
    assert load_run(finished).recipe == recipe


def test_a_finished_run_has_nothing_left_to_do(recipe, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    assert run_experiment(recipe, finished, command="test")
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")} == before


def test_a_folder_belongs_to_one_recipe_and_one_process(recipe, finished, tiny_overrides):
    other = load_recipe("digits", [*tiny_overrides, "--seed=5"])
    with pytest.raises(StoreError, match="holds another run"):
        run_experiment(other, finished, command="test")
    with Folder(finished).owned(), pytest.raises(StoreError, match="belongs to another process"):
        run_experiment(recipe, finished, command="test")


def test_recipes_that_share_an_id_are_told_apart(recipe, finished, tiny_overrides, monkeypatch):
    other = load_recipe("digits", [*tiny_overrides, "--seed=5"])
    assert other.digest[:8] == other.id.rpartition("-")[2]
    monkeypatch.setattr(type(recipe), "id", "digits-00000000")
    assert run_experiment(recipe, finished, command="test")
    with pytest.raises(StoreError, match="holds another run"):
        run_experiment(other, finished, command="test")


def test_divergence_is_an_error_and_what_came_before_stays(tmp_path, tiny_overrides):
    wild = load_recipe("digits", [*tiny_overrides, "--optimizer.lr=1e9"])
    with pytest.raises(TrainingError, match=r"training diverged; lower optimizer\.lr"):
        run_experiment(wild, tmp_path / "wild", command="test")
    assert load_run(tmp_path / "wild").series.steps[0] == 0
    assert not read_status(tmp_path / "wild").finished


def test_divergence_that_an_evaluation_sees_first_is_the_same_error(tmp_path, tiny_overrides):
    wild = load_recipe(
        "digits",
        [*tiny_overrides, "--optimizer.lr=1e30", "--training.evaluate=0, every 1"],
    )
    with pytest.raises(TrainingError, match=r"the loss on the train data is nan after iteration 1"):
        run_experiment(wild, tmp_path / "wild", command="test")
    assert read_status(tmp_path / "wild").diverged
    assert load_run(tmp_path / "wild").scalars["step"].tolist() == [0]


def test_a_run_computes_on_its_recipes_threads(finished, tmp_path, tiny_overrides):
    before = torch.get_num_threads()
    run_experiment(
        load_recipe("digits", [*tiny_overrides, "--threads=2"]), tmp_path / "two", command="test"
    )
    assert load_run(finished).environment["threads"] == "1"
    assert load_run(tmp_path / "two").environment["threads"] == "2"
    assert torch.get_num_threads() == before


def test_a_device_that_is_not_there_is_said(tmp_path):
    for device in ("cud", "xla:3"):
        with pytest.raises(RecipeError, match=f"device '{device}' cannot be used here"):
            run_experiment(
                load_recipe("digits", [f"--device={device}"]), tmp_path / "run", command="test"
            )


def test_folders_without_a_run_are_said(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        load_run(tmp_path)
    with pytest.raises(StoreError, match="holds no run"):
        read_status(tmp_path / "missing")
    Folder(tmp_path).append(Kind.RUN, recipe=yaml.safe_load("seed: 1"), command="test")
    with pytest.raises(StoreError, match="holds no kernel yet"):
        load_run(tmp_path)


def test_a_layer_that_dies_in_training_has_the_same_kernels_when_the_run_goes_on(tmp_path):
    """The engine's check of a dead layer says nothing, and it takes another route for it."""
    words = ["--model.name=mlp", "--optimizer.name=rmsprop", "--optimizer.lr=0.05",
             "--optimizer.momentum=0", "--training.steps=7", "--training.batch_size=10",
             "--kernel.when=every 1", "--snapshots.keep=end", "--snapshots.resume=every 1",
             "--training.evaluate=end", "--probe.size=12", "--threads=1"]  # fmt: skip
    recipe = load_recipe("digits", words)
    run_experiment(recipe, tmp_path / "whole", command="test")
    asked = count(1)
    while not run_experiment(
        recipe, tmp_path / "stopped", command="test", should_stop=lambda: next(asked) % 2 == 0
    ):
        pass
    whole, stopped = (
        [e.values["sha256"] for e in Folder(tmp_path / name).files(Kind.KERNEL)]
        for name in ("whole", "stopped")
    )
    assert len(whole) == 7
    assert whole == stopped
