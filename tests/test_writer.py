"""What is added to a run folder, read back; and what a writer refuses."""

import json
import time
import warnings
from dataclasses import replace

import pytest
import torch

from conescope.errors import DamageWarning, StoreError
from conescope.kernel.matrix import Kernel
from conescope.runs import contents
from conescope.runs.environment import CPU_CAPABILITY, differences
from conescope.runs.journal import LINES, Kind
from conescope.runs.reader import read_run, read_status
from conescope.runs.snapshots import SnapshotState, find_snapshot, read_snapshot
from conescope.runs.store import Folder
from conescope.runs.writer import RunWriter

SOURCE = {"name": "mine", "description": "a network", "probe": "[4, 3] float32"}
SCALARS = dict.fromkeys(contents.SCALARS, 0.5)


def state_at(step):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return SnapshotState.of(step, model, optimizer, torch.nn.Linear(3, 2))


@pytest.fixture
def writer(tmp_path):
    with RunWriter(tmp_path / "run") as opened:
        yield opened


WRITES = {
    "begin_recipe": lambda w: w.begin_recipe({"seed": 1}, "seed: 1\n", "conescope run", [0, 1]),
    "begin_source": lambda w: w.begin_source(SOURCE, "python train.py", labels=[0], texts=["a"]),
    "begin_session": lambda w: w.begin_session("cpu"),
    "write_kernel": lambda w: w.write_kernel(3, Kernel(torch.eye(2)), weights="a"),
    "write_estimate": lambda w: w.write_kernel(4, Kernel(torch.eye(2), draws=torch.eye(2)[None])),
    "write_averaged": lambda w: w.write_kernel(
        3, Kernel(torch.eye(2)), kind=Kind.AVERAGED_KERNEL
    ),
    "write_evaluation": lambda w: w.write_evaluation(3, SCALARS),
    "write_snapshot": lambda w: [w.write_snapshot(state_at(step), ()) for step in (1, 2, 3)],
    "write_origin": lambda w: w.write_origin(state_at(0)),
    "write_result": lambda w: w.write_result("seed-0/result.safetensors", b"numbers"),
    "write_revision": lambda w: w.write_revision(
        3, {"name": "step3", "commit": "0" * 40, "stage": "", "begins": 0, "config": None}
    ),
    "skip": lambda w: w.skip([5, 6], 0.1),
    "diverge": lambda w: w.diverge(7, "the loss is nan"),
    "finish": lambda w: w.finish(),
}  # fmt: skip


def test_every_line_that_is_written_is_declared_with_its_fields(tmp_path):
    written = set()
    for name, write in WRITES.items():
        with RunWriter(tmp_path / name) as writer:
            write(writer)
        journal = tmp_path / name / "journal.jsonl"
        journal.write_bytes(journal.read_bytes() * 2)
        with pytest.warns(DamageWarning, match="stands twice"), Folder(tmp_path / name).owned():
            pass
        for entry in Folder(tmp_path / name).entries(*LINES):
            assert entry.values.keys() <= set(LINES[entry.kind].fields)
            written.add(entry.kind)
    assert written == set(Kind) == set(LINES)


@pytest.mark.parametrize("name", WRITES)
def test_nothing_is_written_to_a_folder_that_is_not_owned(tmp_path, name):
    writer = RunWriter(tmp_path / "run")
    with pytest.raises(StoreError, match="is not open; open it before"):
        WRITES[name](writer)
    assert not (tmp_path / "run").exists()
    with writer:
        pass
    with pytest.raises(StoreError, match="is not open"):
        WRITES[name](writer)
    assert not (tmp_path / "run/journal.jsonl").exists()


def test_a_run_has_one_writer(writer):
    with pytest.raises(StoreError, match="belongs to another process"):
        RunWriter(writer.path).open()
    writer.write_evaluation(0, SCALARS)


def test_a_kernel_is_read_back_with_its_layers_draws_and_weights(writer):
    draws = torch.randn(3, 4, 4)
    estimate = Kernel(draws.mean(dim=0), draws=draws)
    entry = writer.write_kernel(10, estimate, weights="0a1b")
    read = contents.read_kernel(writer.folder, entry)
    assert torch.equal(read.values, estimate.values)
    assert read.draws is not None
    assert torch.equal(read.draws, draws)
    assert (entry.values["weights"], entry.values["draws"]) == ("0a1b", 3)
    layers = {"first": torch.ones(2, 2), "draws": torch.eye(2)}
    whole = Kernel(layers["first"] + layers["draws"], "sum", layers)
    read = contents.read_kernel(writer.folder, writer.write_kernel(20, whole))
    assert (read.outputs, read.draws) == ("sum", None)
    assert {n: p.tolist() for n, p in read.by_layer.items()} == {
        n: p.tolist() for n, p in layers.items()
    }


def test_wall_time_goes_on_from_that_of_earlier_sessions(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for begun, expected in ((100.0, 2.5), (1000.0, 5.0)):
        now = begun
        with RunWriter(tmp_path) as writer:
            writer.begin_source(SOURCE, "python train.py")
            now += 2.5
            writer.write_evaluation(int(begun), SCALARS)
        assert read_status(tmp_path).seconds == expected


def test_another_sessions_environment_and_code_are_compared(writer):
    code = {"mine:build": "1" * 64}
    writer.begin_session("cpu", code)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.begin_session("cpu", code)
    with pytest.warns(DamageWarning, match=r"of mine:build: the rest may differ from an"):
        writer.begin_session("cpu", {"mine:build": "2" * 64})
    with pytest.warns(DamageWarning, match=r"another code of mine:build: "):
        writer.begin_session("cpu")  # a session that says nothing of the code differs, too
    with pytest.warns(DamageWarning, match=r"another device, code of other:build: "):
        writer.begin_session("meta", {"other:build": "3" * 64})


def test_labels_are_noted_when_they_change(writer):
    for labels in (None, [0, 1], [0, 1], [1, 1], None):
        writer.begin_source(SOURCE, "python train.py", labels=labels)
    assert contents.labels(writer.folder) == [1, 1]
    assert len(writer.folder.entries(Kind.LABELS)) == 2
    assert len(writer.folder.entries(Kind.RUN)) == 1


def test_a_recipe_is_noted_once(writer):
    for command in ("conescope run a", "conescope run b"):
        writer.begin_recipe({"seed": 1}, "seed: 1\n", command, None)
    (entry,) = writer.folder.entries(Kind.RUN)
    assert entry.values == {"recipe": {"seed": 1}, "command": "conescope run a"}
    assert (writer.path / "recipe.yaml").read_text() == "seed: 1\n"


def test_of_the_snapshots_that_do_not_stay_two_are_held(writer):
    for step in (0, 10, 20, 30, 40, 50):
        writer.write_snapshot(state_at(step), keep=(0, 20))
    assert tuple(contents.by_step(writer.folder, Kind.SNAPSHOT)) == (0, 20, 40, 50)
    assert len(list((writer.path / "snapshots").iterdir())) == 4


def test_a_snapshot_is_read_back(writer):
    state = state_at(30)
    writer.write_snapshot(state, keep=(30,))
    writer.write_origin(state)
    (origin,) = writer.whole(Kind.ORIGIN).values()
    for entry in (find_snapshot(writer.folder, 30), origin):
        read = read_snapshot(writer.folder, entry)
        assert (read.step, read.param_groups) == (
            30, json.loads(json.dumps(state.param_groups))
        )  # fmt: skip
        for was, now in ((state.weights, read.weights), (state.average, read.average)):
            assert was.keys() == now.keys()
            assert all(torch.equal(was[name], now[name]) for name in was)
        assert torch.equal(read.slots[0]["momentum_buffer"], state.slots[0]["momentum_buffer"])


def test_plain_values_of_an_optimiser_are_read_back_and_others_are_refused(writer):
    state = replace(state_at(30), slots={0: {"count": 3, "kind": "warm", "mean": torch.ones(2)}})
    writer.write_snapshot(state, keep=(30,))
    slots = read_snapshot(writer.folder, find_snapshot(writer.folder, 30)).slots[0]
    assert (slots["count"], slots["kind"], slots["mean"].tolist()) == (3, "warm", [1.0, 1.0])
    before = (writer.path / "journal.jsonl").read_bytes()
    with pytest.raises(StoreError, match="a snapshot holds tensors, finite numbers"):
        writer.write_snapshot(replace(state, slots={0: {"count": {1, 2}}}), keep=(30,))
    assert (writer.path / "journal.jsonl").read_bytes() == before
    assert torch.equal(
        read_snapshot(writer.folder, find_snapshot(writer.folder, 30)).slots[0]["mean"],
        torch.ones(2),
    )


def test_an_origin_is_written_again_only_if_it_is_damaged(writer):
    first = state_at(0)
    writer.write_origin(first)
    writer.write_origin(state_at(5))
    assert [*writer.whole(Kind.ORIGIN)] == [0]
    (writer.path / "origin.safetensors").write_bytes(b"torn")
    with pytest.warns(DamageWarning, match=r"origin\.safetensors is missing or damaged"):
        assert writer.whole(Kind.ORIGIN) == {}
    writer.write_origin(state_at(5))
    assert [*writer.whole(Kind.ORIGIN)] == [5]


def test_damaged_files_are_named_once_and_are_no_longer_part_of_the_run(writer):
    writer.begin_source(SOURCE, "python train.py")
    for step in (0, 10):
        writer.write_kernel(step, Kernel(torch.eye(2)))
    writer.finish()
    (writer.path / "kernels/00000010.safetensors").unlink()
    with pytest.warns(DamageWarning, match=r"00000010\.safetensors is missing or damaged"):
        assert [*writer.whole(Kind.KERNEL)] == [0]
    assert [*writer.whole(Kind.KERNEL)] == [0]
    lost = ("kernels/00000010.safetensors was damaged, and is not made anew",)
    run = read_run(writer.path)
    assert (run.series.steps, run.lost, run.finished) == ((0,), lost, False)
    writer.finish()
    assert read_run(writer.path).finished
    writer.write_kernel(10, Kernel(torch.eye(2)))
    assert read_run(writer.path).lost == ()


def test_a_run_is_finished_until_another_kernel_joins(writer):
    writer.begin_source(SOURCE, "python train.py")
    writer.write_kernel(0, Kernel(torch.eye(2)))
    for _ in range(2):
        writer.finish()
    assert len(writer.folder.entries(Kind.FINISHED)) == 1
    writer.write_kernel(10, Kernel(torch.eye(2)))
    assert not read_status(writer.path).finished
    writer.finish()
    assert read_status(writer.path).finished


def test_divergence_and_skipped_steps_are_told(writer):
    writer.begin_source(SOURCE, "python train.py")
    assert contents.why_diverged(writer.folder) is None
    writer.skip([10, 20], 0.1)
    writer.write_kernel(20, Kernel(torch.eye(2)))
    writer.diverge(25, "the loss is nan")
    assert contents.skipped_steps(writer.folder) == (10,)
    assert contents.why_diverged(writer.folder) == "the loss is nan"
    assert read_status(writer.path).diverged


def test_an_older_journal_that_says_nothing_of_instructions_gives_no_warning():
    older, now = {"torch": "1", "python": "3"}, {"torch": "2", CPU_CAPABILITY: "AVX2"}
    assert differences(older, now) == ["torch", "python"]
    assert differences(now, now | {CPU_CAPABILITY: "AVX512"}) == [CPU_CAPABILITY]
    assert differences({}, {"code of a:b": "0"}) == ["code of a:b"]
