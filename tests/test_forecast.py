import re

import pytest

from conescope.cli import main
from conescope.errors import RecipeError
from conescope.experiments import experiment
from conescope.experiments import forecast as forecasting
from conescope.experiments.experiment import Experiment
from conescope.experiments.forecast import forecast
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.training.data import encoded_images, load_data
from conescope.training.recipe_reading import load_recipe
from image_files import write_parquet


def test_counts_and_sizes_are_those_of_the_run(tiny_overrides, tmp_path):
    recipe = load_recipe("digits", tiny_overrides)
    cost = forecast(recipe)
    run_experiment(recipe, tmp_path, command="test")
    run = load_run(tmp_path)
    assert cost.kernels == len(run.series)
    assert cost.evaluations == len(run.scalars["step"])
    assert cost.iterations == run.total_steps
    kept = [f"snapshots/{step:08d}.safetensors" for step in (0, 30, 60)]
    files = [*tmp_path.glob("kernels/*"), *(tmp_path / file for file in kept)]
    assert cost.stored_bytes == pytest.approx(sum(f.stat().st_size for f in files), rel=0.2)
    parts = (
        cost.iterations * cost.iteration_seconds
        + cost.evaluations * cost.evaluation_seconds
        + cost.kernels * cost.kernel_seconds
    )
    assert cost.seconds == parts > 0


def test_kernels_of_tokens_are_counted_in_the_type_of_the_network(tmp_path):
    words = ["--training.steps=1", "--kernel.when=0", "--training.evaluate=0", "--probe.size=59"]
    recipe = load_recipe("grokking", words)
    experiment = Experiment(recipe)
    run_experiment(recipe, tmp_path, command="test")
    (file,) = tmp_path.glob("kernels/*")
    size = forecasting._kernel_bytes(experiment, experiment.begin()[0])
    assert size == pytest.approx(file.stat().st_size, rel=0.1)


def test_an_evaluation_is_timed_on_a_few_images_of_each_split(tiny_overrides, monkeypatch):
    seen = []

    def evaluate(model, inputs, labels, *_):
        seen.append(len(labels))
        return {"loss": 0.0, "accuracy": 0.0}

    monkeypatch.setattr(experiment, "evaluate", evaluate)
    monkeypatch.setattr(forecasting, "seconds_of_samples", lambda on, most: on(most)() and 2.0)
    recipe = load_recipe("digits", tiny_overrides)
    cost = forecast(recipe)
    assert seen == [125, 125]
    data = load_data(recipe.data)
    images = len(data.train.labels) + len(data.test.labels)
    assert cost.evaluation_seconds == pytest.approx(2.0 * images / 250)


class PretendClock:
    """Work that takes a fixed time and a time for each sample, on a clock of its own."""

    def __init__(self, monkeypatch, fixed, each):
        self.now, self.spent, self.fixed, self.each = 0.0, [], fixed, each
        monkeypatch.setattr(forecasting.time, "perf_counter", lambda: self.now)

    def on(self, samples):
        def work():
            self.spent.append(samples)
            self.now += self.fixed + self.each * samples

        return work


@pytest.mark.parametrize(("fixed", "each"), [(0.0, 0.05), (0.3, 0.01), (0.02, 1e-2), (0.0, 2.0)])
def test_long_work_is_extrapolated_from_few_samples_and_exact_if_it_is_linear(
    monkeypatch, fixed, each
):
    clock = PretendClock(monkeypatch, fixed, each)
    found = forecasting.seconds_of_samples(clock.on, 128)
    assert found == pytest.approx(fixed + 128 * each)
    assert max(clock.spent) < 128
    assert sum(clock.spent) * each <= max(1.0, 8 * each)


def test_a_disturbed_timing_of_few_samples_does_not_make_the_rest_free(monkeypatch):
    clock = PretendClock(monkeypatch, 0.0, 0.05)
    disturbed = clock.on(2)

    def on(samples):
        return (lambda: [disturbed(), disturbed()]) if samples == 2 else clock.on(samples)

    assert forecasting.seconds_of_samples(on, 128) == pytest.approx(128 * 0.05, rel=0.2)


def test_a_plan_takes_images_that_have_one_value_in_those_it_looks_at(tmp_path, monkeypatch):
    """A run looks at all of them; a plan has to leave open what it did not see."""
    (tmp_path / "odd.py").write_text(
        "import torch\n"
        "def load():\n"
        "    images = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)\n"
        "    images[1::2] = 255\n"
        "    return {kind: (images, torch.arange(200) % 10) for kind in ('train', 'test')}\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("digits", ["--data.name=odd:load", "--probe.size=20"])
    assert forecast(recipe).iterations == 2000


def test_short_work_is_timed_as_a_whole(monkeypatch):
    clock = PretendClock(monkeypatch, 0.001, 1e-5)
    assert forecasting.seconds_of_samples(clock.on, 60) == pytest.approx(0.0016)
    assert clock.spent.count(60) >= 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_plan_decodes_no_more_images_than_it_needs(tmp_path, monkeypatch):
    write_parquet(tmp_path, count=300)
    decode, decoded = encoded_images._decode, []
    monkeypatch.setattr(encoded_images, "_decode", lambda *of: decoded.append(of) or decode(*of))
    words = [f"--data.path={tmp_path}", "--probe.size=20", "--training.batch_size=8"]
    recipe = load_recipe("lenet-mnist", words)
    cost = forecast(recipe)
    assert len(decoded) == 100
    assert cost.evaluations == Experiment(recipe).counts["training.evaluate"]  # of all 300


def test_the_command_prints_it(tiny_overrides, capsys):
    assert main(["plan", "digits", *tiny_overrides]) == 0
    out = capsys.readouterr().out
    for word in (
        r"fc1 .*\d",
        r"training +60 × ",
        r"kernels +7 × ",
        r"in all +\d+ s, \d+ MB on disk",
    ):
        assert re.search(word, out)


def test_what_cannot_be_run_cannot_be_planned():
    with pytest.raises(RecipeError, match="lenet5 takes images"):
        forecast(load_recipe("digits", ["--model.name=lenet5"]))


def test_the_largest_plan_is_counted_and_a_run_of_it_is_refused(tiny_overrides, tmp_path):
    words = ["--training.steps=1000000000000", "--kernel.when=every 1", "--lr_schedule.name=cosine"]
    recipe = load_recipe("digits", [*tiny_overrides, *words])
    cost = forecast(recipe)
    assert cost.kernels == cost.iterations == 10**12
    with pytest.raises(RecipeError, match=r"at most 100,000,000 can be trained; set it lower"):
        run_experiment(recipe, tmp_path, command="test")
