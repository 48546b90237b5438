"""The stages of a training, as marks of a plot and as text."""

from __future__ import annotations

from collections.abc import Mapping

from conescope.report.plot import Mark


def stage_marks(stages: Mapping[str, int]) -> list[Mark]:
    """Return a mark where each stage but the first begins.

    Args:
        stages: the name of each stage, and the iteration at which it begins, in their order.
    """
    return [
        Mark(f"{name} begins", "x", begins, begins, begins, style="dash-dotted")
        for name, begins in list(stages.items())[1:]
    ]


def stages_of(stages: Mapping[str, int]) -> str:
    """Return the stages as text, such as "stage1 from 0, stage2 from 1,000"."""
    return ", ".join(f"{name} from {begins:,}" for name, begins in stages.items())
