"""A matplotlib figure that notebooks show."""

import io

from matplotlib.figure import Figure

_DPI = 110
"""Dots per inch, so that figures for a paper have the width of a page on a screen."""


class ShownFigure(Figure):
    """A matplotlib figure that a notebook shows as the value of a cell, without pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=_DPI)
        return file.getvalue()
