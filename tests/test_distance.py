import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import conescope as cs
from conescope.errors import KernelError
from conescope.kernel.distance import distance_matrix


def random_kernel(seed: int, n: int = 6, dtype: torch.dtype = torch.float64) -> cs.Kernel:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(n, 2 * n, generator=generator, dtype=dtype)
    return cs.Kernel(jacobian @ jacobian.T)


def scaled(kernel: cs.Kernel, factor: float) -> cs.Kernel:
    return cs.Kernel(kernel.values * factor)


seeds = st.integers(0, 10_000)


@given(a=seeds, b=seeds)
def test_distance_is_equation_4_as_it_is_printed(a, b):
    H, G = random_kernel(a).values.numpy(), random_kernel(b).values.numpy()
    printed = 1 - np.trace(H @ G.T) / math.sqrt(np.trace(H @ H.T)) / math.sqrt(np.trace(G @ G.T))
    assert cs.kernel_distance(random_kernel(a), random_kernel(b)) == pytest.approx(
        printed, abs=1e-14
    )


@given(a=seeds, b=seeds, factor=st.floats(1e-6, 1e6), order=st.permutations(range(6)))
def test_laws_of_the_distance(a, b, factor, order):
    first, second = random_kernel(a), random_kernel(b)
    distance = cs.kernel_distance(first, second)
    assert cs.kernel_distance(first, first) == 0.0
    assert cs.kernel_distance(second, first) == distance
    assert 0.0 <= distance <= 1.0  # of positive semi-definite kernels
    assert cs.kernel_distance(scaled(first, factor), second) == pytest.approx(distance, abs=1e-14)
    shuffled = [cs.Kernel(k.values[order][:, order]) for k in (first, second)]
    assert cs.kernel_distance(*shuffled) == pytest.approx(distance, abs=1e-14)


def test_opposite_kernels_are_2_apart_and_orthogonal_ones_1():
    eye, anti = torch.eye(2), torch.eye(2).flip(0)
    assert cs.kernel_distance(cs.Kernel(eye), cs.Kernel(-eye)) == pytest.approx(2.0)
    assert cs.kernel_distance(cs.Kernel(eye), cs.Kernel(anti)) == pytest.approx(1.0)


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1.4e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resolves_1e_10(angle, dtype):
    """A rotation by a known angle moves the kernel by S = 1 − cos(angle), down to 1e-10."""
    n = 200
    u = torch.zeros(n, n, dtype=torch.float64)
    v = torch.zeros(n, n, dtype=torch.float64)
    u[: n // 2], v[n // 2 :] = 1.0, 1.0
    rotated = math.cos(angle) * u + math.sin(angle) * v
    first, second = cs.Kernel(u.to(dtype)), cs.Kernel(rotated.to(dtype))
    expected = 2 * math.sin(angle / 2) ** 2
    assert cs.kernel_distance(first, second) == pytest.approx(expected, rel=1e-3)
    assert distance_matrix([first, second])[0, 1] == pytest.approx(expected, rel=1e-3)


@given(dt=st.floats(1e-3, 1e6))
def test_velocity_is_distance_over_time(dt):
    a, b = random_kernel(0), random_kernel(1)
    assert cs.kernel_velocity(a, b, dt) == cs.kernel_distance(a, b) / dt


@pytest.mark.parametrize("dt", [0, -1, math.nan, math.inf])
def test_velocity_refuses_a_time_that_is_none(dt):
    with pytest.raises(KernelError, match="must be positive"):
        cs.kernel_velocity(random_kernel(0), random_kernel(1), dt)


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (cs.Kernel(torch.zeros(6, 6)), "zero everywhere"),
        (cs.Kernel(torch.full((6, 6), math.nan)), "NaN"),
        (cs.Kernel(torch.full((6, 6), math.inf)), "NaN or infinite"),
        (cs.Kernel(torch.full((6, 6), 1e200, dtype=torch.float64)), "overflows"),
        (random_kernel(0, n=5), "different samples"),
        (cs.Kernel(random_kernel(0).values, outputs="sum"), "different conventions"),
    ],
)
def test_what_has_no_distance_is_refused(other, word):
    with pytest.raises(KernelError, match=word):
        cs.kernel_distance(random_kernel(0), other)
    with pytest.raises(KernelError, match=word):
        distance_matrix([random_kernel(0), other])


def test_no_kernels_have_no_distances():
    with pytest.raises(KernelError, match="at least one kernel"):
        distance_matrix([])


def test_kernels_must_have_the_shape_of_their_convention():
    with pytest.raises(KernelError, match="4 dimensions"):
        cs.Kernel(torch.eye(3), outputs="full")
    with pytest.raises(KernelError, match="real numbers"):
        cs.Kernel(torch.eye(3, dtype=torch.int64))
    with pytest.raises(KernelError, match="layer 'fc'"):
        cs.Kernel(torch.eye(3), by_layer={"fc": torch.eye(2)})


def test_all_pairs_are_the_single_pairs():
    kernels = [random_kernel(seed) for seed in range(7)]
    matrix = distance_matrix(kernels)
    for i, a in enumerate(kernels):
        for j, b in enumerate(kernels):
            assert matrix[i, j] == pytest.approx(cs.kernel_distance(a, b), abs=1e-15)
    assert (matrix == matrix.T).all()
    assert (matrix.diagonal() == 0).all()


def test_features_have_no_distance_by_themselves():
    features = cs.Features(torch.ones(3, 4), 2)
    with pytest.raises(KernelError, match=r"not Features; .*give their `kernel`"):
        cs.kernel_distance(features, features)
