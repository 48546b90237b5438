import numpy as np
import pytest
import torch

import conescope as cs
from conescope.errors import KernelError
from conescope.statistics.spectrum import eigenspace_overlap, sharpness, spectra, spectrum

N = 12


def kernel_of(values, rotation=None) -> cs.Kernel:
    """A kernel with these eigenvalues, in the columns of a rotation."""
    basis = torch.eye(len(values), dtype=torch.float64) if rotation is None else rotation
    return cs.Kernel(basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T)


def rotation(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]


def full_kernel(samples: int, outputs: int, seed: int = 0) -> cs.Kernel:
    """A "full" kernel of random Jacobians."""
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(samples * outputs, 30, generator=generator, dtype=torch.float64)
    values = (jacobian @ jacobian.T).reshape(samples, outputs, samples, outputs)
    return cs.Kernel(values, outputs="full")


def test_eigenvalues_trace_and_vectors_are_those_it_was_made_of():
    values = [float(v) for v in range(N, 0, -1)]
    basis = rotation()
    found = spectrum(kernel_of(values, basis), top=4)
    assert found.eigenvalues == pytest.approx(values[:4])
    assert found.trace == pytest.approx(sum(values))
    cosines = np.abs((found.eigenvectors * basis[:, :4].numpy()).sum(axis=0))
    assert cosines == pytest.approx(np.ones(4))


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([1.0] * N, N),
        ([5.0] + [0.0] * (N - 1), 1),
        ([2.0] * 3 + [0.0] * (N - 3), 3),
        ([3.0, 1.0] + [0.0] * (N - 2), np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))),
    ],
)
def test_effective_rank_is_the_exponential_of_the_entropy(values, rank):
    assert spectrum(kernel_of(values, rotation())).effective_rank == pytest.approx(rank, rel=1e-6)


def test_effective_rank_does_not_depend_on_the_scale():
    kernel = full_kernel(4, 3)
    scaled = cs.Kernel(7.0 * kernel.values, outputs="full")
    expected = spectrum(kernel).effective_rank
    assert spectrum(scaled).effective_rank == pytest.approx(expected)


def test_a_full_kernel_is_one_matrix():
    kernel = full_kernel(4, 3)
    expected = np.linalg.eigvalsh(kernel.values.reshape(12, 12).numpy())[::-1]
    assert spectrum(kernel, top=12).eigenvalues == pytest.approx(expected)


def test_more_eigenvalues_than_there_are_gives_all():
    assert spectrum(kernel_of([3.0, 2.0, 1.0]), top=10).eigenvalues.shape == (3,)


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles():
    values = [10.0, 9.0] + [1.0] * (N - 2)
    turned = torch.eye(N, dtype=torch.float64)
    angle = 0.3
    turned[1, 1], turned[2, 1] = np.cos(angle), np.sin(angle)
    turned[1, 2], turned[2, 2] = -np.sin(angle), np.cos(angle)
    before, after = (spectrum(kernel_of(values, basis), top=2) for basis in (None, turned))
    assert eigenspace_overlap(before, after) == pytest.approx((1 + np.cos(angle) ** 2) / 2)
    assert eigenspace_overlap(before, before) == pytest.approx(1.0)


def test_orthogonal_eigenspaces_do_not_overlap():
    first = spectrum(kernel_of([2.0] * 3 + [0.0] * 9), top=3)
    second = spectrum(kernel_of([0.0] * 3 + [2.0] * 3 + [0.0] * 6), top=3)
    assert eigenspace_overlap(first, second) == pytest.approx(0.0, abs=1e-12)


def test_a_series_is_its_kernels():
    kernels = [full_kernel(4, 3, seed) for seed in range(4)]
    found = spectra([0, 5, 10, 20], kernels, top=3)
    single = [spectrum(kernel, 3) for kernel in kernels]
    assert found.steps.tolist() == [0, 5, 10, 20]
    np.testing.assert_array_equal(found.eigenvalues, [one.eigenvalues for one in single])
    assert found.overlap_with_first[0] == pytest.approx(1.0)
    assert found.overlap_with_first[2] == eigenspace_overlap(single[0], single[2])
    assert found.overlap_with_previous.shape == (3,)
    assert found.overlap_with_previous[1] == eigenspace_overlap(single[1], single[2])
    assert found.trace[3] == pytest.approx(float(kernels[3].matrix.trace()))


def test_one_kernel_is_a_series():
    kernel = full_kernel(4, 3)
    found = spectra([7], [kernel], top=3)
    assert found.steps.tolist() == [7]
    np.testing.assert_array_equal(found.eigenvalues, [spectrum(kernel, 3).eigenvalues])
    assert found.overlap_with_first == pytest.approx([1.0])
    assert found.overlap_with_previous.shape == (0,)


def test_sharpness_of_a_linear_network_is_its_hessians():
    """f(x) = W x with half the squared error: the Hessian is I_c ⊗ XᵀX / n."""
    n, c = 9, 3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    model = torch.nn.Linear(5, c, bias=False).double().eval()
    hessian = float(torch.linalg.eigvalsh(x.T @ x / n)[-1])
    for outputs in ("full", "trace", 0):
        kernel = cs.entk(model, x, outputs=outputs)
        found = sharpness(spectrum(kernel).eigenvalues[0], kernel, c)
        assert found == pytest.approx(hessian), outputs


def test_sharpness_of_a_class_trace_bounds_the_full_kernels():
    n, c = 6, 4
    for seed in range(5):
        kernel = full_kernel(n, c, seed)
        trace = cs.Kernel(torch.einsum("ikjk->ij", kernel.values))
        largest = sharpness(spectrum(kernel).eigenvalues[0], kernel, c)
        least = sharpness(spectrum(trace).eigenvalues[0], trace, c)
        assert least <= largest <= c**2 * least


def test_descent_below_two_over_eta_converges_and_above_it_does_not():
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = torch.nn.Linear(5, 1, bias=False).double().eval()
    kernel = cs.entk(model, x)
    limit = 2 / sharpness(float(spectrum(kernel).eigenvalues[0]), kernel, 1)
    for rate, converges in ((0.95 * limit, True), (1.05 * limit, False)):
        w = torch.ones(5, dtype=torch.float64)
        for _ in range(400):
            w = w - rate * x.T @ (x @ w) / len(x)
        assert bool(w.norm() < 1) == converges


def test_bad_input():
    kernel = kernel_of([3.0, 2.0, 1.0])
    with pytest.raises(KernelError, match="samples with themselves"):
        spectrum(cs.Kernel(torch.ones(3, 4)))
    with pytest.raises(KernelError, match="zero everywhere"):
        spectrum(cs.Kernel(torch.zeros(3, 3)))
    with pytest.raises(KernelError, match="NaN"):
        spectrum(cs.Kernel(torch.full((3, 3), torch.nan)))
    with pytest.raises(KernelError, match="at least one eigenvalue"):
        spectrum(kernel, top=0)
    with pytest.raises(KernelError, match="same `top`"):
        eigenspace_overlap(spectrum(kernel, 2), spectrum(kernel, 3))
    with pytest.raises(KernelError, match="at least one kernel"):
        spectra([], [])
    with pytest.raises(KernelError, match="1 steps but 2 kernels"):
        spectra([0], [kernel, kernel])
    with pytest.raises(KernelError, match=r"at step 5, .*NaN"):
        spectra([0, 5], [kernel, cs.Kernel(torch.full((3, 3), torch.nan))])
    with pytest.raises(KernelError, match="different samples"):
        spectra([0, 1], [kernel, kernel_of([1.0, 2.0])])
    with pytest.raises(KernelError, match="at least one output, not 0"):
        sharpness(1.0, kernel, 0)
