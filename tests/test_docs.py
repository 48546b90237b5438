"""What the documentation says that the tests hold is what the tests hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import conescope
import kinds
from conescope import report
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


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    told = re.findall(r"^\.\. auto(?:function|class):: ([\w.]+)$", text, flags=re.MULTILINE)
    public = {*conescope.__all__, *report.__all__, "conescope.runs.reader.Run"}
    assert sorted(told) == sorted(public)


def test_every_page_is_in_the_contents_of_the_site():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    entries = re.findall(r"^(?!:)[\w/-]+$", text, flags=re.MULTILINE)
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*/*.ipynb")]
    names = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in pages}
    assert set(entries) == names - {"index"}


def test_every_example_is_in_the_gallery():
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r'^show\("(\w+\.py)"\)$', text, flags=re.MULTILINE)
    assert sorted(shown) == sorted(file.name for file in (ROOT / "examples").glob("*.py"))


PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs").glob("*/*.ipynb"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#\s]+)", prose)
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_was_executed_without_an_error(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert outputs - {"error"} == outputs != set()
