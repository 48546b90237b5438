"""Loss and error on the straight lines between trained networks: linear mode connectivity."""

from __future__ import annotations

from collections.abc import Sequence

from conescope.experiments import barrier
from conescope.report.plot import Line, LinePlot, Panels


def barriers(lines: Sequence[barrier.Line]) -> Panels:
    """Return the plot of test loss and test error along each line.

    Args:
        lines: of the pairs of runs, with at least one.
    """
    batchnorm = any("estimated" in line.values for line in lines)
    statistics = (
        " Solid: BatchNorm's statistics interpolated, too; dashed: estimated on training data."
        if batchnorm
        else ""
    )
    return Panels(
        title="Between trained networks",
        caption="Loss and error on the test data of networks whose weights lie on the straight "
        "line between those of two runs (linear mode connectivity, arXiv:1912.05671). A line "
        f"without a hill connects them.{statistics}",
        panels=[
            _plot(lines, "test_loss", "test loss", percent=False),
            _plot(lines, "test_error", "test error", percent=True),
        ],
    )


def _plot(lines: Sequence[barrier.Line], quantity: str, label: str, *, percent: bool) -> LinePlot:
    drawn = [
        Line(
            " to ".join(line.runs) + (", BatchNorm anew" if kind == "estimated" else ""),
            line.fractions,
            found[quantity],
            style="dashed" if kind == "estimated" else "solid",
            colour=number,
        )
        for number, line in enumerate(lines)
        for kind, found in line.values.items()
    ]
    return LinePlot(
        title=label.capitalize(),
        caption=f"{label.capitalize()} on the line between the weights of two runs.",
        x_label="share of the second run's weights",
        y_label=label,
        lines=drawn,
        percent=percent,
        x_whole=False,
        y_scale="linear",
    )
