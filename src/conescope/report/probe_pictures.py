"""Show the probe's samples themselves: those that moved the kernel, and its eigenvectors'."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from html import escape

import numpy as np
import torch
from matplotlib import image
from torch import Tensor

from conescope.errors import KernelError
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.movement import LEADING, movements
from conescope.runs.foreign import shorten
from conescope.statistics.attribution import attribution
from conescope.training.data.dataset import is_tokens

_EIGENVECTORS = 3
"""Leading eigenvectors of which samples are shown."""

_ENDS = 6
"""Samples shown at each end of an eigenvector."""

_PIXELS = 64
"""Least height of a picture; smaller ones are magnified by a whole number."""

_MOST_PIXELS = 128
"""Height from which on pictures are thinned out, so that many of them make a small page."""

_LETTERS = 200
"""Letters of a text that are shown."""

_BY_ITERATION = 8
"""Samples shown at each stop of the slider over iterations."""


def leading_samples(analysis: RunAnalysis) -> str:
    """Return HTML of the samples that moved the kernel most, as pictures or texts.

    Empty if the samples are not at hand, or the kernel did not move.
    """
    show = _shown(analysis)
    if show is None:
        return ""
    try:
        stretch, moved = list(movements(analysis).items())[-1]
    except KernelError:
        return ""
    places = np.argsort(-moved.images)[:LEADING]
    samples = (show(place, f"{moved.images[place]:.1%}") for place in places.tolist())
    return _row(f"Samples that moved the kernel most, from t = {stretch}", samples)


def leading_eigenvectors(analysis: RunAnalysis) -> str:
    """Return HTML of the samples at both ends of the last kernel's leading eigenvectors.

    Empty if the samples are not at hand, or a kernel has several rows for each of them.
    """
    show = _shown(analysis)
    last = analysis.run.series.kernels[-1]
    matrix = last.matrix.double()
    if show is None or len(matrix) != len(last.values):
        return ""
    if not bool(torch.isfinite(matrix).all()):
        return ""
    vectors = torch.linalg.eigh(matrix).eigenvectors.flip(1)[:, :_EIGENVECTORS].T.numpy()
    rows = []
    for rank, vector in enumerate(vectors, start=1):
        vector = vector * (1 if vector.sum() >= 0 else -1)
        order = np.argsort(-vector).tolist()
        ends = order[:_ENDS] + order[-_ENDS:] if len(order) > 2 * _ENDS else order
        samples = (show(place, f"{vector[place]:+.2f}") for place in ends)
        rows.append(_row(f"Eigenvector {rank}: samples of the largest and least entries", samples))
    return "".join(rows)


def samples_by_iteration(
    analysis: RunAnalysis, places: Sequence[int]
) -> tuple[str, list[list[tuple[int, float]]]]:
    """Return HTML of the samples that moved the kernel most since the first one, for a slider.

    Args:
        analysis: of a run.
        places: the kernels at which the slider stops, by their place in the series.

    Returns:
        The HTML, in which those of the last stop are shown; empty if the samples are not at hand.
        And for each stop the samples and their shares of the movement, the largest first; none
        where the kernel is the first one.
    """
    show = _shown(analysis)
    if show is None:
        return "", [[] for _ in places]
    stops = [_leaders(analysis, place) for place in places]
    shares = {place: share for stop in stops for place, share in stop}
    shown = {place for place, _ in stops[-1]}
    order = [*(place for place, _ in stops[-1]), *sorted(shares.keys() - shown)]
    items = "".join(
        show(place, f"{shares[place]:.1%}").replace(
            "<li>", f'<li data-sample="{place}"{"" if place in shown else " hidden"}>', 1
        )
        for place in order
    )
    return f'<ul class="samples" id="slider-samples">{items}</ul>', stops


def _leaders(analysis: RunAnalysis, place: int) -> list[tuple[int, float]]:
    first, last = (replace(analysis.run.series.kernels[each], by_layer={}) for each in (0, place))
    try:
        shares = attribution(first, last).images
    except KernelError:  # they are the same
        return []
    leading = np.argsort(-shares, kind="stable")[:_BY_ITERATION].tolist()
    return [(sample, round(float(shares[sample]), 5)) for sample in leading]


def _shown(analysis: RunAnalysis) -> Callable[[int, str], str] | None:
    """Return what makes HTML of a sample, from its place and a number; None without samples."""
    inputs, labels, texts = analysis.inputs, analysis.labels, analysis.run.texts

    def named(place: int) -> str:
        return f"sample {place}" + ("" if labels is None else f", class {int(labels[place])}")

    if texts is not None and len(texts) == len(analysis.run.series.measured[0].values):
        return lambda place, number: _text(texts[place], named(place), number)
    if inputs is None or labels is None:
        return None
    if inputs.dtype == torch.uint8:
        return lambda place, number: _picture(inputs[place], named(place), number)
    if is_tokens(inputs):
        read = _read if analysis.bytes_are_text else _listed
        return lambda place, number: _text(read(inputs[place].tolist()), named(place), number)
    return None


def _picture(pixels: Tensor, name: str, number: str) -> str:
    """Return an image [channels, height, width] as HTML with a text below it."""
    values = pixels.permute(1, 2, 0).numpy()
    values = np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values[..., :3]
    thinned = -(-values.shape[0] // _MOST_PIXELS)
    values = values[::thinned, ::thinned]
    factor = max(1, -(-_PIXELS // values.shape[0]))
    values = np.ascontiguousarray(values.repeat(factor, axis=0).repeat(factor, axis=1))
    file = io.BytesIO()
    image.imsave(file, values, format="png")
    source = base64.b64encode(file.getvalue()).decode()
    return (
        f'<li><img alt="{escape(name)}" src="data:image/png;base64,{source}">'
        f"{_below(name, number)}</li>"
    )


def _read(tokens: Sequence[int]) -> str:
    """Return a sample of bytes as text."""
    return bytes(tokens).decode("utf-8", errors="replace")


def _listed(tokens: Sequence[int]) -> str:
    """Return a sample of token ids, whose words are not known."""
    return " ".join(map(str, tokens))


def _text(shown: str, name: str, number: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in shorten(shown, _LETTERS))
    return f"<li><q>{escape(line)}</q>{_below(name, number)}</li>"


def _below(name: str, number: str) -> str:
    return f"<span>{escape(name)}: <b>{escape(number)}</b></span>"


def _row(title: str, samples: Iterable[str]) -> str:
    return f'<h3>{escape(title)}</h3><ul class="samples">{"".join(samples)}</ul>'
