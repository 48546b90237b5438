from contextlib import contextmanager

import pytest
import torch
import yaml

from conescope.engine import estimate_distance
from conescope.errors import DamageWarning, KernelError, StoreError, TrainingError
from conescope.experiments.stored import load_run, read_status
from conescope.kernel.estimates import estimated_distances
from conescope.kernel.matrix import Kernel
from conescope.report import write_report
from conescope.report.save import save_figures
from conescope.report.summary import evaluations, main_numbers, state
from conescope.runs.writer import RunWriter

SOURCE = {"name": "mine", "description": "a <network> of mine", "probe": "[4, 3] float32"}


def kernel_at(step):
    features = torch.randn(4, 9, generator=torch.Generator().manual_seed(step))
    halves = {"0": features[:, :4] @ features[:, :4].T, "1": features[:, 4:] @ features[:, 4:].T}
    return Kernel(halves["0"] + halves["1"], by_layer=halves)


@contextmanager
def begun(path, **known):
    with RunWriter(path) as writer:
        writer.begin_source(SOURCE, "python train.py", **known)
        writer.begin_session("cpu")
        yield writer


@pytest.fixture
def path(tmp_path):
    with begun(tmp_path / "mine") as writer:
        for step in (0, 10, 20):
            writer.write_kernel(step, kernel_at(step))
    return tmp_path / "mine"


def test_a_run_without_a_recipe_is_read(path):
    run = load_run(path)
    assert run.recipe is None
    assert run.total_steps is None
    assert not run.finished
    assert (run.name, run.description) == ("mine", "a <network> of mine")
    assert run.command == "python train.py"
    assert yaml.safe_load(run.details) == run.source == SOURCE
    assert run.series.steps == (0, 10, 20)
    for step, kernel in zip(run.series.steps, run.series.kernels, strict=True):
        expected = kernel_at(step)
        assert torch.equal(kernel.values, expected.values)
        assert kernel.by_layer.keys() == expected.by_layer.keys()
        for name, part in expected.by_layer.items():
            assert torch.equal(kernel.by_layer[name], part)


def test_it_is_finished_until_another_kernel_joins(path):
    with RunWriter(path) as writer:
        writer.finish()
        assert load_run(path).finished
        writer.write_kernel(30, kernel_at(30))
    assert not load_run(path).finished


def test_its_length_is_told_where_it_is_known(path, tmp_path):
    assert read_status(path).extent == "20"
    assert state(load_run(path)) == "unfinished: kernels up to step 20"
    with begun(tmp_path / "known", total_steps=80) as writer:
        writer.write_kernel(20, kernel_at(20))
    assert read_status(writer.path).extent == "20 of 80 (25%)"
    assert state(load_run(writer.path)) == "unfinished: kernels up to step 20 of 80"


def test_its_report_and_figures_are_made(path):
    page = write_report(load_run(path), path / "report.html").read_text(encoding="utf-8")
    assert "a &lt;network&gt; of mine" in page
    assert "What was measured" in page
    assert "loss and accuracy were not recorded" in page
    assert {file.stem for file in save_figures(load_run(path), path / "figures")} >= {"overview"}


def test_what_was_not_recorded_is_said(path):
    with pytest.raises(TrainingError, match="were not recorded"):
        evaluations(load_run(path))


def test_estimates_keep_their_draws_and_say_their_error(tmp_path):
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(3, 4, 9, generator=generator)
    estimates = {}
    with begun(tmp_path) as writer:
        for step in (0, 10):
            features = torch.randn(4, 9, generator=generator) + noise
            draws = features @ features.mT
            estimates[step] = Kernel(draws.mean(dim=0), draws=draws)
            writer.write_kernel(step, estimates[step])
    run = load_run(tmp_path)
    assert all(torch.equal(run.estimates[s].draws, estimates[s].draws) for s in (0, 10))
    found = estimated_distances([estimates[0], estimates[10]])
    _, error = estimate_distance(estimates[0], estimates[10])
    assert found.errors[0, 1] == pytest.approx(error)
    numbers = main_numbers(run)
    assert numbers["S(10, 0)"] == f"{found.corrected[0, 1]:.3g} ± {error:.1g}"
    assert numbers["kernel"] == "estimated by 3 random cotangents"


def write_estimates(path, counts):
    with begun(path) as writer:
        for step, count in enumerate(counts):
            features = torch.randn(count, 4, 9, generator=torch.Generator().manual_seed(step))
            draws = features @ features.mT
            writer.write_kernel(step, Kernel(draws.mean(dim=0), draws=draws))


def test_estimates_by_one_draw_have_no_error(tmp_path):
    write_estimates(tmp_path, (1, 1))
    numbers = main_numbers(load_run(tmp_path))
    assert "±" not in numbers["S(1, 0)"]
    assert numbers["kernel"] == "estimated by 1 random cotangent"


def test_estimates_by_other_numbers_of_draws_are_no_series(tmp_path):
    write_estimates(tmp_path, (2, 3))
    with pytest.raises(KernelError, match="2 random cotangents and 3 random cotangents"):
        load_run(tmp_path)


def test_a_session_whose_line_is_lost_leaves_the_run_readable(path):
    journal = path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if b'"kind": "session"' not in line))
    with pytest.warns(DamageWarning, match=r"line 2 \(session\) is missing"):
        run = load_run(path)
    assert run.environment == {}
    assert len(run.series) == 3
    assert write_report(run, path / "report.html").exists()


def test_a_folder_is_of_one_thing(path):
    other = {**SOURCE, "probe": "[5, 3] float32"}
    with RunWriter(path) as writer:
        writer.begin_source({**SOURCE, "name": "another name"}, "python again.py")
        with pytest.raises(StoreError, match=r"probe was '\[4, 3\] float32' and is '\[5, 3\]"):
            writer.begin_source(other, "python train.py")
    assert load_run(path).command == "python train.py"


def test_a_recipes_folder_takes_no_other_kernels(tmp_path):
    with RunWriter(tmp_path) as writer:
        writer.begin_recipe({"seed": 1}, "seed: 1\n", "conescope run digits", None)
        with pytest.raises(StoreError, match="holds the run of a recipe"):
            writer.begin_source(SOURCE, "python train.py")
