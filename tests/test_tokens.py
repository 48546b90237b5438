"""Recipes of token ids: modular addition and text, a transformer, labels of every position."""

import hashlib
import pydoc_data.topics
import sys
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import conescope as cs
from conescope.cli import main
from conescope.errors import DataError, ModelError, RecipeError, StoreError
from conescope.experiments.branches import branch_recipe
from conescope.experiments.experiment import Experiment
from conescope.experiments.forecast import forecast
from conescope.experiments.remeasure import measure_snapshots
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.report.run_analysis import analyse
from conescope.report.sections.curvature import curvature
from conescope.runs.store import Folder
from conescope.training.data.dataset import Dataset, Split, _load
from conescope.training.data.given import as_dataset
from conescope.training.data.modular_addition import load as sums
from conescope.training.data.text import load as text
from conescope.training.loop import Snapshot
from conescope.training.models.transformer import Transformer
from conescope.training.recipe_reading import load_recipe

TINY = [
    "--model.units=16", "--model.layers=1", "--training.steps=30", "--training.batch_size=8",
    "--training.evaluate=0, every 10", "--probe.size=12", "--kernel.when=0, every 3",
    "--snapshots.keep=0, every 10", "--snapshots.resume=every 7",
    "--probe.stratified=false",
]  # fmt: skip
X = torch.randint(0, 5, (12, 6), generator=torch.Generator().manual_seed(0))

OWN = """
import torch
from torch import nn


def counting():
    tokens = torch.arange(300).view(50, 6) % 5
    return (tokens[:40], (tokens[:40] + 1) % 5), (tokens[40:], (tokens[40:] + 1) % 5)


def parity():
    tokens = torch.randint(0, 7, (60, 6))
    return (tokens[:50], tokens[:50].sum(1) % 2), (tokens[50:], tokens[50:].sum(1) % 2)


class Own(nn.Module):
    def __init__(self, classes, vocabulary):
        super().__init__()
        self.embed, self.read = nn.Embedding(vocabulary, 4), nn.Linear(4, classes)

    def forward(self, x):
        return self.read(self.embed(x).cumsum(1))


class Pooled(Own):
    def forward(self, x):
        return super().forward(x).mean(1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module of the user's own, in the folder in which the commands run."""
    name = f"tokens_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    _load.cache_clear()
    return name


@pytest.fixture
def tiny(tmp_path):
    """Function from the name of a recipe to the words of a run of a second."""
    file = tmp_path / "a text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    data = {"grokking": ["--data.p=7"],
            "bytes-lm": ["--data.context=8", "--lr_schedule.warmup=4",
                         f"--data.path={file}"]}  # fmt: skip
    _load.cache_clear()
    return lambda name, *more: [*TINY, *data[name], *more]


def test_every_sum_is_there_once():
    data = sums(p=11, train=0.3)
    assert (data.classes, data.vocabulary, len(data.train), len(data.test)) == (11, 12, 36, 85)
    tokens = torch.cat([data.train.inputs, data.test.inputs])
    assert len({tuple(row) for row in tokens.tolist()}) == 121
    assert tokens[:, 2].eq(11).all()
    assert torch.equal(torch.cat([data.train.labels, data.test.labels]), tokens[:, :2].sum(1) % 11)
    assert torch.equal(sums(p=11, train=0.3).train.inputs, data.train.inputs)


def test_the_text_is_that_of_python_and_its_labels_are_the_next_bytes():
    topics = pydoc_data.topics.topics
    whole = "\n".join(topics[name] for name in sorted(topics)).encode()
    data = text(context=50)
    read = bytes(data.train.inputs.flatten().tolist())
    assert whole.startswith(read)
    assert whole[1:].startswith(bytes(data.train.labels.flatten().tolist()))
    held_out = bytes(data.test.inputs.flatten().tolist())
    assert held_out in whole[len(read) :]
    assert len(read) + len(held_out) > len(whole) - 2 * 51
    assert len(held_out) == pytest.approx(0.1 * len(whole), rel=0.01)
    assert data.digest == (
        f"pydoc_data.topics, {len(whole):,} bytes, sha256 {hashlib.sha256(whole).hexdigest()[:16]}"
    )


def test_a_text_as_long_as_it_has_to_be(tmp_path):
    file = tmp_path / "text"
    file.write_bytes(b"0123456789")
    data = text(str(file), context=4, test=0.5)
    assert data.train.inputs.tolist() == [list(b"0123")]
    assert data.test.labels.tolist() == [list(b"6789")]
    with pytest.raises(DataError, match=r"context is 5, but of text, 10 bytes, there are 5 to"):
        text(str(file), context=5, test=0.5)


def test_what_makes_no_data_is_one_line(tmp_path, monkeypatch, capsys):
    for words, message in (
        (["grokking", "--data.p=91"], "data.p must be a prime of at least 5 and below 5,000"),
        (["grokking", "--data.p=1000003"], "such as 59, not 1000003"),
        (["grokking", "--data.p=3"], "data.p must be a prime"),
        (["grokking", "--data.p=-7"], "data.p must be a prime"),
        (["grokking", "--data.train=1"], "data.train is the share of the 3,481 sums"),
        (["grokking", "--data.train=0.0001"], "data.train is the share"),
        (["bytes-lm", "--data.context=0"], "data.context must be at least 1, not 0"),
        (["bytes-lm", "--data.context=10000000"], "data.context is 10000000, but of pydoc_data"),
        (["bytes-lm", "--data.test=1.5"], "data.test is a share of the text"),
        (["bytes-lm", "--data.path=nowhere.txt"], "cannot read nowhere.txt: No such file"),
        (["bytes-lm", f"--data.path={tmp_path}"], "is a folder, not a file"),
        (["bytes-lm", "--model.heads=3"], "model.units (times model.width) is 128, which 3 heads"),
        (["bytes-lm", "--model.layers=0"], "model.layers must be at least 1, not 0"),
        (["bytes-lm", "--model.norm=batch"], "model.norm takes layer or none or null, not 'batch'"),
        (["digits", "--model.name=transformer"], "model transformer takes token ids [n, T], and"),
        (["digits", "--data.name=text", "--probe.stratified=false"], "model cnn needs images"),
        (["bytes-lm", "--data.augmentation=flip-crop"], "flip-crop is for images"),
        (["bytes-lm", "--probe.stratified=true"], "set probe.stratified to false"),
    ):  # fmt: skip
        _load.cache_clear()
        assert main(["run", *words, "--out", str(tmp_path / "run")]) in (1, 2), words
        told = capsys.readouterr().err
        assert message in told, told
        assert len(told.strip().splitlines()) == 1
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    _load.cache_clear()
    with pytest.raises(DataError, match=r"comes without pydoc_data\.topics.*--data\.path FILE"):
        text()
    assert not (tmp_path / "run" / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Split(X, X[:, :4]), r"labels \[N, T\] of every position are for token ids"),
        (lambda: Split(X.float(), X), "for token ids"),
        (lambda: Split(X, X - 1), "labels are whole numbers from 0, and one is -1"),
        (lambda: Dataset("own", Split(X, X), Split(X, X[:, 0]), 5), "for each position"),
        (lambda: Dataset("own", Split(X, X), Split(X, X), 4), r"must lie in 0 … 3, and one is 4"),
        (lambda: Dataset("own", Split(X, X), Split(X, X), 5, 4), r"they lie in 0 … 4 while voc"),
        (lambda: Dataset("own", *[Split(X - 1, X)] * 2, 5, 5), r"they lie in -1 … 3 while voc"),
        (lambda: Dataset("own", *[Split(X, X)] * 2, 5, 5.0), "vocabulary is 5.0"),
        (lambda: Dataset("own", *[Split(X.float(), X[:, 0])] * 2, 5, 5), "a vocabulary is for"),
        (lambda: as_dataset([TensorDataset(X, X[:, :4])] * 2, "own"), "or one for each token"),
    ],
)
def test_bad_tokens_and_labels_are_named(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_tokens_of_torchs_data_sets_and_their_vocabulary():
    data = as_dataset([TensorDataset(X, X + 1)] * 2, "own")
    assert (data.vocabulary, data.classes) == (5, 6)
    assert torch.equal(data.train.labels, X + 1)
    assert torch.equal(data.train.last_labels, X[:, -1] + 1)
    assert as_dataset([(X - 1, X[:, 0])] * 2, "own").vocabulary is None
    assert as_dataset([(X.float(), X[:, 0])] * 2, "own").vocabulary is None


def test_a_transformer_looks_at_no_later_token():
    torch.manual_seed(0)
    model = Transformer((6,), 5, 5, layers=2, units=8, heads=2)
    logits, changed = model(X), X.clone()
    changed[:, 4] = (X[:, 4] + 1) % 5
    after = model(changed)
    assert torch.equal(logits[:, :4], after[:, :4])
    assert (logits[:, 4:] - after[:, 4:]).abs().amin() > 0
    assert not any(m.bias.any() for m in model.modules() if getattr(m, "bias", None) is not None)


def test_loss_and_accuracy_are_means_over_all_positions(tiny):
    experiment = Experiment(load_recipe("bytes-lm", tiny("bytes-lm")))
    model, optimizer = experiment.begin()
    found = experiment.evaluate(Snapshot(0, model, optimizer))
    split = experiment.data.test
    with torch.no_grad():
        logits = model(split.inputs).flatten(0, 1)
    labels = split.labels.flatten()
    assert found["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["test_accuracy"] == (logits.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("name", ["grokking", "bytes-lm"])
def test_the_kernel_is_that_of_the_last_position(tiny, name):
    words = tiny(name, "--kernel.estimate=null", "--kernel.by_layer=true")
    experiment = Experiment(load_recipe(name, words))
    model, _ = experiment.begin()

    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(tokens)[:, -1]

    kernel = experiment.measure(model)
    torch.testing.assert_close(kernel.matrix, cs.entk(Last(), experiment.probe).matrix)
    assert {"tokens", "blocks.0.attention.query", "logits"} <= set(kernel.by_layer)
    assert model(experiment.probe).dim() == 3  # which reads all positions again
    chosen = experiment.data.train.inputs.tolist()
    last = [chosen.index(row) for row in experiment.probe.tolist()]
    assert experiment.probe_labels == experiment.data.train.last_labels[last].tolist()


@pytest.mark.parametrize("name", ["grokking", "bytes-lm"])
def test_a_stopped_run_ends_at_the_same_bits(tiny, name, tmp_path):
    recipe = load_recipe(name, tiny(name))
    run_experiment(recipe, tmp_path / "whole", command="test")
    asked = count(1)
    while not run_experiment(
        recipe, tmp_path / "stopped", command="test", should_stop=lambda: next(asked) % 8 == 0
    ):
        pass
    whole, stopped = (
        {e.values["file"]: e.values["sha256"]
         for kind in ("kernel", "snapshot") for e in Folder(tmp_path / n).files(kind)
         if kind == "kernel" or e.values["step"] % 10 == 0}
        for n in ("whole", "stopped")
    )  # fmt: skip
    assert len(whole) == 11 + 4
    assert whole == stopped


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("grokking", (["figures"], ["cone"], ["switch", "--at", "0,10"])),
        ("bytes-lm", (["report"], ["switch", "--at", "10"], ["measure", "--by-layer", "--outputs",
                      "trace", "--out", "again"])),
    ],
)  # fmt: skip
def test_every_command_works(tiny, name, commands, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", name, *tiny(name), "--out", "one"]) == 0
    for command, *more in (*commands, ["status"]):
        assert main([command, "one", *more]) == 0, command
    assert main(["plan", name, *tiny(name)]) == 0
    cost = forecast(load_recipe(name, tiny(name)))
    assert (cost.kernels, cost.iterations) == (len(load_run("one").series), 30)
    assert "image" not in capsys.readouterr().out


def test_snapshots_are_measured_as_the_run_was(tiny, tmp_path):
    recipe = load_recipe("grokking", tiny("grokking"))
    run_experiment(recipe, tmp_path / "one", command="test")
    again = measure_snapshots(tmp_path / "one", out=tmp_path / "two", by_layer=True)
    run = load_run(tmp_path / "one")
    torch.testing.assert_close(again.series.kernels[-1].matrix, run.series.kernels[-1].matrix)
    assert again.series.kernels[-1].by_layer.keys() == run.series.kernels[-1].by_layer.keys()
    assert again.labels.tolist() == run.labels.tolist()


def test_a_run_goes_on_with_the_same_text_only_and_names_it(tiny, tmp_path):
    recipe = load_recipe("bytes-lm", tiny("bytes-lm"))
    run_experiment(recipe, tmp_path / "one", command="test", should_stop=lambda: True)
    digest = Folder(tmp_path / "one").entries("session")[0].values["environment"]["data"]
    assert digest.startswith("a text.txt, 900 bytes, sha256 ")
    file = tmp_path / "a text.txt"
    file.write_text(file.read_text().replace("fox", "cat"))
    _load.cache_clear()
    with pytest.raises(
        StoreError, match=r"was trained on a text.txt, 900 bytes, .* the data here are"
    ):
        run_experiment(recipe, tmp_path / "one", command="test")
    with pytest.raises(StoreError, match=r"use those that it was trained on"):
        measure_snapshots(tmp_path / "one", out=tmp_path / "two")
    branch = branch_recipe(tmp_path / "one", 0, ["--optimizer.lr=0.1"])
    with pytest.raises(StoreError, match=r"use those that it was trained on"):
        run_experiment(branch, tmp_path / "branch", command="test")
    file.write_text(file.read_text().replace("cat", "fox"))
    _load.cache_clear()
    assert run_experiment(recipe, tmp_path / "one", command="test")
    assert main(["report", str(tmp_path / "one")]) == 0
    page = (tmp_path / "one" / "report.html").read_text()
    assert page.count(digest) >= 2  # in the caption and among the versions
    assert "per label" in page


@pytest.mark.parametrize("model", ["transformer", "Own"])
@pytest.mark.parametrize("data", ["counting", "parity"])
def test_own_tokens_work_in_the_same_way(own, model, data):
    name = model if model == "transformer" else f"{own}:{model}"
    words = [f"--data.name={own}:{data}", f"--model.name={name}", "--training.steps=12",
             "--training.batch_size=10", "--probe.size=10", "--kernel.when=0, every 4",
             "--optimizer.momentum=0", "--training.evaluate=end",
             "--snapshots.keep=end"]  # fmt: skip
    assert main(["run", "digits", *words, "--out", "one"]) == 0
    assert len(load_run("one").series) == 4


def test_labels_of_every_position_need_logits_of_every_position(own):
    words = [f"--data.name={own}:counting", f"--model.name={own}:Pooled",
             "--probe.size=10", "--training.batch_size=10"]  # fmt: skip
    with pytest.raises(ModelError, match=r"gives \[2, 5\].* it has to give the logits \[2, 6, 5\]"):
        Experiment(load_recipe("digits", words)).begin()
    with pytest.raises(RecipeError, match=r"did you mean model\.units\?"):
        load_recipe("bytes-lm", ["--model.unit=3"])


def test_a_learning_rate_that_falls_gradually_has_no_drop(tiny, tmp_path):
    words = tiny("bytes-lm", "--training.evaluate=0, every 5")
    run_experiment(load_recipe("bytes-lm", words), tmp_path / "one", command="test")
    analysis = analyse(load_run(tmp_path / "one"))
    (stretch,) = analysis.stretches
    assert (stretch.first, stretch.last, stretch.kernels) == (0, 30, 11)


def test_the_curvature_counts_the_bytes_that_the_probe_lacks(tiny, tmp_path):
    run_experiment(load_recipe("bytes-lm", tiny("bytes-lm")), tmp_path / "one", command="test")
    analysis = analyse(load_run(tmp_path / "one"))
    assert max(analysis.labels) < 200
    found, limit = curvature(analysis)
    assert found == pytest.approx(analysis.spectra.eigenvalues[:, 0] / (12 * 256))
    assert not (limit > 0).any()
    (tmp_path / "a text.txt").unlink()
    _load.cache_clear()
    assert curvature(analysis) is None
