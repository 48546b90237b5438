import numpy as np
import pytest
import torch

import conescope as cs
from conescope.errors import KernelError
from conescope.statistics.uncertainty import numerical_floor, sampled_distance


class Population:
    """Samples with features, and two kernels that weigh the features differently."""

    def __init__(self, width: int = 6) -> None:
        self.width = width
        self.scales = np.linspace(1.0, 2.0, width), np.linspace(2.0, 1.0, width)

    def kernels(self, seed: int, n: int) -> tuple[cs.Kernel, cs.Kernel]:
        x = np.random.default_rng(seed).standard_normal((n, self.width))
        first, second = (cs.Kernel(torch.from_numpy((x * s) @ x.T)) for s in self.scales)
        return first, second

    @property
    def distance(self) -> float:
        """E K K′ over pairs of different samples is Σ_a s_a s′_a, for unit normal features."""
        s, t = self.scales
        return float(1 - s @ t / np.sqrt((s @ s) * (t @ t)))


def test_without_the_diagonal_the_estimate_is_unbiased_and_covered():
    population = Population()
    found = [sampled_distance(*population.kernels(seed, 60), resamples=300) for seed in range(100)]
    unbiased = np.array([f.unbiased for f in found])
    error = unbiased.std() / 10
    assert abs(unbiased.mean() - population.distance) < 4 * error
    assert abs(np.mean([f.plain for f in found]) - population.distance) > 4 * error
    held = np.mean([f.low <= population.distance <= f.high for f in found])
    assert 0.88 <= held <= 1.0
    assert np.mean([f.standard_error for f in found]) == pytest.approx(unbiased.std(), rel=0.3)


def test_estimates_are_those_of_the_definition():
    a, b = Population().kernels(0, 12)
    K, L = a.values.numpy(), b.values.numpy()

    def product(left, right):
        return sum(left[i, j] * right[i, j] for i in range(12) for j in range(12) if i != j)

    found = sampled_distance(a, b)
    assert found.plain == pytest.approx(cs.kernel_distance(a, b))
    expected = 1 - product(K, L) / np.sqrt(product(K, K) * product(L, L))
    assert found.unbiased == pytest.approx(expected)


def test_a_kernel_is_at_no_distance_from_itself():
    a, _ = Population().kernels(0, 12)
    found = sampled_distance(a, a)
    assert found.plain == 0.0
    assert found.high < 1e-12


def test_full_outputs_are_resampled_by_sample():
    a, b = Population().kernels(0, 12)

    def full(kernel: cs.Kernel) -> cs.Kernel:
        values = torch.einsum("ij,cd->icjd", kernel.values, torch.eye(3, dtype=torch.float64))
        return cs.Kernel(values, outputs="full")

    assert sampled_distance(full(a), full(b)).low == pytest.approx(sampled_distance(a, b).low)


def test_the_same_seed_gives_the_same_interval_and_a_level_its_width():
    pair = Population().kernels(0, 30)
    assert sampled_distance(*pair) == sampled_distance(*pair)
    narrow, wide = (sampled_distance(*pair, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_floor_is_that_of_the_least_precise_kernel():
    a, b = Population().kernels(0, 30)
    single = cs.Kernel(b.values.float())
    assert numerical_floor([a, b]) < 1e-28
    assert numerical_floor([a, single]) == pytest.approx(64 * 2.0**-46)
    assert cs.kernel_distance(b, single) < numerical_floor([b, single])


def test_bad_input():
    a, b = Population().kernels(0, 30)
    with pytest.raises(KernelError, match="samples with themselves"):
        sampled_distance(cs.Kernel(a.values[:, :20]), cs.Kernel(b.values[:, :20]))
    with pytest.raises(KernelError, match="9 samples are too few"):
        sampled_distance(*Population().kernels(0, 9))
    with pytest.raises(KernelError, match="between 0 and 1, not 95"):
        sampled_distance(a, b, level=95)
    with pytest.raises(KernelError, match="10 resamples give no interval"):
        sampled_distance(a, b, resamples=10)
    with pytest.raises(KernelError, match="different samples"):
        sampled_distance(a, Population().kernels(0, 29)[1])
