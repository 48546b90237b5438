import pytest
import reference
import torch
from problems import PROBLEMS, Problem

from conescope.entk import entk

by_name = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)


@by_name
@pytest.mark.parametrize("outputs", ["full", "trace", "sum", 0])
def test_agrees_with_the_nested_loops(problem: Problem, outputs):
    model, x = problem.build(), problem.samples()
    expected = reference.total(reference.kernel(model, x, outputs=outputs))
    values = entk(model, x, outputs=outputs).values
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
