"""The chain of the journal's lines: whatever happens to them is found, named, and mended."""

import hashlib
import json
import random
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conescope.errors import DamageWarning, StoreError
from conescope.experiments.stored import load_run, read_status
from conescope.runs.chain import read_journal
from conescope.runs.journal import Entry, Journal, Kind
from conescope.runs.store import Folder
from written_lines import EVALUATED

GOLDEN = Path(__file__).parent / "golden"
COUNT = 8


def step_of(number):
    return 10 * number


def lines_of(count=COUNT):
    """The lines of a journal: evaluations at iterations 10, 20 and so on."""
    journal, lines = Journal(), []
    for number in range(1, count + 1):
        entry = Entry(
            Kind.EVALUATION, {"step": step_of(number), **EVALUATED, "seconds": number / 7}
        )
        lines.append(journal.line(entry))
        journal.add(entry, lines[-1])
    return lines


@pytest.fixture
def read(tmp_path):
    """Write some lines as a journal; return what a reader gets, and what it is told."""

    def write_and_read(lines):
        (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            journal = read_journal(tmp_path / "journal.jsonl")
        return [e.values["step"] for e in journal.entries], "".join(str(w.message) for w in caught)

    return write_and_read


def all_but(*numbers):
    return [step_of(n) for n in range(1, COUNT + 1) if n not in numbers]


def signed(text):
    return hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n"


def test_a_whole_journal_is_read_without_a_word(read):
    assert read(lines_of()) == (all_but(), "")


@pytest.mark.parametrize("number", range(1, COUNT))
def test_a_deleted_line_is_named_by_number_kind_and_iteration(read, number):
    lines = lines_of()
    del lines[number - 1]
    steps, told = read(lines)
    assert steps == all_but(number)
    name = f"line {number} (evaluation, iteration {step_of(number)}) is missing"
    assert f"journal.jsonl: {name}; run the command that made this folder again" in told


def test_several_deleted_lines_are_named_with_the_last_of_them(read):
    lines = lines_of()
    steps, told = read([*lines[:2], *lines[5:]])
    assert steps == all_but(3, 4, 5)
    assert "lines 3 to 5, the last of them (evaluation, iteration 50), are missing" in told


@pytest.mark.parametrize("number", range(1, COUNT + 1))
def test_a_repeated_line_counts_once(read, number):
    lines = lines_of()
    steps, told = read([*lines[:number], *lines[number - 1 :]])
    assert steps == all_but()
    iteration = f"iteration {step_of(number)}"
    assert f"line {number} (evaluation, {iteration}) stands twice; nothing is lost" in told


@pytest.mark.parametrize(("number", "place"), [(2, 5), (7, 1), (1, 8), (8, 1)])
def test_a_moved_line_counts_where_it_belongs(read, number, place):
    lines = lines_of()
    lines.insert(place - 1, lines.pop(number - 1))
    steps, told = read(lines)
    assert steps == all_but()
    assert "was moved" in told
    assert "nothing is lost" in told


@pytest.mark.parametrize("number", range(1, COUNT + 1))
def test_a_flipped_bit_is_named(read, number):
    lines = lines_of()
    damaged = bytearray(lines[number - 1])
    damaged[damaged.index(b"seconds") + 12] ^= 1
    lines[number - 1] = bytes(damaged)
    steps, told = read(lines)
    assert steps == all_but(number)
    assert f"line {number} (evaluation, iteration {step_of(number)}) is damaged" in told


@pytest.mark.parametrize("number", range(1, COUNT))
def test_a_line_that_was_changed_with_its_checksum_is_named(read, number):
    lines = lines_of()
    text = lines[number - 1].partition(b" ")[2].rstrip(b"\n")
    lines[number - 1] = signed(text.replace(b'"seconds": ', b'"seconds": 9'))
    steps, told = read(lines)
    assert steps == all_but(number)
    assert f"line {number} (evaluation, iteration {step_of(number)}) is changed" in told


def test_of_two_lines_of_one_number_the_one_that_the_next_follows_counts(read):
    lines = lines_of()
    text = lines[3].partition(b" ")[2].rstrip(b"\n")
    steps, told = read([*lines[:3], signed(text.replace(b"40", b"41")), *lines[3:]])
    assert steps == all_but()
    assert "line 4 (evaluation, iteration 40) stands twice" in told


def test_a_line_torn_in_the_middle_takes_the_next_with_it(read):
    lines = lines_of()
    lines[3] = lines[3][:30]
    steps, told = read(lines)
    assert steps == all_but(4, 5)
    assert "line 4" in told
    assert "line 5 (evaluation, iteration 50) is missing" in told


def test_what_is_no_line_is_named_and_takes_nothing_away(read):
    lines = lines_of()
    for junk in (b"\n", b"\x00\xff\n", signed(b"[1]"), signed(b"{}"), signed(b"[" * 100_000)):
        steps, told = read([*lines[:4], junk, *lines[4:]])
        assert steps == all_but()
        assert "what stands before line 5 is no line of this journal; nothing is lost" in told


@pytest.mark.parametrize(
    "values",
    [
        {"file": "../outside"},
        {"file": "/etc/passwd"},
        {"file": 3},
        {"step": -1},
        {"step": "many"},
        {"line": 0},
        {"line": "two"},
        {"after": 5},
    ],
)
def test_a_line_that_no_writer_writes_is_damaged(read, values):
    lines = lines_of(2)
    text = json.dumps({"kind": "removed", "line": 3, "after": "", **values}).encode()
    steps, told = read([*lines, signed(text)])
    assert steps == [10, 20]
    assert "line 3 (removed" in told
    assert "is damaged" in told


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_whatever_is_done_to_the_lines_is_said_unless_nothing_is_lost(tmp_path_factory, r, count):
    path = tmp_path_factory.mktemp("any") / "journal.jsonl"
    lines = lines_of()
    for _ in range(count):
        do = r.choice(("delete", "repeat", "move", "flip", "tear"))
        place = r.randrange(len(lines))
        if do == "delete" and place < len(lines) - 1:
            del lines[place]
        elif do == "repeat":
            lines.insert(r.randrange(len(lines)), lines[place])
        elif do == "move":
            lines.insert(r.randrange(len(lines)), lines.pop(place))
        elif do in ("flip", "tear"):
            damaged = bytearray(lines[place])
            damaged[r.randrange(len(damaged))] ^= 1 << r.randrange(8)
            lines[place] = bytes(damaged if do == "flip" else damaged[: len(damaged) // 2])
    path.write_bytes(b"".join(lines))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        journal = read_journal(path)
    steps = [entry.values["step"] for entry in journal.entries]
    assert steps == sorted(steps)
    assert set(steps) <= set(all_but())
    end = steps == all_but()[: len(steps)]  # a lost end is seen by the files, not by the chain
    assert caught or end
    assert bool(caught) == bool(journal.damage)


def test_old_journals_are_read_and_said_to_be_unchained(tmp_path):
    assert load_run(GOLDEN / "run").head
    assert read_status(GOLDEN / "run").journal.startswith("not chained, as earlier versions")
    path = Path(shutil.copytree(GOLDEN / "run", tmp_path / "run"))
    with Folder(path).owned():
        pass
    assert (path / "journal.jsonl").read_bytes() == (GOLDEN / "run/journal.jsonl").read_bytes()


@pytest.fixture
def continued(tmp_path):
    """An old journal that was gone on with, and the number of its old lines."""
    path = Path(shutil.copytree(GOLDEN / "watch", tmp_path / "watch"))
    old = (path / "journal.jsonl").read_bytes().count(b"\n")
    folder = Folder(path)
    with folder.owned():
        for step in (30, 40, 50):
            folder.append(Kind.EVALUATION, step=step, **EVALUATED)
    return path / "journal.jsonl", old


def test_an_old_journal_is_chained_from_where_it_is_gone_on_with(continued):
    journal, old = continued
    state = Folder(journal.parent).journal.state
    assert state.startswith(f"{old + 3} lines, chained from line {old + 1} on, the newest ")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b"".join(lines[:old]) == (GOLDEN / "watch/journal.jsonl").read_bytes()
    for change, name in (
        (lines[:1] + lines[2:], "one of the first"),
        ([lines[1], lines[0], *lines[2:]], "one of the first"),
        ([lines[0], *lines], "one of the first"),
        ([*lines[:old], *lines[old + 1 :]], f"one of the first {old + 1} lines"),
        ([*lines[: old + 1], *lines[old + 2 :]], f"line {old + 2} (evaluation, iteration 40) is m"),
        ([b"x" + lines[0], *lines[1:]], "line 1 (run) is damaged"),
        ([*lines, lines[0]], f"line {old + 4} (run) is damaged"),
    ):
        journal.write_bytes(b"".join(change))
        with pytest.warns(DamageWarning, match="journal") as told:
            Folder(journal.parent)
        assert name in str(told[0].message)


def test_a_damaged_journal_is_kept_and_written_anew_by_the_next_owner(tmp_path):
    journal = tmp_path / "journal.jsonl"
    lines = lines_of()
    damaged = b"".join([*lines[:2], *lines[3:], lines[0]])
    journal.write_bytes(damaged)
    with pytest.warns(DamageWarning, match=r"line 1 .* stands twice; line 3 .* is missing"):
        folder = Folder(tmp_path)
    with pytest.warns(DamageWarning), folder.owned():
        folder.append(Kind.EVALUATION, step=90, **EVALUATED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Folder(tmp_path)
    assert [e.values["step"] for e in again.entries(Kind.EVALUATION)] == [*all_but(3), 90]
    (mended,) = again.entries(Kind.MENDED)
    assert mended.values["lost"] == ["line 3 (evaluation, iteration 30) is missing"]
    assert (tmp_path / mended.values["kept"]).read_bytes() == damaged
    assert again.journal.state.startswith("9 lines, the newest ")


def test_a_journal_that_another_process_changes_is_not_written_to(tmp_path):
    folder = Folder(tmp_path)
    with folder.owned():
        folder.append(Kind.EVALUATION, step=1, **EVALUATED)
        folder.append(Kind.EVALUATION, step=2, **EVALUATED)
        journal = tmp_path / "journal.jsonl"
        journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
        before = journal.read_bytes()
        with pytest.raises(StoreError, match=r"journal\.jsonl was changed by something else"):
            folder.append(Kind.EVALUATION, step=3, **EVALUATED)
    assert journal.read_bytes() == before


@pytest.mark.parametrize("name", ["journal.jsonl", "lock"])
def test_a_folder_in_place_of_a_file_is_one_line(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match=f"cannot (read|write) .*{name}.*Is a directory") as error:
        Folder(tmp_path).owned().__enter__()
    assert "\n" not in str(error.value)
    if name == "lock":
        assert not Folder(tmp_path).is_owned()


def test_many_lines_in_disorder_are_put_in_order(tmp_path):
    lines = lines_of(300)
    random.Random(0).shuffle(lines)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    with pytest.warns(DamageWarning, match="nothing is lost"):
        assert len(read_journal(tmp_path / "journal.jsonl").entries) == 300
