"""Bad inputs: odd values of every field of a recipe, and command lines that make no sense."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from benchmarks.torture.case import Case
from benchmarks.torture.processes import SECONDS
from conescope.errors import ConescopeError
from conescope.training.recipe import FIELDS, SECTIONS
from conescope.training.recipe_reading import load_recipe

_ODD = (
    None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "x", " ", "never, 3", "every 0",
    "every 1 from", "os:system", "a.b:c", "../up", "\x1b[31m", "é" * 300, [], [1], {}, {"a": 1},
)  # fmt: skip
_PLANS = (
    ["--training.steps=1000000000000"],
    ["--training.steps=1000000000000", "--kernel.when=every 1", "--training.evaluate=every 1"],
    ["--training.steps=1000000", "--kernel.when=every 1", "--lr_schedule.name=cosine"],
    ["--kernel.when=" + ", ".join(f"every {p}" for p in range(900, 1000))],
)
_LINES = (
    [], ["nothing"], ["run"], ["run", "no-such"], ["run", "/dev/zero"], ["show", "x.yaml"],
    ["show", "digits", "--seed"], ["show", "digits", "--seed=x"], ["show", "digits", "--sed=1"],
    ["run", "digits", "--from", "x"], ["switch", "no-run", "--at", "x"], ["cone", "/dev/null"],
    ["switch", "no-run", "--at", "5,1"], ["measure", "no-run"], ["report", "."], ["audit"],
)  # fmt: skip


def bad_inputs(_: Path) -> list[Case]:
    """Try odd values of fields in this process, and odd command lines each in their own."""
    fields = [
        Case("field", f"{name} = {value!r:.40}", partial(_of_field, name, value))
        for name in (*FIELDS, *SECTIONS)
        for value in _ODD
    ]
    lines = [["plan", "digits", *words] for words in _PLANS] + [list(line) for line in _LINES]
    return fields + [
        Case("command line", f"conescope {' '.join(words)}"[:120], partial(_of_line, words))
        for words in lines
    ]


def _of_field(name: str, value: object, place: Path, __: random.Random) -> Iterator[str]:
    section, _, inner = name.partition(".")
    values = {section: {inner: value}} if inner else {section: value}
    file = place / "drawn.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        load_recipe(str(file))
    except ConescopeError as error:
        if not str(error).isprintable():
            yield f"it says {str(error)!r}"


def _of_line(words: list[str], place: Path, _: random.Random) -> Iterator[str]:
    command = [sys.executable, "-m", "conescope", *words]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, cwd=place, check=False
        )
    except subprocess.TimeoutExpired:
        yield f"no end within {SECONDS} s"
        return
    if ended.returncode not in (0, 1, 2) or "Traceback" in ended.stderr:
        told = ended.stderr.strip().splitlines()
        yield f"exit {ended.returncode}: {told[-1] if told else ''}"
