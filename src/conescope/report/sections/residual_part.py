"""The residual along the kernel's eigenvectors, beside the labels: a part of the alignment."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from conescope.errors import KernelError
from conescope.report.plot import Line, LinePlot, Mark, SinglePlot
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content
from conescope.report.sections.wording import course, digits
from conescope.runs.reader import Run
from conescope.statistics.residual import Loss, ResidualSeries, residuals, spectral_position
from conescope.training.recipe import Recipe

_FORMULAS: dict[Loss, str] = {"cross_entropy": "softmax(f) − y", "squared": "f − y"}
_NAMES: dict[Loss, str] = {
    "cross_entropy": "that of cross-entropy",
    "squared": "that of half the squared error",
}


def residual_part(analysis: RunAnalysis, labels: Tensor) -> Content:
    """Return what the section of the alignment says of the residual, or why it says nothing.

    Args:
        analysis: the run.
        labels: [n], the classes of the probe's samples.
    """
    run = analysis.run
    kernels = dict(zip(run.series.steps, run.series.kernels, strict=True))
    steps = [step for step in kernels if step in run.outputs]
    if not steps:  # as by earlier versions, whose reports stay what they were
        return Content()
    if getattr(kernels[steps[0]], "outputs", "trace") not in ("trace", "full"):
        missing = (
            "residual: this is the kernel of one output, or of the sum of all, by which the others "
            "are not driven; measure that of all outputs"
        )
        return Content(missing=[missing])
    outputs = [run.outputs[step] for step in steps]
    loss = _loss(run, labels, outputs[0].shape[1])
    if loss is None:
        missing = (
            f"residual: there are {outputs[0].shape[1]:,} outputs, and the probe's labels go from "
            f"{int(labels.min()):,} to {int(labels.max()):,}, so that it is not known whether each "
            f"output is a class"
        )
        return Content(missing=[missing])
    try:
        found = residuals(steps, [kernels[step] for step in steps], outputs, labels, loss)
    except KernelError as reason:
        return Content(missing=[f"residual: {reason}"])
    told = _NAMES[loss]
    if not isinstance(run.recipe, Recipe) and "loss" not in run.source:
        told += ", as the loss of this training is not recorded"
    return _content(found, f"{_FORMULAS[loss]}, {told}", len(labels.unique()))


def _loss(run: Run, labels: Tensor, outputs: int) -> Loss | None:
    """Return the loss whose residual is shown; None if the labels need not be what is trained.

    Of a training that is not conescope's it is cross-entropy, if each output has a class; of one
    whose snapshots were measured again, that of its recipe.
    """
    if isinstance(run.recipe, Recipe):
        return run.recipe.training.loss
    if run.source.get("loss") in _NAMES:
        return run.source["loss"]
    is_class = int(labels.min()) >= 0 and int(labels.max()) + 1 == outputs
    return "cross_entropy" if is_class else None


def _content(found: ResidualSeries, formula: str, classes: int) -> Content:
    leading = [k for k in (classes, 2 * classes) if k < found.residual.shape[1]]
    positions = {
        "residual": spectral_position(found.residual),
        "labels": spectral_position(found.labels),
    }
    return Content(
        numbers={
            "squared residual of a sample": course(found.size),
            **{
                f"residual in the {k} leading eigenvectors": course(
                    found.residual[:, :k].sum(axis=1)
                )
                for k in leading[:1]
            },
            **{f"spectral position of the {name}": course(p) for name, p in positions.items()},
        },
        plots=_plots(found, formula, leading) if len(found.steps) > 1 else {},
        column={"residual's spectral position, last": digits(positions["residual"][-1])},
    )


def _plots(found: ResidualSeries, formula: str, leading: Sequence[int]) -> dict[str, SinglePlot]:
    n, lines = found.residual.shape[1], []
    for colour, k in enumerate(leading):
        for name, shares in (("residual", found.residual), ("labels", found.labels)):
            style = "solid" if name == "residual" else "dashed"
            y = shares[:, :k].sum(axis=1)
            lines.append(Line(f"{name}, {k} leading", found.steps, y, style=style, colour=colour))
    even = (n + 1) / 2
    position, of_labels = (spectral_position(each) for each in (found.residual, found.labels))
    plots: dict[str, SinglePlot] = {
        "cone-spectral-position": LinePlot(
            title="Spectral position",
            caption="Mean rank Σ_k k p_k of the eigenvectors along which residual and labels lie, "
            f"with their shares p_k; 1 is the leading eigenvector, and {even:g} an even spread "
            f"over all {n}. The residual is {formula}.",
            y_label="mean rank of the eigenvectors",
            lines=[
                Line("residual", found.steps, position),
                Line("labels", found.steps, of_labels, style="dashed"),
            ],
            marks=[Mark("even spread", "y", even, even, even)],
            y_range=(0.0, 1.04 * max(even, float(position.max()), float(of_labels.max()))),
        )
    }
    if lines:
        plots["cone-residual"] = LinePlot(
            title="Residual along the eigenvectors",
            caption=f"Share of the residual, {formula}, that lies in the space "
            "of the leading eigenvectors of the kernel (not centred), and the same of the labels y "
            "(one-hot, minus the classes' frequencies). Gradient descent on these samples alone "
            "would take away first what lies along leading eigenvectors.",
            y_label="share",
            lines=lines,
            y_range=(0.0, 1.02),
        )
    return plots
