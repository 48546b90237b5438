"""Read the step of each checkpoint from the names of all of them, or from what is in them.

A step is a number in a name: `1200`, or what stands for a whole number, such as `10k` and `1.5e3`.
Where the names do not tell the steps, the checkpoints may: transformers' Trainer and Lightning
write down how many iterations were done.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.given_steps import EPOCH
from conescope.measuring.checkpoints.weight_files import SUFFIXES, load_torch, suffix_of
from conescope.runs.foreign import read_json

STEP_WORD = re.compile(r"(step|iter|iteration)s?[-_=.]?$", re.IGNORECASE)
"""The word before a number that says that it is a step."""

_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_FREE = r"(?:(?<![A-Za-z\d.])|(?<=step)|(?<=steps)|(?<=iter)|(?<=Step))"
_NUMBER = re.compile(
    rf"({_FREE}\d+(?:\.\d+)?[eE]\+?\d{{1,3}}(?![A-Za-z\d])"  # 1e5, 1.5e+03
    r"|(?<!\d\.)(?<!\d)\d+(?:\.\d+)?[kKMBT](?![A-Za-z\d])"  # 10k, 2.5M
    r"|\d+)",
    re.ASCII,
)
_SCALED = re.compile(r"(\d+(?:\.\d+)?)([kKMBT]|[eE]\+?\d{1,3})?", re.ASCII)
_LONGEST = 18

_VERSION = re.compile(r"(?<![A-Za-z])v(er(sion)?)?[-_]?$", re.IGNORECASE)
_HASH = re.compile(  # but not e0001000, 1000e, or 12e1000
    r"(?<![A-Za-z\d])(?!(?:[a-f]*\d+|\d+[a-f]*|\d+e\d+)(?![A-Za-z\d]))"
    r"(?=[a-f]*\d)[a-f\d]{7,64}(?![A-Za-z\d])"
)
_NO_STEP_WORD = re.compile(r"(seed|ingredient|replica|replicate|trial|fold)s?[^A-Za-z\d]*$", re.I)
_TRAINER_STATE = "trainer_state.json"
_COUNT = "global_step"
_EPOCHS = "--iterations-per-epoch N on the command line, steps=steps_by_epoch(N) in Python"
_CURE = (
    r"give a step pattern, a regular expression whose one group is the step: 'ckpt_(\d+)', or "
    r"the steps themselves (steps= in Python, --steps FILE.csv on the command line)"
)


def steps_of(paths: Sequence[Path], pattern: str | None = None) -> list[int]:
    r"""Read the step of each checkpoint from its name.

    Without a pattern it is the one number in which the names differ. If they differ in several,
    it is the one behind the word step or iter, as in `epoch=3-step=1200.ckpt`. The step of a lone
    checkpoint is the number behind such a word or, without one, the last number. `10k`, `1M` and
    `1e5` are numbers, too; hashes, such as those of commits, are none. If the names do not tell the
    steps, as with `last.ckpt`, they are the `global_step` that every checkpoint states: in
    `trainer_state.json` (transformers) or in the file itself (Lightning).

    Args:
        paths: the checkpoints, at least one.
        pattern: a regular expression with one group, such as `ckpt_(\d+)`, searched for in each
            path.

    Raises:
        CheckpointError: if the pattern is no regular expression with one group, or finds no number
            in a path; or, without a pattern, if the names hold no number, more than one to choose
            from, or one that is not whole, and not every checkpoint states its step.
    """
    if pattern is not None:
        return _by_pattern(paths, pattern)
    try:
        return _by_name(paths)
    except CheckpointError:
        stated = [_stated(path) for path in paths]
        if None in stated:
            raise
        return [step for step in stated if step is not None]


def _stated(path: Path) -> int | None:
    """Return the number of iterations that a checkpoint itself states; None if it states none."""
    content: Any = None
    try:
        if path.is_dir():
            content = read_json(path / _TRAINER_STATE, CheckpointError)
        elif path.suffix == ".ckpt" and path.is_file():
            content = load_torch(path)
    except (OSError, ValueError, CheckpointError):
        return None  # what is wrong with it is said when its weights are read
    step = content.get(_COUNT) if isinstance(content, Mapping) else None
    return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def _by_name(paths: Sequence[Path]) -> list[int]:
    """Read the steps from the names; see `steps_of`."""
    pieces = [_NUMBER.split(_HASH.sub("#", name)) for name in _names(paths)]
    texts = {tuple(piece[::2]) for piece in pieces}
    if len(texts) > 1 or len(pieces[0]) == 1:
        odd = next((p for p, piece in zip(paths, pieces, strict=True) if len(piece) == 1), None)
        told = (
            f"{odd} has no number" if odd else f"{paths[0]} and {paths[-1]} are named differently"
        )
        raise CheckpointError(f"cannot tell the steps from the names: {told}; {_CURE}")
    place = _place_of_step(pieces, paths)
    return [_step(piece, place, path) for piece, path in zip(pieces, paths, strict=True)]


def _by_pattern(paths: Sequence[Path], pattern: str) -> list[int]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CheckpointError(
            f"the step pattern {pattern!r} cannot be read: {error}; {_CURE}"
        ) from None
    if compiled.groups != 1:
        raise CheckpointError(f"the step pattern {pattern!r} has {compiled.groups} groups; {_CURE}")
    steps = []
    for path in paths:
        match = compiled.search(path.as_posix())
        step = None if match is None else _whole(match[1] or "")
        if step is None:
            raise CheckpointError(
                f"the step pattern {pattern!r} finds no number in {path}; mend it, or give the "
                f"steps themselves (steps= in Python, --steps FILE.csv on the command line)"
            )
        steps.append(step)
    return steps


def _names(paths: Sequence[Path]) -> list[str]:
    """Strip the paths of the folders that they share, and of the suffix."""
    full = [path.absolute() for path in paths]
    shared = os.path.commonpath([path.parent for path in full])
    names = [(path.relative_to(shared).as_posix(), suffix_of(path)) for path in full]
    return [name.removesuffix(suffix) if suffix in SUFFIXES else name for name, suffix in names]


def _place_of_step(pieces: Sequence[Sequence[str]], paths: Sequence[Path]) -> int:
    """Find the piece that is the step, among text, number, text, …, alike but for the numbers."""
    places = range(1, len(pieces[0]), 2)
    differing = [place for place in places if len({piece[place] for piece in pieces}) > 1]
    candidates = differing or list(places)
    named = [place for place in candidates if STEP_WORD.search(pieces[0][place - 1])]
    if len(named) == 1:
        return named[0]
    if len(differing) == 1 and (word := _NO_STEP_WORD.search(pieces[0][differing[0] - 1])):
        raise CheckpointError(
            f"cannot tell the steps from the names: {paths[0]} and {paths[-1]} differ in the "
            f"number behind {word[1]}, which is no step; give the checkpoints of one training, or "
            f"{_CURE}"
        )
    if len(differing) > 1 and not all(_is_fraction(pieces[0], place) for place in differing):
        told = f"{paths[0]} and {paths[-1]} differ in {len(differing)} numbers"
        if all((m := EPOCH.search(path.name)) and m["iteration"] for path in paths):
            told += (
                f", epoch and iteration; say how many iterations an epoch has, which is in no "
                f"name: {_EPOCHS}"
            )
        raise CheckpointError(f"cannot tell the steps from the names: {told}; {_CURE}")
    return candidates[-1]


def _step(pieces: Sequence[str], place: int, path: Path) -> int:
    number = _whole(pieces[place])
    if number is None or _is_fraction(pieces, place) or _has_commas(pieces, place):
        epochs = f"; of epochs say how many iterations one has: {_EPOCHS}"
        raise CheckpointError(
            f"cannot tell the steps from the names: the number in {path} is no whole "
            f"number, and steps are{epochs if EPOCH.search(path.name) else ''}; {_CURE}"
        )
    return number


def _has_commas(pieces: Sequence[str], place: int) -> bool:
    """Tell whether a number is part of one with commas, such as 1,000."""
    at = place - 2 if place > 2 and pieces[place - 1] == "," else place
    first, comma, rest = (*pieces[at : at + 3], "", "")[:3]
    return comma == "," and len(first) < 4 and len(rest) == 3


def _is_fraction(pieces: Sequence[str], place: int) -> bool:
    """Tell whether a number is one side of a decimal point: in `epoch=1.5`, but not in `v1.5`."""
    begin = place - 2 if place > 2 and pieces[place - 1] == "." else place
    has_point = begin < place or (place + 2 < len(pieces) and pieces[place + 1] == ".")
    return has_point and not _VERSION.search(pieces[begin - 1])


def _whole(text: str) -> int | None:
    """Return the whole number of at least 0 that a text stands for; None if it stands for none.

    `k` is 10³, `M` 10⁶, `B` 10⁹ and `T` 10¹², so `1.5k` is 1,500, as is `1.5e3`.
    """
    match = _SCALED.fullmatch(text)
    if match is None or len(match[1]) > _LONGEST:
        return None
    scale = match[2] or ""
    power = int(scale[1:]) if scale.startswith(("e", "E")) else 0
    if power > _LONGEST:
        return None
    number = Decimal(match[1]) * 10**power * _SCALES.get(scale, 1)
    return int(number) if number == int(number) and ("." not in match[1] or scale) else None
