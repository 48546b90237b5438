"""What the documentation says that the tests hold is what the tests hold."""

from __future__ import annotations

import re
from pathlib import Path

import kinds
from conescope.runs.journal import LINES

ROOT = Path(__file__).parent.parent


def test_every_kind_is_in_the_table_of_what_is_right_and_every_row_has_tests():
    text = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    section = text.partition("## What is right")[2].partition("## Memory")[0]
    told = re.findall(r"^\| ([a-z][^|]*) \|", section, flags=re.MULTILINE)
    tables = [value for value in vars(kinds).values() if isinstance(value, list)]
    tested = {row.kind for table in tables for row in table if isinstance(row, kinds.Row)}
    assert [kind for kind in told if kind != "kind"] == list(dict.fromkeys(told[1:]))
    assert set(told) - {"kind"} == tested


def test_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:src|tests)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_table_of_the_journals_lines_is_the_one_that_the_code_declares():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("| kind | what such a line states | fields |\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[1:]]
    declared = [[kind, line.states, ", ".join(line.fields)] for kind, line in LINES.items()]
    assert rows == declared
