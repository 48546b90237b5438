"""Sweeps on Ray, with two nodes on this machine and workers killed; and by submitit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.sweeps import ray_workers

from conescope.cli import main
from conescope.errors import RecipeError
from conescope.experiments.session import run_experiment
from conescope.experiments.sweep.axes import read_axes
from conescope.experiments.sweep.carrying_out import carry_out_sweep
from conescope.experiments.sweep.grid import make_grid
from conescope.experiments.sweep.single_run import RunTask, carry_out_run
from conescope.experiments.sweep.sweep_folder import read_sweep, store_sweep
from conescope.experiments.sweep.sweep_planning import plan_sweep
from conescope.report.run_numbers import store_run_numbers
from conescope.runs.contents import newest_step
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from conescope.runs.writer import RunWriter
from slow_network import slow_network
from stored_runs import assert_same_run, stored_by_a_stop

TINY = ("--kernel.when=0, every 10", "--training.batch_size=8", "--probe.size=10")

NOWHERE = Path("/nowhere")

_MOST_SECONDS = 600

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}


def planned(path, overrides, *axes):
    points = make_grid(read_axes(["digits"], [*overrides, *TINY, *axes]))
    sweep = plan_sweep(points, path, "conescope sweep")
    store_sweep(sweep)
    return sweep


def task_of(run):
    return RunTask.of(run, "conescope sweep", store_run_numbers, 1)


@pytest.fixture(scope="module")
def cluster():
    """Two raylets on this machine, one CPU each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'conescope[ray]'")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = Cluster(initialize_head=True, head_node_args=NODE)
        started.add_node(**NODE)
        ray.init(started.address, log_to_driver=False)  # once: its workers serve all tests
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_does_not_answer():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'conescope[ray]'")
    from conescope.experiments.sweep.ray_cluster import RayCluster

    with pytest.raises(RecipeError, match=r"no Ray cluster answers at .*--address"):
        RayCluster("127.0.0.1:1")


@pytest.mark.filterwarnings("ignore")
def test_runs_on_ray_stopped_and_killed_are_those_never_disturbed(
    tmp_path, monkeypatch, tiny_overrides, cluster
):
    from conescope.experiments.sweep.ray_cluster import RayCluster

    class Killing(RayCluster):
        warned, killed = None, False

        def wait(self, seconds):
            ended = super().wait(seconds)
            at_work = {run.id for run in sweep.runs if run.state() == "running"}
            found = ray_workers(begun(sweep) & at_work)
            if found and self.warned is None:
                self.warned, pid = found.popitem()
                self.stops = stored_by_a_stop(sweep.path / "runs" / self.warned)
                os.kill(pid, signal.SIGTERM)
            elif found and not self.killed and self.has_stored():
                self.killed = True
                os.kill(next(iter(found.values())), signal.SIGKILL)
            elif self.killed and mark.exists():  # a node is lost, and another joins
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
                cluster.add_node(**NODE)
                mark.unlink()
            return ended

        def has_stored(self):
            """Whether the worker that was warned by SIGTERM has stored its state."""
            stops = stored_by_a_stop(sweep.path / "runs" / self.warned)
            return len(stops) > len(self.stops)

    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides)
    sweep = planned(tmp_path / "ray", words, "--seed=0..2")

    assert not carry_out_sweep(sweep, RayCluster(), task_of, should_stop=lambda: bool(begun(sweep)))
    assert {run.state() for run in sweep.runs} == {"stopped", "waiting"}
    backend, ends = Killing(), {}
    assert carry_out_sweep(
        sweep, backend, task_of, told=lambda run, state: ends.update({run.id: state})
    )
    assert backend.killed
    assert backend.has_stored()
    assert list(ends.values()) == ["finished"] * 3
    assert_finished_as_if_alone(sweep.runs, tmp_path / "alone")


def assert_finished_as_if_alone(runs, path):
    for run in runs:
        run_experiment(run.recipe, path / run.id, command="test")
        assert_same_run(path / run.id, run.path)
        assert len(Folder(run.path).entries(Kind.FINISHED)) == 1


def wait_until(is_so):
    deadline = time.monotonic() + _MOST_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def begun(sweep):
    """The ids of the runs that have stored their first snapshot."""
    return {run.id for run in sweep.runs if Folder(run.path).entries(Kind.SNAPSHOT)}


@pytest.mark.filterwarnings("ignore")
def test_runs_on_copies_stopped_and_killed_are_those_never_disturbed(
    tmp_path, monkeypatch, tiny_overrides, cluster
):
    """The workers are told of folders that do not exist, as on a node that does not see them."""
    import ray

    from conescope.experiments.sweep import ray_cluster, run_copies

    def unseeing(task, *lent):
        run_copies._SEND_SECONDS = 0.5
        run = replace(task.run, path=NOWHERE / task.run.id)
        return ray_cluster.carry_out_lent(replace(task, run=run, folder=run.path), *lent)

    def away():
        """The ids of the runs of which a copy has a snapshot."""
        copies = Path(tempfile.gettempdir()).glob("conescope-*/*/snapshots/*.safetensors")
        return {path.parts[-3] for path in copies} & {run.id for run in sweep.runs}

    def reached(run):
        return newest_step(Folder(run.path)), len(Folder(run.path).entries(Kind.SESSION))

    class OnCopies(ray_cluster.RayCluster):
        was_locked, most_running, was_waiting = True, 0, False

        def __init__(self, may_kill):
            super().__init__(copies=True)
            self._remote = ray.remote(num_cpus=1, max_retries=0)(unseeing)
            self.killed = {} if may_kill else None

        def wait(self, seconds):
            active = [task.folder for task in self._tasks.values()]
            self.was_locked &= all(Folder(folder).is_owned() for folder in active)
            ended = super().wait(seconds)
            states = Counter(run.state() for run in sweep.runs)
            self.most_running = max(self.most_running, states["running"])
            self.was_waiting |= states["running"] == 2 and states["waiting"] == 1
            for run in sweep.runs:  # once something has come back of one that is at work
                step, sessions = reached(run)
                if self.killed == {} and step > before[run.id] and (pid := at_work(run)):
                    self.killed[run.id] = step, sessions
                    os.kill(pid, signal.SIGKILL)
                    mark.unlink()
            return ended

    def at_work(run):
        return ray_workers({run.id}).get(run.id)

    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides)
    words.append("--snapshots.resume=every 1")
    sweep = planned(tmp_path / "ray", words, "--seed=0..2")

    first = OnCopies(False)
    assert not carry_out_sweep(
        sweep, first, task_of, should_stop=lambda: bool(away()) and first.most_running == 2
    )
    assert first.was_waiting  # the third, which no node has room for
    assert {run.state() for run in sweep.runs} == {"stopped", "waiting"}
    assert begun(sweep)  # as the worker has sent back what it had
    before = {run.id: reached(run)[0] for run in sweep.runs}
    backend = OnCopies(True)
    assert carry_out_sweep(sweep, backend, task_of)
    assert (backend.was_locked, backend.most_running) == (True, 2)
    ((killed, (step, sessions)),) = backend.killed.items()
    run = next(run for run in sweep.runs if run.id == killed)
    assert 0 < step < 60
    assert reached(run) == (60, sessions + 1)  # it went on from there, in a session of its own
    assert_finished_as_if_alone(sweep.runs, tmp_path / "alone")
    assert not any(Folder(run.path).is_owned() for run in sweep.runs)
    assert not NOWHERE.exists()
    for left in Path(tempfile.gettempdir()).glob("conescope-*/*/journal.jsonl"):
        if left.parent.name in {run.id for run in sweep.runs}:  # of the worker that was killed
            shutil.rmtree(left.parents[1])


@pytest.mark.filterwarnings("ignore")
def test_a_node_that_does_not_see_the_folder_says_so(tmp_path, tiny_overrides, cluster):
    import ray

    from conescope.experiments.sweep import ray_cluster

    def unseeing(task):
        ray_cluster._carry_out_here(replace(task, folder=NOWHERE / task.run.id))

    backend, ends = ray_cluster.RayCluster(), []
    backend._remote = ray.remote(num_cpus=1, max_retries=0)(unseeing)
    sweep = planned(tmp_path, tiny_overrides, "--seed=0")
    carry_out_sweep(sweep, backend, task_of, told=lambda run, _: ends.append(run.error))
    assert len(ends) == 1
    assert "does not see /nowhere/digits-" in ends[0]
    assert ends[0].endswith("add --copy")


DRIVER = """
import sys
from conescope.cli import main
from conescope.experiments.sweep import ray_cluster

ray_cluster._LOST_SECONDS = 2.0
sys.exit(main(sys.argv[1:]))
"""
"""The command, with less patience."""


@pytest.mark.filterwarnings("ignore")
def test_command_and_head_are_ended_and_the_runs_go_on(tmp_path, monkeypatch, tiny_overrides):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'conescope[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides)
    words = ["sweep", "digits", *words, "--seed=0,1", "--out=s", "--threads=1"]
    head = Cluster(initialize_head=True, head_node_args=NODE)
    command = [sys.executable, "-c", DRIVER, *words, "--on=ray", f"--address={head.address}"]

    def sessions(number):
        """Start the command; return it when it is at work on a run for so many times."""
        driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: Path("s/sweep.json").exists())
        runs = read_sweep("s").runs
        wait_until(lambda: any(len(Folder(r.path).entries(Kind.SESSION)) == number for r in runs))
        return driver

    try:
        first = sessions(1)
        wait_until(lambda: begun(read_sweep("s")))
        first.terminate()
        _, said = first.communicate(timeout=_MOST_SECONDS)
        assert first.returncode == 128 + signal.SIGTERM, said
        assert any(stored_by_a_stop(run.path) for run in read_sweep("s").runs)
        second = sessions(2)
        second.kill()
        second.communicate()
        third = sessions(3)
        head.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        _, said = third.communicate(timeout=_MOST_SECONDS)
    finally:
        head.shutdown()
    assert third.returncode == 2, said
    assert "no longer answers" in said.splitlines()[-1]
    runs = read_sweep("s").runs
    mark.unlink()
    assert main([*words, "--slots=2"]) == 0
    assert_finished_as_if_alone(runs, tmp_path / "alone")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("file", "content", "refusal"),
    [
        (
            "conescope-0.0.1.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: conescope\nVersion: 0.0.1\n",
            "this worker has conescope 0.0.1, and the sweep was planned by",
        ),
        (
            "conescope/__init__.py",
            "",
            "ModuleNotFoundError: No module named 'conescope.experiments'; install conescope 0",
        ),
    ],
)
def test_an_older_conescope_on_a_worker_is_refused_in_a_line(
    tmp_path, tiny_overrides, cluster, file, content, refusal
):
    import ray

    from conescope.experiments.sweep.ray_cluster import RayCluster

    (tmp_path / "old" / file).parent.mkdir(parents=True)
    (tmp_path / "old" / file).write_text(content)
    backend = RayCluster()
    path = os.pathsep.join([str(tmp_path / "old"), os.environ.get("PYTHONPATH", "")])
    backend._remote = ray.remote(
        num_cpus=1, max_retries=0, runtime_env={"env_vars": {"PYTHONPATH": path}}
    )(carry_out_run)
    sweep, ends = planned(tmp_path / "s", tiny_overrides, "--seed=0,1"), []
    carry_out_sweep(
        sweep, backend, task_of, told=lambda run, state: ends.append((state, run.error))
    )
    assert [state for state, _ in ends] == ["failed", "failed"]
    assert all(refusal in error for _, error in ends), ends


@pytest.mark.parametrize(("place", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_package_that_is_missing_is_named(
    tmp_path, monkeypatch, tiny_overrides, capsys, place, package
):
    monkeypatch.setitem(sys.modules, package, None)
    words = [*tiny_overrides, "--seed=0,1", "--out", str(tmp_path), "--on", place]
    assert main(["sweep", "digits", *words]) == 1
    assert f"{package} is not installed; run pip install 'conescope[{place}]'" in (
        capsys.readouterr().err
    )


def test_where_there_is_no_slurm(tmp_path, monkeypatch, tiny_overrides, capsys):
    pytest.importorskip("submitit", reason="submitit is missing: pip install 'conescope[slurm]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [*tiny_overrides, "--seed=0,1", "--out", str(tmp_path / "s"), "--on=slurm"]
    assert main(["sweep", "digits", *words]) == 2
    shown = capsys.readouterr()
    assert "there is no SLURM here; call it on a login node" in shown.err
    assert "not tried on a login node" in shown.out


@pytest.mark.filterwarnings("ignore")
def test_jobs_by_submitit_end_in_finished_runs(tmp_path, tiny_overrides):
    pytest.importorskip("submitit", reason="submitit is missing: pip install 'conescope[slurm]'")
    from conescope.experiments.sweep.slurm_jobs import SlurmOptions, submit_jobs

    sweep = planned(tmp_path / "s", tiny_overrides, "--seed=0..1")
    tasks = [task_of(run) for run in sweep.runs]
    folder = tmp_path / "s" / "slurm"
    ids = submit_jobs(tasks, folder, SlurmOptions("short", 5), cluster="local")
    assert len(ids) == 2
    assert json.loads((folder / "jobs.json").read_bytes()) == {
        run.id: name for run, name in zip(sweep.runs, ids, strict=True)
    }
    wait_until(lambda: all(run.state() == "finished" for run in sweep.runs))


def test_a_job_waits_for_one_before_it_that_is_still_at_work(tmp_path, tiny_overrides):
    from conescope.experiments.sweep.slurm_jobs import _Resumable

    sweep = planned(tmp_path, tiny_overrides, "--seed=0,1")
    run = sweep.runs[0]
    with RunWriter(run.path):
        job = threading.Thread(target=lambda: _Resumable()(task_of(run)))
        job.start()
        time.sleep(0.1)
        assert job.is_alive()
    job.join()
    assert run.state() == "finished"


def test_what_slurm_is_asked_for(tmp_path, monkeypatch, tiny_overrides):
    pytest.importorskip("submitit", reason="pip install 'conescope[slurm]'")
    from conescope.experiments.sweep import slurm_jobs

    programs = {  # stand in for SLURM's: note the script, give an id, list what is queued
        "sbatch": f'cp "$1" {tmp_path}/script\necho Submitted batch job 77',
        "srun": "",
        "squeue": f"cat {tmp_path}/queue",
    }
    for name, lines in programs.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    sweep = planned(tmp_path / "s", tiny_overrides, "--seed=0..2")
    tasks = [task_of(run) for run in sweep.runs]
    options = slurm_jobs.SlurmOptions("short", 90, gpus=1, threads=3, at_once=2)
    ids = slurm_jobs.submit_jobs(tasks, tmp_path / "s" / "slurm", options)
    assert ids == ["77_0", "77_1", "77_2"]
    script = (tmp_path / "script").read_text()
    for line in ("array=0-2%2", "partition=short", "time=90", "gpus-per-node=1",
                 "cpus-per-task=3", "requeue", "signal=USR2@90"):  # fmt: skip
        assert f"#SBATCH --{line}" in script, line
    (tmp_path / "queue").write_text("77_0\n77_2\n")
    again = slurm_jobs.submit_jobs(tasks, tmp_path / "s" / "slurm", options)
    assert len(again) == 1  # the others are queued still
