"""Journals and files whose checksums are right, and that no writer has written."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from benchmarks.torture.forged_files import FORGED
from benchmarks.torture.forged_lines import SECRET
from benchmarks.torture.forgeries import forgeries_of
from benchmarks.torture.forging import lines_of, opened_in, write_lines
from benchmarks.torture.subjects import watch
from safetensors.torch import save

from conescope.errors import ConescopeError, DamageWarning, StoreError
from conescope.experiments.stored import load_run, read_status
from conescope.runs.chain import read_journal
from conescope.runs.foreign import fits
from conescope.runs.journal import LINES, Kind, checksum_of
from conescope.runs.snapshots import read_snapshot
from conescope.runs.store import Folder
from written_lines import EVALUATED, MEASURED

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    path = tmp_path_factory.mktemp("forged") / "watch"
    watch(path)
    return path


def test_no_forgery_of_a_watch_is_read_without_a_result_or_one_line(watched, tmp_path):
    secret = tmp_path / SECRET
    secret.parent.mkdir()
    shutil.copyfile(watched / "kernels/00000000.safetensors", secret)
    count, wrong = 0, []
    with opened_in(secret.parent) as opened:
        for _, name, forge in forgeries_of(watched):
            path = Path(shutil.copytree(watched, tmp_path / "forged"))
            forge(path, lines_of(path))
            opened.clear()
            for read in (read_status, load_run):
                wrong += [f"{name}: {text}" for text in said(read, path)]
            wrong += [f"{name}: {read.__name__} opens {each}" for each in opened]
            shutil.rmtree(path)
            count += 1
    assert count > 500
    assert wrong == []


def said(read, path):
    """What is wrong with what a reader says or raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            read(path)
        except ConescopeError as error:
            caught.append(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            return [f"{read.__name__} raises {type(error).__name__}: {error}"]
    texts = [str(getattr(each, "message", each)) for each in caught]
    return [f"{read.__name__} says {text!r}" for text in texts if not text.isprintable()]


def test_files_outside_of_a_folder_are_seen_when_they_are_opened(tmp_path):
    (tmp_path / "a").write_text("x")
    with opened_in(tmp_path) as opened:
        (tmp_path / "a").read_bytes()
    assert opened == [str(tmp_path / "a")]


def test_a_line_of_another_type_is_named(watched, tmp_path):
    path = Path(shutil.copytree(watched, tmp_path / "forged"))
    lines = lines_of(path)
    lines[4]["seconds"] = "soon"
    write_lines(path, lines)
    with pytest.warns(DamageWarning, match=r"journal.jsonl: line 5 \(kernel, .*\) is damaged"):
        run = load_run(path)
    assert len(run.series) == 6
    assert run.lost


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Kind.KERNEL, {"outputs": 0}),
        (Kind.KERNEL, {"outputs": -1}),
        (Kind.KERNEL, {"seed": 2**70}),
        (Kind.KERNEL, {"seed": -3}),
        (Kind.KERNEL, {"seconds": 0}),
        (Kind.KERNEL, {"draws": 1, "weights": "a"}),
        (Kind.EVALUATION, {"learning_rate": 0}),
        (Kind.EVALUATION, {"train_loss": -3.5e300}),
    ],
)
def test_what_a_writer_may_write_fits(kind, values):
    file = {"file": "kernels/a b.safetensors", "sha256": "0"}
    held = {**file, **MEASURED} if kind == Kind.KERNEL else EVALUATED
    assert fits(kind, {"step": 3, **held, **values})


def test_every_kind_of_line_that_misses_a_field_does_not_fit():
    lines = {
        Kind(line["kind"]): line for name in ("run", "watch") for line in lines_of(GOLDEN / name)
    }
    assert len(lines) >= 6
    for kind, line in lines.items():
        values = {name: value for name, value in line.items() if name != "kind"}
        assert fits(kind, values)
        for name in set(LINES[kind].fields) & set(values) - set(LINES[kind].optional):
            assert not fits(kind, {n: v for n, v in values.items() if n != name})


def test_not_a_number_is_no_number(tmp_path):
    for value in ("NaN", "Infinity", "-Infinity", "1e999"):
        line = {"kind": "evaluation", "step": 1, **EVALUATED, "test_loss": 0.125}
        write_lines(tmp_path, [line])
        text = json.dumps({"line": 1, **line, "after": ""}).replace("0.125", value)
        (tmp_path / "journal.jsonl").write_text(f"{checksum_of(text.encode())} {text}\n")
        with pytest.warns(DamageWarning, match=r"line 1 \(evaluation, iteration 1\) is damaged"):
            assert read_journal(tmp_path / "journal.jsonl").entries == []


@pytest.mark.parametrize("name", ["other names", "one row", "whole numbers", "text", "no tensor"])
def test_a_file_that_holds_no_kernel_is_named(watched, tmp_path, name):
    path = Path(shutil.copytree(watched, tmp_path / "forged"))
    forge = next(f for _, n, f in forgeries_of(path) if n.endswith(f"safetensors: {name}"))
    forge(path, lines_of(path))
    with pytest.raises(ConescopeError, match=r"[0-9]{8}\.safetensors"):
        load_run(path)


def test_a_pipe_or_a_device_in_place_of_a_file_is_not_read(watched, tmp_path):
    path = Path(shutil.copytree(watched, tmp_path / "forged"))
    file = path / "kernels/00000004.safetensors"
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(StoreError, match="it is a pipe or a device, not a file"):
        load_run(path)
    file.unlink()
    os.mkfifo(file)
    assert not Folder(path).is_whole(Folder(path).files(Kind.KERNEL)[1])
    (path / "journal.jsonl").unlink()
    os.mkfifo(path / "journal.jsonl")
    with pytest.raises(StoreError, match=r"journal.jsonl: it is a pipe or a device"):
        load_run(path)


def test_forged_files_can_be_made_of_any_file():
    data = save({"values": torch.eye(3), "step": torch.tensor(1)})
    for name, forge in FORGED.items():
        assert isinstance(forge(data), bytes), name
        assert isinstance(forge(b"text"), bytes), name


@pytest.mark.parametrize("name", ["layer.a", "optimizer.x.y", "optimizer.-1.a", "optimizer.1", ""])
def test_a_snapshot_with_a_tensor_of_no_meaning_is_refused_by_name(tmp_path, name):
    folder = Folder(tmp_path)
    noted = {"step": 1, "seconds": 1.0, "param_groups": []}
    folder.write_tensors(Kind.SNAPSHOT, "snapshots/1.safetensors", {name: torch.ones(1)}, **noted)
    with pytest.raises(StoreError, match=r"1\.safetensors holds '.*', which no snapshot has"):
        read_snapshot(folder, folder.files(Kind.SNAPSHOT)[0])
