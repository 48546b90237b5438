"""The residual along the kernel's eigenvectors, by closed forms and laws."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import conescope as cs
from conescope.errors import ArgumentError, KernelError
from conescope.statistics.residual import residual_spectrum, residuals, spectral_position
from conescope.training.losses import LOSSES

LABELS = torch.tensor([2, 0, 1, 2, 0, 1, 2, 0])
Y = F.one_hot(LABELS).double()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_kernel(seed=0, n=8):
    x = torch.randn(n, n + 2, generator=generator(seed), dtype=torch.float64)
    return cs.Kernel(x @ x.T)


def random_outputs(seed=0, n=8, dtype=torch.float64):
    return torch.randn(n, 3, generator=generator(100 + seed), dtype=dtype)


def eigenvectors(kernel):
    values, vectors = np.linalg.eigh(kernel.values.double().numpy())
    order = np.argsort(-values)
    return values[order], vectors[:, order]


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_the_shares_are_those_of_the_gradient_of_the_training_loss(loss):
    kernel, outputs = random_kernel(), random_outputs().requires_grad_()
    (r,) = torch.autograd.grad(LOSSES[loss](outputs, LABELS, reduction="sum"), outputs)
    _, vectors = eigenvectors(kernel)
    expected = [
        sum(float(r[:, c] @ torch.from_numpy(vectors[:, k].copy())) ** 2 for c in range(3))
        for k in range(8)
    ]
    found = residual_spectrum(kernel, outputs, LABELS, loss)
    np.testing.assert_allclose(found, np.array(expected) / float(r.square().sum()), atol=1e-12)
    assert found.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_a_residual_along_one_eigenvector_has_its_position(k):
    kernel = random_kernel()
    vector = torch.from_numpy(eigenvectors(kernel)[1][:, k - 1].copy())
    outputs = Y + torch.outer(vector, torch.tensor([0.3, -2.0, 0.1], dtype=torch.float64))
    found = residual_spectrum(kernel, outputs, LABELS, "squared")
    np.testing.assert_allclose(found, np.eye(8)[k - 1], atol=1e-12)
    assert spectral_position(found) == pytest.approx(k)


def test_an_even_spread_has_the_mean_position_and_scale_does_not_matter():
    assert spectral_position(np.full(9, 0.2)) == pytest.approx(5.0)
    rows = np.array([[0.0, 3.0, 1.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(spectral_position(rows), [2.25, 1.0])
    kernel = random_kernel()
    found = residual_spectrum(kernel, random_outputs(), LABELS)
    scaled = residual_spectrum(cs.Kernel(1e-3 * kernel.values), random_outputs(), LABELS)
    np.testing.assert_allclose(scaled, found, atol=1e-10)
    longer = Y + 7.0 * (random_outputs() - Y)
    found = residual_spectrum(kernel, random_outputs(), LABELS, "squared")
    np.testing.assert_allclose(
        residual_spectrum(kernel, longer, LABELS, "squared"), found, atol=1e-10
    )


def test_the_order_of_the_samples_and_a_shift_of_the_logits_do_not_matter():
    order = torch.randperm(8, generator=generator(3))
    kernel, outputs = random_kernel(), random_outputs()
    found = residual_spectrum(kernel, outputs, LABELS)
    turned = cs.Kernel(kernel.values[order][:, order])
    other = residual_spectrum(turned, outputs[order], LABELS[order])
    np.testing.assert_allclose(other, found, atol=1e-10)
    shifted = outputs + torch.randn(8, 1, generator=generator(5), dtype=torch.float64)
    np.testing.assert_allclose(residual_spectrum(kernel, shifted, LABELS), found, atol=1e-10)


def test_a_fitted_sample_keeps_the_digits_of_its_residual():
    outputs = torch.zeros(8, 3, dtype=torch.float64)
    outputs[torch.arange(8), LABELS] = 60.0 - torch.arange(8.0, dtype=torch.float64)
    kernel = cs.Kernel(torch.diag(torch.arange(8.0, 0.0, -1.0, dtype=torch.float64)))
    other = torch.exp(-(60.0 - torch.arange(8.0, dtype=torch.float64)))
    expected = (other**2 * 6).numpy()  # two other classes, and minus their sum for its own
    found = residual_spectrum(kernel, outputs, LABELS)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-9)


def test_outputs_without_information_leave_the_labels():
    balanced = torch.arange(8) % 4
    kernel = random_kernel(2)
    found = residuals([0], [kernel], [torch.zeros(8, 4)], balanced)
    np.testing.assert_allclose(found.residual, found.labels, atol=1e-12)
    assert found.size[0] == pytest.approx(1 - 1 / 4)


def test_a_series_under_gradient_descent_follows_its_closed_form():
    """Squared loss and a constant kernel: r(t) = (I − ηK)ᵗ r(0)."""
    kernel, start, steps = random_kernel(), random_outputs(), [0, 3, 10]
    values, vectors = eigenvectors(kernel)
    rate = 0.5 / values[0]
    decay = np.eye(8) - rate * kernel.values.numpy()
    r = [np.linalg.matrix_power(decay, t) @ (start - Y).numpy() for t in steps]
    outputs = [Y + torch.from_numpy(each) for each in r]
    found = residuals(steps, [kernel] * 3, outputs, LABELS, "squared")
    powers = ((vectors.T @ (start - Y).numpy()) ** 2).sum(axis=1)
    left = np.array([powers * (1 - rate * values) ** (2 * t) for t in steps])
    np.testing.assert_allclose(found.residual, left / left.sum(axis=1, keepdims=True), atol=1e-10)
    np.testing.assert_allclose(found.size, left.sum(axis=1) / 8)
    lost = (left[:-1] - left[1:]) / left[:-1].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.lost, lost, atol=1e-10)
    assert (np.diff(spectral_position(found.residual)) > 0).all()
    np.testing.assert_allclose(found.lost.sum(axis=1), 1 - found.size[1:] / found.size[:-1])


def test_a_full_kernel_counts_as_its_class_trace_and_single_precision_is_enough():
    trace = random_kernel()
    other = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    full = cs.Kernel(torch.einsum("ij,kl->ikjl", trace.values, other), outputs="full")
    outputs = random_outputs(dtype=torch.float32)
    found = residual_spectrum(trace, outputs, LABELS)
    np.testing.assert_allclose(residual_spectrum(full, outputs, LABELS), found, atol=1e-10)
    before = outputs.clone()
    residual_spectrum(trace, outputs.double(), LABELS, "squared")
    assert torch.equal(outputs, before)
    double = random_outputs()
    residual_spectrum(trace, double, LABELS, "squared")
    assert torch.equal(double, random_outputs())


@pytest.mark.parametrize(
    ("outputs", "labels", "loss", "said"),
    [
        (torch.zeros(7, 3), LABELS, "squared", r"needs finite outputs \[8, c\], not \(7, 3\)"),
        (torch.zeros(8), LABELS, "squared", r"needs finite outputs \[8, c\], not \(8,\)"),
        (torch.full((8, 3), torch.nan), LABELS, "cross_entropy", "needs finite outputs"),
        (torch.zeros(8, 2), LABELS, "cross_entropy", "labels from 0 to 2 are no classes"),
        (torch.zeros(8, 3), LABELS - 1, "cross_entropy", "labels from -1 to 1 are no classes"),
        (torch.zeros(8, 3), LABELS[:5], "cross_entropy", "8 samples needs 8 labels"),
        (torch.zeros(8, 3), LABELS, "hinge", "loss is 'hinge'; give 'cross_entropy'"),
        (Y, LABELS, "squared", "residual is zero, which lies along nothing"),
    ],
)
def test_what_does_not_fit_is_refused(outputs, labels, loss, said):
    with pytest.raises(KernelError, match=said):
        residual_spectrum(random_kernel(), outputs, labels, loss)


def test_labels_are_a_tensor():
    with pytest.raises(ArgumentError, match="residual_spectrum: expected labels to be a Tensor"):
        residual_spectrum(random_kernel(), random_outputs(), LABELS.tolist())
    with pytest.raises(ArgumentError, match="residuals: expected labels to be a Tensor"):
        residuals([0], [random_kernel()], [random_outputs()], LABELS.tolist())


def test_a_missing_argument_is_explained_where_the_function_is():
    with pytest.raises(ArgumentError, match=r"help\(conescope.statistics.residual.residuals\)"):
        residuals([0])


def test_what_is_fitted_so_well_that_squares_underflow_has_its_shares_yet():
    outputs = torch.zeros(8, 3, dtype=torch.float64)
    outputs[torch.arange(8), LABELS] = 400.0  # softmax − y is about e^−400, its square is 0
    even = residual_spectrum(random_kernel(), torch.zeros(8, 3), LABELS)
    np.testing.assert_allclose(residual_spectrum(random_kernel(), outputs, LABELS), even, rtol=1e-6)
    found = residuals([0], [random_kernel()], [outputs], LABELS)
    assert found.residual.sum() == pytest.approx(1.0)


def test_a_series_names_the_step_and_counts_the_outputs():
    kernels = [random_kernel(seed) for seed in range(2)]
    with pytest.raises(KernelError, match="at step 5, the residual is zero"):
        residuals([0, 5], kernels, [random_outputs(), Y], LABELS, "squared")
    with pytest.raises(KernelError, match="2 kernels need as many outputs, and not 1"):
        residuals([0, 5], kernels, [Y], LABELS)
    with pytest.raises(KernelError, match="labels that are all the same"):
        residuals([0], kernels[:1], [random_outputs()], torch.zeros(8, dtype=torch.int64))
