"""Sweeps as jobs of a real SLURM with two nodes: requeued, cancelled, out of time, nodes lost."""

import json
import re
import time

import pytest

from conescope.cli import main
from conescope.experiments.session import run_experiment
from conescope.experiments.sweep.sweep_folder import read_sweep
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from slow_network import slow_network
from slurm_cluster import SlurmCluster, missing_programs
from stored_runs import assert_same_run, stored_by_a_stop

pytestmark = [
    pytest.mark.skipif(
        bool(missing_programs()),
        reason=f"{', '.join(missing_programs())} missing: apt-get install slurm-wlm munge",
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

_MOST_SECONDS = 600


@pytest.fixture(scope="module")
def slurm():
    pytest.importorskip("submitit", reason="submitit is missing: pip install 'conescope[slurm]'")
    with SlurmCluster() as cluster:
        yield cluster


def submit(words, out, *more):
    """Submit a sweep by the command; return its runs."""
    assert main(["sweep", "digits", *words, "--out", str(out), "--on=slurm", *more]) == 0
    return read_sweep(out).runs


def wait_until(is_so, what):
    deadline = time.monotonic() + _MOST_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def has_begun(run):
    return bool(Folder(run.path).entries(Kind.SNAPSHOT))


def jobs(cluster):
    """The jobs that are queued or at work: id → state."""
    lines = cluster.ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
    return dict(line.split() for line in lines)


def assert_finished_as_if_alone(runs, path):
    for run in runs:
        run_experiment(run.recipe, path / run.id, command="test")
        assert_same_run(path / run.id, run.path)
        assert len(Folder(run.path).entries(Kind.FINISHED)) == 1
        assert (run.path / "row.json").exists()


def end(runs, cluster):
    wait_until(lambda: all(run.state() == "finished" for run in runs), "not all have finished")
    wait_until(lambda: not jobs(cluster), "jobs are left")


def test_jobs_to_their_end(tmp_path, monkeypatch, tiny_overrides, slurm, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*tiny_overrides, "--seed=0..2"]
    runs = submit(words, "s", "--partition=short", "--time=5")
    assert len(jobs(slurm)) == 3
    assert "submitted: 3 jobs" in capsys.readouterr().err
    end(runs, slurm)
    assert_finished_as_if_alone(runs, tmp_path / "alone")
    submit(words, "s")
    assert "3, of which 0 are to do" in capsys.readouterr().out
    assert not jobs(slurm)


def ids(out):
    """The id of the job of each run."""
    return json.loads((out / "slurm" / "jobs.json").read_bytes())


def test_a_job_requeued_goes_on_and_one_cancelled_is_submitted_again(
    tmp_path, monkeypatch, tiny_overrides, slurm, capsys
):
    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides)
    words.append("--seed=0..2")
    runs = submit(words, "s")
    job = ids(tmp_path / "s")
    wait_until(lambda: has_begun(runs[0]) and has_begun(runs[1]), "two have not begun")
    slurm.ask("scontrol", "requeue", job[runs[0].id])
    slurm.ask("scancel", job[runs[1].id])
    slurm.ask("scancel", job[runs[2].id])
    wait_until(lambda: list(jobs(slurm)) == [job[runs[0].id]], "jobs are not cancelled")
    assert runs[1].state() == "stopped"
    assert all(stored_by_a_stop(run.path) for run in runs[:2])  # as SLURM warns by SIGTERM
    capsys.readouterr()
    submit(words, "s")
    assert "submitted: 2 jobs" in capsys.readouterr().err  # the requeued one is in the queue
    mark.unlink()
    end(runs, slurm)
    assert len(Folder(runs[0].path).entries(Kind.SESSION)) == 2
    assert_finished_as_if_alone(runs, tmp_path / "alone")


def test_nodes_lost_in_the_middle(tmp_path, monkeypatch, tiny_overrides, slurm):
    """One loses its power, and one is set down by an operator while its job is at work."""
    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides, seconds=5.0)
    runs = submit([*words, "--seed=0,1"], "s")
    job = ids(tmp_path / "s")
    wait_until(lambda: all(has_begun(run) for run in runs), "not all have begun")
    slurm.lose_node("n2")
    wait_until(lambda: jobs(slurm)[job[runs[1].id]] == "PENDING", "the job is not queued again")
    assert runs[1].state() == "stopped"
    slurm.ask("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    wait_until(lambda: set(jobs(slurm).values()) == {"PENDING"}, "the jobs are not queued again")
    wait_until(lambda: not Folder(runs[0].path).is_owned(), "its process on n1 does not end")
    slurm.start_node("n2")
    mark.unlink()
    wait_until(lambda: any(run.state() == "finished" for run in runs), "none ends on one node")
    slurm.ask("scontrol", "update", "NodeName=n1", "State=RESUME")
    end(runs, slurm)
    assert_finished_as_if_alone(runs, tmp_path / "alone")


def test_a_job_whose_time_is_over_goes_on(tmp_path, monkeypatch, tiny_overrides, slurm):
    """Its limit comes down once it is at work: SLURM may warn at once, before anything hears it."""
    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides, seconds=5.0)
    submitted = time.monotonic()
    runs = submit([*words, "--seed=0"], "s", "--time=60")
    [job] = ids(tmp_path / "s").values()
    wait_until(lambda: has_begun(runs[0]), "it has not begun")
    minutes = int((time.monotonic() - submitted) // 60) + 2
    slurm.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait_until(lambda: jobs(slurm).get(job) == "PENDING", "it is not queued again")
    slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert stored_by_a_stop(runs[0].path)
    mark.unlink()
    end(runs, slurm)
    assert len(Folder(runs[0].path).entries(Kind.SESSION)) == 2
    assert_finished_as_if_alone(runs, tmp_path / "alone")


def test_what_slurm_refuses_is_said_in_a_line(tmp_path, monkeypatch, tiny_overrides, slurm, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*tiny_overrides, "--seed=0,1", "--out=s", "--on=slurm"]
    assert main(["sweep", "digits", *words, "--partition=nowhere"]) == 2
    assert "SLURM refuses the jobs: " in (said := capsys.readouterr().err)
    assert "invalid partition specified: nowhere" in said
    conf = (slurm.folder / "slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(re.sub("SlurmctldPort=.*", "SlurmctldPort=1", conf))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert main(["sweep", "digits", *words]) == 2
    assert "SLURM does not answer (" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
