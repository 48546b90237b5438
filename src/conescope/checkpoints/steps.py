"""The step of each checkpoint, read from the names of the whole series."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from conescope.checkpoints.read import SUFFIXES
from conescope.errors import CheckpointError

_NUMBER = re.compile(r"(\d+)")
_STEP_WORD = re.compile(r"(step|iter|iteration)s?[-_=.]?$", re.IGNORECASE)
_CURE = r"give a step pattern, a regular expression whose one group is the step: 'ckpt_(\d+)'"


def steps_of(paths: Sequence[Path], pattern: str | None = None) -> list[int]:
    r"""The step of each checkpoint.

    Without a pattern it is the one number in which the names differ. If they differ in several,
    it is the one behind the word step or iter, as in `epoch=3-step=1200.ckpt`. A lone
    checkpoint's is that number or, without such a word, its last.

    Args:
        paths: the checkpoints, at least one.
        pattern: a regular expression with one group, such as `ckpt_(\d+)`, searched for in each
            path.

    Raises:
        CheckpointError: if the pattern is none, or some path has no step by it; or, without a
            pattern, if there is no number, or more than one to choose from.
    """
    if pattern is not None:
        return _by_pattern(paths, pattern)
    pieces = [_NUMBER.split(name) for name in _names(paths)]
    texts = {tuple(piece[::2]) for piece in pieces}
    if len(texts) > 1 or len(pieces[0]) == 1:
        odd = next((p for p, piece in zip(paths, pieces, strict=True) if len(piece) == 1), None)
        told = (
            f"{odd} has no number" if odd else f"{paths[0]} and {paths[-1]} are named differently"
        )
        raise CheckpointError(f"cannot tell the steps from the names: {told}; {_CURE}")
    place = _place_of_step(pieces, paths)
    return [int(piece[place]) for piece in pieces]


def _by_pattern(paths: Sequence[Path], pattern: str) -> list[int]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CheckpointError(f"the step pattern {pattern!r} cannot be read: {error}") from None
    if compiled.groups != 1:
        raise CheckpointError(f"the step pattern {pattern!r} has {compiled.groups} groups; {_CURE}")
    steps = []
    for path in paths:
        match = compiled.search(path.as_posix())
        if match is None or not (match[1] or "").isdecimal():
            raise CheckpointError(f"the step pattern {pattern!r} finds no number in {path}")
        steps.append(int(match[1]))
    return steps


def _names(paths: Sequence[Path]) -> list[str]:
    """The paths without what they share, and without the suffix."""
    shared = os.path.commonpath([path.parent for path in paths])
    names = (path.relative_to(shared) for path in paths)
    return [(n.with_suffix("") if n.suffix in SUFFIXES else n).as_posix() for n in names]


def _place_of_step(pieces: Sequence[Sequence[str]], paths: Sequence[Path]) -> int:
    """Which of the pieces (text, number, text, …, all alike but for the numbers) is the step."""
    places = range(1, len(pieces[0]), 2)
    differing = [place for place in places if len({piece[place] for piece in pieces}) > 1]
    candidates = differing or list(places)
    named = [place for place in candidates if _STEP_WORD.search(pieces[0][place - 1])]
    if len(named) == 1:
        return named[0]
    if len(differing) > 1:
        raise CheckpointError(
            f"cannot tell the steps from the names: {paths[0]} and {paths[-1]} differ in "
            f"{len(differing)} numbers; {_CURE}"
        )
    return candidates[-1]
