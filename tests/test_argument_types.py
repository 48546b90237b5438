"""Which values are of a type that a public function says."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from conescope import argument_types


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (np.float64(3), Sequence[int], False),
        (np.zeros(3), Sequence[int], True),
        (np.str_("a"), float, False),
        (np.complex128(1j), float, False),
        (np.float32(1), float, True),
        (np.int64(1), float, True),
        (np.int64(1), int, True),
        (np.float64(1), int, False),
        (torch.tensor(1.5), float, True),
        (torch.tensor(1j), float, False),
        (torch.zeros(2), float, False),
    ],
)
def test_scalars_of_numpy_and_torch_are_what_they_are(value, kind, fits):
    assert argument_types._fits(value, kind) == fits
