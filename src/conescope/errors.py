"""Exceptions and warnings; every message says what went wrong, where, and what to do."""

from __future__ import annotations


class ConescopeError(Exception):
    """The base of every error that conescope raises on purpose."""

    def __str__(self) -> str:
        """Return the message on one line: what a name may hold, such as a newline, is escaped."""
        return "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode()
            for letter in super().__str__()
        )


class ArgumentError(ConescopeError, TypeError):
    """An argument of a public function is missing, or not of the type that the function says."""


class RecipeError(ConescopeError):
    """A recipe, a schedule, a command-line value or another option is wrong."""


class DataError(ConescopeError):
    """A data set is missing, in an unknown layout, or too small for what is asked."""


class ModelError(ConescopeError):
    """A model or its input has no exact eNTK, or none that conescope can compute."""


class KernelError(ConescopeError):
    """Kernels cannot be compared or used: NaN, zero, a wrong shape, or too few of them."""


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
        """Return the error for a package that is installed by one of conescope's extras."""
        return cls(
            f"{package} is not installed; run pip install 'conescope[{extra}]', "
            f"or in a checkout pip install '.[{extra}]'"
        )


class DamageWarning(UserWarning):
    """A stored file is damaged; the work goes on without it."""


class SameWeightsWarning(UserWarning):
    """Two checkpoints of a series hold the same weights, or the same in most of what is trained."""


class SkippedWarning(UserWarning):
    """Checkpoints that cannot be measured, or outputs too large to be stored, are left out."""


class BudgetWarning(UserWarning):
    """Measuring takes more of the wall time than it may, so some measurements are left out."""
