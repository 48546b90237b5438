"""Bad inputs: odd values of every field of a recipe, and command lines that make no sense."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.torture.outcome import Outcome
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
_SECONDS = 60


def bad_inputs(seed: int, share: float) -> list[Outcome]:
    """Try odd values of fields in this process, and odd command lines each in their own.

    Args:
        seed: which of them are tried.
        share: the share that is tried, above 0 and at most 1.
    """
    chance = random.Random(seed)
    fields = [(name, value) for name in (*FIELDS, *SECTIONS) for value in _ODD]
    lines = [["plan", "digits", *words] for words in _PLANS] + [list(line) for line in _LINES]
    chosen = chance.sample(fields, max(1, round(share * len(fields))))
    return [
        *_of_fields(chosen),
        *(_of_line(line) for line in chance.sample(lines, max(1, round(share * len(lines))))),
    ]


def _of_fields(chosen: list[tuple[str, object]]) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "drawn.yaml"
        for name, value in chosen:
            section, _, inner = name.partition(".")
            values = {section: {inner: value}} if inner else {section: value}
            file.write_text(yaml.safe_dump(values), encoding="utf-8")
            held, what = True, "read"
            try:
                load_recipe(str(file))
            except ConescopeError as error:
                what = str(error)
                held = what.isprintable()
            except Exception as error:  # noqa: BLE001 - this is what the battery looks for
                held, what = False, f"{type(error).__name__}: {error}"
            yield Outcome(f"field {name} = {value!r:.40}", held, what)


def _of_line(words: list[str]) -> Outcome:
    name = f"conescope {' '.join(words)}"[:120]
    command = [sys.executable, "-m", "conescope", *words]
    with tempfile.TemporaryDirectory() as folder:
        try:
            ended = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                cwd=folder,
                env=dict(os.environ),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(name, False, f"no end within {_SECONDS} s")
    told = ended.stderr.strip().splitlines()
    held = ended.returncode in (0, 1, 2) and "Traceback" not in ended.stderr
    return Outcome(name, held, f"exit {ended.returncode}: {told[-1] if told else ''}")
