"""Read the steps of a training from the names of its revisions, over one stage or several.

A stage is what stands before the step in a name: `stage2-ingredient1` in
`stage2-ingredient1-step1000-tokens5B`. Stages follow one another. Where a stage counts its steps
from its own start, the last step of the stage before is added to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.given_steps import Steps, given_steps
from conescope.measuring.checkpoints.steps import steps_of
from conescope.measuring.checkpoints.weight_files import some_of

_STEP_WORD = r"(?:global[-_]?)?(?:step|iteration|iter)s?[-_=.]?"
_STAGE = re.compile(rf"^(.*?)[-_./]*{_STEP_WORD}\d", re.IGNORECASE)
_NOT_SUCCESSIVE = re.compile(r"^\D*(seed|ingredient|run|replica|trial|fold|init)[^a-z\d]*\d", re.I)
_END = re.compile(rf"[-_./=]*(?:{_STEP_WORD})?[-_./=]*$", re.IGNORECASE)


@dataclass(frozen=True)
class Placed:
    """A revision at its place in a training.

    Attributes:
        name: its name.
        step: its iteration, counted from the start of the first stage.
        stage: the name of its stage; "" if the name tells none.
        begins: the iteration at which the stage begins.
    """

    name: str
    step: int
    stage: str
    begins: int


def placed(
    chosen: Sequence[Sequence[str]],
    known: Iterable[str],
    pattern: str | None = None,
    steps: Steps | None = None,
) -> list[Placed]:
    r"""Find the step and the stage of each revision.

    Args:
        chosen: the names that each pattern of the user matched, in the order of the patterns.
        known: all names that there are: a stage ends at the last step of them, chosen or not.
        pattern: a regular expression whose one group is the step, such as `ckpt_(\d+)`.
        steps: the steps themselves, see `given_steps`; there is one stage then.

    Returns:
        The revisions, in the order of their steps, which rise.

    Raises:
        CheckpointError: if a step cannot be told, two revisions have the same one, or it cannot
            be told in which order the stages follow.
    """
    names = list(dict.fromkeys(name for matched in chosen for name in matched))
    if steps is not None:
        numbers = given_steps([*map(Path, names)], steps, has_order=False)
        return _rising(Placed(n, step, "", 0) for n, step in zip(names, numbers, strict=True))
    if without := [name for name in names if not re.search(r"\d", name)]:
        raise CheckpointError(
            f"{without[0]} has no number in its name, and so no step; leave it out by a narrower "
            f"pattern of revisions"
        )
    order = _ordered(chosen, pattern)
    if len(order) == 1:
        numbers = steps_of([*map(Path, names)], pattern)
        stage = next(iter(order))
        return _rising(Placed(n, step, stage, 0) for n, step in zip(names, numbers, strict=True))
    return _rising(_over_stages(order, known, pattern))


def _over_stages(
    order: Mapping[str, Sequence[str]], known: Iterable[str], pattern: str | None
) -> Iterable[Placed]:
    every: dict[str, list[int]] = {stage: [] for stage in order}
    for name in known:
        stage = _stage_of(name, pattern)
        if stage in every and _is_like(name, order[stage], pattern):
            every[stage] += steps_of([Path(name)], pattern)
    begins, offset, last, end = 0, 0, -1, 0
    for stage, names in order.items():
        begins, first = end, min(every[stage])
        if first > end:  # it counts from the start of the training, or is the first stage
            offset = 0
        elif first <= last:  # it counts from its own start; else on from the stage before
            offset = begins
        for name in names:
            yield Placed(name, offset + steps_of([Path(name)], pattern)[0], stage, begins)
        last = max(every[stage])
        end = offset + last


def _is_like(name: str, chosen: Sequence[str], pattern: str | None) -> bool:
    """Return whether a name tells a step as the chosen names of its stage do."""
    if pattern is not None:
        return re.search(pattern, name) is not None
    if any(_STAGE.search(each) for each in chosen):
        return _STAGE.search(name) is not None
    return re.sub(r"\d+", "#", name) in {re.sub(r"\d+", "#", each) for each in chosen}


def _stage_of(name: str, pattern: str | None) -> str:
    match = _STAGE.search(name) if pattern is None else re.search(pattern, name)
    if match is None:
        return ""
    return match[1] if pattern is None else _END.sub("", name[: match.start(1)])


def _ordered(chosen: Sequence[Sequence[str]], pattern: str | None) -> dict[str, list[str]]:
    """Map the stages, in the order in which they follow, to the names in each."""
    if pattern is not None:
        steps_of([Path(name) for matched in chosen for name in matched], pattern)  # is it valid?
    order: dict[str, list[str]] = {}
    for matched in chosen:
        groups: dict[str, list[str]] = {}
        for name in matched:
            groups.setdefault(_stage_of(name, pattern), []).append(name)
        for stage in sorted(groups, key=_number) if len(groups) > 1 else groups:
            held = order.setdefault(stage, [])
            held += [name for name in groups[stage] if name not in held]
        _check_order([*groups])
    return order


def _number(stage: str) -> int:
    match = re.search(r"\d+", stage)
    return int(match[0]) if match else -1


def _check_order(stages: Sequence[str]) -> None:
    """Raise an error unless the order of the stages that one pattern matched can be told."""
    by_number: dict[int, str] = {}
    for stage in stages if len(stages) > 1 else ():
        number = 0 if _NOT_SUCCESSIVE.match(stage) else _number(stage)
        if (other := by_number.setdefault(number, stage)) != stage:
            raise CheckpointError(
                f"it cannot be told which of the stages {some_of(sorted((other, stage)))} comes "
                f"first, or whether both begin at the same weights; choose one of them, or give "
                f"a pattern of revisions for each, in their order"
            )


def _rising(found: Iterable[Placed]) -> list[Placed]:
    series = sorted(found, key=lambda each: each.step)
    for before, after in pairwise(series):
        if before.step == after.step:
            raise CheckpointError(
                f"{before.name} and {after.name} both are at step {after.step:,}; leave one out by "
                f"a narrower pattern of revisions, or say where the step is with a step pattern"
            )
    return series
