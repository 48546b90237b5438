"""What the batteries showed, as JSON and as a table of a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
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


def table(results: Sequence[BatteryResult], command: str, seed: int) -> str:
    """Return a table in Markdown, with what made it, and each case that did not hold."""
    rows = [(r.battery, r.cases, len(r.outcomes), r.held, r.seconds / 60) for r in results]
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    lines = [
        f"`{command}`, seed {seed}, on {machine()}:",
        "",
        "| battery | cases | tried | held | minutes |",
        "|---|---|---|---|---|",
        *(f"| {n} | {c:,} | {t:,} | {h:,} | {m:.1f} |" for n, c, t, h, m in rows),
    ]
    lost = [f"- {r.battery}: {o}" for r in results for o in r.outcomes if not o.held]
    return "\n".join(lines + (["", "Not held:", "", *lost] if lost else []))


def fill_page(page: Path, text: str) -> None:
    """Put a table in its place in a page."""
    before, found, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not (found and ended):
        raise SystemExit(f"{page} has no place for the table: {_BEGIN}")
    page.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")
