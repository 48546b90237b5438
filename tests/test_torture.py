"""The batteries of benchmarks/torture at small size; that they find what does not hold."""

import pytest
from benchmarks.torture import damages as battery
from benchmarks.torture.__main__ import BATTERIES, main
from benchmarks.torture.outcome import Outcome, drawn, table

from conescope.runs import chain


def test_damaged_folders_are_named_or_mended():
    outcomes = battery.damages(seed=0, share=0.02)
    assert len(outcomes) >= 15
    assert [outcome.what for outcome in outcomes if not outcome.held] == []


def test_the_battery_sees_a_chain_that_is_not_followed(monkeypatch):
    only = battery.subjects
    monkeypatch.setattr(battery, "subjects", lambda path: only(path)[2:3])
    monkeypatch.setattr(battery, "_of_files", lambda *_: ())
    monkeypatch.setattr(chain, "_missing", lambda *_: [])
    lost = [outcome for outcome in battery.damages(seed=0, share=0.4) if not outcome.held]
    assert lost
    assert all("reading gives other numbers and says only []" in outcome.what for outcome in lost)


def test_the_table_counts_what_held_and_names_the_rest():
    outcomes = [Outcome("a", True, "one"), Outcome("a", False, "two: no"), Outcome("b", True, "x")]
    lines = table(outcomes).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["a", "1", "of", "2"], ["b", "1", "of", "1"], ["all", "2", "of", "3"]
    ]  # fmt: skip
    assert lines[3:] == ["not held: a: two: no"]


def test_the_exit_status_says_whether_all_held(monkeypatch, capsys):
    found = [Outcome("a", True, "one")]
    monkeypatch.setitem(BATTERIES, "damages", lambda seed, share: found)
    monkeypatch.setattr("sys.argv", ["torture", "damages", "--seed", "3", "--share", "0.5"])
    assert main() == 0
    found.append(Outcome("a", False, "two"))
    assert main() == 1
    assert "damages, seed 3, share 0.5" in capsys.readouterr().out
    for words in (["nothing"], ["damages", "--share", "0"]):
        monkeypatch.setattr("sys.argv", ["torture", *words])
        with pytest.raises(SystemExit):
            main()


def test_a_share_is_drawn_in_order_and_is_never_empty():
    import random

    assert drawn(range(100), 1.0, random.Random(0)) == list(range(100))
    few = drawn(range(100), 0.1, random.Random(0))
    assert few == sorted(few)
    assert len(few) == 10
    assert len(drawn(range(100), 0.001, random.Random(0))) == 1
