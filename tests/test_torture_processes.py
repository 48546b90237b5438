"""The batteries of benchmarks/torture that start processes; how the command line ends."""

import subprocess
import sys

import pytest
from benchmarks.torture import concurrency, failing_writes, kills, memory
from benchmarks.torture.case import battery_outcomes
from benchmarks.torture.processes import Ended, ended, start

import conescope as cs
from conescope.errors import CheckpointError, StoreError
from conescope.experiments.session import run_experiment
from conescope.runs import shared_files
from conescope.runs.shared_files import write_result
from conescope.runs.store import Folder
from conescope.training.recipe_reading import load_recipe

WITHOUT = ["--model.name=mlp", "--training.steps=9", "--probe.size=8", "--kernel.when=every 3"]


@pytest.mark.parametrize(
    ("battery", "seed"),
    [
        (failing_writes.failing_writes, 10),  # status, and
        (kills.kills, 10),  # a watch, and
        (concurrency.concurrency, 1),  # load_run, which take the least time
        (memory.memory, 2),
    ],
    ids=["failing writes", "kills", "concurrency", "memory"],
)
def test_a_case_of_each_battery_holds(battery, seed, tmp_path):
    _, (outcome,) = battery_outcomes(battery, tmp_path, seed, until=lambda: True)
    assert outcome.held, str(outcome)


@pytest.mark.parametrize(
    ("end", "wrong"),
    [
        (Ended(0, ""), ""),
        (Ended(1, "conescope: warning: x\nconescope: error: y\n"), ""),
        (Ended(1, "conescope: error: x\nconescope: error: y\n"), "2 errors are told"),
        (Ended(1, ""), "0 errors are told"),
        (Ended(1, "Traceback\nOSError: x"), "a traceback that ends with 'OSError: x'"),
        (Ended(1, "OSError: x"), "other lines than ours on standard error: 'OSError: x'"),
    ],
)
def test_a_failure_that_is_told_badly_is_seen(end, wrong):
    assert end.wrong() == wrong


INTERRUPTED_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
REPLACED_INTERRUPT = """
import conescope.cli.all_commands as commands
def raising(words):
    try:
        raise KeyboardInterrupt
    finally:
        raise RuntimeError("a level of automatic differentiation that is left in the wrong order")
commands.carry_out = raising
"""
LOST_INTERRUPT = """
import conescope.cli.all_commands as commands
class Lost:
    def __del__(self):
        raise KeyboardInterrupt
commands.carry_out = lambda words: Lost() and 0
"""


@pytest.mark.parametrize("fault", [INTERRUPTED_IMPORT, REPLACED_INTERRUPT, LOST_INTERRUPT])
def test_an_interrupt_never_ends_in_a_traceback(fault, tmp_path):
    assert ended(start(["recipes"], tmp_path, fault)) == Ended(130, "")


def test_other_errors_than_the_systems_are_not_hidden(tmp_path):
    fault = REPLACED_INTERRUPT.replace("raise KeyboardInterrupt", "pass")
    assert "RuntimeError: a level" in ended(start(["recipes"], tmp_path, fault)).said


@pytest.mark.parametrize("words", [["recipes"], ["--help"]])
def test_a_full_standard_output_is_one_line(words, tmp_path):
    with open("/dev/full", "w") as full:
        done = ended(start(words, tmp_path, stdout=full))
    assert done.status == 1
    assert done.wrong() == ""
    assert "cannot use standard output: No space left on device" in done.said


def test_a_broken_pipe_is_quiet(tmp_path):
    process = start(["recipes"], tmp_path, stdout=subprocess.PIPE)
    process.stdout.close()
    process.stdout = None
    assert ended(process) == Ended(1, "")


def test_a_missing_standard_output_is_one_line(tmp_path):
    command = f"{sys.executable} -m conescope recipes >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert Ended(1, done.stderr).wrong() == ""
    assert "standard output" in done.stderr


def test_too_few_open_files_are_one_line_with_the_cure(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))"
    done = ended(start(["run", "digits", *WITHOUT], tmp_path, limit))
    assert done.status == 1
    assert done.wrong() == ""
    assert "ulimit -n" in done.said


def test_a_result_is_whole_or_as_before(tmp_path, monkeypatch):
    file = tmp_path / "figures" / "a.png"
    assert write_result(file, b"before") == file
    monkeypatch.setattr(shared_files.os, "getpid", lambda: 1)
    (file.parent / f".{file.name}.1.partial").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*a\.png: .*; free space there or"):
        write_result(file, b"after")
    assert file.read_bytes() == b"before"


def test_snapshots_of_a_run_that_is_being_written_are_those_that_it_keeps(tmp_path):
    path, steps = tmp_path / "run", []

    def stop():
        steps.append(len(steps) + 1)
        return steps[-1] == 6

    recipe = load_recipe("digits", [*WITHOUT, "--snapshots.keep=4"])
    assert not run_experiment(recipe, path, command="", should_stop=stop)
    with Folder(path).owned():
        run = cs.measure_snapshots(path, out=tmp_path / "kept")
        with pytest.raises(CheckpointError, match="those of 4; it is still being written, so run"):
            cs.measure_snapshots(path, out=tmp_path / "other", when="8")
    assert run.series.steps == (4,)
    assert cs.measure_snapshots(path, out=tmp_path / "all").series.steps == (4, 5)
