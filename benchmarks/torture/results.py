"""What the batteries showed, as JSON and as a table of a page.

`python -m benchmarks.torture.results PAGE FILE …` makes the table from several commands' JSON.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.torture.case import Outcome

_BEGIN, _END = "<!-- made by make torture -->", "<!-- end of what make torture made -->"


@dataclass(frozen=True)
class BatteryResult:
    """What one battery showed.

    Attributes:
        battery: its name.
        cases: the number of all its cases.
        outcomes: what became of those that were attempted.
        seconds: the time that it took, with its preparations.
    """

    battery: str
    cases: int
    outcomes: Sequence[Outcome]
    seconds: float

    @property
    def held(self) -> int:
        """The number of cases that held."""
        return sum(outcome.held for outcome in self.outcomes)

    def __str__(self) -> str:
        tried = f"{len(self.outcomes):,} of {self.cases:,} cases tried, {self.held:,} held"
        return f"{self.battery}: {tried}, {self.seconds / 60:.1f} min"


def to_json(results: Sequence[BatteryResult], command: str, seed: int) -> dict[str, Any]:
    """Return everything as JSON values."""
    return {
        "command": command,
        "seed": seed,
        "machine": machine(),
        "batteries": [asdict(result) for result in results],
    }


def machine() -> str:
    """Return what the batteries ran on, in words."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{platform.machine()}, {cores} CPU cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return a table in Markdown, with the commands that made it, and each case that did not hold.

    Args:
        found: what `to_json` returns, one for each command.
    """
    batteries = [battery for values in found for battery in values["batteries"]]
    rows = [_row(battery) for battery in batteries]
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    lines = [
        *(f"- `{v['command']}`, seed {v['seed']}, on {v['machine']}" for v in found),
        "",
        "| battery | cases | tried | held | minutes |",
        "|---|---|---|---|---|",
        *(f"| {n} | {c:,} | {t:,} | {h:,} | {m:.1f} |" for n, c, t, h, m in rows),
    ]
    lost = [
        f"- {battery['battery']}: {Outcome(**outcome)}"
        for battery in batteries
        for outcome in battery["outcomes"]
        if outcome["wrong"]
    ]
    return "\n".join(lines + (["", "Not held:", "", *lost] if lost else []))


def _row(battery: Mapping[str, Any]) -> tuple[str, int, int, int, float]:
    outcomes = battery["outcomes"]
    held = sum(not outcome["wrong"] for outcome in outcomes)
    return battery["battery"], battery["cases"], len(outcomes), held, battery["seconds"] / 60


def fill_page(page: Path, text: str) -> None:
    """Put a table in its place in a page."""
    before, found, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not (found and ended):
        raise SystemExit(f"{page} has no place for the table: {_BEGIN}")
    page.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")


def main(words: Sequence[str]) -> None:
    """Fill a page's table from files of JSON; `words` are their paths, the page's first."""
    if len(words) < 2:
        raise SystemExit("python -m benchmarks.torture.results PAGE FILE …: name both")
    page, *files = map(Path, words)
    fill_page(page, table([json.loads(file.read_text(encoding="utf-8")) for file in files]))


if __name__ == "__main__":
    main(sys.argv[1:])
