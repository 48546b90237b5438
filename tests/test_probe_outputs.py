"""The network's outputs on the probe, stored with each kernel, and what damages of them do."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import residual as residual_benchmark
from benchmarks.torture.forging import lines_of, write_file, write_lines
from safetensors.torch import load_file, save
from torch import nn

import conescope as cs
from conescope.cli import main
from conescope.engine.tracing import untouched
from conescope.engine.tracing.untouched import outputs_of
from conescope.errors import SkippedWarning, StoreError
from conescope.experiments.experiment import Experiment
from conescope.experiments.remeasure import measure_snapshots
from conescope.experiments.session import run_experiment
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.label_alignment import SECTION
from conescope.runs.foreign import fits
from conescope.runs.journal import Kind
from conescope.runs.snapshots import read_snapshot
from conescope.runs.store import Folder
from conescope.statistics.residual import residuals, spectral_position
from conescope.training.losses import LOSSES
from conescope.training.recipe_reading import load_recipe
from written_lines import MEASURED

GOLDEN = Path(__file__).parent / "golden"
TINY = [
    "--model.name=mlp", "--model.width=0.2", "--training.steps=20", "--training.batch_size=16",
    "--training.evaluate=0, every 10", "--probe.size=20", "--kernel.when=0, every 10",
    "--snapshots.keep=0, every 10", "--threads=1", "--training.average=0.5",
]  # fmt: skip


def trained(path, *more, recipe="digits"):
    run_experiment(load_recipe(recipe, [*TINY, *more]), path, command="test")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("outputs") / "run")


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


def network(path, step):
    """An experiment, and its network as a run's snapshot has it, with the averaged one."""
    experiment = Experiment(cs.load_run(path).recipe)
    model, optimizer = experiment.begin()
    average = experiment.average(model)
    folder = Folder(path)
    entry = next(e for e in folder.files(Kind.SNAPSHOT) if e.values["step"] == step)
    read_snapshot(folder, entry).load_into(model, optimizer, average)
    return experiment, model.eval(), average and average.module.eval()


def test_a_run_stores_what_its_network_gives_on_the_probe(made):
    run = cs.load_run(made)
    assert [*run.outputs] == [*run.averaged_outputs] == [*run.series.steps] == [0, 10, 20]
    for step in (0, 10, 20):
        experiment, model, average = network(made, step)
        with torch.no_grad():
            for net, held in ((model, run.outputs), (average, run.averaged_outputs)):
                torch.testing.assert_close(held[step], net(experiment.probe), rtol=1e-5, atol=1e-6)
        assert held[step].shape == (20, 10)
        assert held[step].dtype == torch.float32
    assert not torch.equal(run.outputs[20], run.averaged_outputs[20])


def test_the_last_positions_logits_are_those_of_a_network_of_tokens(tmp_path):
    words = ["--model.units=16", "--model.layers=1", "--model.name=transformer",
             "--probe.stratified=false", "--lr_schedule.warmup=0"]  # fmt: skip
    words = [w for w in TINY if "model" not in w] + words
    run_experiment(load_recipe("bytes-lm", words), tmp_path / "run", command="test")
    run = cs.load_run(tmp_path / "run")
    experiment, model, _ = network(tmp_path / "run", 20)
    with torch.no_grad():
        expected = model(experiment.probe)[:, -1]
    torch.testing.assert_close(run.outputs[20], expected, rtol=1e-5, atol=1e-5)


def own_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))


def watched(path, **options):
    model, probe = own_network(), torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    with cs.Watch(model, probe, when="0, every 1", out=path, **options) as watch:
        watch.step(0)
        model.train()
        with torch.no_grad():
            model[0].weight.mul_(0.5)
        watch.step(1)
        assert model.training
    model.eval()
    return watch.run, model(probe).detach()


def test_a_watch_stores_outputs_in_evaluation_mode(tmp_path):
    run, expected = watched(tmp_path / "run", labels=[0, 1, 2, 0, 1, 2, 0])
    torch.testing.assert_close(run.outputs[1], expected)
    assert not torch.equal(run.outputs[0], run.outputs[1])
    plots = SECTION.content(RunAnalysis(run, run.labels)).plots
    caption = plots["cone-spectral-position"].caption
    assert "that of cross-entropy, as the loss of this training is not recorded" in caption


def test_labels_that_are_no_classes_of_the_outputs_tell_no_residual(tmp_path):
    run, _ = watched(tmp_path / "run", labels=[0, 1, 1, 0, 1, 0, 0])
    content = SECTION.content(RunAnalysis(run, run.labels))
    assert "there are 3 outputs, and the probe's labels go from 0 to 1" in content.missing[0]
    assert not any("residual" in name for name in content.numbers)


def test_checkpoints_and_snapshots_are_measured_with_outputs(made, tmp_path):
    again = measure_snapshots(made, out=tmp_path / "again", draws=2)
    first = cs.load_run(made)
    for step in (0, 10, 20):
        torch.testing.assert_close(again.outputs[step], first.outputs[step])
    model, x = own_network(), torch.randn(7, 5)
    torch.save(model.state_dict(), tmp_path / "step_3.pt")
    found = cs.measure_checkpoints(
        own_network, tmp_path / "step_3.pt", x, out=tmp_path / "measured", projection=16
    )
    torch.testing.assert_close(found.outputs[3], model.eval()(x).detach())


def test_outputs_are_computed_a_few_at_a_time_and_leave_the_model_alone():
    seen = []

    class Noted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(2, 3), 0

        def forward(self, x):
            seen.append(len(x))
            self.calls += 1
            return self.linear(x.float())

    model = Noted().eval()
    for x in (torch.randn(50, 2), torch.randint(0, 5, (5, 2)), torch.randn(1, 2)):
        seen.clear()
        found = outputs_of(model, x)
        torch.testing.assert_close(found, model.linear(x.float()).detach())
        assert sum(seen) == len(x)
        assert max(seen) < 32
        assert len(x) == 1 or min(seen) > 1
        assert not found.requires_grad
    assert model.calls == 0


def test_outputs_that_are_too_large_or_not_finite_are_none(monkeypatch):
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    monkeypatch.setattr(untouched, "MOST_OUTPUT_BYTES", 6 * 3 * 4)
    assert outputs_of(model, x) is not None
    monkeypatch.setattr(untouched, "MOST_OUTPUT_BYTES", 6 * 3 * 4 - 1)
    with pytest.warns(SkippedWarning, match=r"on 6 samples take 0.0 MB, and at most 0.0 MB"):
        assert outputs_of(model, x) is None
    with torch.no_grad():
        model.bias[1] = torch.inf
    monkeypatch.undo()
    assert outputs_of(model, x) is None


def test_a_size_is_told_once_and_the_kernels_are_stored_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(untouched, "MOST_OUTPUT_BYTES", 799)
    out = tmp_path / "run"
    words = [w for w in TINY if "average" not in w]
    assert main(["run", "digits", *words, "--out", str(out)]) == 0
    assert capsys.readouterr().err.count("the outputs on 20 samples take") == 1
    run = cs.load_run(out)
    assert run.outputs == {}
    assert len(run.series) == 3
    content = SECTION.content(RunAnalysis(run, run.labels))
    assert content.numbers
    assert not any("residual" in name for name in content.numbers)


def test_old_runs_are_read_without_outputs_and_their_reports_stay_what_they_were():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("run", "watch"):
            run = cs.load_run(GOLDEN / name)
            assert run.outputs == run.averaged_outputs == {}
            labels = torch.arange(len(run.series.kernels[0].values)) % 3
            content = SECTION.content(RunAnalysis(run, labels))
            assert content.numbers
            assert "residual" not in repr((content, SECTION))


def forged(path, change, shape=None):
    """Change the tensors of the kernel of iteration 10, with all checksums right."""
    lines = lines_of(path)
    place = next(i for i, line in enumerate(lines) if line["kind"] == "kernel" and line["step"])
    tensors = load_file(path / lines[place]["file"])
    change(tensors)
    if shape is not None:
        lines[place]["probe_outputs"] = shape
    write_file(path, lines, place, save(tensors))
    return lines[place]["file"]


def removed(tensors):
    del tensors["probe_outputs"]


def changed_by(change):
    def put(tensors):
        tensors["probe_outputs"] = change(tensors["probe_outputs"]).contiguous()

    return put


def with_nan(outputs):
    outputs[3, 4] = torch.nan
    return outputs


@pytest.mark.parametrize(
    ("change", "shape", "said"),
    [
        (removed, None, r"no outputs on the probe .*, and its line says .* \[20, 10\]"),
        (
            changed_by(lambda f: f[:, :4]),
            None,
            r"\[20, 4\] for 20 .* line says .* \[20, 10\]",
        ),
        (changed_by(lambda f: f[:4]), [4, 10], r"\[4, 10\] for 20 samples"),
        (changed_by(lambda f: f[0]), None, r"\[10\] for 20 samples, and its line says"),
        (changed_by(with_nan), None, "no finite numbers"),
        (changed_by(lambda f: f.long()), None, "no finite numbers"),
        (changed_by(lambda f: f + 1j), None, "no finite numbers"),
    ],
)
def test_damaged_outputs_are_named_by_their_file(run, change, shape, said):
    file = forged(run, change, shape)
    with pytest.raises(StoreError, match=rf"{file} holds .*{said}") as raised:
        cs.load_run(run)
    assert str(raised.value).endswith("to make it anew")


def test_a_line_without_outputs_does_not_fit_a_file_with_them(run):
    lines = lines_of(run)
    for line in lines:
        line.pop("probe_outputs", None)
    write_lines(run, lines)
    with pytest.raises(StoreError, match=r"probe \[20, 10\] .*, and its line says no outputs"):
        cs.load_run(run)


def test_a_truncated_file_is_named(run):
    file = run / "kernels/00000010.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"00000010\.safetensors is damaged: its checksum"):
        cs.load_run(run)


@pytest.mark.parametrize("shape", [[20], [20, 0], [20, -1], [20, 10, 1], "20", [20.0, 10], None])
def test_a_line_with_another_kind_of_shape_is_damaged(shape):
    values = {"file": "kernels/1.safetensors", "sha256": "0", "step": 1, **MEASURED}
    assert fits(Kind.KERNEL, {**values, "probe_outputs": [20, 10]})
    assert not fits(Kind.KERNEL, {**values, "probe_outputs": shape})


def kernel_checks(path, share=1.0):
    checks = cs.verify(path, share=share).checks
    return {c.subject: c for c in checks if c.group == "kernels"}


def test_verify_computes_the_outputs_again(run):
    assert cs.verify(run, share=1.0).held

    def nudged(outputs):
        outputs[3, 4] += 0.01
        return outputs

    forged(run, changed_by(nudged))
    found = kernel_checks(run)["kernel at iteration 10"]
    assert found.verdict == "different"
    assert found.detail.startswith("probe_outputs[3, 4] is ")
    assert "1 of 200 entries differ" in found.detail


def test_a_run_of_an_earlier_version_without_outputs_is_verified(run):
    for place in range(len(lines_of(run))):
        lines = lines_of(run)
        if lines[place].pop("probe_outputs", None) is not None:
            tensors = load_file(run / lines[place]["file"])
            removed(tensors)
            write_file(run, lines, place, save(tensors))
    assert cs.load_run(run).outputs == {}
    found = kernel_checks(run)
    assert {check.verdict for check in found.values()} == {"bit-equal"}


def test_archives_keep_the_outputs(made, tmp_path):
    archive = tmp_path / "run.zip"
    assert main(["export", str(made), "--out", str(archive)]) == 0
    assert main(["import", str(archive), "--out", str(tmp_path / "copy")]) == 0
    one, other = cs.load_run(made), cs.load_run(tmp_path / "copy")
    assert all(torch.equal(one.outputs[step], other.outputs[step]) for step in (0, 10, 20))
    assert cs.verify(archive).held


def test_snapshots_that_are_measured_again_keep_the_loss_of_their_recipe(tmp_path):
    run = trained(tmp_path / "run", "--training.loss=squared")
    measure_snapshots(run, out=tmp_path / "again")
    first, again = cs.load_run(run), cs.load_run(tmp_path / "again")
    name = "squared residual of a sample"
    told = [SECTION.content(RunAnalysis(r, first.labels)) for r in (first, again)]
    assert told[0].numbers[name] == told[1].numbers[name]
    caption = told[1].plots["cone-spectral-position"].caption
    assert "that of half the squared error" in caption
    assert "not recorded" not in caption


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_the_report_shows_the_residual_of_the_loss_that_was_trained(tmp_path, loss):
    run = cs.load_run(trained(tmp_path / "run", f"--training.loss={loss}"))
    content = SECTION.content(RunAnalysis(run, run.labels))
    steps = [*run.outputs]
    found = residuals(steps, run.series.kernels, [*run.outputs.values()], run.labels, loss)
    lines = {line.label: line for line in content.plots["cone-spectral-position"].lines}
    np.testing.assert_allclose(lines["residual"].y, spectral_position(found.residual))
    np.testing.assert_allclose(lines["labels"].y, spectral_position(found.labels))
    (line,) = (each for each in content.plots["cone-residual"].lines if "residual" in each.label)
    np.testing.assert_allclose(line.y, found.residual[:, :10].sum(axis=1))
    outputs = run.outputs[20].double().requires_grad_()
    (r,) = torch.autograd.grad(LOSSES[loss](outputs, run.labels, reduction="sum"), outputs)
    assert found.size[-1] == pytest.approx(float(r.square().sum()) / 20)
    assert content.missing == ()


def test_numbers_are_those_of_the_command_line(made, capsys):
    assert main(["cone", str(made), "--json"]) == 0
    texts = json.loads(capsys.readouterr().out)["runs"][0]["texts"]
    assert "spectral position of the residual" in json.dumps(texts)


def test_kernels_of_an_earlier_session_without_outputs_are_left_out(run):
    lines = lines_of(run)
    place = next(i for i, line in enumerate(lines) if line["kind"] == "kernel" and line["step"])
    lines[place].pop("probe_outputs")
    tensors = load_file(run / lines[place]["file"])
    removed(tensors)
    write_file(run, lines, place, save(tensors))
    found = cs.load_run(run)
    assert [*found.outputs] == [0, 20]
    content = SECTION.content(RunAnalysis(found, found.labels))
    assert content.plots["cone-spectral-position"].lines[0].x.tolist() == [0, 20]


def test_a_residual_that_cannot_be_told_hides_no_alignment(made):
    run = cs.load_run(made)
    run.outputs[20][:] = torch.nan
    content = SECTION.content(RunAnalysis(run, run.labels))
    assert content.missing[0].startswith("residual: at step 20, a kernel of 20 samples needs")
    assert "target alignment" in content.numbers


def test_the_benchmark_prints_what_is_left_along_the_first_kernels_eigenvectors(
    made, monkeypatch, capsys
):
    monkeypatch.setattr(residual_benchmark, "EARLY", 10)
    monkeypatch.setattr("sys.argv", ["residual", str(made), str(made)])
    residual_benchmark.main()
    run = cs.load_run(made)
    found = residual_benchmark.at(run, [0, 10])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 1 to 9 ")]
    left = 1 - found.lost[0, :9].sum() / found.residual[0, :9].sum()
    assert f"{left:.0%} ({left:.0%} to {left:.0%})" in rows[0]
