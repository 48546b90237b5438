"""Show the probe's samples themselves: those that moved the kernel, and its eigenvectors'."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
import torch
from matplotlib import image
from torch import Tensor

from conescope.errors import KernelError
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.movement import LEADING, movements
from conescope.training.data.dataset import is_tokens

_EIGENVECTORS = 3
"""Leading eigenvectors of which samples are shown."""

_ENDS = 6
"""Samples shown at each end of an eigenvector."""

_PIXELS = 64
"""Least height of a picture; smaller ones are magnified by a whole number."""


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
    matrix = analysis.run.series.kernels[-1].matrix.double()
    if show is None or analysis.labels is None or len(matrix) != len(analysis.labels):
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


def _shown(analysis: RunAnalysis) -> Callable[[int, str], str] | None:
    """Return what makes HTML of a sample, from its place and a number; None without samples."""
    inputs, labels = analysis.inputs, analysis.labels
    if inputs is None or labels is None:
        return None

    def named(place: int, number: str) -> str:
        return f"sample {place}, class {int(labels[place])}: {number}"

    if inputs.dtype == torch.uint8:
        return lambda place, number: _picture(inputs[place], named(place, number))
    if is_tokens(inputs):
        read = _read if analysis.bytes_are_text else _listed
        return lambda place, number: _text(read(inputs[place].tolist()), named(place, number))
    return None


def _picture(pixels: Tensor, text: str) -> str:
    """Return an image [channels, height, width] as HTML with a text below it."""
    values = pixels.permute(1, 2, 0).numpy()
    values = np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values[..., :3]
    factor = max(1, -(-_PIXELS // values.shape[0]))
    values = np.ascontiguousarray(values.repeat(factor, axis=0).repeat(factor, axis=1))
    file = io.BytesIO()
    image.imsave(file, values, format="png")
    source = base64.b64encode(file.getvalue()).decode()
    return (
        f'<li><img alt="{escape(text)}" src="data:image/png;base64,{source}">'
        f"<span>{escape(text)}</span></li>"
    )


def _read(tokens: Sequence[int]) -> str:
    """Return a sample of bytes as text."""
    read = bytes(tokens).decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() else " " for c in read)


def _listed(tokens: Sequence[int]) -> str:
    """Return a sample of token ids, whose words are not known."""
    return " ".join(map(str, tokens))


def _text(shown: str, text: str) -> str:
    return f"<li><q>{escape(shown)}</q><span>{escape(text)}</span></li>"


def _row(title: str, samples: Iterable[str]) -> str:
    return f'<h3>{escape(title)}</h3><ul class="samples">{"".join(samples)}</ul>'
