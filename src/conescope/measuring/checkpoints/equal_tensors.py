"""Find which parameters hold the same values in several checkpoints, by digests of their values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

MOST = 0.5
"""The share of the trained parameters above which two checkpoints share too much."""


def parameter_digests(model: nn.Module) -> tuple[dict[str, str], dict[str, int]]:
    """Return the SHA-256 of the values of each parameter that is not frozen, and their numbers."""
    chosen = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    digests = {}
    for name, values in chosen.items():
        data = values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        digests[name] = f"{values.dtype} {hashlib.sha256(data).hexdigest()}"
    return digests, {name: values.numel() for name, values in chosen.items()}


class Codes:
    """A table in which equal numbers stand for equal values: checkpoints by tensors.

    Args:
        sizes: tensor name → its number of values.

    Attributes:
        names: the tensors' names.
        sizes: [N], their numbers of values.
        rows: [T, N], a number for each checkpoint and tensor; -1 where a tensor is missing.
        trained: [N], whether a tensor has two values or more in the series.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.names = list(sizes)
        self.sizes = np.array([sizes[name] for name in self.names], dtype=np.int64)
        self.rows = np.empty((0, len(self.names)), dtype=np.int64)
        self.trained = np.zeros(len(self.names), dtype=bool)
        self._known: dict[tuple[str, str], int] = {}

    def add(self, digests: Mapping[str, str]) -> None:
        """Add a checkpoint: tensor name → digest of its values."""
        row = [
            self._known.setdefault((name, digests[name]), len(self._known))
            if name in digests
            else -1
            for name in self.names
        ]
        self.rows = np.vstack([self.rows, np.array([row], dtype=np.int64)])
        there = self.rows >= 0
        self.trained = (there & (self.rows != self.rows.max(axis=0))).any(axis=0)

    def share(self, chosen: np.ndarray) -> float:
        """Return the share of the trained parameters that some tensors hold, 0 to 1."""
        total = int(self.sizes[self.trained].sum())
        return int(self.sizes[chosen & self.trained].sum()) / total if total else 0.0

    def equal(self, a: int, b: int) -> np.ndarray:
        """Whether each trained tensor is the same in checkpoints number a and b; [N]."""
        return (self.rows[a] == self.rows[b]) & (self.rows[a] >= 0) & self.trained


class SeenTensors:
    """The parameters of the checkpoints measured so far, to find what two of them share."""

    def __init__(self) -> None:
        self._codes: Codes | None = None
        self._names: list[str] = []
        self._warned: set[int] = set()

    def add(
        self, name: str, digests: Mapping[str, str], sizes: Mapping[str, int]
    ) -> Iterator[tuple[str, str, float]]:
        """Add a checkpoint, and yield pairs that share more than half of what is trained.

        What is trained is learnt from the series, so an earlier pair may be found late. A
        checkpoint is found once, as the later one of a pair; pairs that share all are left out.

        Args:
            name: what names the checkpoint.
            digests: parameter name → digest.
            sizes: parameter name → its number of values.

        Yields:
            The names of both, and the share of the trained parameters that is equal.
        """
        codes = self._codes = Codes(sizes) if self._codes is None else self._codes
        before = codes.trained
        codes.add(digests)
        self._names.append(name)
        newest = len(self._names) - 1
        later = [newest] if np.array_equal(before, codes.trained) else range(1, newest + 1)
        for b in later:
            for a in range(b):
                share = codes.share(codes.equal(a, b))
                if MOST < share < 1 and b not in self._warned:
                    self._warned.add(b)
                    yield self._names[a], self._names[b], share
