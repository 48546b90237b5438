"""The sections of a recipe: a frozen, typed value each, and what its fields mean.

What a field's value has to satisfy beside its type is the field's metadata. The sections `data`,
`model`, `optimizer` and `lr_schedule` name a part (see `conescope.training.parts`), whose own
options stand in a recipe beside the section's fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from conescope.kernel.matrix import BatchNorm, Outputs

PLACE = {"place": True}
"""Metadata of a field that changes no number, and so does not enter a recipe's id."""

SCHEDULE = {"schedule": "fires"}
IDLE_SCHEDULE = {"schedule": "may be idle"}
"""Metadata of a schedule; an idle one need not fire within the training."""

POSITIVE = {"positive": True}
FRACTION = {"fraction": True}
"""Metadata of numbers above 0, and of numbers of at least 0 and below 1."""

LossName = Literal["cross_entropy", "squared"]
"""The losses that a recipe can name, see `conescope.training.losses`."""


@dataclass(frozen=True)
class DataRecipe:
    """The data set to train and to evaluate on.

    Args:
        name: the data set, or `package.module:load` of your own.
        path: where it is, for data sets that take a path; mnist and cifar10 read a folder with
            train.parquet and test.parquet instead of the Hub, text a file.
        augmentation: `flip-crop` flips half the training images and shifts them by up to 4 pixels.
        label_noise: share of the training labels that are drawn anew from all classes, by the
            recipe's seed.
        train_size: number of training samples to take, chosen by the recipe's seed; null for all.
        options: the data set's own options.
    """

    name: str = "digits"
    path: str | None = field(default=None, metadata=PLACE)
    augmentation: Literal["none", "flip-crop"] = "none"
    label_noise: float = field(default=0.0, metadata=FRACTION)
    train_size: int | None = field(default=None, metadata={"least": 1})
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ModelRecipe:
    """The network to train.

    Args:
        name: the network, or `package.module:build` of your own.
        width: multiplies the number of channels, or units, of every hidden layer.
        options: the network's own options.
    """

    name: str = "cnn"
    width: float = field(default=1.0, metadata=POSITIVE)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class OptimizerRecipe:
    """The optimiser and its settings.

    Args:
        name: an optimiser of torch.optim, upper or lower case, or `package.module:build` of your
            own.
        lr: the learning rate, before its schedule.
        momentum: for optimisers that have a momentum; 0 for the others.
        weight_decay: L2 penalty; decoupled for adamw and others that decouple it.
        decay_towards: the weights that the penalty pulls to: zero, or those the training starts
            from (not where the penalty is decoupled).
        options: the optimiser's own options.
    """

    name: str = "sgd"
    lr: float = field(default=0.1, metadata=POSITIVE)
    momentum: float = field(default=0.0, metadata=FRACTION)
    weight_decay: float = field(default=0.0, metadata={"least": 0})
    decay_towards: Literal["zero", "start"] = "zero"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class DynamicsRecipe:
    """The dynamics: the network, or its first-order model at the weights it starts from.

    Args:
        kind: the network itself, or its first-order Taylor model (arXiv:2503.16316, section 4).
        batchnorm: where the Taylor model freezes BatchNorm: on the running statistics, or on
            statistics estimated anew from training samples; of no effect on the network itself.
    """

    kind: Literal["standard", "linearised"] = "standard"
    batchnorm: BatchNorm = "running"


@dataclass(frozen=True)
class BranchRecipe:
    """The snapshot of another run that the training starts from, as `--from RUN --at STEP` sets it.

    Args:
        run: the other run's folder; null to start from fresh weights.
        parent: the other run's id.
        at: the snapshot's iteration, from which the training counts on.
        optimizer: the optimiser begins afresh, or with the snapshot's momentum.
        perturbation: norm of a step in a random direction that the weights take first, relative
            to theirs; 0 for none.
        perturbation_seed: decides the direction of that step, together with nothing else.
    """

    run: str | None = field(default=None, metadata=PLACE)
    parent: str | None = None
    at: int = field(default=0, metadata={"least": 0})
    optimizer: Literal["fresh", "restored"] = "fresh"
    perturbation: float = field(default=0.0, metadata={"least": 0})
    perturbation_seed: int = field(default=0, metadata={"least": 0})


@dataclass(frozen=True)
class LearningRateRecipe:
    """The learning rate's change along the training.

    Args:
        name: `drops`, `cosine`, `one-cycle`, a scheduler of torch.optim.lr_scheduler, or
            `package.module:build` of your own.
        warmup: iterations over which the learning rate rises linearly from 0.
        drops: a schedule of the iterations at which it is multiplied by `factor`.
        factor: what a drop multiplies it by.
        options: the learning-rate schedule's own options.
    """

    name: str = "drops"
    warmup: int = field(default=0, metadata={"least": 0})
    drops: str = field(default="never", metadata=IDLE_SCHEDULE)
    factor: float = field(default=0.1, metadata=POSITIVE)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class TrainingRecipe:
    """The loss, the length of the training, the size of its batches, and when it is evaluated.

    Args:
        loss: what is made smaller: the cross-entropy, or half the squared distance of the logits
            to the one-hot labels ("squared").
        steps: length of the training in iterations.
        batch_size: samples an iteration; the last batch of an epoch may be smaller.
        replacement: whether each batch is drawn with replacement from all training samples, instead
            of being the next of a permutation that is new in every epoch.
        evaluate: a schedule of the iterations at which loss and accuracy are measured.
        average: decay of an exponential average of the weights, such as 0.99, whose kernels are
            measured beside the network's own; 0 for none.
        precision: "bfloat16" computes the forward pass of an iteration by torch's autocast, faster
            where the machine multiplies such numbers; weights, evaluations and kernels keep the
            recipe's dtype.
        memory_format: "channels_last" stores images and convolutions with the channels innermost,
            which some machines convolve faster.
        compile: whether torch.compile makes code of the network's forward and backward pass, which
            takes from seconds to a minute in every session, and a C++ compiler on a CPU.
    """

    loss: LossName = "cross_entropy"
    steps: int = field(default=2000, metadata={"least": 1})
    batch_size: int = field(default=64, metadata={"least": 1})
    replacement: bool = False
    evaluate: str = field(default="0, every 100, end", metadata=SCHEDULE)
    average: float = field(default=0.0, metadata=FRACTION)
    precision: Literal["full", "bfloat16"] = "full"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    compile: bool = False


@dataclass(frozen=True)
class SnapshotRecipe:
    """The iterations at which the whole state of the training is stored.

    Args:
        keep: a schedule of snapshots that are never removed.
        resume: a schedule of snapshots from which a stopped run goes on; only the newest two stay.
    """

    keep: str = field(default="0, end", metadata=SCHEDULE)
    resume: str = field(default="every 500", metadata=IDLE_SCHEDULE)


@dataclass(frozen=True)
class ProbeRecipe:
    """The samples on which the kernel is taken: fixed, and never augmented.

    Args:
        size: number of samples.
        stratified: as many of each class (or one more), instead of a plain random choice.
        split: which part of the data they come from.
    """

    size: int = field(default=200, metadata={"least": 1})
    stratified: bool = True
    split: Literal["train", "test"] = "train"


@dataclass(frozen=True)
class KernelRecipe:
    """The kernel to measure, and when.

    Args:
        when: a schedule of the iterations at which a kernel is measured.
        outputs: which outputs enter the kernel, see `conescope.Kernel`.
        batchnorm: BatchNorm on its running statistics, or on statistics estimated anew from
            training samples before each measurement.
        memory: what the measurement may use beside the model and the result, such as 2GB; null
            for what the engine thinks best.
        by_layer: whether to keep the summands of each layer, which tell its share of a movement.
        estimate: number of random cotangents that estimate the class trace, at least 2; null for
            the exact kernel.
        projection: number of dimensions, a multiple of 8, of a random projection that estimates
            the class trace; null for no projection.
    """

    when: str = field(default="0, every 100", metadata=SCHEDULE)
    outputs: Outputs = "trace"
    batchnorm: BatchNorm = "running"
    memory: str | None = None
    by_layer: bool = False
    estimate: int | None = field(default=None, metadata={"least": 2})
    projection: int | None = field(default=None, metadata={"least": 8})
