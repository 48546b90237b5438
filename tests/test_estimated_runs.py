"""Kernels estimated by cotangents or a projection: recipes, Watch and measure, stored and read."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch
from benchmarks.follow import drawn
from torch import nn

import conescope as cs
from conescope.cli import main
from conescope.errors import DamageWarning, KernelError, RecipeError, StoreError
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.kernel.estimates import PROJECTED_DRAWS, SEED
from conescope.kernel.features import Features
from conescope.kernel.matrix import Randomness
from conescope.measuring.adapt import adapt
from conescope.report import write_report
from conescope.report.summary import main_numbers
from conescope.runs import contents
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from conescope.runs.writer import RunWriter
from conescope.training.recipe_reading import load_recipe
from stored_runs import assert_same_run

DIM, SAMPLES = 64, 12
WAYS = {
    "kernel.estimate": (4, "estimated by 4 random cotangents"),
    "kernel.projection": (DIM, f"estimated by a projection to {DIM} dimensions"),
}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def probe():
    return torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(1))


def watched(out, last=3, **options):
    model = network()
    told = {}
    with cs.Watch(
        model, probe(), when="0, every 1", out=out,
        on_kernel=lambda step, scalars: told.setdefault(step, dict(scalars)), **options,
    ) as watch:  # fmt: skip
        for step in range(last + 1):
            watch.step(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.9).add_(0.02)
    return watch, told


@pytest.mark.parametrize("name", WAYS)
def test_a_recipe_is_measured_by_estimates_and_goes_on_after_every_stop(
    name, tiny_overrides, tmp_path
):
    value, text = WAYS[name]
    words = [*tiny_overrides, f"--{name}", str(value)]
    assert main(["run", "digits", *words, "--out", str(tmp_path / "whole")]) == 0
    recipe = load_recipe("digits", words)
    for limit in (13, 25, 1000):
        calls = count()
        run_experiment(
            recipe,
            tmp_path / "parts",
            command="test",
            should_stop=lambda calls=calls, limit=limit: next(calls) > limit,
        )
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    run = load_run(tmp_path / "whole")
    assert run.series.draws == (4 if name == "kernel.estimate" else PROJECTED_DRAWS)
    assert main_numbers(run)["kernel"] == text
    assert "±" in main_numbers(run)["S(60, 0)"]
    assert (run.series.standard_errors()[0, 1:] > 0).all()
    page = write_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{text}; bands are ± one standard error" in page


def test_estimates_are_near_the_exact_run_within_their_errors(tiny_overrides, tmp_path):
    runs = {}
    for word in ("estimate=6", "projection=4096", "by_layer=false"):
        recipe = load_recipe("digits", [*tiny_overrides, f"--kernel.{word}"])
        run_experiment(recipe, tmp_path / word, command="test")
        runs[word] = load_run(tmp_path / word).series
    truth = runs.pop("by_layer=false").distances()[0, 1:]
    for series in runs.values():
        off = np.abs(series.distances()[0, 1:] - truth)
        assert (off < 4 * series.standard_errors()[0, 1:]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["estimate=4", "projection=64"], "not by both"),
        (["estimate=4", "outputs=full"], "class trace as a whole"),
        (["projection=64", "outputs=2"], "class trace as a whole"),
        (["projection=64", "by_layer=true"], "without by_layer"),
        (["projection=100"], "multiple of 8"),
        (["estimate=1"], "must be at least 2"),
    ],
)
def test_recipes_that_cannot_be_estimated_are_refused(words, message):
    with pytest.raises(RecipeError, match=f"kernel.*{message}") as caught:
        load_recipe("digits", [f"--kernel.{word}" for word in words])
    assert "\n" not in str(caught.value)


def test_a_recipe_without_estimates_has_the_id_it_had():
    assert load_recipe("digits", ["--kernel.estimate=null"]).id == load_recipe("digits").id
    assert load_recipe("digits", ["--kernel.estimate=4"]).id != load_recipe("digits").id


def test_plan_forecasts_estimates(tiny_overrides, capsys):
    for words in (["--kernel.estimate=4"], ["--kernel.projection=64"]):
        assert main(["plan", "digits", *tiny_overrides, *words]) == 0
        assert "kernels" in capsys.readouterr().out


def test_a_watch_stores_features_and_reads_them_again(tmp_path):
    watch, told = watched(tmp_path / "run", projection=DIM)
    series = watch.series
    expected = adapt(network().eval(), probe()).project(DIM)
    first = series.measured[0]
    assert isinstance(first, Features)
    assert torch.equal(first.values, expected.values)
    assert (first.groups, series.draws) == (PROJECTED_DRAWS, PROJECTED_DRAWS)
    folder = Folder(tmp_path / "run")
    entry = contents.by_step(folder, Kind.KERNEL)[0]
    assert (entry.values["groups"], entry.values["seed"]) == (PROJECTED_DRAWS, SEED)
    drawn = Randomness("a projection by 8 cotangents", SEED)
    assert first.randomness == expected.randomness == drawn
    assert {name: tuple(t.shape) for name, t in folder.read_tensors(entry).items()} == {
        contents.FEATURES: (SAMPLES, DIM),
        contents.PROBE_OUTPUTS: (SAMPLES, 3),
    }
    assert told[0]["trace"] == pytest.approx(float(series.kernels[0].values.trace()), rel=1e-5)
    assert told[3]["distance_from_first"] == pytest.approx(series.distances()[0, 3], rel=1e-6)
    assert told[3]["distance_from_previous"] == pytest.approx(series.distances()[2, 3], rel=1e-6)
    assert watch.run.estimates == {}


def test_a_watch_by_draws_tells_the_corrected_distance(tmp_path):
    watch, told = watched(tmp_path / "run", draws=5)
    assert told[3]["distance_from_first"] == pytest.approx(watch.series.distances()[0, 3])


def test_a_watch_of_features_goes_on_and_refuses_others(tmp_path):
    watched(tmp_path / "whole", projection=DIM)
    watched(tmp_path / "run", last=1, projection=DIM)
    watched(tmp_path / "run", projection=DIM)
    series = [load_run(tmp_path / name).series for name in ("whole", "run")]
    for one, other in zip(*(each.measured for each in series), strict=True):
        assert torch.equal(one.values, other.values)
    for other in ({"projection": 2 * DIM}, {"draws": 4}, {}):
        with pytest.raises(StoreError, match=r"kernels of something else: .*projection"):
            watched(tmp_path / "run", **other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": DIM, "draws": 4}, "not by both"),
        ({"projection": DIM, "outputs": "full"}, "class trace as a whole"),
        ({"projection": DIM, "by_layer": True}, "class trace as a whole"),
        ({"projection": 60}, "multiple of 8"),
        ({"projection": 0}, "multiple of 8"),
        ({"projection": -8}, "multiple of 8"),
    ],
)
def test_watches_that_make_no_sense_are_refused_before_anything_is_written(
    options, message, tmp_path
):
    with pytest.raises(KernelError, match=message):
        watched(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_features_that_are_damaged_or_missing_are_named(tmp_path):
    watched(tmp_path / "run", projection=DIM)
    file = tmp_path / "run/kernels/00000002.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"00000002\.safetensors is damaged"):
        load_run(tmp_path / "run")
    file.unlink()
    with pytest.raises(StoreError, match=r"00000002\.safetensors is missing"):
        load_run(tmp_path / "run")
    with pytest.warns(DamageWarning, match="is missing or damaged"):
        watched(tmp_path / "run", projection=DIM)
    assert load_run(tmp_path / "run").series.steps == (0, 1, 2, 3)


def test_a_folder_of_two_projections_is_no_series(tmp_path):
    with RunWriter(tmp_path) as writer:
        writer.begin_source({"name": "x", "description": "x"}, "test")
        writer.begin_session("cpu")
        for step, groups in enumerate((4, 8)):
            writer.write_kernel(step, Features(torch.randn(5, 16), groups))
    with pytest.raises(KernelError, match=r"16 dimensions in 4 groups and .* in 8 groups"):
        load_run(tmp_path)


def test_checkpoints_and_snapshots_are_measured_by_a_projection(tmp_path, tiny_overrides):
    for step in (10, 20):
        torch.save(network(step).state_dict(), tmp_path / f"ckpt_{step}.pt")
    run = cs.measure_checkpoints(
        network, str(tmp_path / "ckpt_*.pt"), probe(), out=tmp_path / "measured", projection=DIM
    )
    expected = adapt(network(20).eval(), probe()).project(DIM)
    assert torch.equal(run.series.measured[1].values, expected.values)
    trained = tmp_path / "trained"
    run_experiment(load_recipe("digits", tiny_overrides), trained, command="test")
    out = tmp_path / "again"
    words = ["measure", str(trained), "--out", str(out), "--projection", str(DIM)]
    assert main(words) == 0
    assert load_run(out).series.measured[0].values.shape == (20, DIM)
    assert main([*words[:-1], "60"]) == 1
    again = cs.measure_snapshots(trained, out=tmp_path / "third", projection=DIM)
    assert torch.equal(again.series.measured[0].values, load_run(out).series.measured[0].values)


def test_no_warning_comes_from_a_resumed_watch(tmp_path, recwarn):
    watched(tmp_path / "run", projection=DIM)
    watched(tmp_path / "run", projection=DIM)
    assert not [w for w in recwarn if issubclass(w.category, DamageWarning)]


def test_the_benchmark_draws_the_cotangents_of_estimates():
    model, x = network().double(), probe().double()
    full = cs.entk(model, x, outputs="full").values
    for seed in (0, 5):
        (found,) = drawn([full], 4, seed)
        assert isinstance(found, cs.Kernel)
        expected = cs.estimate_entk(model, x, draws=4, seed=seed)
        torch.testing.assert_close(found.draws, expected.draws)
