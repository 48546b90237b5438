"""Sweeps on this machine: kills, divergence, runs that always fail, stopping, shared runs."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from benchmarks.sweeps import PRELOAD, faults, killing_slots

from conescope.cli import main
from conescope.errors import StoreError
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.experiments.sweep.axes import read_axes
from conescope.experiments.sweep.carrying_out import carry_out_sweep
from conescope.experiments.sweep.grid import make_grid
from conescope.experiments.sweep.single_run import RunTask, carry_out_run, line_of
from conescope.experiments.sweep.slots import SWEEP_DATA, Slots
from conescope.experiments.sweep.sweep_folder import read_sweep, store_sweep, stored_numbers
from conescope.experiments.sweep.sweep_planning import plan_sweep
from conescope.report.run_numbers import store_run_numbers
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from conescope.runs.writer import RunWriter
from conescope.training.recipe_reading import stored_recipe_parser
from slow_network import slow_network
from stored_runs import assert_same_run, stored_by_a_stop

_MOST_SECONDS = 600

TINY = ("--kernel.when=0, every 10", "--training.batch_size=8", "--probe.size=10")


def planned(path, overrides, *axes, runs=None):
    points = make_grid(read_axes(["digits"], [*overrides, *TINY, *axes]))
    sweep = plan_sweep(points, path, "conescope sweep", runs)
    store_sweep(sweep)
    return sweep


def task_of(run):
    return RunTask.of(run, "conescope sweep", store_run_numbers, 1)


def carried_out(sweep, backend=None, **options):
    """Carry out a sweep; return state by run, and whether it came to its end."""
    ends = {}
    backend = Slots(2, 1, PRELOAD) if backend is None else backend
    through = carry_out_sweep(
        sweep, backend, task_of, told=lambda run, state: ends.update({run.id: state}), **options
    )
    return ends, through


def test_processes_take_no_notice_of_ctrl_c_from_their_first_moment_on(tmp_path, tiny_overrides):
    """Not from when their first own line runs: Python prints a traceback of its own before."""
    run = planned(tmp_path, tiny_overrides, "--seed=0").runs[0]
    backend = Slots(1, 1, PRELOAD)
    try:
        backend.submit(task_of(run))
        process = backend._processes[run.id]
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        backend.close()
    blocked = int(re.search(r"SigBlk:\s+([0-9a-f]+)", status)[1], 16)
    assert blocked >> (signal.SIGINT - 1) & 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_runs_with_kills_are_those_that_were_never_disturbed(tmp_path, monkeypatch, tiny_overrides):
    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides, seconds=0.3)
    words.append("--snapshots.resume=every 1")
    sweep = planned(tmp_path / "killed", words, "--seed=0,1", "--optimizer.lr=0.01,0.05")
    killing = killing_slots(2, 8)

    def fast_once_all_are_killed():
        if not killing.left:
            mark.unlink(missing_ok=True)
        return False

    ends, through = carried_out(sweep, killing, should_stop=fast_once_all_are_killed)
    assert through
    assert killing.left == 0
    assert killing.hits >= 6
    assert list(ends.values()) == ["finished"] * 4
    for run in sweep.runs:
        run_experiment(run.recipe, tmp_path / "alone" / run.id, command="test")
        assert_same_run(tmp_path / "alone" / run.id, run.path)
        assert (run.path / "row.json").exists()
        assert run.error == ""
    assert carried_out(sweep) == ({}, True)  # what is done is not done again


def test_the_benchmark_of_kills_finds_what_is_wrong(tmp_path, tiny_overrides):
    one = planned(tmp_path / "one", tiny_overrides, "--seed=0..2")
    carried_out(one)
    assert faults(one.runs, one.runs) == {"lost": [], "ended twice": [], "other bits": []}
    other = planned(tmp_path / "other", tiny_overrides, "--seed=2", "--training.batch_size=4")
    carried_out(other)
    (one.runs[0].path / "row.json").unlink()
    Folder(one.runs[1].path).append(Kind.FINISHED, seconds=1.0)
    changed = [*one.runs[:2], other.runs[0]]
    assert faults(changed, one.runs) == {
        "lost": [one.runs[0].id],
        "ended twice": [one.runs[1].id],
        "other bits": [other.runs[0].id],
    }


@pytest.mark.parametrize(("rate", "end"), [(0.01, "finished"), (1e9, "diverged")])
def test_a_run_killed_before_its_numbers_gets_them(tmp_path, tiny_overrides, rate, end):
    """Its worker dies at the first call of what is to be done afterwards."""
    sweep = planned(tmp_path, tiny_overrides, f"--optimizer.lr={rate}", "--seed=0,1")
    mark = tmp_path / "died"

    def fragile(run):
        return replace(task_of(run), afterwards=partial(die_once, mark))

    ends = {}
    assert carry_out_sweep(
        sweep, Slots(1, 1, PRELOAD), fragile, told=lambda run, state: ends.update({run.id: state})
    )
    assert mark.exists()
    assert set(ends.values()) == {end}
    for run in sweep.runs:
        assert stored_numbers(run.path)["state"] == end
        assert len(Folder(run.path).entries(Kind.SESSION)) == 1
        assert ("training diverged" in run.error) == (end == "diverged")
        assert "SIGKILL" not in run.error


def die_once(mark, folder):
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    store_run_numbers(folder)


def test_a_run_that_diverges_is_marked_and_the_rest_goes_on(tmp_path, tiny_overrides):
    sweep = planned(tmp_path, tiny_overrides, "--optimizer.lr=0.01,1e9")
    ends, _ = carried_out(sweep)
    assert sorted(ends.values()) == ["diverged", "finished"]
    lost = next(run for run in sweep.runs if run.state() == "diverged")
    assert "training diverged; lower optimizer.lr" in lost.error
    assert len(Folder(lost.path).entries(Kind.SESSION)) == 1
    assert carried_out(sweep) == ({}, True)


def test_a_run_that_fails_twice_alike_is_given_up_and_named(
    tmp_path, monkeypatch, tiny_overrides, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moody.py").write_text(
        "import torch\n"
        "def build(shape, classes, hidden=3):\n"
        "    if hidden == 4:\n"
        "        raise OSError('no luck today')\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"
    )
    words = [w for w in tiny_overrides if not w.startswith("--model")]
    sweep = planned(tmp_path / "s", words, "--model.name=moody:build", "--model.hidden=4,5")
    ends, through = carried_out(sweep)
    assert through
    assert [ends[run.id] for run in sweep.runs] == ["failed", "finished"]
    failed = sweep.runs[0]
    assert failed.error == "OSError: no luck today"
    log = (failed.path / "log.txt").read_text()
    assert log.count("OSError: no luck today") == 2  # tried twice, each with its traceback
    assert "raise OSError(" in log


def stop_at_once(run, command, should_stop):
    """Store the state of the first iteration again, which adds a line to the journal each time."""
    return run_experiment(run.recipe, run.path, command=command, should_stop=lambda: True)


def leave_without_a_word(run, command, should_stop):
    os._exit(0)


def say_what_is_made(run, command, should_stop):
    (run.path / "made").write_text(str(stored_recipe_parser.cache_info()))
    return run_experiment(run.recipe, run.path, command=command)


def test_a_process_has_what_every_run_needs_before_it_is_forked(tmp_path, tiny_overrides):
    sweep = planned(tmp_path, tiny_overrides, "--seed=0")
    carry_out_sweep(
        sweep, Slots(1, 1, PRELOAD), lambda run: replace(task_of(run), work=say_what_is_made)
    )
    assert (sweep.runs[0].path / "made").read_text().endswith("misses=1, maxsize=None, currsize=1)")
    assert sweep.runs[0].state() == "finished"


SHARED_DATA = """
import os, sys
from pathlib import Path
from benchmarks.sweeps import PRELOAD
from conescope.experiments.sweep.carrying_out import carry_out_sweep
from conescope.experiments.sweep.slots import SWEEP_DATA, Slots
from test_sweep_slots import planned, task_of

if __name__ == "__main__":
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    sweep = planned(folder / "sweep", words, "--seed=0,1")
    slots = Slots(1, 1, PRELOAD, sweep.runs[0].recipe.data)
    ends = []
    def told(run, state):
        ends.append(state)
        (folder / "a.txt").unlink(missing_ok=True)
    carry_out_sweep(sweep, slots, task_of, told=told)
    print(ends)
"""


def test_the_data_are_loaded_once_before_processes_are_forked(tmp_path):
    """In a process of its own, since one server serves all slots of a process."""
    (tmp_path / "a.txt").write_text("to be, or not to be " * 100)
    (tmp_path / "script.py").write_text(SHARED_DATA)
    words = [
        "--model.name=transformer", "--data.name=text", f"--data.path={tmp_path / 'a.txt'}",
        "--data.context=8", "--probe.stratified=false", "--kernel.estimate=2",
        "--training.steps=2",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path), *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['finished', 'finished']", done.stderr


def test_data_that_cannot_be_loaded_are_each_runs_own_error(tmp_path):
    code = "import conescope.experiments.sweep.made_once"
    given = {SWEEP_DATA: f'["text", "{tmp_path}/none.txt", {{}}]'}
    subprocess.run([sys.executable, "-c", code], env=os.environ | given, check=True)


def fail_in_other_words(run, command, should_stop):
    raise OSError(f"at {time.monotonic_ns()}")


@pytest.mark.parametrize(
    ("work", "attempts", "line"),
    [
        (stop_at_once, 2, "ended without an error"),
        (leave_without_a_word, 2, "ended without an error"),
        (fail_in_other_words, 5, "OSError: at "),
    ],
)
def test_a_run_that_never_gets_further_is_given_up_and_the_rest_goes_on(
    tmp_path, tiny_overrides, work, attempts, line
):
    sweep, tried = planned(tmp_path, tiny_overrides, "--seed=0,1"), []

    def one_of_them(run):
        if run.id != sweep.runs[0].id:
            return task_of(run)
        tried.append(run.id)
        return replace(task_of(run), work=work)

    ends = {}
    assert carry_out_sweep(
        sweep,
        Slots(1, 1, PRELOAD),
        one_of_them,
        told=lambda run, state: ends.update({run.id: state}),
        should_stop=lambda: len(tried) > 6,
    )
    assert [ends[run.id] for run in sweep.runs] == ["failed", "finished"]
    assert len(tried) == attempts
    assert line in sweep.runs[0].error
    assert sweep.runs[0].state() == "failed"


def test_a_disk_that_is_full_on_one_node_fails_one_run_only(tmp_path, monkeypatch, tiny_overrides):
    """Nothing can be written there, not even the line of the error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crowded.py").write_text(
        "import errno, os, torch\n"
        "def full(file):\n"
        "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "def build(shape, classes, hidden=3):\n"
        "    if hidden == 4:\n"
        "        os.fsync = full\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"
    )
    words = [w for w in tiny_overrides if not w.startswith("--model")]
    sweep = planned(tmp_path / "s", words, "--model.name=crowded:build", "--model.hidden=4,5")
    ends, _ = carried_out(sweep)
    assert [ends[run.id] for run in sweep.runs] == ["failed", "finished"]
    said = sweep.runs[0].error
    assert said.startswith("StoreError: cannot write ")
    assert "No space left on device; make room" in said
    assert said.count("\n") == 0


def test_the_driver_is_killed_and_the_same_command_goes_on(tmp_path, monkeypatch, tiny_overrides):
    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides)
    words = ["sweep", "digits", *words, "--seed=0..2", "--out=s", "--slots=2", "--threads=1"]
    driver = subprocess.Popen([sys.executable, "-m", "conescope", *words])
    deadline = time.monotonic() + _MOST_SECONDS
    while not list(tmp_path.glob("s/runs/*/snapshots/*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    mark.unlink()
    assert main(words) == 0
    for run in read_sweep("s").runs:
        run_experiment(run.recipe, tmp_path / "alone" / run.id, command="test")
        assert_same_run(tmp_path / "alone" / run.id, run.path)
        assert len(Folder(run.path).entries(Kind.FINISHED)) == 1


def test_a_machine_is_taken_away_and_the_same_command_goes_on(
    tmp_path, monkeypatch, tiny_overrides
):
    """SIGTERM reaches all processes at once, that of which the others are forked among them."""
    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides)
    words = ["sweep", "digits", *words, "--seed=0..2", "--out=s", "--slots=2", "--threads=1"]
    command = [sys.executable, "-m", "conescope", *words]
    driver = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + _MOST_SECONDS
    while len(list(tmp_path.glob("s/runs/*/snapshots/*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGTERM)
    _, said = driver.communicate(timeout=_MOST_SECONDS)
    runs = read_sweep("s").runs
    assert [run.state() for run in runs] == ["stopped", "stopped", "waiting"]
    assert all(stored_by_a_stop(run.path) for run in runs[:2])
    assert driver.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1].endswith(
        "stopped: s is intact; the same command goes on from there"
    )
    mark.unlink()
    assert main(words) == 0
    for run in runs:
        run_experiment(run.recipe, tmp_path / "alone" / run.id, command="test")
        assert_same_run(tmp_path / "alone" / run.id, run.path)


def test_stopped_gently_it_goes_on_by_the_same_call(tmp_path, monkeypatch, tiny_overrides):
    monkeypatch.chdir(tmp_path)
    mark, words = slow_network(tmp_path, tiny_overrides)
    sweep = planned(tmp_path / "s", words, "--seed=0..2")

    def two_have_begun():
        return all(Folder(run.path).entries(Kind.SNAPSHOT) for run in sweep.runs[:2])

    ends, through = carried_out(sweep, should_stop=two_have_begun)
    assert not through
    assert list(ends.values()) == ["stopped"] * 2
    assert all(stored_by_a_stop(run.path) for run in sweep.runs[:2])
    assert sweep.runs[2].state() == "waiting"
    mark.unlink()
    ends, through = carried_out(sweep)
    assert through
    assert list(ends.values()) == ["finished"] * 3
    assert [len(Folder(run.path).entries(Kind.SESSION)) for run in sweep.runs] == [2, 2, 1]


def test_a_run_that_is_under_way_elsewhere_is_waited_for(tmp_path, tiny_overrides):
    sweep = planned(tmp_path / "a", tiny_overrides, "--seed=0,1", runs=tmp_path / "runs")
    other = planned(tmp_path / "b", tiny_overrides, "--seed=1,2", runs=tmp_path / "runs")
    shared = sweep.runs[1].path
    assert other.runs[0].path == shared
    with RunWriter(shared):
        assert other.runs[0].state() == "running"
        found = []
        thread = threading.Thread(target=lambda: found.append(carried_out(other)))
        thread.start()
        while other.runs[1].state() != "finished":
            time.sleep(0.05)
        assert not found
    run_experiment(sweep.runs[1].recipe, shared, command="test")
    carried_out(sweep)
    thread.join()
    assert all(run.state() == "finished" for run in (*sweep.runs, *other.runs))
    for run in (*sweep.runs, *other.runs):
        assert len(Folder(run.path).entries(Kind.FINISHED)) == 1


def test_a_worker_with_another_version_refuses(tmp_path, tiny_overrides):
    sweep = planned(tmp_path, tiny_overrides, "--seed=0,1")
    old = replace(task_of(sweep.runs[0]), version="0.0.1")
    with pytest.raises(StoreError, match=r"planned by 0\.0\.1; install 0\.0\.1 on all machines"):
        carry_out_run(old)
    assert "planned by 0.0.1" in sweep.runs[0].error


def test_a_run_of_another_recipe_with_the_same_id_is_not_taken_for_it(
    tmp_path, monkeypatch, tiny_overrides, capsys
):
    monkeypatch.chdir(tmp_path)
    words = [*tiny_overrides, *TINY, "--slots=1"]
    assert main(["sweep", "digits", *words, "--seed=0", "--out=one"]) == 0
    [one] = read_sweep("one").runs
    assert main(["sweep", "digits", *words, "--seed=1", "--out=other", "--dry-run"]) == 0
    [other] = planned(Path("other"), words[:-1], "--seed=1").runs
    other.path.parent.mkdir()
    one.path.rename(other.path)
    capsys.readouterr()
    assert main(["sweep", "digits", *words, "--seed=1", "--out=other"]) == 1
    said = capsys.readouterr().err
    assert f"{other.path} holds another run, whose recipe has the same id" in said
    assert said.count("\n") == 1


def test_a_run_of_a_sweep_is_verified_as_any_other(tmp_path, monkeypatch, tiny_overrides):
    monkeypatch.chdir(tmp_path)
    sweep = planned(tmp_path, tiny_overrides, "--seed=0")
    carried_out(sweep)
    assert main(["verify", str(sweep.runs[0].path)]) == 0


def test_the_command_does_it_all(tmp_path, monkeypatch, tiny_overrides, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "digits", *tiny_overrides, *TINY, "--seed=0,1", "--out", "mine"]
    assert main([*words, "--slots=2"]) == 0
    shown = capsys.readouterr()
    assert "2, of which 2 are to do" in shown.out
    assert shown.err.count(": finished") == 2
    runs = read_sweep("mine").runs
    assert [run.path.parent for run in runs] == [Path("mine/runs")] * 2
    assert load_run(runs[0].path).finished
    assert main([*words, "--slots=2"]) == 0
    shown = capsys.readouterr()
    assert "2, of which 0 are to do" in shown.out
    assert shown.err == ""
    assert main([*words, "--slots=0"]) == 2
    assert "--slots is at least 1" in capsys.readouterr().err


def test_the_line_of_an_error_fits_into_the_pipe_of_a_slot():
    assert len(line_of(ValueError("x" * 100_000))) <= 2000
    assert line_of(ValueError("a\n b")) == "ValueError: a b"
