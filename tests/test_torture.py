"""The batteries of benchmarks/torture at small size; that they find what does not hold."""

import json
import time

import pytest
from benchmarks.torture import damages as battery
from benchmarks.torture import results
from benchmarks.torture.__main__ import BATTERIES, main
from benchmarks.torture.case import Case, battery_outcomes
from benchmarks.torture.results import fill_page

from conescope.runs import chain


def attempted(battery, place, seed=0, count=1):
    """What becomes of the first few cases that a seed draws."""
    tried = []
    battery_outcomes(battery, place, seed, lambda: len(tried) >= count, told=tried.append)
    return tried


def test_damaged_folders_are_named_or_mended(tmp_path):
    outcomes = attempted(battery.damages, tmp_path, count=15)
    assert len(outcomes) == 15
    assert [str(outcome) for outcome in outcomes if not outcome.held] == []


def test_the_battery_sees_a_chain_that_is_not_followed(monkeypatch, tmp_path):
    only = battery.subjects
    monkeypatch.setattr(battery, "subjects", lambda path: only(path)[2:3])
    monkeypatch.setattr(battery, "_of_files", lambda *_: ())
    monkeypatch.setattr(chain, "_missing", lambda *_: [])
    lost = [each for each in attempted(battery.damages, tmp_path, count=40) if not each.held]
    assert any("reading gives other numbers and says only []" in str(each) for each in lost)
    assert all("says only" in str(each) for each in lost)  # or that the first line is no run


def draws(place, chance):
    assert not list(place.iterdir())
    return [str(chance.random())]


def holds(place, chance):
    return []


def fails(place, chance):
    raise ValueError("\x1b[31m")


def made_battery(shared):
    return [
        *(Case("a", f"draws {number}", draws) for number in range(5)),
        Case("b", "fails", fails),
        *(Case("b", f"holds {number}", holds) for number in range(4)),
    ]


def test_a_case_does_the_same_alone(tmp_path):
    def outcomes(name, **options):
        place = tmp_path / name
        place.mkdir()
        return battery_outcomes(made_battery, place, 3, lambda: False, **options)

    count, every = outcomes("all")
    assert (count, len(every)) == (10, 10)
    assert [each.name for each in every] != [case.name for case in made_battery(tmp_path)]
    _, (alone,) = outcomes("alone", only="draws 2")
    assert alone.wrong == next(each.wrong for each in every if each.name == "draws 2")
    assert len({each.wrong for each in every if each.group == "a"}) == 5
    (failed,) = (each for each in every if each.name == "fails")
    assert str(failed) == "fails: ValueError: \\x1b[31m"


def test_the_batteries_share_the_time(monkeypatch, capsys, tmp_path):
    for name in BATTERIES:
        slow = Case("a", "slow", lambda *_: time.sleep(0.05) or [])
        monkeypatch.setitem(BATTERIES, name, lambda _, slow=slow: [slow] * 1000)
    begun = time.monotonic()
    assert main(["--minutes", "0.02", "--json", str(tmp_path / "found.json")]) == 0
    assert time.monotonic() - begun < 20
    values = json.loads((tmp_path / "found.json").read_text())
    assert [each["battery"] for each in values["batteries"]] == list(BATTERIES)
    assert all(0 < len(each["outcomes"]) < 1000 for each in values["batteries"])


def test_a_table_is_made_of_what_several_commands_have_found(monkeypatch, tmp_path):
    for name in ("damages", "kills"):
        monkeypatch.setitem(BATTERIES, name, lambda place: made_battery(place)[:3])
        main([name, "--seed", "3", "--json", str(tmp_path / f"{name}.json")])
    page = tmp_path / "page.md"
    page.write_text("<!-- made by make torture --><!-- end of what make torture made -->")
    results.main([str(page), *(str(tmp_path / f"{n}.json") for n in ("kills", "damages"))])
    text = page.read_text()
    assert "- `python -m benchmarks.torture kills --seed 3 --json " in text
    assert "| kills | 3 | 3 | " in text
    assert "| damages | 3 | 3 | " in text
    assert "| all | 6 | 6 | " in text


def test_the_exit_status_says_whether_all_held(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(BATTERIES, "damages", made_battery)
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- made by make torture -->\n<!-- end of what make torture made -->\n"
    )
    assert main(["damages", "--seed", "3", "--case", "holds 1"]) == 0
    assert main(["damages", "--seed", "3", "--doc", str(page)]) == 1
    told = capsys.readouterr().out
    assert "seed 3" in told
    assert "not held: damages: fails: ValueError" in told
    assert "again: make torture BATTERIES=damages SEED=3 CASE=fails" in told
    assert "| damages | 10 | 10 | 4 |" in page.read_text()
    assert "- damages: fails: ValueError" in page.read_text()
    assert main(["damages", "--case", "no such"]) == 2
    for words in (["nothing"], ["damages", "--minutes", "0"]):
        with pytest.raises(SystemExit):
            main(words)


def test_a_page_without_a_place_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(SystemExit, match="no place for the table"):
        fill_page(tmp_path / "page.md", "a table")
