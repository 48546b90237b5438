"""Tensors that hold the same values in several checkpoints of a series.

Only trained parameters count: tensors of real numbers that change somewhere in the series, and are
no statistics. So what is frozen, or a buffer, says nothing about two checkpoints. Training never
gives a large tensor the same bits twice, unless nothing moves it; so an equal digest needs no
threshold, only an explanation. Weights of low precision have one: where an update is smaller than
half of the last digit, as in bfloat16 without a copy in float32, few values move at all, each to
the next number or back, and a tensor may rest or come back by itself. So a tensor counts only if
many of its values move at the checkpoints around.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np

from conescope.measuring.audit.findings import Finding, listed, steps_listed
from conescope.measuring.audit.fingerprints import Fingerprint
from conescope.measuring.checkpoints.equal_tensors import MOST, Codes

STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
"""Names of tensors that a model computes from its inputs, in training, without a gradient."""

_BUFFERS = re.compile(
    r"(^|[._])(position_ids|inv_freq|masked_bias|\w*mask|freqs_cis|relative_position_index)$"
)
_ATTENTION_MASK = re.compile(r"(attn|attention)\.bias$")
_NEGLIGIBLE = 0.01
_MANY = 64
"""Numbers of two sketches that have to differ, or else half of them, for many values to differ:
so many values do not all rest, or come back, by chance."""


def is_known_buffer(name: str, shape: Sequence[int]) -> bool:
    """Return whether a name is one that models give to buffers, such as a causal mask."""
    is_mask = len(shape) > 2 and _ATTENTION_MASK.search(name)
    return bool(is_mask or _BUFFERS.search(name) or STATISTICS.search(name))


def identical(steps: Sequence[int], series: Sequence[Fingerprint]) -> Iterator[Finding]:
    """Yield what is the same in several checkpoints.

    Args:
        steps: T steps, rising.
        series: the fingerprints of the T checkpoints, under the same names.
    """
    if len(series) < 2:
        return
    every = {name: each for one in series for name, each in one.items() if each.is_real}
    sizes = {name: each.numel for name, each in every.items() if not STATISTICS.search(name)}
    codes = Codes(sizes)
    for one in series:
        codes.add({name: one[name].digest for name in sizes if name in one})
    kept, found = _same_weights(steps, codes)
    yield from found
    if len(kept) < 2:
        return
    told: set[tuple[int, int]] = set()
    known = steps, codes, kept, series
    for finding, pair in [*_returned(*known), *_parts(*known)]:
        if pair not in told:
            told.add(pair)
            yield finding
    yield from _at_rest(steps, codes, kept, told)
    constant = [
        name
        for name, trained in zip(codes.names, codes.trained, strict=True)
        if not trained and not is_known_buffer(name, every[name].shape)
    ]
    if constant:
        count = sum(sizes[name] for name in constant)
        text = (
            f"{len(constant):,} of {len(sizes):,} tensors ({count:,} numbers) are the same in "
            f"every checkpoint: {listed(constant)}; frozen layers or buffers, if they are meant "
            f"to be"
        )
        yield Finding("frozen throughout", tuple(steps), text, is_alarm=False)


def _same_weights(steps: Sequence[int], codes: Codes) -> tuple[list[int], list[Finding]]:
    """Return the checkpoints without doubles, by number, and a finding for each set of doubles."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, row in enumerate(codes.rows[:, codes.trained]):
        groups[row.tobytes()].append(index)
    found = []
    for group in groups.values():
        if len(group) > 1:
            same = tuple(steps[index] for index in group)
            text = (
                f"{steps_listed(same)} have the same weights in every bit: one state was saved or "
                f"served under several names, or nothing was trained in between, as at a learning "
                f"rate of 0 or by updates smaller than the last digit of the weights"
            )
            found.append(Finding("same weights", same, text))
    return [group[0] for group in groups.values()], found


def _returned(
    steps: Sequence[int], codes: Codes, kept: Sequence[int], series: Sequence[Fingerprint]
) -> Iterator[tuple[Finding, tuple[int, int]]]:
    """Find pairs of checkpoints that share values which were others in between."""
    for at, (a, b) in ((y - x, (kept[x], kept[y])) for x, y in combinations(range(len(kept)), 2)):
        equal = codes.equal(a, b)
        if at < 2 or not equal.any():
            continue
        between = [k for k in kept if a < k < b]
        differ = codes.rows[between] != codes.rows[a]
        back = equal & differ.any(axis=0)
        if codes.share(back) < _NEGLIGIBLE:
            continue
        for n in np.flatnonzero(back):
            others = np.flatnonzero(differ[:, n])
            middle = between[others[len(others) // 2]]
            back[n] = _many_differ(codes.names[n], series[a], series[middle])
        share = codes.share(back)
        if share >= _NEGLIGIBLE:
            names = listed([codes.names[n] for n in np.flatnonzero(back)])
            shards = _whole_shards(codes, equal, back, series[b])
            what = f"all of {listed(shards)}: {names}" if shards else names
            text = (
                f"{steps_listed([steps[a], steps[b]])} share {share:.0%} of the trained parameters "
                f"({what}), which have other values in between: parts of one were served "
                f"for the other"
            )
            yield Finding("parts of another step", (steps[a], steps[b]), text), (a, b)


def _parts(
    steps: Sequence[int], codes: Codes, kept: Sequence[int], series: Sequence[Fingerprint]
) -> Iterator[tuple[Finding, tuple[int, int]]]:
    """Find neighbours that share most parameters or a whole shard, though not their neighbours."""
    for at in range(len(kept) - 1):
        a, b = kept[at], kept[at + 1]
        equal = codes.equal(a, b)
        counts = equal & _move_around(codes, kept, at, series)
        shards = _whole_shards(codes, equal, counts, series[b])
        around = [(kept[at - 1], a)] * (at > 0) + [(b, k) for k in kept[at + 2 : at + 3]]
        for pair in [] if shards else around:  # three checkpoints or more: frozen for a time
            counts &= ~codes.equal(*pair)
        share = codes.share(equal if shards else counts)
        if (share > MOST or shards) and not _begins_at_zero(codes, a, b, series[a]):
            what = f" (all of {listed(shards)})" if shards else ""
            text = (
                f"{steps_listed([steps[a], steps[b]])} share {share:.0%} of the trained "
                f"parameters{what}: a part of one was served for the other, or it was frozen "
                f"between them"
            )
            yield Finding("parts of another step", (steps[a], steps[b]), text), (a, b)


def _move_around(
    codes: Codes, kept: Sequence[int], at: int, series: Sequence[Fingerprint]
) -> np.ndarray:
    """Whether each tensor moves in many values before and after two neighbours that share it; [N].

    Args:
        codes: the table of equal values.
        kept: the checkpoints without doubles, by number.
        at: the place of the first neighbour among them.
        series: the fingerprints of all checkpoints.
    """
    found = np.ones(len(codes.names), dtype=bool)
    a = kept[at]
    for n in np.flatnonzero(codes.equal(a, kept[at + 1])):
        for side in (reversed(kept[:at]), kept[at + 2 :]):
            other = next((k for k in side if codes.rows[k, n] != codes.rows[a, n]), a)
            found[n] &= other == a or _many_differ(codes.names[n], series[a], series[other])
    return found


def _many_differ(name: str, one: Fingerprint, other: Fingerprint) -> bool:
    """Return whether a tensor has so many other values that they cannot come back by chance."""
    if name not in other or one[name].shape != other[name].shape:
        return True
    a, b = one[name].sketch, other[name].sketch
    if len(a) != len(b):  # one holds values that are not finite
        return True
    return bool((a != b).sum() >= min(_MANY, len(a) / 2))


def _begins_at_zero(codes: Codes, a: int, b: int, fingerprint: Fingerprint) -> bool:
    """Return whether all that moves from a to b was zero at a, the first checkpoint.

    A last layer of zeros, or the matrix B of a LoRA, stops the gradients of all others at first.
    """
    moved = np.flatnonzero(codes.trained & ~codes.equal(a, b))
    held = [fingerprint.get(codes.names[n]) for n in moved]
    return a == 0 and all(one and not (one.sketch.any() or one.not_finite) for one in held)


def _whole_shards(
    codes: Codes, equal: np.ndarray, counts: np.ndarray, fingerprint: Fingerprint
) -> list[str]:
    """List the shards whose trained tensors, two or more, are all equal, if one of them counts."""
    shards: dict[str, list[int]] = defaultdict(list)
    for n in np.flatnonzero(codes.trained):
        if codes.names[n] in fingerprint:
            shards[fingerprint[codes.names[n]].file].append(int(n))
    whole = [f for f, held in shards.items() if len(held) > 1 and equal[held].all()]
    return [f for f in whole if counts[shards[f]].any()] if len(shards) > 1 else []


def _at_rest(
    steps: Sequence[int], codes: Codes, kept: Sequence[int], told: set[tuple[int, int]]
) -> Iterator[Finding]:
    """Remark, once for the series, on parameters that some neighbours share."""
    resting = {}
    for a, b in pairwise(kept):
        if (a, b) not in told and (equal := codes.equal(a, b)).any():
            resting[a, b] = equal
    if not resting:
        return
    (a, b), most = max(resting.items(), key=lambda item: codes.share(item[1]))
    names = [codes.names[n] for n in np.flatnonzero(most)]
    text = (
        f"some trained tensors do not move between {len(resting):,} of {len(kept) - 1:,} pairs of "
        f"neighbours; most between {steps_listed([steps[a], steps[b]])}: "
        f"{codes.share(most):.1%} of the trained parameters ({listed(names)}); frozen for a time, "
        f"without a gradient, or moved by less than the precision"
    )
    yield Finding("at rest for a time", tuple(sorted({steps[k] for p in resting for k in p})),
                  text, is_alarm=False)  # fmt: skip
