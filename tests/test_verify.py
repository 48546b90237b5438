"""What `conescope verify` says of runs that are whole, forged, changed, foreign or incomplete."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import conescope as cs
from conescope.cli import main
from conescope.cli.verify import NOT_RECOMPUTED
from conescope.errors import RecipeError, StoreError
from conescope.experiments.session import run_experiment
from conescope.experiments.verifying.differences import difference
from conescope.experiments.verifying.stretches import (
    LEAST_ITERATIONS,
    choose_kernels,
    choose_stretches,
)
from conescope.experiments.verifying.verdicts import Verdict
from conescope.report.figures import FIGURES
from conescope.report.save import save_plots
from conescope.runs.journal import Entry, Kind, checksum_of
from conescope.runs.store import Folder
from conescope.training.recipe_reading import load_recipe

TINY = [
    "--model.name=mlp", "--model.width=0.2", "--training.steps=40", "--training.batch_size=16",
    "--training.evaluate=0, every 20", "--probe.size=12", "--kernel.when=0, every 10",
    "--snapshots.keep=0, every 20", "--threads=1",
]  # fmt: skip


def train(folder, *more, recipe="digits", words=TINY):
    """A run without figures and report, which take most of the time."""
    path = folder / "run"
    assert run_experiment(load_recipe(recipe, [*words, *more]), path, command="test")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("verified") / "run"
    assert main(["run", "digits", *TINY, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(made, tmp_path):
    """A copy without figures and report."""
    return bare(shutil.copytree(made, tmp_path / "copy"))


def bare(path):
    shutil.rmtree(path / "figures")
    (path / "report.html").unlink()
    return Path(path)


def rewrite(path, change):
    """Change the journal's lines as somebody would who forges a run: the chain is right again."""
    file, lines, before = path / "journal.jsonl", [], None
    for line in file.read_bytes().splitlines():
        values = json.loads(line.partition(b" ")[2])
        change(values)
        if before is not None:
            values["after"] = before
        text = json.dumps(values)
        checksum = checksum_of(text.encode())
        lines.append(f"{checksum} {text}\n")
        before = f"{checksum} {Entry(Kind(values['kind']), values)}"
    file.write_text("".join(lines))


def forge(path, name, change):
    """Change the tensors of a file, and its checksum in the journal."""
    tensors = load_file(path / name)
    change(tensors)
    save_file(tensors, path / name)
    rehash(path, name)


def rehash(path, name):
    digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
    rewrite(path, lambda v: v.update(sha256=digest) if v.get("file") == name else None)


def elsewhere(values):
    if values["kind"] == "session":
        values["environment"]["device"] = "cpu (another)"


def as_before_capabilities_were_recorded(values):
    if values["kind"] == "session":
        del values["environment"]["cpu capability"]


def found(path, verdict, **options):
    checks = cs.verify(path, **{"share": 1.0, **options}).checks
    return {check.subject: check.detail for check in checks if check.verdict == verdict}


def different(path, **options):
    return found(path, Verdict.DIFFERENT, **options)


def test_a_run_that_nobody_touched_comes_out_as_the_same_bits(made, capsys):
    done = cs.verify(made, share=1.0)
    assert done.held
    assert {check.verdict for check in done.checks} == {Verdict.EQUAL}
    subjects = {check.subject for check in done.checks}
    assert {f"kernel at iteration {step}" for step in range(0, 41, 10)} <= subjects
    assert {f"loss and accuracy at iteration {step}" for step in (0, 20, 40)} <= subjects
    assert "training from iteration 0 to 20" in subjects
    assert "training from iteration 20 to 40" in subjects
    assert "state at iteration 0, from its seed or origin" in subjects
    assert "report.html, numbers and charts" in subjects
    assert main(["verify", str(made)]) == 0
    out = capsys.readouterr().out
    assert "comes out the same" in out
    assert "different" not in out


def test_verifying_changes_no_byte_of_the_folder(run):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    cs.verify(run, share=1.0)
    after = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.parametrize("step", [0, 10, 20, 40])
def test_a_kernel_with_a_forged_checksum_is_named_to_the_last_bit(run, step):
    def one_unit(tensors):
        values = tensors["values"]
        values[2, 3] = torch.nextafter(values[2, 3], torch.tensor(torch.inf))

    forge(run, f"kernels/{step:08d}.safetensors", one_unit)
    said = different(run)
    assert f"kernel at iteration {step}" in said
    assert "values[2, 3] is" in said[f"kernel at iteration {step}"]
    assert "1 of 144 entries differ" in said[f"kernel at iteration {step}"]
    assert set(said) == {f"kernel at iteration {step}"}


def test_a_kernel_file_of_other_tensors_is_named(run):
    def change(tensors):
        tensors["other"] = tensors.pop("values")

    forge(run, "kernels/00000020.safetensors", change)
    assert "other is only stored" in different(run)["kernel at iteration 20"]
    assert "derived numbers" in found(run, Verdict.UNVERIFIED)


def test_texts_of_a_foreign_run_do_not_reach_the_terminal_as_they_are(run, capsys):
    def change(values):
        if values["kind"] == "run":
            values["recipe"]["data"] = {"name": "own:\x1b[2Jload", "path": None}

    rewrite(run, change)
    main(["verify", str(run)])
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err


def test_forged_evaluations_are_named(run):
    def change(values):
        if values["kind"] == "evaluation" and values["step"] == 20:
            values["test_accuracy"] = 0.99

    rewrite(run, change)
    assert "test_accuracy is 0.99" in different(run)["loss and accuracy at iteration 20"]


def test_a_swapped_snapshot_is_named(run):
    name = "snapshots/00000020.safetensors"
    shutil.copy(run / "snapshots/00000040.safetensors", run / name)
    rehash(run, name)
    said = different(run)
    assert {"training from iteration 0 to 20", "training from iteration 20 to 40"} <= set(said)
    assert "kernel at iteration 20" in said


def test_momentum_counts_as_state(run):
    def change(tensors):
        tensors["optimizer.0.momentum_buffer"] += 1

    forge(run, "snapshots/00000020.safetensors", change)
    said = different(run)
    assert "optimizer.0.momentum_buffer" in said["training from iteration 0 to 20"]
    assert "kernel at iteration 20" not in said


@pytest.mark.parametrize(
    ("section", "field", "value", "subject"),
    [
        ("optimizer", "lr", 0.04, "training from iteration 0 to 20"),
        ("training", "batch_size", 17, "training from iteration 0 to 20"),
        (None, "seed", 1, "state at iteration 0, from its seed or origin"),
        ("model", "width", 0.3, "training from iteration 20 to 40"),
        ("optimizer", "momentum", 0.5, "training from iteration 0 to 20"),
        ("kernel", "outputs", "sum", "kernel at iteration 0"),
        ("probe", "size", 11, "kernel at iteration 0"),
        ("kernel", "when", "0, every 20", "kernels"),
        ("training", "evaluate", "0, every 10", "evaluations"),
    ],
)
def test_a_recipe_that_was_changed_is_found_out(run, section, field, value, subject):
    def change(values):
        if values["kind"] == "run":
            fields = values["recipe"]
            (fields if section is None else fields[section])[field] = value

    rewrite(run, change)
    said = different(run)
    assert subject in said
    name = field if section is None else f"{section}.{field}"
    assert said["recipe.yaml"].startswith(f"{name} is ")


def test_a_recipe_for_people_that_says_something_else_is_named(run):
    file = run / "recipe.yaml"
    file.write_text(file.read_text().replace("lr: 0.05", "lr: 0.5"))
    assert different(run) == {"recipe.yaml": "optimizer.lr is 0.5, and the run's is 0.05"}
    file.write_text("- nonsense: [")
    assert set(different(run)) == {"recipe.yaml"}
    file.unlink()
    assert "recipe.yaml" in found(run, Verdict.UNVERIFIED)


def test_files_that_are_missing_or_damaged_are_named(run):
    (run / "kernels/00000010.safetensors").unlink()
    (run / "snapshots/00000020.safetensors").write_bytes(b"short")
    said = different(run)
    assert said["kernels/00000010.safetensors"] == "it is missing"
    assert said["snapshots/00000020.safetensors"] == "it is not what the journal names"


def test_a_damaged_line_is_named(run):
    file = run / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if b'"kind": "kernel"' in line)
    lines[place] = lines[place].replace(b"seconds", b"Seconds")
    file.write_bytes(b"".join(lines))
    said = different(run)
    assert f"line {place + 1} (kernel, iteration 0) is" in said["journal.jsonl"]


def test_another_environment_is_allowed_the_measured_floor(tmp_path):
    """A run on a processor without vector units, as far as torch lets one pretend."""
    command = [sys.executable, "-m", "conescope", "run", "digits", *TINY, "--out", "run"]
    settings_ = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=os.environ | settings_, check=True, timeout=300)
    path = tmp_path / "run"
    bare(path)
    assert different(path) == {}
    within = found(path, Verdict.FLOOR)
    assert all("made with another cpu capability" in detail for detail in within.values())
    rewrite(path, as_before_capabilities_were_recorded)
    assert set(different(path)) == set(within) != set()
    rewrite(path, elsewhere)
    assert different(path) == {}
    said = found(path, Verdict.FLOOR)
    assert set(said) == set(within)
    assert all("made with another device" in detail for detail in said.values())

    def change(tensors):
        tensors["values"][1, 1] *= 1.001

    forge(path, "kernels/00000020.safetensors", change)
    said = different(path)
    assert set(said) == {"kernel at iteration 20"}
    assert "one rounding of the weights makes" in said["kernel at iteration 20"]


def test_the_same_bits_are_the_same_bits_in_any_environment(run):
    rewrite(run, elsewhere)
    assert different(run) == found(run, Verdict.FLOOR) == {}


def test_an_environment_that_is_not_recorded_counts_as_another(run):
    def change(values):
        if values["kind"] == "session":
            values["environment"] = {}

    rewrite(run, change)
    forge(run, "kernels/00000020.safetensors", lambda tensors: tensors["values"].mul_(2))
    assert "torch" in different(run)["kernel at iteration 20"]


@pytest.mark.parametrize(
    "more",
    [
        ["--kernel.estimate=3"],
        ["--kernel.projection=64"],
        ["--training.average=0.9"],
        ["--kernel.by_layer=true"],
        ["--kernel.outputs=full"],
        ["--lr_schedule.name=cosine", "--lr_schedule.warmup=5", "--optimizer.nesterov=true"],
        ["--model.name=cnn", "--kernel.batchnorm=recalibrated"],
        ["--dtype=float64", "--seed=3"],
        ["--snapshots.keep=never"],
        ["--training.precision=bfloat16"],
        ["--training.loss=squared", "--data.label_noise=0.2", "--data.train_size=400"],
        ["--model.layers=3", "--model.norm=batch"],
    ],
    ids=lambda more: more[0],
)
def test_every_kind_of_run_comes_out_the_same(tmp_path, more):
    path = train(tmp_path, *more)
    done = cs.verify(path, share=1.0)
    assert [c.group for c in done.checks if c.verdict != Verdict.EQUAL] == ["derived"]
    assert sum(check.group == "kernels" for check in done.checks) >= 5
    name = sorted((path / "kernels").iterdir())[1].name
    forge(path, f"kernels/{name}", lambda tensors: next(iter(tensors.values())).mul_(1.5))
    assert f"kernel at iteration {int(name[:8])}" in different(path)


def test_a_transformer_trained_by_adamw_comes_out_the_same(tmp_path):
    words = [
        "--data.p=7", "--model.units=8", "--model.heads=2", "--training.steps=40",
        "--training.batch_size=8", "--training.evaluate=0, every 20", "--probe.size=8",
        "--kernel.when=0, every 20", "--snapshots.keep=0, every 20", "--snapshots.resume=never",
    ]  # fmt: skip
    path = train(tmp_path, recipe="grokking", words=words)
    assert different(path) == {}
    forge(path, "snapshots/00000020.safetensors", lambda t: t["optimizer.0.exp_avg_sq"].mul_(2))
    assert "training from iteration 20 to 40" in different(path)


def test_a_kernel_of_averaged_weights_is_verified_for_itself(tmp_path):
    path = train(tmp_path, "--training.average=0.9")
    forge(path, "averaged/00000020.safetensors", lambda tensors: tensors["values"].mul_(1.5))
    assert set(different(path)) == {"kernel of the averaged weights at iteration 20"}


def test_an_estimate_of_other_draws_is_named(tmp_path):
    path = train(tmp_path, "--kernel.estimate=3")

    def change(values):
        if values["kind"] == "kernel" and values["step"] == 20:
            values["seed"] += 1

    rewrite(path, change)
    assert "journal.seed is 1" in different(path)["kernel at iteration 20"]


def test_a_divergence_is_verified(tmp_path):
    path = tmp_path / "run"
    words = [*TINY, "--optimizer.lr=1e30", "--training.evaluate=never"]
    assert main(["run", "digits", *words, "--out", str(path)]) == 1
    said = {check.subject: check.verdict for check in cs.verify(path, share=1.0).checks}
    assert next(v for s, v in said.items() if s.startswith("divergence")) == Verdict.EQUAL

    def change(values):
        if values["kind"] == "run":
            values["recipe"]["optimizer"]["lr"] = 0.05

    rewrite(path, change)
    assert any("the training goes on here" in detail for detail in different(path).values())


def test_a_training_that_diverges_where_the_run_went_on_is_named(run):
    def change(values):
        if values["kind"] == "run":
            values["recipe"]["optimizer"]["lr"] = 1e30

    rewrite(run, change)
    assert any("the training diverges here" in detail for detail in different(run).values())


def test_a_run_that_is_being_written_is_said_to_be(run):
    with Folder(run).owned():
        said = found(run, Verdict.UNVERIFIED)
    assert said["what comes later"] == "a process is working on the run"
    assert different(run) == {}


def test_a_run_that_was_stopped_is_verified_as_far_as_it_goes(tmp_path, monkeypatch):
    path = tmp_path / "run"
    recipe, asked = load_recipe("digits", TINY), []
    stop = lambda: asked.append(1) or len(asked) > 25  # noqa: E731
    assert not run_experiment(recipe, path, command="test", should_stop=stop)
    done = cs.verify(path, share=1.0)
    assert done.held
    subjects = [check.subject for check in done.checks]
    assert any(subject.startswith("training from iteration 20 to 2") for subject in subjects)
    assert run_experiment(recipe, path, command="test")
    assert cs.verify(path, share=1.0).held


def test_absent_data_are_named(run, tmp_path):
    def change(values):
        if values["kind"] == "run":
            values["recipe"]["data"] |= {"name": "mnist", "path": str(tmp_path / "nowhere")}

    rewrite(run, change)
    said = found(run, Verdict.UNVERIFIED)
    assert "nowhere" in said["kernels, evaluations and training"]
    assert set(different(run)) == {"recipe.yaml"}


def test_a_device_that_is_not_here_is_named(run):
    said = found(run, Verdict.UNVERIFIED, device="cuda:99")
    assert "cannot be used here" in said["kernels, evaluations and training"]


OWN = """
from torch import nn
def build(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.Tanh(), nn.Linear(7, classes))
"""


def test_own_code_runs_only_if_it_is_trusted_and_changes_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = tmp_path / "own_code_to_verify.py"
    code.write_text(OWN)
    words = [w for w in TINY if not w.startswith("--model")]
    words += ["--model.name=own_code_to_verify:build", "--out=run"]
    assert main(["run", "digits", *words]) == 0
    bare(Path("run"))
    said = found(Path("run"), Verdict.UNVERIFIED)
    assert "--trust-code" in said["kernels, evaluations and training"]
    assert main(["verify", "run"]) == NOT_RECOMPUTED
    assert different("run", trust_code=True) == {}
    code.write_text(OWN + "# changed\n")
    said = different(Path("run"), trust_code=True)
    assert said == {
        "code of own_code_to_verify:build": "its file has changed since the run",
    }


def test_a_foreign_recipe_runs_no_code_of_its_choice(run, monkeypatch):
    called = []
    monkeypatch.setattr(os, "system", called.append)

    def change(values):
        if values["kind"] == "run":
            values["recipe"]["model"] = {"name": "os:system", "width": 1.0, "command": "true"}

    rewrite(run, change)
    cs.verify(run, share=1.0)
    assert called == []


@pytest.mark.parametrize("dynamics", ["standard", "linearised"])
def test_branches_are_verified_from_their_origin(run, monkeypatch, dynamics):
    monkeypatch.chdir(run.parent)
    out = run / "branches" / "child"
    words = ["--from", str(run), "--at", "20", f"--dynamics.kind={dynamics}", "--out", str(out)]
    assert main(["run", *words]) == 0
    done = cs.verify(bare(out), share=1.0)
    assert {check.group for check in done.checks if check.verdict != Verdict.EQUAL} == {"derived"}
    assert any(check.group == "origin" for check in done.checks)
    assert cs.verify(run, branches=True).held
    forge(out, "origin.safetensors", lambda tensors: next(iter(tensors.values())).mul_(2))
    assert {s.partition(",")[0] for s in different(out)} >= {"origin.safetensors"}
    alone = shutil.move(out, run.parent / "alone")
    shutil.rmtree(run)
    assert any(s.startswith("origin") for s in found(alone, Verdict.UNVERIFIED))


MODEL = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"model_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    np.savez("probe.npz", x=np.arange(18, dtype=np.float32).reshape(6, 3) / 8)
    Path("ckpts").mkdir()
    torch.manual_seed(0)
    for step in (0, 5, 10):
        torch.save(
            nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).state_dict(),
            f"ckpts/step{step}.pt",
        )
    words = ["--model", f"{name}:build", "--probe", "probe.npz", "--out", "measured"]
    assert main(["measure", "ckpts/*.pt", *words]) == 0
    return Path("measured")


def test_a_series_of_checkpoints_is_verified_while_they_are_there(measured, capsys):
    assert main(["verify", str(measured)]) == 3
    assert "only what follows from the stored kernels" in capsys.readouterr().out
    words = ["verify", str(measured), "--share=1", "--trust-code"]
    assert main(words) == 0
    assert "kernels 3 bit-equal" in " ".join(capsys.readouterr().out.split())
    forge(measured, "kernels/00000005.safetensors", lambda tensors: tensors["values"].mul_(2))
    assert main(words) == 1
    assert "kernel at iteration 5: different: values[0, 0]" in capsys.readouterr().out


def test_checkpoints_that_changed_or_are_gone_are_named(measured, capsys):
    words = ["verify", str(measured), "--share=1", "--trust-code"]
    weights = torch.load("ckpts/step5.pt")
    weights["0.bias"] += 1
    torch.save(weights, "ckpts/step5.pt")
    Path("ckpts/step10.pt").unlink()
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "kernel at iteration 5: different: ckpts/step5.pt has changed" in out
    assert "first at iteration 10: not verified: their checkpoints are gone" in out
    shutil.rmtree("ckpts")
    assert main(words) == 3
    assert "cannot be made again here" in capsys.readouterr().out


def test_a_probe_that_changed_is_named(measured, capsys):
    np.savez("probe.npz", x=np.ones((6, 3), dtype=np.float32))
    assert main(["verify", str(measured), "--trust-code"]) == 1
    assert "probe: different: it was" in capsys.readouterr().out


def test_snapshots_that_were_measured_again_are_verified(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    assert main(["measure", "copy", "--outputs=sum", "--out=again"]) == 0
    capsys.readouterr()
    assert main(["verify", "again", "--share=1", "--trust-code"]) == 0
    assert "kernels 3 bit-equal" in " ".join(capsys.readouterr().out.split())


def test_a_watched_training_says_what_cannot_be_verified(tmp_path, capsys):
    model = nn.Linear(3, 2)
    with cs.Watch(model, torch.randn(4, 3), when="every 1", out=tmp_path / "watched") as watch:
        watch.step(0)
        with torch.no_grad():
            model.weight += 1
        watch.step(1)
    assert main(["verify", str(tmp_path / "watched")]) == 3
    out = capsys.readouterr().out
    assert "not in the folder" in out
    assert "not recomputed: no kernel and no training was computed again" in out


def test_numbers_charts_and_figures_are_compared(made, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "copy"))
    report, figure = run / "report.html", run / "figures/training.png"
    whole = report.read_text()
    report.write_text(whole.replace("<td>n = 12</td>", "<td>n = 13</td>"))
    figure.write_bytes(figure.read_bytes() + b"x")
    said = different(run)
    assert "n = 13, and comes out as" in said["report.html, numbers and charts"]
    assert "figures/training.png" in said
    report.write_text(whole.replace('"bdata":"', '"bdata":"AAAA', 1))
    shutil.rmtree(run / "figures")
    assert "report.html, numbers and charts" in different(run)
    report.write_text(whole.replace("</body>", "<script>steal()</script></body>"))
    assert different(run) == {}
    assert "report.html, its scripts" in found(run, Verdict.UNVERIFIED)
    report.write_text('<script type="application/json" data-chart="x">' + "[" * 100_000)
    assert "report.html, numbers and charts" in different(run)
    report.unlink()
    assert "derived numbers" in found(run, Verdict.UNVERIFIED)


@pytest.mark.rendered
def test_a_figure_of_another_matplotlib_is_not_called_different(tmp_path):
    run = train(tmp_path)
    (run / "figures").mkdir()
    loaded = cs.load_run(run)
    name, figure_of = next(iter(FIGURES.items()))
    save_plots(loaded, {name: figure_of(loaded)}, run / "figures")
    figure = run / "figures" / f"{name}.pdf"
    assert {f"figures/{name}.pdf", f"figures/{name}.png"} <= found(run, Verdict.EQUAL).keys()
    whole = figure.read_bytes()
    figure.write_bytes(whole.replace(b"pdf backend v", b"pdf backend v9."))
    assert "drawn by matplotlib 9." in found(run, Verdict.UNVERIFIED)[f"figures/{name}.pdf"]
    figure.write_bytes(whole[:-1])
    assert f"figures/{name}.pdf" in different(run)


def test_charts_may_differ_by_rounding_and_no_more(made, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "copy"))
    shutil.rmtree(run / "figures")
    whole = (run / "report.html").read_text()
    chart = whole.index('data-chart="distance-from"')
    begin = whole.index('"y":{"dtype":"f8","bdata":"', chart) + len('"y":{"dtype":"f8","bdata":"')
    text = whole[begin : whole.index('"', begin)]
    values = np.frombuffer(base64.b64decode(json.loads(f'"{text}"'))).copy()
    for factor, verdict in ((1 + 2**-52, Verdict.FLOOR), (1 + 1e-6, Verdict.DIFFERENT)):
        other = base64.b64encode((values * factor).tobytes()).decode()
        (run / "report.html").write_text(whole[:begin] + other + whole[begin + len(text) :])
        said = found(run, verdict)
        assert set(said) == {"report.html, numbers and charts"}
    assert "chart distance-from.0.y[" in said["report.html, numbers and charts"]


def test_a_run_of_the_first_version_is_verified():
    done = cs.verify(Path(__file__).parent / "golden" / "run", share=1.0)
    assert [str(c) for c in done.checks if c.verdict == Verdict.DIFFERENT] == []
    assert "training from iteration 0 to 20" in {check.subject for check in done.checks}


def test_everything_as_json(run, capsys):
    assert main(["verify", str(run), "--json", "--seed=4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["held"] is True
    assert (told["seed"], told["share"]) == (4, 0.05)
    assert {"group", "subject", "verdict", "detail", "size"} == set(told["checks"][0])
    forge(run, "kernels/00000000.safetensors", lambda tensors: tensors["values"].mul_(2))
    assert main(["verify", str(run), "--json", "--share=1"]) == 1
    assert json.loads(capsys.readouterr().out)["held"] is False


def test_a_users_mistake_is_one_line(tmp_path, capsys):
    for words, status in (
        (["verify", str(tmp_path)], 1),
        (["verify", str(tmp_path / "absent.zip")], 1),
        (["verify", str(tmp_path), "--share=0"], 2),
        (["verify", str(tmp_path), "--share=nan"], 2),
    ):
        assert main(words) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.strip().splitlines()) == 1
    with pytest.raises(RecipeError):
        cs.verify(tmp_path, share=1.5)
    with pytest.raises(StoreError):
        cs.verify(tmp_path)


def test_an_interrupt_ends_quietly(run, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("conescope.cli.progress.ProgressBar.advance", interrupted)
    assert main(["verify", str(run)]) == 130
    assert "checks are made; the same command begins anew" in capsys.readouterr().err


STATES = st.lists(st.integers(0, 5000), min_size=1, max_size=12, unique=True).map(sorted)


@settings(deadline=None)
@given(
    STATES,
    st.lists(st.integers(0, 6000), min_size=1, max_size=30),
    st.floats(0.001, 1),
    st.integers(),
)
def test_stretches_keep_to_the_share_and_reach_something_stored(states, stored, share, seed):
    stored = [step for step in stored if step >= states[0]] or [states[0]]
    chosen = choose_stretches(states, [*stored, *states], share, seed)
    assert chosen == choose_stretches(states, [*stored, *states], share, seed)
    end = max(*stored, states[-1])
    length = sum(stretch.stop - stretch.start for stretch in chosen)
    assert length <= max(share * (end - states[0]) + 1, LEAST_ITERATIONS)
    for stretch in chosen:
        assert stretch.start in states
        assert stretch.stop in {*stored, *states}
        assert stretch.start < stretch.stop
        assert not any(stretch.start < state < stretch.stop for state in states)
    if share == 1:
        assert length == end - states[0]


@given(STATES, STATES, st.floats(0.001, 1), st.integers())
def test_kernels_are_chosen_among_those_with_a_state(states, kernels, share, seed):
    chosen = choose_kernels(states, kernels, share, seed)
    both = set(states) & set(kernels)
    assert {stretch.start for stretch in chosen} <= both
    assert len(chosen) >= share * len(both)
    assert (len(chosen) > 0) == bool(both)


@given(st.integers(0, 5), st.floats(-1e6, 1e6, width=32))
def test_a_difference_is_named_by_its_entry(place, value):
    stored = torch.arange(6.0).reshape(2, 3)
    other = stored.clone()
    other.view(-1)[place] = value
    said = difference({"a": stored}, {"a": other})
    if value == place and not (value == 0 and np.signbit(value)):
        assert said is None
    else:
        assert said is not None
        assert f"a[{place // 3}, {place % 3}]" in said.text
        expected = float((stored.double() - other.double()).norm() / other.double().norm())
        assert said.size == pytest.approx(expected)


def test_a_difference_in_shape_type_or_names_is_infinite():
    a = torch.ones(3)
    for other in ({"a": torch.ones(2)}, {"a": a.double()}, {"b": a}, {"a": a * torch.nan}):
        said = difference({"a": a}, other)
        assert said is not None
        assert said.size == torch.inf
    assert difference({"a": a * torch.nan}, {"a": a * torch.nan}) is None
