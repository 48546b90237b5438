import numpy as np
import pytest
import torch

import conescope as cs
from conescope.errors import KernelError
from conescope.statistics.alignment import (
    alignments,
    centred_alignment,
    centred_target_alignment,
    class_blocks,
    label_kernel,
    label_spectrum,
    target_alignment,
)

LABELS = torch.tensor([2, 0, 1, 2, 0, 1, 2, 0])


def random_kernel(seed: int = 0, n: int = 8) -> cs.Kernel:
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return cs.Kernel(x @ x.T)


def ideal(labels: torch.Tensor = LABELS) -> cs.Kernel:
    return cs.Kernel(3.0 * (labels[:, None] == labels[None, :]).double())


def test_the_label_kernel_is_perfectly_aligned():
    assert target_alignment(ideal(), LABELS) == pytest.approx(1.0)
    assert centred_target_alignment(ideal(), LABELS) == pytest.approx(1.0)


def test_a_constant_kernel_has_the_alignment_of_chance_and_no_centred_one():
    labels = torch.arange(12) % 4
    constant = cs.Kernel(torch.ones(12, 12, dtype=torch.float64))
    assert target_alignment(constant, labels) == pytest.approx(1 / np.sqrt(4))
    with pytest.raises(KernelError, match="constant"):
        centred_target_alignment(constant, labels)


def test_the_identity_has_a_known_alignment():
    labels = torch.arange(12) % 4
    identity = cs.Kernel(torch.eye(12, dtype=torch.float64))
    assert target_alignment(identity, labels) == pytest.approx(12 / np.sqrt(12 * 36))


def test_without_centring_it_is_one_minus_the_kernel_distance():
    kernel, target = random_kernel(), ideal()
    expected = 1 - cs.kernel_distance(kernel, target)
    assert target_alignment(kernel, LABELS) == pytest.approx(expected)


def test_centred_alignment_is_that_of_the_definition():
    a, b = random_kernel(0), random_kernel(1)
    H = torch.eye(8, dtype=torch.float64) - 1 / 8
    A, B = H @ a.values @ H, H @ b.values @ H
    expected = float((A * B).sum() / (A.norm() * B.norm()))
    assert centred_alignment(a, b) == pytest.approx(expected)


def test_centred_alignment_ignores_a_shift_of_the_features_and_scale():
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = x + torch.tensor([3.0, 0.0, -1.0, 2.0, 5.0])
    a, b = cs.Kernel(x @ x.T), cs.Kernel(0.1 * shifted @ shifted.T)
    assert centred_alignment(a, b) == pytest.approx(1.0)
    assert cs.kernel_distance(a, b) > 0.01


def test_order_of_the_samples_does_not_matter():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    kernel = random_kernel()
    turned = cs.Kernel(kernel.values[order][:, order])
    for measure in (target_alignment, centred_target_alignment):
        expected = measure(kernel, LABELS)
        assert measure(turned, LABELS[order]) == pytest.approx(expected)


def test_class_blocks_are_means_over_pairs_of_different_samples():
    kernel = random_kernel()
    found = class_blocks(kernel, LABELS)
    for p in range(3):
        for q in range(3):
            pairs = [
                float(kernel.values[i, j])
                for i in range(8)
                for j in range(8)
                if i != j and LABELS[i] == p and LABELS[j] == q
            ]
            assert found[p, q] == pytest.approx(np.mean(pairs))


def test_a_class_of_one_sample_has_no_pair_with_itself():
    found = class_blocks(random_kernel(n=3), torch.tensor([4, 4, 9]))
    assert np.isnan(found[1, 1])
    assert np.isfinite(found[0]).all()


def test_a_series_is_its_kernels():
    kernels = [random_kernel(seed) for seed in range(3)]
    found = alignments([0, 10, 30], kernels, LABELS)
    assert found.steps.tolist() == [0, 10, 30]
    for k, kernel in enumerate(kernels):
        assert found.target[k] == pytest.approx(target_alignment(kernel, LABELS))
        assert found.centred_target[k] == pytest.approx(centred_target_alignment(kernel, LABELS))
        assert found.centred_first[k] == pytest.approx(centred_alignment(kernel, kernels[0]))
    values, same = kernels[2].values, label_kernel(kernels[2], LABELS).bool()
    off = ~torch.eye(8, dtype=torch.bool)
    assert found.within[2] == pytest.approx(float(values[same & off].mean()))
    assert found.between[2] == pytest.approx(float(values[~same].mean()))


def test_one_kernel_is_a_series():
    found = alignments([7], [random_kernel()], LABELS)
    assert found.steps.tolist() == [7]
    assert found.target == pytest.approx([target_alignment(random_kernel(), LABELS)])
    assert found.centred_first == pytest.approx([1.0])


def test_a_series_names_the_step_of_a_bad_kernel():
    bad = cs.Kernel(torch.full((8, 8), torch.nan))
    with pytest.raises(KernelError, match=r"at step 5, .*NaN"):
        alignments([0, 5], [random_kernel(), bad], LABELS)
    with pytest.raises(KernelError, match="at least one kernel"):
        alignments([], [], LABELS)


def test_a_full_kernel_counts_as_its_class_trace():
    trace = random_kernel()
    other = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    full = cs.Kernel(torch.einsum("ij,kl->ikjl", trace.values, other), outputs="full")
    assert target_alignment(full, LABELS) == pytest.approx(target_alignment(trace, LABELS))
    assert class_blocks(full, LABELS) == pytest.approx(3.0 * class_blocks(trace, LABELS))


@pytest.mark.parametrize("measure", [target_alignment, centred_target_alignment, class_blocks])
def test_labels_that_do_not_fit(measure):
    with pytest.raises(KernelError, match=r"8 samples needs 8 labels, not labels of shape \(7,\)"):
        measure(random_kernel(), LABELS[:7])
    with pytest.raises(KernelError, match="whole numbers, not torch"):
        measure(random_kernel(), LABELS.float())
    with pytest.raises(KernelError, match="samples with themselves"):
        measure(cs.Kernel(random_kernel().values[:, :6]), LABELS)


def test_a_series_needs_classes_with_pairs():
    kernels = [random_kernel()]
    for labels in (torch.zeros(8, dtype=torch.int64), torch.arange(8)):
        with pytest.raises(KernelError, match="at least two classes, and one with two samples"):
            alignments([0], kernels, labels)


def test_labels_lie_along_the_eigenvectors_of_their_own_kernel():
    shares = label_spectrum(ideal(), LABELS)
    np.testing.assert_allclose(shares.sum(), 1.0)
    np.testing.assert_allclose(shares[:2].sum(), 1.0)  # three classes, centred, span two


def test_centred_alignment_is_the_mean_of_eigenvalues_over_the_labels():
    kernel = random_kernel(3)
    n = len(LABELS)
    H = torch.eye(n, dtype=torch.float64) - 1 / n
    values = torch.linalg.eigvalsh(H @ kernel.values @ H).flip(0).numpy()
    Y = torch.nn.functional.one_hot(LABELS).double()
    power = float((H @ Y).norm() ** 2)
    shares = label_spectrum(kernel, LABELS)
    expected = power * (values @ shares) / float(np.linalg.norm(values) * (H @ Y @ Y.T @ H).norm())
    assert centred_target_alignment(kernel, LABELS) == pytest.approx(expected)
    found = alignments([0, 1], [kernel, ideal()], LABELS)
    np.testing.assert_allclose(found.labels_within[0], np.cumsum(shares))
    assert found.labels_within.shape == (2, n)


def test_a_single_class_lies_along_no_eigenvector():
    with pytest.raises(KernelError, match="take more classes"):
        label_spectrum(random_kernel(), torch.zeros(8, dtype=torch.int64))
