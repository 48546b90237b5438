"""Recipe: what to train and where to look, as a frozen, typed value.

Where recipes come from (packaged, a user's file, the command line) is `conescope.training.recipes`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import yaml

from conescope.errors import RecipeError
from conescope.runs.schedule import Schedule
from conescope.training.recipe_fields import (
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
        data: which images.
        model: which network.
        branch: from which snapshot of another run it starts.
        dynamics: the network, or its first-order Taylor model.
        optimizer: which optimiser.
        lr_schedule: how the learning rate changes.
        training: how long, in which bites.
        snapshots: when the whole state of the training is stored.
        probe: on which images the kernel is taken.
        kernel: which kernel, and when.

    Raises:
        RecipeError: if a value is out of range; the message names the field.
    """

    name: str = "run"
    description: str = ""
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "float64"] = "float32"
    threads: int | None = None
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
        for name, limit in _AT_LEAST.items():
            value = self.get(name)
            if not value >= limit:
                raise RecipeError(f"{name} must be at least {limit}, not {value}")
        for name in _POSITIVE:
            if not 0 < self.get(name) < math.inf:
                raise RecipeError(f"{name} must be positive, not {self.get(name)}")
        for name in ("optimizer.momentum", "training.average"):
            if not 0 <= self.get(name) < 1:
                raise RecipeError(f"{name} is at least 0 and below 1, not {self.get(name)}")
        if self.threads is not None and self.threads < 1:
            raise RecipeError(f"threads must be at least 1, or null, not {self.threads}")
        if self.optimizer.momentum and self.optimizer.name != "sgd":
            raise RecipeError(
                f"optimizer.momentum is for sgd; {self.optimizer.name} has its own: set it to 0"
            )
        if self.optimizer.decay_towards == "start" and self.optimizer.name == "adamw":
            raise RecipeError(
                "optimizer.decay_towards: adamw's own decay goes to zero; take sgd or adam, or zero"
            )
        self._check_branch()
        if "/" in self.name or not self.name.strip(". "):
            raise RecipeError(f"name becomes part of a folder's name and cannot be {self.name!r}")
        for name in SCHEDULES:
            try:
                Schedule(self.get(name))
            except RecipeError as error:
                raise RecipeError(f"{name}: {error}") from None

    def _check_branch(self) -> None:
        branch = self.branch
        if (branch.run is None) != (branch.parent is None):
            raise RecipeError(
                "branch.run and branch.parent belong together; start a branch with "
                "'conescope run --from RUN --at STEP', which sets both"
            )
        if branch.run is None and branch != BranchRecipe():
            raise RecipeError(
                "branch.at and branch.optimizer are for a branch; start one with "
                "'conescope run --from RUN --at STEP'"
            )
        if not 0 <= branch.at < self.training.steps:
            raise RecipeError(
                f"a branch from iteration {branch.at} has nothing to do until iteration "
                f"{self.training.steps}; set training.steps higher, or --at lower"
            )

    def get(self, name: str) -> Any:
        """The value of a field by its dotted name, such as `optimizer.lr`."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def schedule(self, name: str, iterations_per_epoch: int) -> tuple[int, ...]:
        """The iterations at which a schedule field, such as `kernel.when`, fires.

        Raises:
            RecipeError: if it never does, and neither is `never` nor may be idle in a short run.
        """
        schedule, total = Schedule(self.get(name)), self.training.steps
        steps = schedule.steps(total, iterations_per_epoch)
        if not steps and not schedule.is_never and name not in _MAY_BE_IDLE:
            raise RecipeError(
                f"{name}: {schedule.text!r} never fires in {total} iterations; name an earlier "
                f"iteration, or write 'never' if that is meant"
            )
        return steps

    @property
    def id(self) -> str:
        """The name, and eight hexadecimal digits that hash what differs from the defaults.

        Name, description and the places of data and parent do not enter: they change no number.
        """
        defaults = dict(_flatten(asdict(Recipe())))
        changed = {
            name: value
            for name, value in _flatten(asdict(self))
            if value != defaults[name] and name not in _PLACES
        }
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:8]}"

    @property
    def lineage(self) -> str | None:
        """Where a branch starts and what it trains, as text; None for standard training afresh."""
        start = f"iteration {self.branch.at:,} of {self.branch.parent}"
        beginnings = "fresh weights" if self.branch.run is None else start
        is_ordinary = self.branch.run is None and self.dynamics.kind == "standard"
        return None if is_ordinary else f"{self.dynamics.kind} from {beginnings}"

    def to_dict(self) -> dict[str, Any]:
        """All fields as nested plain values."""
        return asdict(self)

    def to_yaml(self) -> str:
        """All fields as YAML, in the order of their definition."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)


SCHEDULES = (
    "lr_schedule.drops",
    "training.evaluate",
    "snapshots.keep",
    "snapshots.resume",
    "kernel.when",
)
_PLACES = ("name", "description", "data.path", "branch.run")
_MAY_BE_IDLE = ("snapshots.resume", "lr_schedule.drops")
_AT_LEAST = {
    "seed": 0,
    "training.steps": 1,
    "training.batch_size": 1,
    "probe.size": 1,
    "optimizer.weight_decay": 0,
    "lr_schedule.warmup": 0,
}
_POSITIVE = ("model.width", "optimizer.lr", "lr_schedule.factor")


def field_names() -> list[str]:
    """The dotted names of all fields, such as `optimizer.lr`."""
    return [name for name, _ in _flatten(asdict(Recipe()))]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
