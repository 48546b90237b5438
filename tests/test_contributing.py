"""Each addition that CONTRIBUTING.md shows is one new file and one line, and it works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ADDITION = re.compile(
    r"^### (?P<name>.+?)\n.*?"
    r"^```diff\n(?P<diff>.*?)^```\n.*?"
    r"^```(?P<kind>sh|python)\n(?P<code>.*?)^```\n",
    re.DOTALL | re.MULTILINE,
)
ADDITIONS = {match["name"]: match for match in ADDITION.finditer(TEXT)}


def test_every_kind_of_addition_is_shown():
    assert list(ADDITIONS) == [
        "A network",
        "A data set",
        "An optimiser",
        "A learning-rate schedule",
        "A section of the analysis",
        "A figure",
        "A tracker",
        "A layer of the engine",
    ]


@pytest.mark.skipif(shutil.which("git") is None, reason="git applies the diffs, and is missing")
@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_is_one_file_and_one_line_and_works(name, tmp_path):
    shown = ADDITIONS[name]
    shutil.copytree(ROOT / "src", tmp_path / "src")
    lines = shown["diff"].splitlines()
    changed = [line[6:] for line in lines if line.startswith("+++ b/")]
    made = [after for before, after in pairwise(lines) if before == "--- /dev/null"]
    assert len(made) == 1
    assert len(changed) <= 2
    assert not [line for line in lines if line.startswith("-") and not line.startswith("---")]
    if len(changed) == 2:
        existing = shown["diff"].rpartition("--- a/")[2]
        assert len(re.findall(r"^\+(?!\+\+)", existing, re.MULTILINE)) == 1
    apply = ["git", "apply", "--whitespace=error-all", "-"]
    subprocess.run(apply, cwd=tmp_path, input=shown["diff"], text=True, check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    for command in commands(shown["kind"], shown["code"]):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def commands(kind: str, code: str) -> list[list[str]]:
    """The commands of a block: its own words for a shell, or its text as a program."""
    if kind == "python":
        return [[sys.executable, "-c", code]]
    words = [shlex.split(line) for line in code.replace("\\\n", " ").splitlines()]
    return [[sys.executable, "-m", *rest] for rest in words if rest]
