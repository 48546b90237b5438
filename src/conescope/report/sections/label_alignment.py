"""Alignment of the kernel with the labels, the residual and the first kernel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from conescope.report.plot import Line, LinePlot, SinglePlot
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.residual_part import residual_part
from conescope.report.sections.section import Content, Section
from conescope.report.sections.wording import course
from conescope.statistics.alignment import AlignmentSeries, alignments


def _content(analysis: RunAnalysis) -> Content:
    series = analysis.run.series
    if analysis.labels is None:
        missing = (
            "needs the labels of the probe's samples; give labels=… to Watch, or a recipe's data"
        )
        return Content(missing=[missing])
    found = alignments(series.steps, series.kernels, analysis.labels)
    last = f"{found.centred_first[-1]:.3g}"
    residual = residual_part(analysis, analysis.labels)
    return Content(
        numbers={
            "target alignment": course(found.target),
            "centred target alignment": course(found.centred_target),
            **({"centred alignment with the first kernel, last": last} if len(series) > 1 else {}),
            **{
                f"labels in the {k} leading eigenvectors": course(found.labels_within[:, k - 1])
                for k in _leading(analysis.labels)[-1:]
            },
            "mean within classes": course(found.within),
            "mean between classes": course(found.between),
            **residual.numbers,
        },
        plots=_plots(found, _leading(analysis.labels), residual) if len(series) > 1 else {},
        column={"target alignment, last": f"{found.target[-1]:.3g}", **residual.column},
        missing=residual.missing,
    )


def _leading(labels: Tensor) -> list[int]:
    """Return the numbers of eigenvectors to tell of: 1, c − 1 for c classes, and twice that."""
    classes = len(labels.unique())
    return sorted({k for k in (1, classes - 1, 2 * (classes - 1)) if k < len(labels)})


def _plots(
    found: AlignmentSeries, leading: Sequence[int], residual: Content
) -> dict[str, SinglePlot]:
    means = [
        Line("within classes", found.steps, found.within),
        Line("between classes", found.steps, found.between),
    ]
    return {
        "cone-alignment": LinePlot(
            title="Alignment",
            caption="Cosine ⟨K, L⟩ / (‖K‖ ‖L‖) of the kernel K with the label kernel L (1 within a "
            "class, 0 between), plain (kernel–target alignment) and centred (CKA), and CKA with "
            "the first kernel.",
            y_label="alignment",
            lines=[
                Line("with labels", found.steps, found.target),
                Line("with labels, centred", found.steps, found.centred_target),
                Line("with the first kernel, centred", found.steps, found.centred_first),
            ],
            y_range=(min(0.0, float(found.centred_target.min())), 1.02),
        ),
        "cone-label-spectrum": LinePlot(
            title="Labels along the eigenvectors",
            caption="Share of the labels (one-hot, centred) that lies in the space of the leading "
            "eigenvectors of the centred kernel. What lies there is learnt first; labels of c "
            "classes need at least c − 1 eigenvectors.",
            y_label="share of the labels",
            lines=[
                Line(f"{k} leading", found.steps, found.labels_within[:, k - 1]) for k in leading
            ],
            y_range=(0.0, 1.02),
        ),
        **residual.plots,
        "cone-classes": LinePlot(
            title="Within and between classes",
            caption="Mean of the kernel K(x, x′) over pairs of different samples of one class, "
            "and of two.",
            y_label="mean of *K(x, x′)*",
            lines=means,
            y_scale="readable",
        ),
    }


SECTION = Section(
    "Alignment",
    "How close the kernel is to the label kernel, which is 1 within a class and 0 between two.",
    _content,
)
