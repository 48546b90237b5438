"""Whether the checkpoints of a series have the same tensors, all finite, at steps without gaps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from conescope.measuring.audit.findings import Finding, listed, steps_listed
from conescope.measuring.audit.fingerprints import Fingerprint
from conescope.measuring.audit.identical import is_known_buffer

_AROUND = 3
"""Gaps on each side of a gap by which the grid around it is told."""


def usual_structure(series: Sequence[Fingerprint]) -> Fingerprint:
    """Return a fingerprint with the tensors, shapes and types that most of a series have."""
    kinds = Counter(_structure(one) for one in series)
    usual = kinds.most_common(1)[0][0]
    return next(one for one in series if _structure(one) == usual)


def differences(
    steps: Sequence[int], series: Sequence[Fingerprint], usual: Fingerprint
) -> Iterator[Finding]:
    """Yield in which checkpoints tensors are missing, or of another shape or type.

    Args:
        steps: T steps, rising.
        series: the fingerprints of the T checkpoints.
        usual: the fingerprint to compare them with, see `usual_structure`.
    """
    found: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    tied = _ties(series)
    for step, one in zip(steps, series, strict=True):
        for each in _compared(one, usual, tied):
            found[each].append(step)
    for (kind, text, is_alarm), where in found.items():
        yield Finding(kind, tuple(where), f"{steps_listed(where)}: {text}", is_alarm)


def not_finite(steps: Sequence[int], series: Sequence[Fingerprint]) -> Iterator[Finding]:
    """Yield which tensors hold NaN or infinite values, but for masks, which may."""
    for step, one in zip(steps, series, strict=True):
        bad = [n for n, e in one.items() if e.not_finite and not is_known_buffer(n, e.shape)]
        some = [n for n in bad if one[n].not_finite < one[n].numel]  # a mask has zeros, too
        always = {n for n in some if len({f[n].digest for f in series if n in f}) == 1}
        bad = bad if len(series) == 1 else [name for name in bad if name not in always]
        if bad:
            count = sum(one[name].not_finite for name in bad)
            text = (
                f"step {step:,} holds {count:,} NaN or infinite values, in {listed(bad)}; look at "
                f"the training before it"
            )
            yield Finding("not finite", (step,), text)


def spacing(steps: Sequence[int]) -> Iterator[Finding]:
    """Yield the steps that are missing from a regular grid, and whether the spacing is uneven.

    A step is missing if a gap is a multiple of the spacing that the steps on both sides have: two
    or more of the three nearest gaps. So a series may change its spacing, and end anywhere.

    Args:
        steps: T steps, rising.
    """
    gaps = [after - before for before, after in pairwise(steps)]
    missing: list[range] = []
    for at, gap in enumerate(gaps):
        grid = _grid(gaps[max(0, at - _AROUND) : at])
        after = _grid(gaps[at + 1 : at + 1 + _AROUND])
        if grid is not None and grid == after and gap > grid and gap % grid == 0:
            missing.append(range(steps[at] + grid, steps[at + 1], grid))
    if missing:
        runs = [f"{r[0]:,}" if len(r) == 1 else f"{r[0]:,} to {r[-1]:,}" for r in missing]
        text = (
            f"{sum(map(len, missing)):,} steps are missing from a series that is regular around "
            f"them: {listed(runs)}; were they not saved, not copied, or left out?"
        )
        yield Finding("missing steps", tuple(run[0] for run in missing), text)
    elif len(set(gaps)) > 1:
        text = (
            f"the steps are {min(gaps):,} to {max(gaps):,} apart; distances between neighbours "
            f"depend on that, so read velocities, which are per step"
        )
        yield Finding("uneven spacing", tuple(steps), text, is_alarm=False)


def _grid(gaps: Sequence[int]) -> int | None:
    """Return the gap that is there at least twice; None if there is none."""
    gap, count = Counter(gaps).most_common(1)[0] if gaps else (0, 0)
    return gap if count >= 2 else None


def _structure(one: Fingerprint) -> frozenset[tuple[str, tuple[int, ...], str]]:
    return frozenset((name, each.shape, each.dtype) for name, each in one.items())


def _compared(
    one: Fingerprint, usual: Fingerprint, tied: Mapping[str, set[str]]
) -> Iterator[tuple[str, str, bool]]:
    """Yield kind, text and gravity of each difference of a checkpoint to the usual one."""
    missing = [n for n in usual if n not in one and not tied.get(n, set()) & one.keys()]
    more = [n for n in one if n not in usual and not tied.get(n, set()) & usual.keys()]
    for kind, told, names, source in (
        ("missing tensors", "lacks", missing, usual),
        ("unexpected tensors", "also holds", more, one),
    ):
        if names:
            kept = [source[n].is_real and not is_known_buffer(n, source[n].shape) for n in names]
            text = f"{told} {len(names):,} tensors, unlike most: {listed(names)}"
            yield kind, text, any(kept)
    both = [name for name in usual if name in one]
    shapes = [
        f"{name} is {list(one[name].shape)} instead of {list(usual[name].shape)}"
        for name in both
        if one[name].shape != usual[name].shape
    ]
    if shapes:
        yield "another shape", f"unlike in most, {listed(shapes)}", True
    kinds = Counter(
        f"{one[name].dtype} instead of {usual[name].dtype}"
        for name in both
        if one[name].dtype != usual[name].dtype
    )
    for kind, count in kinds.items():
        yield "another type", f"{count:,} tensors are {kind}, unlike in most", True


def _ties(series: Sequence[Fingerprint]) -> dict[str, set[str]]:
    """Map names of matrices to those that hold the same values wherever both are."""
    groups: dict[str, set[str]] = {}
    for one in series:
        by_digest: dict[tuple[str, tuple[int, ...]], set[str]] = defaultdict(set)
        for name, each in one.items():
            if len(each.shape) > 1:  # vectors often begin as zeros or ones, all of them
                by_digest[each.digest, each.shape].add(name)
        for names in by_digest.values():
            for name in names:
                others = names - {name}
                kept = groups.get(name, others)
                groups[name] = {n for n in kept if n in others or n not in one}
    return groups
