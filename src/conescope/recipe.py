"""Recipe: what to train and where to look, as a frozen, typed value.

Where recipes come from (packaged, a user's file, the command line) is `conescope.recipes`.
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
from conescope.schedule import Schedule


@dataclass(frozen=True)
class DataRecipe:
    """Which images.

    Args:
        name: the data set; `digits` ships with scikit-learn, the others come from the Hub.
        path: a folder with train.parquet and test.parquet to read instead of the Hub.
        augmentation: `flip-crop` flips half the training images and shifts them by up to 4 pixels.
    """

    name: Literal["digits", "mnist", "cifar10"] = "digits"
    path: str | None = None
    augmentation: Literal["none", "flip-crop"] = "none"


@dataclass(frozen=True)
class ModelRecipe:
    """Which network.

    Args:
        name: the family.
        width: multiplies the number of channels of every hidden layer.
        norm: normalisation of ResNet-20 and VGG-16; null for the family's own (batch).
        shortcut: ResNet-20's shortcut where the shape changes; null for A.
        head: VGG-16's classifier, 4096-4096-10 (large) or 512-10 (small); null for large.
    """

    name: Literal["cnn", "mlp", "lenet5", "resnet20", "vgg16"] = "cnn"
    width: float = 1.0
    norm: Literal["batch", "layer"] | None = None
    shortcut: Literal["A", "B"] | None = None
    head: Literal["large", "small"] | None = None


@dataclass(frozen=True)
class OptimizerRecipe:
    """Which optimiser of torch.optim.

    Args:
        name: the optimiser.
        lr: the learning rate, before its schedule.
        momentum: momentum of sgd; the others have their own and want 0 here.
        weight_decay: L2 penalty (decoupled for adamw).
        decay_towards: the weights that the penalty pulls to: zero, or those the training starts
            from (sgd and adam only).
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_towards: Literal["zero", "start"] = "zero"


@dataclass(frozen=True)
class DynamicsRecipe:
    """What is trained, from the weights the training starts from.

    Args:
        kind: the network itself, or its first-order Taylor model (arXiv:2503.16316, section 4).
        batchnorm: where the Taylor model freezes BatchNorm: on the running statistics, or on
            statistics estimated anew from training images; of no effect on the network itself.
    """

    kind: Literal["standard", "linearised"] = "standard"
    batchnorm: Literal["running", "recalibrated"] = "running"


@dataclass(frozen=True)
class BranchRecipe:
    """From which snapshot of another run the training starts; `--from RUN --at STEP` sets it.

    Args:
        run: the other run's folder; null to start from fresh weights.
        parent: the other run's id.
        at: the snapshot's iteration, from which the training counts on.
        optimizer: the optimiser begins afresh, or with the snapshot's momentum.
    """

    run: str | None = None
    parent: str | None = None
    at: int = 0
    optimizer: Literal["fresh", "restored"] = "fresh"


@dataclass(frozen=True)
class LearningRateRecipe:
    """How the learning rate changes.

    Args:
        warmup: iterations over which it rises linearly from 0.
        drops: a schedule of the moments at which it is multiplied by `factor`.
        factor: what a drop multiplies it by.
    """

    warmup: int = 0
    drops: str = "never"
    factor: float = 0.1


@dataclass(frozen=True)
class TrainingRecipe:
    """How long, in which bites.

    Args:
        steps: length of the training in iterations.
        batch_size: images an iteration; the last batch of an epoch may be smaller.
        evaluate: a schedule of the moments at which loss and accuracy are measured.
    """

    steps: int = 2000
    batch_size: int = 64
    evaluate: str = "0, every 100, end"


@dataclass(frozen=True)
class SnapshotRecipe:
    """When the whole state of the training is stored.

    Args:
        keep: a schedule of snapshots that stay.
        resume: a schedule of snapshots to go on from; only the newest two stay.
    """

    keep: str = "0, end"
    resume: str = "every 500"


@dataclass(frozen=True)
class ProbeRecipe:
    """On which images the kernel is taken: fixed, and never augmented.

    Args:
        size: number of images.
        stratified: as many of each class (or one more), instead of a plain random sample.
        split: which part of the data they come from.
    """

    size: int = 200
    stratified: bool = True
    split: Literal["train", "test"] = "train"


@dataclass(frozen=True)
class KernelRecipe:
    """Which kernel, and when.

    Args:
        when: a schedule.
        outputs: which outputs enter the kernel, see `conescope.Kernel`.
        batchnorm: BatchNorm on its running statistics, or on statistics estimated anew from
            training images before each measurement.
        memory: what the measurement may use beside the model and the result, such as 2GB; null
            for what the engine thinks best.
    """

    when: str = "0, every 100"
    outputs: Literal["trace", "full", "sum"] | int = "trace"
    batchnorm: Literal["running", "recalibrated"] = "running"
    memory: str | None = None


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
    "optimizer.momentum": 0,
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
