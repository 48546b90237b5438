import re
import shutil
import sys

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import conescope as cs
import reference
from conescope.cli import main
from conescope.errors import (
    CheckpointError,
    DamageWarning,
    DataError,
    KernelError,
    ModelError,
    SameWeightsWarning,
    StoreError,
)
from conescope.experiments.branches import branch_recipe
from conescope.experiments.experiment import Experiment
from conescope.experiments.remeasure import Snapshots
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import read_status
from conescope.measuring.adapt import adapt
from conescope.measuring.checkpoints.measurement import measure
from conescope.measuring.checkpoints.subject import Checkpoints
from conescope.measuring.choice import Choice
from conescope.measuring.undisturbed import recalibrated
from conescope.runs.journal import Kind
from conescope.runs.snapshots import find_snapshot, read_snapshot
from conescope.runs.store import Folder
from conescope.runs.user_code import import_model
from conescope.training.recipe_reading import load_recipe

STEPS = (0, 9, 10, 200)
OVERRIDES = [
    "--model.name=cnn", "--model.width=0.1", "--training.steps=20", "--probe.size=12",
    "--training.batch_size=16", "--training.evaluate=end", "--kernel.when=0, every 10",
    "--snapshots.keep=0, every 10", "--snapshots.resume=never", "--threads=1",
]  # fmt: skip
MODEL = """
import torch
from torch import nn


def build():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 30)

    def forward(self, input_ids, attention_mask):
        return {"logits": self.head(torch.cumsum(self.embed(input_ids), 1))}


number = 3
"""


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


@pytest.fixture
def probe():
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with checkpoints, a module that builds their model, and nothing else."""
    for step in STEPS:
        path = tmp_path / f"ckpts/step{step}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(build(seed=step).state_dict(), path)
    (tmp_path / "user_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("user_model", None)


def expected(probe, steps=STEPS, **choice):
    return cs.KernelSeries(steps, [cs.entk(build(seed=s), probe, **choice) for s in steps])


@pytest.mark.parametrize("choice", [{}, {"outputs": "full"}, {"outputs": 1}, {"by_layer": True}])
def test_each_checkpoint_is_measured_as_if_it_were_alone(folder, probe, choice):
    run = cs.measure_checkpoints(build, "ckpts/*.safetensors", probe, out="run", **choice)
    truth = expected(probe, **choice)
    assert run.series.steps == STEPS
    for found, kernel in zip(run.series.kernels, truth.kernels, strict=True):
        assert torch.equal(found.values, kernel.values)
        assert found.by_layer.keys() == kernel.by_layer.keys()
    assert np.array_equal(run.series.cosines(), truth.cosines())
    assert run.finished
    assert run.name == "run"
    assert run.description == "checkpoints of build in ckpts"


def test_a_model_is_copied_and_a_builder_called(folder, probe):
    model = build(seed=77).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    run = cs.measure_checkpoints(model, "ckpts", probe, out="run")
    assert np.array_equal(run.series.cosines(), expected(probe).cosines())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.training


def test_what_is_stored_is_not_measured_again(folder, probe, monkeypatch):
    files = sorted(folder.glob("ckpts/*"), key=lambda file: int(file.stem[4:]))
    cs.measure_checkpoints(build, files[:2], probe, out="run")
    measured = []
    kernel_of = Choice.of
    monkeypatch.setattr(Choice, "of", lambda self, *of: measured.append(of) or kernel_of(self, *of))
    run = cs.measure_checkpoints(build, files, probe, out="run")
    assert len(measured) == 2
    assert np.array_equal(run.series.cosines(), expected(probe).cosines())
    (folder / "run/kernels/00000009.safetensors").write_bytes(b"damaged")
    with pytest.warns(DamageWarning, match="is missing or damaged"):
        run = cs.measure_checkpoints(build, files, probe, out="run")
    assert len(measured) == 3
    assert np.array_equal(run.series.cosines(), expected(probe).cosines())


def test_it_stops_between_two_checkpoints_and_goes_on(folder, probe):
    class Stop:
        done = 0

        def begin(self, name, step, total):
            assert (name, step, total) == ("run", 0, len(STEPS))

        def advance(self, step):
            self.done = step

    stop = Stop()
    subject = Checkpoints(build(), "build", probe, "ckpts")
    keywords = {"command": "mine", "progress": stop, "should_stop": lambda: stop.done == 2}
    assert not measure(subject, Choice(), folder / "run", **keywords)
    assert read_status("run").kernels == 2
    assert not read_status("run").finished
    assert measure(subject, Choice(), folder / "run", command="mine")
    assert read_status("run").finished
    assert cs.load_run("run").command == "mine"


def test_equal_weights_are_called_out_by_name(folder, probe):
    shutil.copy("ckpts/step9.safetensors", "ckpts/step11.safetensors")
    torch.save(build(seed=0).state_dict(), "ckpts/step300.pt")
    with pytest.warns(SameWeightsWarning) as caught:
        run = cs.measure_checkpoints(build, "ckpts", probe, out="run")
    told = [str(warning.message) for warning in caught]
    assert len(told) == 2
    assert told[0].startswith("ckpts/step9.safetensors and ckpts/step11.safetensors hold the same")
    assert told[1].startswith("ckpts/step0.safetensors and ckpts/step300.pt hold the same weights")
    assert run.series.distances_from(9)[run.series.index(11)] == 0


def test_a_checkpoint_that_changed_is_refused(folder, probe):
    cs.measure_checkpoints(build, "ckpts", probe, out="run")
    save_file(build(seed=5).state_dict(), "ckpts/step9.safetensors")
    with pytest.raises(CheckpointError, match=r"step9.safetensors has changed since its kernel"):
        cs.measure_checkpoints(build, "ckpts", probe, out="run")


def test_kernels_of_different_kinds_do_not_mix(folder, probe):
    cs.measure_checkpoints(build, "ckpts", probe, out="run")
    for changes in ({"outputs": 0}, {"params": "0"}, {"by_layer": True}, {"draws": 3}):
        with pytest.raises(StoreError, match="holds kernels of something else"):
            cs.measure_checkpoints(build, "ckpts", probe, out="run", **changes)
    with pytest.raises(StoreError, match="holds kernels of something else: probe was"):
        cs.measure_checkpoints(build, "ckpts", probe + 1, out="run")


def test_a_bad_checkpoint_is_found_before_anything_is_measured(folder, probe):
    save_file({"0.weight": torch.ones(2)}, "ckpts/step300.safetensors")
    with pytest.raises(CheckpointError, match=r"step300.safetensors does not fit the model"):
        cs.measure_checkpoints(build, "ckpts", probe, out="run")
    assert not (folder / "run").exists()


def test_not_finite_weights_stop_the_series_where_they_are(folder, probe):
    state = build().state_dict()
    state["0.bias"] = torch.full((5,), torch.inf)
    save_file(state, "ckpts/step11.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)step11.safetensors holds NaN.*0\.bias"):
        cs.measure_checkpoints(build, "ckpts", probe, out="run")
    assert read_status("run").kernels == 3


def test_a_kernel_that_overflows_names_the_checkpoint(folder, probe):
    state = build().state_dict()
    state["2.weight"] = state["2.weight"] * 1e30
    state["0.weight"] = (
        state["0.weight"] * 1.5
    )  # by step 0 but for one layer, it would be warned of
    save_file(state, "ckpts/step11.safetensors")
    with pytest.raises((KernelError, ModelError), match=r"^ckpts/step11.safetensors: "):
        cs.measure_checkpoints(build, "ckpts", probe, out="run")


def test_estimates_have_a_standard_error(folder, probe):
    run = cs.measure_checkpoints(build, "ckpts", probe, out="run", draws=3)
    assert run.estimates.keys() == set(STEPS)
    truth = cs.estimate_entk(build(seed=9), probe, draws=3)
    assert torch.equal(run.estimates[9].draws, truth.draws)
    with pytest.raises(KernelError, match="leave out draws"):
        cs.measure_checkpoints(build, "ckpts", probe, out="other", draws=3, outputs="full")
    with pytest.raises(KernelError, match="leave out draws"):
        cs.measure_checkpoints(build, "ckpts", probe, out="other", draws=3, by_layer=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that kept three snapshots."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    run_experiment(load_recipe("digits", OVERRIDES), path, command="conescope run digits")
    return path


def test_snapshots_of_a_run_give_its_own_kernels_again(trained, tmp_path):
    run = cs.measure_snapshots(trained, out=tmp_path / "again", by_layer=True)
    before = cs.load_run(trained)
    assert run.series.steps == before.series.steps == (0, 10, 20)
    for found, kernel in zip(run.series.kernels, before.series.kernels, strict=True):
        torch.testing.assert_close(found.values, kernel.values, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(sum(found.by_layer.values()), found.values)
    assert run.source["run"] == before.name
    assert torch.equal(run.labels, before.labels)
    with pytest.raises(StoreError, match="outputs was"):
        cs.measure_snapshots(trained, out=tmp_path / "again", by_layer=True, outputs="sum")


def test_a_schedule_chooses_among_snapshots(trained, tmp_path):
    run = cs.measure_snapshots(trained, out=tmp_path / "again", when="0, every 20")
    assert run.series.steps == (0, 20)
    assert cs.measure_snapshots(trained, out=tmp_path / "again").series.steps == (0, 10, 20)
    with pytest.raises(CheckpointError, match="kept no snapshot at '5'; it has those of 0, 10"):
        cs.measure_snapshots(trained, out=tmp_path / "other", when="5")


def test_batchnorm_of_snapshots_is_that_asked_for(tmp_path, monkeypatch):
    def with_batchnorm(_recipe, shape, classes, vocabulary):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, classes)
        )

    monkeypatch.setattr("conescope.experiments.experiment.build_model", with_batchnorm)
    run_experiment(load_recipe("digits", OVERRIDES), tmp_path / "run", command="")
    subject, experiment = Snapshots(tmp_path / "run"), Experiment(load_recipe("digits", OVERRIDES))
    own = cs.measure_snapshots(tmp_path / "run", out=tmp_path / "own").series
    anew = cs.measure_snapshots(tmp_path / "run", out=tmp_path / "anew", batchnorm="recalibrated")
    for step, kernel in zip(own.steps, own.kernels, strict=True):
        same = cs.load_run(tmp_path / "run").series.kernels[own.index(step)]
        torch.testing.assert_close(kernel.values, same.values, rtol=1e-5, atol=1e-4)
        subject.load(step)
        with subject.computing():  # on the recipe's threads
            truth = cs.entk(recalibrated(subject.model, experiment.calibration), experiment.probe)
        assert torch.equal(anew.series.kernels[own.index(step)].values, truth.values)
        assert cs.kernel_distance(kernel, truth) > 1e-4


def test_a_runs_damaged_snapshot_is_named(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "snapshots/00000010.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match=r"00000010.safetensors is damaged"):
        cs.measure_snapshots(run, out=tmp_path / "again")
    with pytest.raises(StoreError, match="holds no run"):
        cs.measure_snapshots(tmp_path / "nowhere", out=tmp_path / "again")


def test_a_run_without_snapshots_or_recipe_is_refused(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    folder = Folder(tmp_path / "run")
    for entry in folder.files(Kind.SNAPSHOT):
        folder.remove(entry)
    with pytest.raises(CheckpointError, match=r"holds no snapshot to measure; set snapshots.keep"):
        cs.measure_snapshots(tmp_path / "run", out=tmp_path / "again")
    cs.measure_snapshots(trained, out=tmp_path / "again")
    with pytest.raises(StoreError, match="a training that is not conescope's own"):
        cs.measure_snapshots(tmp_path / "again", out=tmp_path / "third")


def test_snapshots_of_linearised_training_are_measured(trained, tmp_path):
    branch = branch_recipe(trained, 10, ["--dynamics.kind=linearised"])
    run_experiment(branch, tmp_path / "branch", command="")
    run = cs.measure_snapshots(tmp_path / "branch", out=tmp_path / "again", outputs="sum")
    assert run.series.steps == (10, 20)
    assert run.series.distances_from(10).max() < 1e-10  # a linear model's kernel stays


@pytest.fixture
def run_in(folder, capsys, monkeypatch):
    """Call the command line in the folder, without drawing; gives status, output and error."""
    monkeypatch.setattr("conescope.cli.stored.draw_figures", lambda run, path: [])

    def call(*words):
        status = main(["measure", *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_the_command_measures_checkpoints(folder, probe, capsys):
    pyarrow.parquet.write_table(pyarrow.table({"x": probe.tolist()}), "probe.parquet")
    words = ["ckpts/*.safetensors", "--model", "user_model:build", "--probe", "probe.parquet"]
    assert main(["measure", *words, "--out", "runs/x"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"S\(200, 0\) +[0-9.]+", out)
    assert (folder / "runs/x/figures/overview.pdf").exists()
    run = cs.load_run("runs/x")
    assert np.array_equal(run.series.cosines(), expected(probe).cosines())
    assert run.description == "checkpoints of user_model:build in ckpts"
    assert run.labels is None
    page = (folder / "runs/x/report.html").read_text()
    assert "conescope measure &#x27;ckpts/*.safetensors&#x27; --model user_model:build" in page


def test_a_column_of_the_probe_holds_the_labels(run_in, folder, probe):
    classes = torch.arange(6) % 2
    columns = {"x": probe.tolist(), "y": classes.tolist(), "share": [0.5] * 6}
    pyarrow.parquet.write_table(pyarrow.table(columns), "p.parquet")
    words = ["ckpts", "--model", "user_model:build", "--probe", "p.parquet", "--out", "x"]
    assert run_in(*words, "--inputs", "x")[0] == 0
    assert run_in(*words, "--inputs", "x", "--labels", "y")[0] == 0  # nothing is measured again
    assert torch.equal(cs.load_run("x").labels, classes)
    assert np.array_equal(cs.load_run("x").series.cosines(), expected(probe).cosines())
    for column, message in (
        ("z", "p.parquet has no z; it has x, y, share"),
        ("share", "the labels are float64"),
        ("x", "the labels are float64"),
    ):
        status, _, err = run_in(*words, "--inputs", "x", "--labels", column)
        assert status == 1
        assert message in err
        assert len(err.strip().splitlines()) == 1
    with pytest.raises(DataError, match=r"6 samples need 6 labels, \[6\], and these are \[5\]"):
        cs.measure_checkpoints(build, "ckpts", probe, out="other", labels=classes[:5])


def test_the_shells_own_order_of_files_does_not_matter(run_in, folder, probe):
    np.save("p.npy", probe.double().numpy())
    files = [f"ckpts/step{step}.safetensors" for step in ("10", "0", "200", "9")]
    assert run_in(*files, *GOOD[1:])[0] == 0
    assert np.array_equal(cs.load_run("x").series.cosines(), expected(probe).cosines())


def test_a_language_models_checkpoints_with_all_options(run_in, folder):
    tagger = "user_model:Tagger"
    ids = torch.randint(0, 7, (5, 4), generator=torch.Generator().manual_seed(0))
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    columns = {name: t.tolist() for name, t in {**tokens, "labels": ids}.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), "tokens.parquet")
    models = {}
    for step in (500, 1000):
        torch.manual_seed(step)
        models[step] = import_model(tagger)
        (folder / f"out/checkpoint-{step}").mkdir(parents=True)
        state = {f"module.{name}": t for name, t in models[step].state_dict().items()}
        save_file(state, folder / f"out/checkpoint-{step}/model.safetensors")
    words = ["out", "--model", tagger, "--probe", "tokens.parquet", "--out", "x"]
    words += ["--inputs", "input_ids,attention_mask", "--select", "logits", "--pool", "last"]
    status, out, err = run_in(*words, "--params", "head", "--draws", "3", "--memory", "1GB")
    assert (status, err) == (0, "")
    assert re.search(r"S\(1,000, 500\) +[0-9.e-]+ ± [0-9.e-]+", out)
    for step, model in models.items():
        adapted = adapt(model, tokens, select="logits", pool="last", params="head")
        assert torch.equal(cs.load_run("x").estimates[step].draws, adapted.estimate(3).draws)


def test_the_command_measures_a_run_again(run_in, trained, folder):
    shutil.copytree(trained, folder / "trained")
    words = ["trained", "--by-layer", "--batchnorm", "recalibrated", "--out", "again"]
    status, out, err = run_in(*words)
    assert (status, err) == (0, "")
    assert "S(20, 0)" in out
    run = cs.load_run("again")
    assert run.source["batchnorm"] == "recalibrated"
    assert run.series.kernels[0].by_layer.keys() == {"conv1", "conv2", "fc1", "fc2"}


def test_preconditioned_kernels_of_snapshots_are_those_of_their_optimiser(run_in, folder):
    recipe = load_recipe(
        "digits",
        [*OVERRIDES, "--optimizer.name=adam", "--optimizer.lr=1e-3", "--optimizer.momentum=0"],
    )
    run_experiment(recipe, folder / "run", command="")
    status, _, err = run_in("run", "--preconditioned", "--by-layer", "--out", "conditioned")
    assert (status, err) == (0, "")
    run, plain = cs.load_run("conditioned"), cs.load_run("run")
    assert run.series.steps == (10, 20)  # at 0 there are no second moments
    assert run.source["preconditioned"] == "by Adam's second moments"
    assert run.source["description"].endswith("again, preconditioned by Adam's second moments")
    model, optimizer = Experiment(recipe).begin()
    for step, kernel in zip(run.series.steps, run.series.kernels, strict=True):
        kept = Folder(folder / "run")
        read_snapshot(kept, find_snapshot(kept, step)).load_into(model, optimizer)
        rows = reference.jacobians(model.eval(), Experiment(recipe).probe)
        moments = {n: optimizer.state[p]["exp_avg_sq"] for n, p in model.named_parameters()}
        roots = {
            n: (1 / ((v / (1 - 0.999**step)).sqrt() + 1e-8)).flatten().double().sqrt()
            for n, v in moments.items()
        }
        rows = {n: r * roots[n] for n, r in rows.items()}
        expected = reference.total(reference.products(rows, rows, "trace"))
        torch.testing.assert_close(kernel.values.double(), expected, rtol=1e-4, atol=1e-3)
        assert cs.kernel_distance(kernel, plain.series.kernels[plain.series.index(step)]) > 1e-4
    assert main(["verify", "conditioned", "--share=1", "--trust-code"]) == 0
    with pytest.raises(StoreError, match="preconditioned was"):
        cs.measure_snapshots("run", out="conditioned", by_layer=True)
    with pytest.raises(KernelError, match=r"00000000.safetensors: Adam has no second moments yet"):
        cs.measure_snapshots("run", out="other", when="0, end", preconditioned=True)
    with pytest.raises(KernelError, match="a projection is one of plain gradients; leave it out"):
        cs.measure_snapshots("run", out="other", projection=64, preconditioned=True)
    drawn = cs.measure_snapshots("run", out="drawn", draws=3, preconditioned=True)
    assert drawn.series.steps == (10, 20)


def test_an_optimiser_that_preconditions_nothing_is_refused(run_in, trained, folder):
    shutil.copytree(trained, folder / "trained")
    status, out, err = run_in("trained", "--preconditioned", "--out", "again")
    assert (status, out) == (1, "")
    assert "its kernel is the plain one; measure that, without preconditioned" in err
    status, _, err = run_in(*GOOD, "--preconditioned")
    assert status == 2
    assert "takes no --preconditioned: an optimiser's state is in the snapshots of a run" in err
    assert not (folder / "again").exists()


GOOD = ["ckpts", "--model", "user_model:build", "--probe", "p.npy", "--out", "x"]


def changed(**changes):
    words = list(GOOD)
    for name, value in changes.items():
        words[words.index(f"--{name}") + 1] = value
    return words


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["ckpts", "--out", "x"], 2, "checkpoints need --model"),
        (["ckpts", "--out", "x", "--model", "user_model:build"], 2, "checkpoints need --probe"),
        (["nothing", *GOOD[1:]], 1, "nothing holds no checkpoint"),
        ([*GOOD, "--batchnorm", "running"], 2, "ckpts is checkpoints, which takes no --batchnorm"),
        ([*GOOD, "--device", "nonsense"], 2, "device 'nonsense' cannot be used here"),
        ([*GOOD, "--step-pattern", "x"], 1, "has 0 groups"),
        ([*GOOD, "--params", "hed"], 1, "`params` names 'hed'"),
        ([*GOOD, "--outputs", "9"], 1, "output 9 is out of range"),
        ([*GOOD, "--memory", "much"], 1, 'memory is an amount such as "2GB"'),
        ([*GOOD, "--select", "logits"], 1, "the model returns a Tensor, without 'logits'"),
        ([*GOOD, "--draws", "1"], 1, "at least 2 draws"),
        (changed(model="user_model"), 1, "not of the form package.module:callable"),
        (changed(model="user_model:"), 1, "not of the form package.module:callable"),
        (changed(model="..user_model:build"), 1, "not of the form package.module:callable"),
        (changed(model="user_mode:build"), 1, "there is no module 'user_mode'"),
        (changed(model="user_model.x:build"), 1, "there is no module 'user_model.x'"),
        (changed(model="user_model:bild"), 1, "has no 'bild'; did you mean 'build'?"),
        (changed(model="user_model:number"), 1, "gives a int, not a torch.nn.Module"),
        (changed(probe="none.npy"), 1, "the probe none.npy does not exist"),
        (changed(probe="user_model.py"), 1, "user_model.py is of no known kind"),
        (changed(probe="wide.npy"), 1, "the model rejects the probe, [6, 4] float32"),
        (changed(probe="nan.npy"), 1, "the probe holds NaN"),
    ],
)
def test_a_users_mistake_is_told(run_in, folder, probe, words, status, message):
    np.save("p.npy", probe.numpy())
    np.save("wide.npy", torch.ones(6, 4).numpy())
    np.save("nan.npy", torch.full((6, 3), torch.nan).numpy())
    found, out, err = run_in(*words)
    assert (found, out) == (status, "")
    assert message in err
    assert err.startswith("conescope: error: ")
    assert not (folder / "x/journal.jsonl").exists()


def test_errors_of_the_users_own_code_come_through(run_in, folder, probe):
    np.save("p.npy", probe.numpy())
    (folder / "user_model.py").write_text("import a_module_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        run_in(*GOOD)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "raise ValueError('no\\nsuch size')",
            r"raises ValueError: no \(.*user_model.py, line 5\)",
        ),
        ("return 1 / 0", "raises ZeroDivisionError: division by zero"),
        ("raise KeyError", "raises KeyError: no message"),
        ("raise SystemExit(2)", "raises SystemExit: 2"),
        ("return torch.load('none.pt')", "raises FileNotFoundError"),
    ],
)
def test_a_build_function_that_raises_is_one_line(run_in, folder, probe, body, message):
    np.save("p.npy", probe.numpy())
    (folder / "user_model.py").write_text(f"import torch\n\n\ndef build():\n    {body}\n")
    status, out, err = run_in(*GOOD)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert re.search(f"user_model:build, which builds the model, {message}", err)


def test_a_first_checkpoint_that_fails_leaves_no_folder(run_in, folder, probe):
    np.save("p.npy", probe.numpy())
    first = min((folder / "ckpts").iterdir())
    save_file({name: v * torch.nan for name, v in load_file(first).items()}, first)
    status, _, err = run_in(*GOOD)
    assert status == 1
    assert "NaN or infinite weights" in err
    assert not (folder / "x").exists()


def test_a_run_takes_no_model(run_in, trained):
    for option in (["--model", "a:b"], ["--probe", "p"], ["--step-pattern", "x"]):
        status, _, err = run_in(str(trained), "--out", "x", *option)
        assert status == 2
        assert f"is a run, which takes no {option[0]}" in err


def test_hostile_names_are_escaped_in_the_report(run_in, folder, probe):
    hostile = "<script>alert(1)</script>&"
    np.save("p.npy", probe.numpy())
    path = folder / "a<b>"
    (folder / "ckpts").rename(path)
    out = f"runs/{hostile.replace('/', '_')}"
    assert run_in("a<b>", *changed(out=out)[1:])[0] == 0
    page = (folder / out / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;_script&gt;&amp;" in page
    assert cs.load_run(out).name == hostile.replace("/", "_")
