"""A sweep's status, its table, its page, by made run folders."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import t as student

from conescope import load_sweep
from conescope.cli import main
from conescope.errors import DamageWarning
from conescope.experiments.sweep.single_run import note_error
from conescope.experiments.sweep.sweep_folder import (
    read_sweep,
    store_numbers,
    stored_numbers,
)
from conescope.experiments.sweep.sweep_progress import read_progress
from conescope.kernel.matrix import Kernel
from conescope.report.matplotlib_drawing import draw
from conescope.report.plotly_drawing import chart
from conescope.report.run_numbers import NUMBERS, run_numbers, store_run_numbers
from conescope.report.sweep_plots import findings, numbers_along, phase_diagrams
from conescope.runs.writer import RunWriter
from made_sweeps import planned, write_run


def made_numbers(accuracy=0.9, verdict="confined", p=0.95, state="finished"):
    names = dict.fromkeys(("verdict", "likeliest", "probability", *NUMBERS))
    probabilities = {name: 0.0 for name in NUMBERS if name.startswith("p_")}
    return names | probabilities | {
        "state": state, "verdict": verdict, "likeliest": "confined", "probability": p,
        "p_confined": p, "test_accuracy": accuracy, "seconds": 5.0, "kernels": 30, "iterations": 9,
    }  # fmt: skip


def write_numbers(run, **numbers):
    run.path.mkdir(parents=True)
    (run.path / "journal.jsonl").write_bytes(b"")
    store_numbers(run.path, made_numbers(**numbers))


def test_the_numbers_of_a_run_are_those_that_the_cone_says(tmp_path):
    sweep = planned(tmp_path, "--seed=0,1")
    run = sweep.runs[0]
    write_run(run)
    numbers = run_numbers(run.path)
    from conescope import cone, load_run, load_sweep  # noqa: F401

    series = load_run(run.path).series
    found = cone(series)
    assert numbers["state"] == "finished"
    assert numbers["verdict"] == found.verdict
    assert numbers["R"] == found.radius.value
    assert numbers["p_confined"] == found.probability["confined"]
    assert numbers["half_angle"] == pytest.approx(np.degrees(found.half_angle.value))
    distances = series.distances()
    assert numbers["S"] == distances[0, -1]
    late = [distances[i, i + 1] for i in range(23) if 100 * i >= 1150]
    assert numbers["v"] == pytest.approx(np.mean(late) / 100)
    assert stored_numbers(run.path) is None
    store_run_numbers(run.path)
    assert stored_numbers(run.path) == json.loads(json.dumps(numbers))
    with RunWriter(run.path) as writer:
        writer.write_kernel(5000, Kernel(torch.eye(6)))
    assert stored_numbers(run.path) is None  # since the journal has grown


def test_a_row_for_each_run_whatever_its_state(tmp_path):
    sweep = planned(tmp_path, "--optimizer.lr=0.01,0.1", "--seed=0..1", "--data.augmentation=none")
    write_run(sweep.runs[0])
    write_run(sweep.runs[1], "diverged", kernels=2)
    write_run(sweep.runs[2], "")
    note_error(sweep.runs[2].path, "OSError: no luck")
    table = load_sweep(tmp_path).table()
    assert table.column_names[:7] == [
        "run", "optimizer.lr", "seed", "state", "verdict", "likeliest", "probability"]  # fmt: skip
    assert table["state"].to_pylist() == ["finished", "diverged", "failed", "waiting"]
    assert table["optimizer.lr"].to_pylist() == [0.01, 0.01, 0.1, 0.1]
    assert table["test_accuracy"].to_pylist() == [0.9, 0.9, None, None]
    assert table["error"].to_pylist() == [None, None, "OSError: no luck", None]
    assert table["training.steps"].to_pylist() == [2000] * 4
    assert table.schema.field("R").type == pa.float64()
    assert table.schema.field("kernels").type == pa.int64()
    assert stored_numbers(sweep.runs[0].path)["state"] == "finished"  # computed once


def test_seeds_become_intervals(tmp_path):
    sweep = planned(tmp_path, "--model.name=cnn,mlp", "--seed=0..3")
    accuracies = [0.5, 0.55, 0.6]
    for run, accuracy in zip(sweep.runs[:3], accuracies, strict=True):
        write_numbers(run, accuracy=accuracy)
    write_numbers(sweep.runs[3], state="diverged", accuracy=0.1)
    write_numbers(sweep.runs[4], p=0.7, verdict="undecided")
    seeds = load_sweep(tmp_path).over_seeds().to_pylist()
    assert [row["model.name"] for row in seeds] == ["cnn", "mlp"]
    first, second = seeds
    assert (first["runs"], first["seeds"], first["diverged"]) == (4, 3, 1)
    width = student.ppf(0.975, 2) * np.std(accuracies, ddof=1) / np.sqrt(3)
    assert first["test_accuracy"] == pytest.approx(np.mean(accuracies))
    assert first["test_accuracy_high"] == pytest.approx(np.mean(accuracies) + width)
    assert (first["verdict"], first["p_confined"]) == ("confined", pytest.approx(0.95))
    assert second["test_accuracy_low"] is None
    assert (second["verdict"], second["likeliest"]) == ("undecided", "confined")
    write_numbers(sweep.runs[5], accuracy=0.99)
    assert load_sweep(tmp_path).over_seeds().to_pylist()[1]["test_accuracy_high"] == 1.0


def test_the_page_has_phase_diagrams_and_small_multiples(tmp_path, capsys):
    sweep = planned(tmp_path, "--optimizer.lr=0.01,0.1", "--model.name=cnn,mlp", "--seed=0..1",
                    "--optimizer.nesterov=null")  # fmt: skip
    for run in sweep.runs[:-1]:
        write_run(run)
    assert main(["sweep", "report", str(tmp_path)]) == 0
    files = capsys.readouterr().out.split()
    assert [file.rpartition("/")[2] for file in files] == [
        "sweep.parquet", "sweep.csv", "seeds.parquet", "seeds.csv", "report.html"]  # fmt: skip
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "7 of 8 runs have ended" in page
    assert "Verdict over optimizer.lr and model.name" in page
    assert re.search(r"Held: model\.name = cnn\.", page)
    for letter in "abc":
        assert f"1{letter}, optimizer.lr = 0.1, seed 0" in page
    names = re.findall(r'<div id="([^"]+)" class="plotly-graph-div"', page)
    assert len(names) == len(set(names)) >= 1 + 8 + 12
    from pyarrow import csv, parquet

    assert parquet.read_table(tmp_path / "sweep.parquet").num_rows == 8
    assert csv.read_csv(tmp_path / "seeds.csv").num_rows == 4


def test_one_verdict_for_all_settings_is_one_sentence(tmp_path):
    sweep = planned(tmp_path, "--optimizer.lr=0.01,0.1", "--seed=0..1")
    for run in sweep.runs:
        write_numbers(run, p=0.95)
    assert findings(load_sweep(tmp_path)).startswith("The verdict is confined at all 2 settings.")


def test_the_page_says_in_a_sentence_what_was_found(tmp_path):
    sweep = planned(tmp_path, "--optimizer.lr=0.01,0.1,1,2", "--seed=0..1")
    for run, accuracy in zip(sweep.runs[:4], (0.5, 0.6, 0.9, 0.9), strict=True):
        write_numbers(run, accuracy=accuracy, p=0.95 if accuracy < 0.8 else 0.899)
    for run in sweep.runs[4:6]:
        write_numbers(run, state="diverged")
    results = load_sweep(tmp_path)
    assert findings(results) == (
        "Of 4 settings the verdict is not known at 2, confined at 1, undecided at 1. "
        "2 of 8 runs diverged. Test accuracy is highest, 90.0%, where optimizer.lr = 0.1."
    )
    [diagram] = phase_diagrams(results).values()
    assert diagram.texts == [
        ["confined\n0.95", "confined\n0.89", "diverged", "not\nfinished"],
    ]
    plot = numbers_along(results, "optimizer.lr")["optimizer-lr-test-accuracy"]
    assert plot.x_ticks == {0.01: "0.01", 0.1: "0.1", 1.0: "1", 2.0: "2"}
    assert plot.title == "Test accuracy against optimizer.lr"
    drawn = json.loads(chart(diagram).to_json())["data"]
    assert drawn[0]["text"][0][0] == "confined<br>0.95"
    assert drawn[0]["text"][0][2:] == ["diverged", "not<br>finished"]


def test_axes_of_names_are_drawn_with_their_names(tmp_path):
    sweep = planned(tmp_path, "--model.name=cnn,mlp", "--seed=0..1")
    for run in sweep.runs:
        write_numbers(run)
    plot = numbers_along(load_sweep(tmp_path), "model.name")["model-name-test-accuracy"]
    assert plot.x_ticks == {1.0: "cnn", 2.0: "mlp"}
    assert plot.x_label == "model.name"
    assert [t.get_text() for t in draw(plot).axes[0].get_xticklabels()] == ["cnn", "mlp"]


def test_numbers_that_are_damaged_are_read_from_the_run_again(tmp_path):
    run = planned(tmp_path, "--seed=0,1").runs[0]
    write_run(run)
    size = (run.path / "journal.jsonl").stat().st_size
    wrong = [f'{{"journal": {size}, "numbers": {n}}}' for n in ("3", "{}", '{"state": "baked"}')]
    for damage in ("", "{}", "[]", "3", '{"journal": 3}', *wrong):
        (run.path / "row.json").write_text(damage)
        assert stored_numbers(run.path) is None
        assert run.state() == "finished"
    (run.path / "error.txt").write_bytes(b"OSError: \xff")
    assert run.error == "OSError: \ufffd"


def test_a_run_folder_deleted_by_hand_waits_again(tmp_path):
    sweep = planned(tmp_path, "--seed=0,1")
    for run in sweep.runs:
        write_run(run)
    shutil.rmtree(sweep.runs[0].path)
    assert load_sweep(tmp_path).table()["state"].to_pylist() == ["waiting", "finished"]
    assert main(["sweep", "report", str(tmp_path)]) == 0


def test_a_run_with_a_damaged_kernel_is_named_and_the_others_are_in_the_table(tmp_path, capsys):
    sweep = planned(tmp_path, "--seed=0,1")
    for run in sweep.runs:
        write_run(run)
    kernel = next((sweep.runs[0].path / "kernels").iterdir())
    kernel.write_bytes(b"damaged")
    with pytest.warns(DamageWarning, match=rf"{sweep.runs[0].id} is left out .*{kernel.name}"):
        table = load_sweep(tmp_path).table()
    assert table["state"].to_pylist() == ["damaged", "finished"]
    assert table["S"].to_pylist()[0] is None
    assert table["S"].to_pylist()[1] is not None
    assert main(["sweep", "report", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"conescope: warning: run {sweep.runs[0].id} is left out of the numbers" in told


def test_a_sweep_of_which_nothing_is_done_has_a_page(tmp_path):
    planned(tmp_path, "--model.width=0.5,1")
    assert main(["sweep", "report", str(tmp_path)]) == 0
    assert "0 of 2 runs have ended" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_status_counts_and_names(tmp_path, capsys):
    sweep = planned(tmp_path, "--seed=0..5")
    write_numbers(sweep.runs[0])
    write_run(sweep.runs[1], "", kernels=3)
    note_error(sweep.runs[2].path, "OSError: no luck")
    ended = {}
    with RunWriter(sweep.runs[1].path):
        progress = read_progress(read_sweep(tmp_path), ended)
    assert list(progress.counts.values()) == [1, 0, 1, 1, 0, 3]
    assert list(ended) == [sweep.runs[0].id]
    [running] = progress.running
    assert (running.done, running.total) == (200, 2000)
    assert progress.seconds_left == 5 * 5.0
    assert progress.failed == {sweep.runs[2].id: "OSError: no luck"}
    assert main(["sweep", "status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"{sweep.runs[2].id} +OSError: no luck", shown)
    assert re.findall(r"(\w+) +(\d+) *\n", shown)[:2] == [("finished", "1"), ("failed", "1")]
    assert "diverged " not in shown.partition("failed or")[0]
    assert main(["sweep", "status", str(tmp_path / "none")]) == 1
    assert "is the folder of no sweep" in capsys.readouterr().err


def test_runs_that_ended_alike_share_a_line_of_the_status(tmp_path, capsys):
    sweep = planned(tmp_path, "--seed=0..3")
    for run in sweep.runs[:3]:
        note_error(run.path, "OSError: no luck")
    note_error(sweep.runs[3].path, "OSError: no [bold]time")
    assert main(["sweep", "status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"{sweep.runs[0].id} and 2 more +OSError: no luck", shown)
    assert re.search(rf"{sweep.runs[3].id} +OSError: no \[bold\]time", shown)


def test_a_table_of_many_runs_reads_only_their_numbers(tmp_path, monkeypatch):
    sweep = planned(tmp_path, "--seed=0..299")
    for run in sweep.runs:
        write_numbers(run)
    monkeypatch.setattr("conescope.report.sweep_table.run_numbers", None)
    monkeypatch.setattr("conescope.experiments.sweep.sweep_folder.Folder", None)
    table = load_sweep(tmp_path).table()
    assert table.num_rows == 300
    assert set(table["verdict"].to_pylist()) == {"confined"}
