"""Recipe: what to train and when to measure, as a frozen, typed value.

Where recipes come from (packaged, a user's file, the command line) is
`conescope.training.recipe_reading`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal

import yaml

from conescope.errors import KernelError, RecipeError
from conescope.kernel.estimates import check_estimate
from conescope.runs.foreign import printable
from conescope.runs.schedule import Schedule
from conescope.training.recipe_fields import (
    IDLE_SCHEDULE,
    PLACE,
    BranchRecipe,
    DataRecipe,
    DynamicsRecipe,
    KernelRecipe,
    LearningRateRecipe,
    ModelRecipe,
    OptimizerRecipe,
    ProbeRecipe,
    SnapshotRecipe,
    TrainingRecipe,
)

_LONGEST_NAME = 150
"""Bytes of a run's name; with the hash behind it, folders can have 255."""


@dataclass(frozen=True)
class Recipe:
    """A whole run: everything that its numbers depend on, beside machine and versions.

    Args:
        name: what the run is called; a recipe file's own name unless it says otherwise.
        description: one line for people.
        seed: seed of the initial weights, the order of the data, augmentation and probe.
        device: where to compute, such as cpu or cuda.
        dtype: floating-point type of the network.
        threads: CPU threads; null for torch's choice. Small networks are fastest on one, where
            threads spend more time waiting for each other than computing.
        data: which data set.
        model: which network.
        branch: from which snapshot of another run it starts.
        dynamics: the network, or its first-order Taylor model.
        optimizer: which optimiser.
        lr_schedule: how the learning rate changes.
        training: how long to train, in batches of which size, and when to evaluate.
        snapshots: when the whole state of the training is stored.
        probe: on which samples the kernel is taken.
        kernel: which kernel, and when.

    Raises:
        RecipeError: if a value is out of range; the message names the field.
    """

    name: str = field(default="run", metadata=PLACE)
    description: str = field(default="", metadata=PLACE)
    seed: int = field(default=0, metadata={"least": 0})
    device: str = "cpu"
    dtype: Literal["float32", "float64"] = "float32"
    threads: int | None = field(default=None, metadata={"least": 1})
    data: DataRecipe = field(default_factory=DataRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    branch: BranchRecipe = field(default_factory=BranchRecipe)
    dynamics: DynamicsRecipe = field(default_factory=DynamicsRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    lr_schedule: LearningRateRecipe = field(default_factory=LearningRateRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    snapshots: SnapshotRecipe = field(default_factory=SnapshotRecipe)
    probe: ProbeRecipe = field(default_factory=ProbeRecipe)
    kernel: KernelRecipe = field(default_factory=KernelRecipe)

    def __post_init__(self) -> None:
        for (name, described), value in zip(FIELDS.items(), _values(self), strict=True):
            _check(name, value, described.metadata)
        self._check_branch()
        self._check_kernel()
        if not self.name.strip(". ") or "\n" in self.name or set("/\\") & set(self.name):
            raise RecipeError(
                f"name becomes part of a folder's name and cannot be {self.name!r}; leave out "
                f"slashes, and write at least one letter"
            )
        if len(self.name.encode()) > _LONGEST_NAME:
            raise RecipeError(
                f"name becomes part of a folder's name and can have {_LONGEST_NAME} bytes, not "
                f"{len(self.name.encode())}; write a shorter one, and the rest into description"
            )

    def _check_branch(self) -> None:
        branch = self.branch
        if (branch.run is None) != (branch.parent is None):
            raise RecipeError(
                "branch.run and branch.parent belong together; start a branch with "
                "'conescope run --from RUN --at STEP', which sets both"
            )
        if branch.run is None and branch != BranchRecipe():
            raise RecipeError(
                "branch.at, optimizer, perturbation and its seed are for a branch; start one with "
                "'conescope run --from RUN --at STEP'"
            )
        if branch.at >= self.training.steps:
            raise RecipeError(
                f"a branch from iteration {branch.at} has nothing to do until iteration "
                f"{self.training.steps}; set training.steps higher, or --at lower"
            )

    def _check_kernel(self) -> None:
        kernel = self.kernel
        try:
            check_estimate(
                kernel.outputs,
                by_layer=kernel.by_layer,
                draws=kernel.estimate,
                projection=kernel.projection,
            )
        except KernelError as error:
            raise RecipeError(f"kernel.estimate, kernel.projection: {error}") from None

    def get(self, name: str) -> Any:
        """Return the value of a field by its dotted name, such as `optimizer.lr`."""
        return attrgetter(name)(self)

    def schedule(self, name: str, iterations_per_epoch: int) -> tuple[int, ...]:
        """Return the iterations at which a schedule field, such as `kernel.when`, fires.

        Raises:
            RecipeError: if it never does, and neither is `never` nor may be idle in a short run;
                or if it fires millions of times.
        """
        self.count(name, iterations_per_epoch)
        with _naming(name):
            return Schedule(self.get(name)).steps(self.training.steps, iterations_per_epoch)

    def count(self, name: str, iterations_per_epoch: int) -> int:
        """Count the iterations of a schedule field from the branch's start on, however many.

        Raises:
            RecipeError: if it never fires, and neither is `never` nor may be idle in a short run.
        """
        schedule, total = Schedule(self.get(name)), self.training.steps
        with _naming(name):
            is_idle = not schedule.count(total, iterations_per_epoch)
            if is_idle and not schedule.is_never and FIELDS[name].metadata != IDLE_SCHEDULE:
                raise RecipeError(
                    f"{schedule.text!r} never fires in {total} iterations; name an earlier "
                    f"iteration, or write 'never' if that is meant"
                )
            return schedule.count(total, iterations_per_epoch, start=self.branch.at)

    @property
    def digest(self) -> str:
        """The SHA-256 of what differs from the defaults, in hexadecimal: 64 digits.

        Name, description and the places of data and parent do not enter: they change no number.
        An option that is given enters even where it is the part's own default.
        """
        changed = {
            name: value
            for (name, described), value in zip(FIELDS.items(), _values(self), strict=True)
            if described.metadata != PLACE and value != described.default
        }
        for section in PARTS:
            changed |= _flatten(self.get(section).options, f"{section}.")
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()

    @property
    def id(self) -> str:
        """The name, and the first eight digits of the digest."""
        return f"{self.name}-{self.digest[:8]}"

    @property
    def lineage(self) -> str | None:
        """Text that says from where and what a run trains; None for standard training afresh."""
        start = f"iteration {self.branch.at:,} of {self.branch.parent}"
        beginnings = "fresh weights" if self.branch.run is None else start
        is_ordinary = self.branch.run is None and self.dynamics.kind == "standard"
        return None if is_ordinary else f"{self.dynamics.kind} from {beginnings}"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as nested plain values, options of parts beside the fields."""
        values = asdict(self)
        for section in PARTS:
            values[section] |= values[section].pop("options")
        return values

    def to_yaml(self) -> str:
        """Return all fields as YAML, in the order of their definition."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


SECTIONS: dict[str, Any] = {
    section.name: section.default_factory
    for section in fields(Recipe)
    if is_dataclass(section.default_factory)
}
"""The sections of a recipe: name → the class of its fields."""

PARTS = ("data", "model", "optimizer", "lr_schedule")
"""The sections that name a part, whose own options stand beside their fields."""


def _fields() -> Iterator[tuple[str, Field[Any]]]:
    for described in fields(Recipe):
        if described.name not in SECTIONS:
            yield described.name, described
            continue
        for inner in fields(SECTIONS[described.name]):
            if inner.name != "options":
                yield f"{described.name}.{inner.name}", inner


FIELDS: Mapping[str, Field[Any]] = dict(_fields())
"""All fields of a recipe: dotted name, such as `optimizer.lr` → how it is declared."""

_values = attrgetter(*FIELDS)
"""Returns the values of all fields of a recipe."""


def _check(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    """Raise `RecipeError` if a field's value is out of range, or is no schedule."""
    if value is None:
        if FIELDS[name].default is None:
            return
        raise RecipeError(f"{name} cannot be null; its default is {FIELDS[name].default!r}")
    if "least" in rules and not rules["least"] <= value < math.inf:
        or_null = ", or null" if FIELDS[name].default is None else ""
        raise RecipeError(f"{name} must be at least {rules['least']}{or_null}, not {value}")
    if "positive" in rules and not 0 < value < math.inf:
        raise RecipeError(f"{name} must be positive, not {value}")
    if "fraction" in rules and not 0 <= value < 1:
        raise RecipeError(f"{name} is at least 0 and below 1, not {value}")
    if isinstance(value, str) and not value.isprintable() and printable(value) != value:
        raise RecipeError(f"{name} holds control characters: {value[:80]!r}; leave them out")
    if "schedule" in rules:
        with _naming(name):
            _check_schedule(value)


@lru_cache(256)
def _check_schedule(text: str) -> None:
    """Raise `RecipeError` if this is no schedule; recipes by the thousand have the same few."""
    Schedule(text)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put a field's name before the message of what is wrong with its value."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from None


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
