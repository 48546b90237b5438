"""A section of the analysis, and its content for one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from conescope.errors import KernelError
from conescope.report.plot import LinePlot, SinglePlot
from conescope.report.run_analysis import RunAnalysis


@dataclass(frozen=True)
class Content:
    """What a section says of one run; empty where it has nothing to say.

    Attributes:
        numbers: name → value as text, in the order to show them.
        plots: file name → plot.
        column: the numbers of a table that has a column for each run.
        compared: the plots of a figure that has a line for each run; of one line each.
        missing: what the run is too short or lacks data for, in one line each.
    """

    numbers: Mapping[str, str] = field(default_factory=dict)
    plots: Mapping[str, SinglePlot] = field(default_factory=dict)
    column: Mapping[str, str] = field(default_factory=dict)
    compared: Mapping[str, LinePlot] = field(default_factory=dict)
    missing: Sequence[str] = ()

    @property
    def says_something(self) -> bool:
        """Whether there are numbers or plots of the one run."""
        return bool(self.numbers or self.plots)


@dataclass(frozen=True)
class Section:
    """A section of the analysis; it stands alone, whatever other sections can say.

    Attributes:
        title: a heading.
        about: what the section says, and how to read it.
        content_of: from a run's analysis to the section's content; it may raise `KernelError`,
            whose message then says why the section is absent.
    """

    title: str
    about: str
    content_of: Callable[[RunAnalysis], Content]

    def content(self, analysis: RunAnalysis) -> Content:
        """Return what the section says of a run, or only why it is absent."""
        try:
            return self.content_of(analysis)
        except KernelError as reason:
            return Content(missing=[str(reason)])
