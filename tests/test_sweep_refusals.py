"""What is wrong with the words of a sweep's commands is said in one line, with the cure."""

import pytest

from conescope.cli import main

WRONG = {
    "--optimizer.lr needs a value; write --optimizer.lr VALUE": ("digits", "--optimizer.lr"),
    "there is no command sweep stauts; did you mean sweep status?": ("stauts", "mine"),
    "there is no command sweep reprot; did you mean sweep report?": ("reprot", "mine"),
    "there is no command sweep brunch; did you mean sweep branch?": ("brunch", "r", "--at=1"),
    "unknown recipe digts; did you mean digits?": ("digts", "--seed=0,1"),
    "--slots is for --on local; with --on slurm leave it out": ("--on=slurm", "--slots=2"),
    "--partition is for --on slurm; with --on local leave it out": ("--partition=short",),
    "--time is for --on slurm; with --on ray leave it out": ("--on=ray", "--time=5"),
    "--address is for --on ray; with --on local leave it out": ("--address=127.0.0.1:1",),
    "--gpus is for --on ray or slurm; with --on local leave it out": ("--gpus=1",),
    "--gpus is a number from 0 on, not nan": ("--gpus=nan", "--on=ray"),
    "--time is at least 1, not 0": ("--time=0", "--on=slurm"),
    "--runs run is the folder of a run; name one of the sweep's": ("--runs=run",),
}


@pytest.mark.parametrize(("message", "words"), WRONG.items())
def test_a_wrong_word_is_answered_by_its_cure(tmp_path, monkeypatch, capsys, message, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.jsonl").touch()
    rest = words if not words[0].startswith("--") else ("digits", "--seed=0,1", *words)
    assert main(["sweep", *rest, "--out=s", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_recipe_may_be_called_as_a_command_nearly_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "measure.yaml").write_text("training: {steps: 20}\nkernel: {when: 'every 10'}\n")
    words = ["--probe.size=10", "--seed=0,1", "--out=s", "--on=slurm", "--dry-run"]
    assert main(["sweep", "measure.yaml", *words]) == 0
    assert "2, of which 2 are to do" in capsys.readouterr().out
