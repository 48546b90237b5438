"""Trying a route: whatever it raises, the next one is tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RoutesChangedError(Exception):
    """The model took another way than the one by which its routes were found."""


@contextmanager
def attempted() -> Iterator[None]:
    """Turn any error into `RoutesChangedError`, so that a plainer route is tried.

    Nothing is lost by it: the last route is plain autograd, which raises the model's own errors
    once more.
    """
    try:
        yield
    except Exception as error:  # the model's code is anybody's, and may raise anything
        raise RoutesChangedError from error
