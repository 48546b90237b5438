"""The rules by which the code stays easy to inherit; docs/architecture.md says why."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from inspect import unwrap
from pathlib import Path

import pytest
from benchmarks.paths import PATHS, files_touched

from conescope.cli.all_commands import all_commands
from conescope.runs.journal import Journal

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "conescope"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = {
    "cli", "engine", "experiments", "kernel", "measuring", "report", "runs", "statistics",
    "tangent", "training",
}  # fmt: skip


def functions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_there_are_ten_rooms():
    assert {path.parent.name for path in SOURCE.glob("*/__init__.py")} == ROOMS


def test_no_file_is_longer_than_300_lines():
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}


def test_no_function_is_longer_than_60_lines():
    long = {
        f"{file.relative_to(ROOT)}:{node.name}": lines
        for file in FILES
        for node in functions(file)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > 60
    }
    assert long == {}


def test_no_file_name_is_used_for_two_things():
    """A file of cli/ is named after its command, and may have the name of what it calls."""
    names = Counter(
        file.name for file in FILES if file.parent.name != "cli" and file.name[:2] != "__"
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_test_imports_from_another_test():
    tests = Path(__file__).parent
    importing = [
        (file.name, node.module)
        for file in tests.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("test_")
    ]
    assert importing == []


@pytest.mark.parametrize("name", PATHS)
def test_a_path_through_the_code_is_short(name, monkeypatch):
    monkeypatch.setattr(Journal, "line", unwrap(Journal.line))  # without the tests' own check
    files = files_touched(PATHS[name])
    beside = [file for file in files if not file.startswith("engine/")]
    assert 0 < len(beside) <= 25
    assert 0 < len(files) - len(beside) <= 25


def test_each_command_has_examples_that_parse_and_json_that_is_documented():
    """`serve` has no JSON: it goes on until it is stopped."""
    commands = all_commands()
    page = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z, ]+) \| `", page, re.MULTILINE)
    assert set(commands.about) == {name for row in rows for name in row.split(", ")} | {"serve"}
    for name, about in commands.about.items():
        parser = commands.parser(name)
        assert ("--json" in parser._option_string_actions) == (name != "serve"), name
        assert about.examples, name
        for line in about.examples:
            words = shlex.split(line.partition(" > ")[0])
            assert words[: 1 + len(name.split())] == ["conescope", *name.split()]
            assert commands.parse(words[1:]).command is parser.get_default("command")
