"""Write a comparison of a fine-tuning with its linearisation as one HTML file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from conescope.experiments.lazy import LazyReport
from conescope.experiments.lazy.one_seed import TRAININGS
from conescope.experiments.lazy.signs import SAME_FUNCTION, SAME_KERNEL
from conescope.kernel.distance import Float64Array
from conescope.report.html import (
    Part,
    columns,
    drawn,
    numbers_table,
    origin_parts,
    page_of,
    write_page,
)
from conescope.report.plot import Line, LinePlot, Mark

_SMOOTHED = 5
"""Batches over whose losses a line takes the mean: single batches scatter too much to compare."""

_ABOUT = """Lazy training is training that the first-order model of the network at its start
describes: the kernel stays (S(T, 0) is near 0), fine-tuned and linearised model end as the same
function (D is near 0), and classify equally well. Numbers are means over seeds, with intervals of
95 % that cover the seeds and the choice of the samples; a sign says "yes" or "no" only if its whole
interval lies on one side of its threshold."""


def write_lazy_page(report: LazyReport, path: Path) -> Path:
    """Write the verdict, its numbers and figures as one HTML file that needs no network.

    Args:
        report: what `conescope.lazy_report` returned.
        path: the file to write; its folder is made if missing.

    Returns:
        `path`.

    Raises:
        StoreError: if the file cannot be written.
    """
    numbers = report.numbers()
    verdict = numbers.pop("verdict")
    charts = [drawn(plot, name) for name, plot in lazy_plots(report).items()]
    text = page_of(
        name=f"Is the fine-tuning of {report.name} lazy?",
        description=str(report.source["description"]),
        state=verdict,
        is_finished=report.verdict != "cannot tell",
        answer=f"<p>{_ABOUT}</p>{numbers_table(numbers)}",
        parts=[
            Part("Figures", columns(charts)),
            *origin_parts(
                "How to make this comparison again",
                report.command or "conescope.lazy_report(…), from Python",
                report.environment,
                "What was compared",
                yaml.safe_dump(dict(report.source), sort_keys=False, allow_unicode=True),
            ),
        ],
    )
    return write_page(path, text)


def lazy_plots(report: LazyReport) -> dict[str, LinePlot]:
    """Return the figures of a comparison: name → plot."""
    return {
        "lazy-kernel": _kernel(report),
        "lazy-function": _function(report),
        "lazy-loss": _loss(report),
        "lazy-accuracy": _accuracy(report),
        "lazy-spectrum": _spectrum(report),
    }


def _kernel(report: LazyReport) -> LinePlot:
    distances = np.stack([one.distance.numpy() for one in report.seeds])
    return LinePlot(
        title="How far the kernel moves",
        caption="Kernel distance S(t, 0) of the fine-tuned model on the probe (arXiv:2503.16316, "
        f"eq. 4): {_spread(report)}. Below the mark, {SAME_KERNEL}, the kernel counts as constant.",
        y_label="*S(t, 0)*",
        lines=[_line("fine-tuned", _steps(report), distances, 0)],
        marks=[Mark("lazy below", "y", SAME_KERNEL, SAME_KERNEL, SAME_KERNEL)],
    )


def _function(report: LazyReport) -> LinePlot:
    ratios = np.stack(
        [
            [report.relative_distance(one, place)[0] for place in range(len(one.steps))]
            for one in report.seeds
        ]
    )
    return LinePlot(
        title="How far the functions are apart",
        caption="Distance D of the fine-tuned model and its linearisation on the test samples, as "
        f"a share of the way that the fine-tuned one has taken from the start: {_spread(report)}. "
        f"Below the mark, {SAME_FUNCTION}, they count as one function.",
        y_label="*D(t)*",
        lines=[_line("fine-tuned and linearised", _steps(report)[1:], ratios[:, 1:], 0)],
        marks=[Mark("lazy below", "y", SAME_FUNCTION, SAME_FUNCTION, SAME_FUNCTION)],
    )


def _loss(report: LazyReport) -> LinePlot:
    losses = np.stack([one.batch_loss.numpy() for one in report.seeds])
    width = min(_SMOOTHED, losses.shape[-1])
    smooth = np.lib.stride_tricks.sliding_window_view(losses, width, axis=-1).mean(axis=-1)
    steps = np.arange(smooth.shape[-1]) + (width - 1) / 2
    return LinePlot(
        title="Training losses",
        caption=f"Cross-entropy of the batches, both models on the same ones, averaged over "
        f"{width} batches: {_spread(report)}.",
        y_label="loss (nats)",
        lines=[_line(name, steps, smooth[:, k], k) for k, name in enumerate(TRAININGS)],
    )


def _accuracy(report: LazyReport) -> LinePlot:
    labels = report.samples.labels[report.samples.test].numpy()
    lines, steps = [], _steps(report)
    for k, name in enumerate(TRAININGS):
        right = [(one.logits[k].numpy().argmax(-1) == labels).mean(-1) for one in report.seeds]
        lines.append(_line(name, steps, np.stack(right), k))
    found = report.accuracies["kernel regression"]
    return LinePlot(
        title="Test accuracies",
        caption=f"Share of the test samples that is classified correctly: {_spread(report)}. The "
        "mark is the kernel regression on the kernel at the start, with its 95 % interval.",
        y_label="test accuracy",
        lines=lines,
        marks=[Mark("kernel regression", "y", found.value, found.low, found.high)],
        from_zero=False,
        percent=True,
    )


def _spectrum(report: LazyReport) -> LinePlot:
    first = report.seeds[0]
    values = first.eigenvalues.numpy()
    positive = values > 0
    floor = float(first.floor)
    return LinePlot(
        title="Spectrum of the kernel at the start",
        caption="Eigenvalues of the kernel of the kernel regression's training samples at the "
        "start, seed 0, largest first. Below the mark an eigenvalue cannot be told from 0, as "
        "rounding makes as much.",
        x_label="rank *k*",
        y_label="eigenvalue",
        lines=[Line("eigenvalues", np.arange(1, len(values) + 1)[positive], values[positive])],
        marks=[Mark("rounding", "y", floor, floor, floor)],
        x_scale="log",
        y_scale="log",
    )


def _steps(report: LazyReport) -> np.ndarray:
    return report.seeds[0].steps.numpy()


def _line(label: str, x: np.ndarray, values: Float64Array, training: int) -> Line:
    """Return the mean over seeds with a band from the lowest seed to the highest; [R, P] to [P]."""
    low, high = (values.min(axis=0), values.max(axis=0)) if len(values) > 1 else (None, None)
    style = "dashed" if training == 1 else "solid"
    return Line(label, x, values.mean(axis=0), low, high, style, colour=training + 1)


def _spread(report: LazyReport) -> str:
    count = len(report.seeds)
    return "one seed" if count == 1 else f"mean and range of {count} seeds"
