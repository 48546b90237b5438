"""KernelSeries: kernels in the order of training, and the matrix of their distances.

The paper's figures are read from this one [T, T] matrix: a column is figure 1a, an off-diagonal
is figure 1b, its embedding is figure 1c (arXiv:2503.16316).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import overload

import numpy as np

from conescope.argument_types import checked
from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array, check_comparable, distance_matrix, unit_vector
from conescope.kernel.estimates import EstimatedDistances, Measured, estimated_distances, parts_of
from conescope.kernel.features import Features
from conescope.kernel.matrix import Kernel
from conescope.kernel.multidimensional_scaling import Embedding, classical_mds
from conescope.kernel.notebook_card import card


def as_step(value: object) -> int:
    """Return a number of iterations, of any integer type of Python, NumPy or torch, as an int.

    Raises:
        KernelError: if it is not an integer, or is negative.
    """
    try:
        step = -1 if isinstance(value, bool) else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        step = -1
    if step < 0:
        raise KernelError(f"a step is a number of iterations, at least 0, not {value!r}")
    return step


class _Products(Sequence[Kernel]):
    """The kernels of features, each computed when it is asked for, and not kept."""

    def __init__(self, measured: tuple[Measured, ...]) -> None:
        self.measured = measured

    def __len__(self) -> int:
        return len(self.measured)

    @overload
    def __getitem__(self, place: int) -> Kernel: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Kernel]: ...
    def __getitem__(self, place: int | slice) -> Kernel | Sequence[Kernel]:
        if isinstance(place, slice):
            return _Products(self.measured[place])
        one = self.measured[place]
        return Kernel(one.values @ one.values.mT) if isinstance(one, Features) else one


@checked
class KernelSeries:
    """T kernels of the same samples, taken at rising steps of one training.

    Of estimates, each by the same R random cotangents or groups of projected columns, S is free of
    the bias of their noise, and has standard errors (see `conescope.kernel.estimates`).

    Args:
        steps: the T iterations, strictly rising, each at least 0.
        kernels: the T kernels, or features whose products estimate them; T at least 1.

    Attributes:
        steps: the iterations.
        measured: the T kernels or features, as they were given.
        kernels: the T kernels; those of features, [n, n] without their groups, are computed
            each time one is asked for, and not kept.
        draws: R for a series of estimates; None if a kernel is exact, or has no second draw.

    Raises:
        KernelError: if the series is empty, the steps are not whole numbers that rise, there are
            not as many steps as kernels, or the kernels differ in shape, convention, or in the
            number of their draws.
    """

    def __init__(self, steps: Sequence[int], kernels: Sequence[Measured]) -> None:
        if len(steps) != len(kernels):
            raise KernelError(
                f"{len(steps)} steps but {len(kernels)} kernels; give one step for each kernel"
            )
        if not kernels:
            raise KernelError("a series needs at least one kernel; measure one first")
        counts = [as_step(step) for step in steps]
        for before, after in pairwise(counts):
            if after <= before:
                raise KernelError(
                    f"the steps must rise, but {after} follows {before}; sort the kernels by step, "
                    "and leave out those that come twice"
                )
        self.steps: tuple[int, ...] = tuple(counts)
        self.measured: tuple[Measured, ...] = (
            kernels.measured if isinstance(kernels, _Products) else tuple(kernels)
        )
        self.draws = parts_of(self.measured)
        self.kernels = _comparable(self.measured)

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        held = "features" if isinstance(self.measured[0], Features) else "kernels"
        shape = tuple(self.measured[0].values.shape)
        span = f"{self.steps[0]}…{self.steps[-1]}"
        return f"KernelSeries({len(self)} {held} of shape {shape}, steps {span})"

    def _repr_html_(self) -> str:
        return card("series", self)

    def distances(self) -> Float64Array:
        """Return S between all pairs (arXiv:2503.16316, eq. 4); [T, T], in [0, 2].

        Raises:
            KernelError: as `check_usable`.
        """
        return self._distances.copy()

    def standard_errors(self) -> Float64Array:
        """Return the standard errors of `distances` over the draws of the estimates; [T, T].

        Those of velocities are the same divided by dt.

        Raises:
            KernelError: if the kernels are exact, or otherwise as `check_usable`.
        """
        return self.estimated.errors

    @property
    def estimated(self) -> EstimatedDistances:
        """The distances of a series of estimates as they are, and without each of the draws.

        Raises:
            KernelError: as `standard_errors`.
        """
        if self._estimated is None:
            raise KernelError(
                "only a series of estimates, each by the same number of draws and at least two, "
                "has standard errors; measure with draws or a projection"
            )
        return self._estimated

    def cosines(self) -> Float64Array:
        """Return the cosines C = 1 − S between all pairs; [T, T], ones on the diagonal."""
        return 1.0 - self._distances

    @checked
    def distances_from(self, step: int) -> Float64Array:
        """Return S(θ(t), θ(τ)) for every t, with τ = `step` (figure 1a); [T].

        Raises:
            KernelError: if there is no kernel at `step`; the message names the nearest.
        """
        return self._distances[:, self.index(step)].copy()

    @checked
    def distances_after(self, dt: int) -> tuple[np.ndarray, Float64Array]:
        """Return S(θ(t), θ(t + dt)) for every t at which both kernels exist (figure 1b).

        Args:
            dt: the lag in iterations, at least 1.

        Returns:
            The steps t and the distances S, both [T'] with T' < T; empty if no two kernels are
            dt apart, as with one kernel.
        """
        starts, ends = self.pairs_after(dt)
        return np.array(self.steps)[starts], self._distances[starts, ends]

    @checked
    def pairs_after(self, dt: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places in the series of the kernels at t and at t + dt, [T'] each.

        They choose the standard errors of `distances_after` from the matrix.
        """
        if dt < 1:
            raise KernelError(f"dt is a number of iterations of at least 1, not {dt}")
        place = {step: i for i, step in enumerate(self.steps)}
        pairs = [(i, place[s + dt]) for i, s in enumerate(self.steps) if s + dt in place]
        starts, ends = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return starts, ends

    @checked
    def velocities(self, dt: int) -> tuple[np.ndarray, Float64Array]:
        """Return the kernel velocity v(t) = S(θ(t), θ(t + dt)) / dt (arXiv:2503.16316, eq. 5).

        Returns:
            The steps t and v in 1 / iteration, as `distances_after`.
        """
        steps, distances = self.distances_after(dt)
        return steps, distances / dt

    @checked
    def embedding(self, dimensions: int = 2) -> Embedding:
        """Embed the kernels, at least two, as points in `dimensions` dimensions (figure 1c)."""
        return classical_mds(self._distances, dimensions)

    @checked
    def index(self, step: int) -> int:
        """Return the index in the series of the kernel taken at `step`.

        Raises:
            KernelError: if there is no kernel at `step`; the message names the nearest.
        """
        try:
            return self.steps.index(step)
        except ValueError:
            nearest = min(self.steps, key=lambda s: abs(s - step))
            raise KernelError(
                f"there is no kernel at step {step}; the nearest is at step {nearest}"
            ) from None

    def check_usable(self) -> None:
        """Raise `KernelError`, naming the step, if a kernel is zero or holds NaN or infinity."""
        for step, kernel in zip(self.steps, self.kernels, strict=True):
            try:
                unit_vector(kernel)
            except KernelError as error:
                raise KernelError(f"at step {step}, {error}") from error

    @cached_property
    def _distances(self) -> Float64Array:
        if self._estimated is not None:
            return self._estimated.corrected
        try:
            return distance_matrix(self.kernels)
        except KernelError:
            self.check_usable()
            raise

    @cached_property
    def _estimated(self) -> EstimatedDistances | None:
        if self.draws is None:
            return None
        try:
            return estimated_distances(self.measured)
        except KernelError:
            self.check_usable()
            raise


def _comparable(measured: tuple[Measured, ...]) -> Sequence[Kernel]:
    """Return the kernels of a series.

    Raises:
        KernelError: if they differ in shape or convention, or only some are features.
    """
    kernels = tuple(one for one in measured if isinstance(one, Kernel))
    if len(kernels) == len(measured):
        check_comparable(kernels)
        return kernels
    if kernels:
        raise KernelError(
            "kernels and features cannot be compared; measure all with the same projection"
        )
    if len({one.values.shape for one in measured}) > 1:
        shapes = " and ".join(sorted({str(tuple(one.values.shape)) for one in measured}))
        raise KernelError(
            f"features of different samples cannot be compared: shapes {shapes}; project the same "
            "samples at every step"
        )
    return _Products(measured)
