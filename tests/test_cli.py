import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest

from conescope.cli import main
from conescope.cli.terminal import one_line_warnings
from conescope.experiments.stored import load_run, read_status
from conescope.report import answer
from conescope.training.recipe_reading import load_recipe


@pytest.fixture
def run_in(tmp_path, monkeypatch, capsys):
    """Call the command line in an empty folder; gives status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        status = main(words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.rendered
def test_run_ends_with_a_table_and_where_the_report_is(run_in, tmp_path, tiny_overrides):
    status, out, err = run_in("run", "digits", *tiny_overrides, "--out", "here")
    assert status == 0
    assert err == ""  # quiet when the output is no terminal
    assert re.search(r"test accuracy, last +\d+\.\d+%", out)
    assert re.search(r"S\(60, 0\) +0\.\d+", out)
    assert f"\n{answer(load_run('here'))}\n" in out
    assert out.rstrip().endswith("report:  here/report.html")
    page = (tmp_path / "here/report.html").read_text()
    assert "conescope run digits --model.name=mlp" in page
    assert (tmp_path / "here/figures/distance-from.pdf").stat().st_size > 1000

    status, out, _ = run_in("status", "here")
    assert status == 0
    assert re.search(r"iterations +60 of 60 \(100%\)", out)
    assert "finished" in out
    assert re.search(r"journal +\d+ lines, the newest [0-9a-f]{16}", out)

    report, figure = tmp_path / "here/report.html", tmp_path / "here/figures/training.png"
    before = report.read_bytes()
    report.unlink()
    figure.unlink()
    assert run_in("report", "here")[0] == 0
    assert report.read_bytes() == before
    status, out, _ = run_in("figures", "here")
    assert status == 0
    assert "here/figures/training.png" in out
    assert figure.exists()


def test_the_folder_is_named_after_the_recipe(run_in, tmp_path, tiny_overrides):
    words = [*tiny_overrides, "--kernel.when", "never", "--training.steps", "30"]
    status, out, _ = run_in("run", "digits", *words)
    assert status == 0
    assert "no kernels, so no figures and no report" in out
    name = load_recipe("digits", words).id
    assert (tmp_path / "runs" / name / "journal.jsonl").exists()


def test_recipes_are_listed_and_shown_whole(run_in, tmp_path):
    status, out, _ = run_in("recipes")
    assert status == 0
    assert re.search(r"^digits +a small convolutional network", out, re.MULTILINE)
    assert "lenet-mnist" in out
    status, out, _ = run_in("show", "digits", "--optimizer.lr", "0.03", "--seed=7")
    assert status == 0
    (tmp_path / "mine.yaml").write_text(out)
    shown = load_recipe(str(tmp_path / "mine.yaml"))
    assert shown == load_recipe("digits", ["--optimizer.lr=0.03", "--seed=7"])


def test_warnings_are_news_but_not_those_to_developers(capsys):
    with one_line_warnings():
        warnings.warn("the budget is small", UserWarning, stacklevel=1)
        warnings.warn("torch.jit.script is deprecated", DeprecationWarning, stacklevel=1)
        logging.getLogger("conescope.report.save").warning("no figure %s: %s", "a", "it is\nshort")
    logging.getLogger("conescope.report.save").warning("after the command")
    told = (
        "conescope: warning: the budget is small\nconescope: warning: no figure a: it is\\nshort\n"
    )
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["run", "digits", "--optimzer.lr", "1"], 2, "unknown field optimzer.lr; did you mean opt"),
        (["run", "digits", "--ouput", "x"], 2, "unknown field ouput; did you mean out?"),
        (["run", "digits", "--seed"], 2, "--seed needs a value"),
        (["run", "nothing"], 2, "unknown recipe nothing"),
        (["run", "digits", "--kernel.when", "9999"], 2, "kernel.when: '9999' never fires in 2000"),
        (["run", "digits", "--probe.size", "4000"], 1, "probe.size is 4000, but the train split"),
        (["run", "digits", "--training.batch_size", "4000"], 1, "training.batch_size is 4000"),
        (["run", "digits", "--model.name", "vgg16"], 2, "vgg16 takes images of shape (3, 32, 32)"),
        (["run", "lenet-mnist", "--data.path", "."], 1, "train.parquet does not exist"),
        (["status", "nowhere"], 1, "nowhere holds no run"),
        (["figures", "nowhere"], 1, "nowhere holds no run"),
    ],
)
def test_a_users_mistake_is_one_line(run_in, words, status, message):
    found, out, err = run_in(*words)
    assert found == status
    assert out == ""
    assert message in err
    assert err.startswith("conescope: error: ")
    assert len(err.strip().splitlines()) == 1


def test_help_lists_commands_and_fields(run_in, capsys):
    for words, expected in (
        (["--help"], ["run", "recipes", "show", "status", "figures", "report"]),
        (["run", "--help"], ["--out DIR", "--optimizer.lr", "--kernel.when"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        out = capsys.readouterr().out
        for word in expected:
            assert word in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_command_which_then_goes_on(tmp_path, tiny_overrides, number):
    words = [*tiny_overrides, "--training.steps=4000", "--kernel.when=0, every 1000", "--out=run"]
    command = [sys.executable, "-m", "conescope", "run", "digits", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background
    )
    journal = tmp_path / "run/journal.jsonl"
    deadline = time.monotonic() + 300
    while not (journal.exists() and b'"evaluation"' in journal.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number, err
    assert "of 4,000 iterations are in run; the same command goes on from there" in err
    status = read_status(tmp_path / "run")
    assert not status.running
    assert status.snapshots[-1] == status.step


def test_a_name_with_a_line_break_is_printed_in_one_line(tmp_path, capsys):
    assert main(["status", str(tmp_path / "a\nb\x1b[31m\tc")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert r"a\nb\x1b[31m\tc" in told
