"""What every contender implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from benchmarks.problems import CLASSES

Option = dict[str, int | str | bool]


class Contender(ABC):
    """One way to compute an eNTK, set up once for one problem and one kind of outputs.

    Attributes:
        label: the name in tables and figures.
        package: the distribution whose version is recorded.
    """

    label: ClassVar[str]
    package: ClassVar[str]

    def __init__(self, model: nn.Module, x: Tensor, outputs: str):
        self.model, self.x, self.outputs = model, x, outputs
        self.setup()

    @abstractmethod
    def setup(self) -> None:
        """Import the library and prepare what a user would prepare once.

        Whatever this or `run` raises takes the contender out of the contest, with that reason.
        """

    def options(self) -> list[Option]:
        """The settings to choose the fastest from, for example chunk sizes."""
        return [{}]

    @property
    def sample_bytes(self) -> int:
        """The size of one sample's Jacobian in float32."""
        outputs = 1 if self.outputs == "sum" else CLASSES
        return 4 * outputs * sum(p.numel() for p in self.model.parameters())

    def operations(self) -> float | None:
        """The floating-point operations of a run, if the contender can tell."""
        return None

    @abstractmethod
    def run(self, **option: int | str | bool) -> Tensor:
        """The kernel: [n, n], or [n, c, n, c] when the outputs are "full"."""


def halvings(n: int, least: int = 4, most: int = 64) -> list[int]:
    """Chunk sizes: n, n/2, n/4, … within [least, most], the largest first; n if there is none."""
    sizes = [n >> k for k in range(n.bit_length()) if n % (1 << k) == 0]
    return [size for size in sizes if least <= size <= most] or [n]
