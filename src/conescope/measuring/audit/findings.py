"""Name what an audit finds in a series of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """Something that was found in a series of checkpoints.

    Attributes:
        kind: what it is, in a few words that are the same for all findings of the kind.
        steps: the steps that it concerns, rising.
        text: what was found, where, and what it means.
        is_alarm: whether the series is wrong if this is not explained; otherwise it is a remark.
    """

    kind: str
    steps: tuple[int, ...]
    text: str
    is_alarm: bool = True


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit.

    Attributes:
        steps: the steps of the checkpoints that were looked at, rising.
        tensors: the number of tensors in the union of all checkpoints.
        parameters: the number of real numbers in them, buffers included.
        findings: what was found, alarms first.
    """

    steps: tuple[int, ...]
    tensors: int
    parameters: int
    findings: tuple[Finding, ...]

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """The findings by which the series is wrong, unless they are explained."""
        return tuple(finding for finding in self.findings if finding.is_alarm)

    @property
    def remarks(self) -> tuple[Finding, ...]:
        """The findings that are usual, such as frozen layers."""
        return tuple(finding for finding in self.findings if not finding.is_alarm)

    def __str__(self) -> str:
        """Return a line for each finding."""
        if not self.findings:
            return "nothing was found"
        return "\n".join(
            f"{'ALARM' if finding.is_alarm else 'remark'}: {finding.kind}: {finding.text}"
            for finding in self.findings
        )


def listed(items: Sequence[object], shown: int = _SHOWN) -> str:
    """Return items for a message: "a, b and c", or "a, b, c, d and 7 more"."""
    texts = [f"{item:,}" if isinstance(item, int) else str(item) for item in items]
    if len(texts) > shown + 1:
        texts = [*texts[:shown], f"{len(texts) - shown:,} more"]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def steps_listed(steps: Sequence[int]) -> str:
    """Return steps for a message: "step 5", or "steps 5 and 7"."""
    return f"step{'s' if len(steps) > 1 else ''} {listed(steps)}"
