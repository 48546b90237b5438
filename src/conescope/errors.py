"""What can go wrong, by whose hand: every message says what, where, and what to do about it."""

from __future__ import annotations


class ConescopeError(Exception):
    """Base of every error that conescope raises on purpose."""


class RecipeError(ConescopeError):
    """A recipe, a schedule, a command-line value or another option is wrong."""


class DataError(ConescopeError):
    """A data set is missing, in an unknown layout, or too small for what is asked."""


class ModelError(ConescopeError):
    """A model or its input has no exact eNTK as it stands."""


class KernelError(ConescopeError):
    """Kernels that cannot be compared, or that are no kernels (NaN, zero, wrong shape)."""


class CheckpointError(ConescopeError):
    """A checkpoint, or a series of them, cannot be read or does not fit the model."""


class StoreError(ConescopeError):
    """A run folder is missing, locked, damaged, or cannot be written."""


class TrainingError(ConescopeError):
    """Training cannot go on, for example because the loss is no longer finite."""


class MissingPackageError(ConescopeError, ImportError):
    """A package that only some parts of conescope need is not installed."""

    @classmethod
    def of(cls, package: str, extra: str) -> MissingPackageError:
        """The error for a package that one of conescope's extras brings along."""
        return cls(f"{package} is not installed; run pip install 'conescope[{extra}]'")


class DamageWarning(UserWarning):
    """Something stored is damaged; the work goes on without it."""


class SameWeightsWarning(UserWarning):
    """Two checkpoints of a series hold the same weights."""


class BudgetWarning(UserWarning):
    """Measuring takes more than the share of the wall time it may have, so some is left out."""
