"""Runs carried out on copies of their folders: packing and unpacking, and the same on Ray."""

import dataclasses
import io
import os
import tarfile
from pathlib import Path

import pytest

from conescope.cli import main
from conescope.errors import StoreError
from conescope.experiments.session import run_experiment
from conescope.experiments.sweep.axes import read_axes
from conescope.experiments.sweep.grid import make_grid
from conescope.experiments.sweep.run_copies import carry_out_copy, pack_run, unpack_run
from conescope.experiments.sweep.single_run import RunTask
from conescope.experiments.sweep.sweep_planning import plan_sweep
from conescope.report.run_numbers import store_run_numbers
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from stored_runs import assert_same_run

NOWHERE = Path("/nowhere")


@pytest.fixture
def run(tmp_path, tiny_overrides):
    axes = read_axes(["digits"], [*tiny_overrides, "--seed=0"])
    return plan_sweep(make_grid(axes), tmp_path / "s", "conescope sweep").runs[0]


def sent(run):
    """The task of a run, as a worker gets it that does not see the run's folder."""
    task = RunTask.of(run, "conescope sweep", store_run_numbers, 1)
    return dataclasses.replace(task, folder=NOWHERE / run.id, here=NOWHERE)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_a_run_stopped_and_gone_on_with_on_copies_is_the_one_never_copied(
    run, tmp_path, monkeypatch
):
    (tmp_path / "aside").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "aside"))
    asked = iter(range(100))
    run.path.mkdir(parents=True)
    first = carry_out_copy(sent(run), pack_run(run.path), lambda: next(asked) > 30)
    unpack_run(first.archive, run.path)
    assert (first.error, run.state()) == ("", "stopped")
    second = carry_out_copy(sent(run), pack_run(run.path), lambda: False)
    unpack_run(second.archive, run.path)
    assert (second.error, run.state()) == ("", "finished")
    assert len(Folder(run.path).entries(Kind.SESSION)) == 2
    run_experiment(run.recipe, tmp_path / "alone", command="test")
    assert_same_run(tmp_path / "alone", run.path)
    assert not NOWHERE.exists()
    assert not list((tmp_path / "aside").glob("conescope-*"))


def test_an_error_comes_back_with_the_folder_and_reads_the_same_each_time(run):
    def fail(run, command, should_stop):
        raise StoreError(f"cannot write {run.path}/x")

    run.path.mkdir(parents=True)
    task = dataclasses.replace(sent(run), work=fail)
    found = [carry_out_copy(task, pack_run(run.path), lambda: False) for _ in range(2)]
    line = f"StoreError: cannot write {NOWHERE / run.id}/x"
    assert [back.error for back in found] == [line, line]
    unpack_run(found[0].archive, run.path)
    assert run.error == line
    assert "Traceback" in (run.path / "log.txt").read_text()


def test_a_folder_comes_out_as_it_was_packed_and_keeps_its_lock_and_the_runs_in_it(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("old/gone.txt", "old/deep/gone.txt", "old/lock", "old/branches/b/journal.jsonl",
                 "new/a/b", "new/journal.jsonl", "new/branches/c/journal.jsonl"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    unpack_run(pack_run(new), old)
    assert contents(old) == {
        "a/b": b"new/a/b",
        "journal.jsonl": b"new/journal.jsonl",
        "branches/b/journal.jsonl": b"old/branches/b/journal.jsonl",
    }
    assert (old / "lock").exists()


def archive_of(*members):
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return held.getvalue()


def member(name, **fields):
    found = tarfile.TarInfo(name)
    found.size = 0 if fields else 3000
    for field, value in fields.items():
        setattr(found, field, value)
    return found


@pytest.mark.parametrize(
    "archive",
    [
        archive_of(member("good"), member("../out")),
        archive_of(member("good"), member("a/../../out")),
        archive_of(member("good"), member("link", type=tarfile.SYMTYPE, linkname="good")),
        archive_of(member("good"), member("link", type=tarfile.SYMTYPE, linkname="/etc")),
        archive_of(member("good"), member("pipe", type=tarfile.FIFOTYPE)),
        archive_of(member("good"), member("folder", type=tarfile.DIRTYPE)),
        archive_of(member("good"), member("better"))[:5000],
        archive_of(member("good"), member("better"))[:3584],
        b"",
        b"no archive" * 1024,
    ],
)
def test_an_archive_that_is_damaged_or_leads_elsewhere_changes_nothing(tmp_path, archive):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "journal.jsonl").write_text("before")
    with pytest.raises(StoreError, match=r"cannot be unpacked .*as before"):
        unpack_run(archive, folder)
    assert contents(tmp_path) == {"run/journal.jsonl": b"before"}


def test_a_kill_while_unpacking_leaves_the_old_run(tmp_path, monkeypatch):
    folder, new = tmp_path / "run", tmp_path / "new"
    for place in (folder, new):
        place.mkdir()
        (place / "journal.jsonl").write_text(place.name)
        (place / f"only-{place.name}").write_text(place.name)
    archive = pack_run(new)
    replaced = os.replace

    def replace(source, target):
        if Path(target).name == "journal.jsonl":
            raise OSError("killed")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "replace", lambda self, target: replace(self, target))
    with pytest.raises(StoreError, match="make room"):
        unpack_run(archive, folder)
    assert contents(folder)["journal.jsonl"] == b"run"
    assert contents(folder)["only-run"] == b"run"


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("digits", "--seed=0,1", "--on=local"), "--copy is for --on ray"),
        (("digits", "--seed=0,1", "--on=slurm"), "--copy is for --on ray"),
        (("measure", "ckpts", "--model=m:build", "--on=ray"), "read other runs or weights"),
        (("branch", "parent", "--at=0", "--optimizer.lr=0.1,0.2", "--on=ray"), "read other runs"),
    ],
)
def test_where_copies_are_no_use(tmp_path, monkeypatch, tiny_overrides, capsys, words, refusal):
    monkeypatch.chdir(tmp_path)
    if "branch" in words:
        assert main(["run", "digits", *tiny_overrides, "--out=parent"]) == 0
    Path("ckpts").mkdir()
    assert main(["sweep", *words, "--copy", "--out=s"]) == 2
    assert refusal in capsys.readouterr().err
    assert not Path("s").exists()


def test_a_run_whose_numbers_were_not_stored_is_met_by_the_same_command(
    run, tmp_path, monkeypatch, tiny_overrides, capsys
):
    """As after a kill of the process and of its command too, between the two."""
    monkeypatch.chdir(tmp_path)
    run_experiment(run.recipe, run.path, command="test")
    assert run.state() == "finished"
    words = [*tiny_overrides, "--seed=0", "--out=s", "--slots=1"]
    assert main(["sweep", "digits", *words]) == 0
    assert (run.path / "row.json").exists()
    assert "1, of which 1 are to do" in capsys.readouterr().out
    assert main(["sweep", "digits", *words]) == 0
    assert "1, of which 0 are to do" in capsys.readouterr().out
    assert len(Folder(run.path).entries(Kind.SESSION)) == 1
