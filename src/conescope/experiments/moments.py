"""The iterations at which a recipe asks for something."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Moments:
    """The iterations at which a recipe asks for an evaluation, a kernel or a snapshot.

    Attributes:
        evaluate: those at which loss and accuracy are evaluated.
        kernel: those at which a kernel is measured.
        keep: those whose snapshots stay; the last iteration is always among them.
        resume: those whose snapshots serve only to go on from.
    """

    evaluate: frozenset[int]
    kernel: frozenset[int]
    keep: frozenset[int]
    resume: frozenset[int]
