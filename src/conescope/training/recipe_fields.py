"""The sections of a recipe: a frozen, typed value each, and what its fields mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
        average: decay of an exponential average of the weights, such as 0.99, whose kernels are
            measured beside the network's own; 0 for none.
    """

    steps: int = 2000
    batch_size: int = 64
    evaluate: str = "0, every 100, end"
    average: float = 0.0


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
        by_layer: whether to keep the summands of each layer, which say who moved the kernel.
    """

    when: str = "0, every 100"
    outputs: Literal["trace", "full", "sum"] | int = "trace"
    batchnorm: Literal["running", "recalibrated"] = "running"
    memory: str | None = None
    by_layer: bool = False
