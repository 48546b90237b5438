"""Kernel regression and the condition number, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import conescope as cs
from conescope.errors import KernelError
from conescope.statistics.kernel_regression import (
    RIDGES,
    centred_one_hot,
    condition_number,
    kernel_regression,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def spd(rng, eigenvalues):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (q * eigenvalues) @ q.T


def test_regression_on_a_linear_models_kernel_is_least_squares(rng):
    x, new = rng.normal(size=(30, 5)), rng.normal(size=(8, 5))
    targets = centred_one_hot(rng.integers(0, 3, 30), 3)
    model = nn.Linear(5, 3).double()
    both = torch.from_numpy(np.concatenate([x, new]))
    K = cs.entk(model, both).values.detach().numpy()
    found = kernel_regression(K[:30, :30], K[30:, :30], targets, ridge=0)
    ones = np.ones((30, 1))
    weights, *_ = np.linalg.lstsq(np.hstack([x, ones]), targets, rcond=None)
    np.testing.assert_allclose(
        found.predictions, np.hstack([new, np.ones((8, 1))]) @ weights, atol=1e-9
    )


def test_regression_with_a_ridge_is_ridge_regression(rng):
    x, new, targets = rng.normal(size=(20, 4)), rng.normal(size=(6, 4)), rng.normal(size=(20, 2))
    K, cross = x @ x.T, new @ x.T
    scale = 0.1 * np.trace(K) / 20
    weights = np.linalg.solve(x.T @ x + scale * np.eye(4), x.T @ targets)
    found = kernel_regression(K, cross, targets, ridge=0.1)
    np.testing.assert_allclose(found.predictions, new @ weights, atol=1e-10)


def test_leave_one_out_is_that_of_refitting_and_chooses_the_best_ridge(rng):
    K = spd(rng, np.geomspace(1, 1e-3, 12))
    targets = rng.normal(size=(12, 2))

    def refitted(rho):
        errors = []
        ridge = rho * np.trace(K) / 12
        for i in range(12):
            rest = np.delete(np.arange(12), i)
            inner = K[np.ix_(rest, rest)] + ridge * np.eye(11)
            errors.append(K[i, rest] @ np.linalg.solve(inner, targets[rest]) - targets[i])
        return float((np.array(errors) ** 2).mean())

    given = kernel_regression(K, K, targets, ridge=0.01)
    assert given.left_out == pytest.approx(refitted(0.01), rel=1e-8)
    chosen = kernel_regression(K, K, targets)
    assert chosen.ridge == min(RIDGES, key=refitted)


def test_condition_number_is_numpys(rng):
    K = spd(rng, np.geomspace(1, 1e-4, 10))
    found = condition_number(cs.Kernel(torch.from_numpy(K)))
    assert found.number == pytest.approx(np.linalg.cond(K), rel=1e-8)
    assert not found.is_bound
    assert found.eigenvalues[0] > found.eigenvalues[-1]


def test_a_singular_kernel_has_only_a_bound_and_the_floor_is_above_rounding(rng):
    x = rng.normal(size=(12, 3)).astype(np.float32)
    K = torch.from_numpy(x @ x.T)
    found = condition_number(cs.Kernel(K))
    assert found.is_bound
    assert found.number == pytest.approx(found.eigenvalues[0] / found.floor)
    assert abs(found.eigenvalues[3:]).max() < found.floor < found.eigenvalues[2]


@pytest.mark.parametrize(
    ("train", "cross"),
    [
        (np.eye(3), np.ones((2, 3))),
        (np.eye(4), np.ones((2, 3))),
        (np.zeros((4, 4)), np.ones((2, 4))),
        (np.full((4, 4), np.nan), np.ones((2, 4))),
    ],
)
def test_what_cannot_be_regressed_on_is_refused(train, cross):
    with pytest.raises(KernelError, match="kernel"):
        kernel_regression(train, cross, np.ones((4, 2)))
