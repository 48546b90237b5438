"""Modular addition: a + b mod p from the tokens of a, b and the sign "="."""

from __future__ import annotations

import torch

from conescope.errors import DataError
from conescope.training.data.dataset import Dataset, Split

_SEED = 0
_LARGEST = 5000
"""Above it, the p² sums fill the memory."""


def load(p: int = 59, train: float = 0.4) -> Dataset:
    """Make all p² sums as tokens [a, b, p], where p stands for "=", with classes a + b mod p.

    A share of them, drawn at random but the same each time, is trained on; the rest tests. So did
    Power et al. (arXiv:2201.02177), who found that accuracy on the rest comes long after.

    Args:
        p: the modulus, a prime from 5 to 4,999.
        train: share of the sums to train on, above 0 and below 1.

    Raises:
        DataError: if `p` is no such prime, or `train` leaves one of the splits empty.
    """
    if not 5 <= p < _LARGEST or any(p % factor == 0 for factor in range(2, int(p**0.5) + 1)):
        raise DataError(
            f"data.p must be a prime of at least 5 and below {_LARGEST:,}, such as 59, not {p}"
        )
    count = round(train * p * p)
    if not 0 < train < 1 or not 0 < count < p * p:
        raise DataError(
            f"data.train is the share of the {p * p:,} sums to train on, above 0 and below 1, not "
            f"{train}"
        )
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    sums = torch.stack([a, b, torch.full_like(a, p)], dim=1)
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(_SEED))
    splits = (Split(sums[part], (a + b)[part] % p) for part in (order[:count], order[count:]))
    return Dataset("modular-addition", *splits, classes=p, vocabulary=p + 1)
