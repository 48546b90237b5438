"""Verdicts of a verification: what was checked, and whether it agrees with what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a result that is computed again agrees with the stored one."""

    EQUAL = "bit-equal"
    FLOOR = "equal within the floating-point floor"
    DIFFERENT = "different"
    UNVERIFIED = "not verified"


_COMPUTED = ("kernels", "evaluations", "training")
"""The groups of checks of what is computed again."""


@dataclass(frozen=True)
class Check:
    """The outcome of one comparison, or the reason why there was none.

    Attributes:
        group: what kind of result it is, such as "kernels".
        subject: which result, such as "kernel at iteration 30".
        verdict: how it agrees.
        detail: the first difference and its size, or why it is not verified; empty for bit-equal.
        size: of a difference within the floor, how much of the norm it is; else None.
    """

    group: str
    subject: str
    verdict: Verdict
    detail: str = ""
    size: float | None = None

    def __str__(self) -> str:
        text = f"{self.subject}: {self.verdict}" + (f": {self.detail}" if self.detail else "")
        # Names and texts of a foreign run may hold control characters for the terminal.
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True)
class Verification:
    """All checks of a run.

    Attributes:
        path: the run folder or the archive.
        share: the share of kernels and iterations that was to be computed again.
        seed: decides which ones.
        checks: in the order in which they were made.
    """

    path: str
    share: float
    seed: int
    checks: Sequence[Check]

    @property
    def held(self) -> bool:
        """Whether nothing that was checked is different."""
        return all(check.verdict != Verdict.DIFFERENT for check in self.checks)

    @property
    def recomputed(self) -> bool:
        """Whether any kernel, evaluation or training was computed again."""
        return any(c.group in _COMPUTED and c.verdict != Verdict.UNVERIFIED for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = asdict(self) | {"held": self.held, "recomputed": self.recomputed}
        return values | {"checks": [asdict(check) for check in self.checks]}
