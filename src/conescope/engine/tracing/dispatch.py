"""Watch a model's operations without loading torch's compiler, which takes seconds."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):
    """A mode that is told each operation.

    At its first operation torch 2.13 exempts a mode from the compiler, and loads the compiler to do
    so. Models are not compiled while they are watched. A torch that does not ask the method below
    loads the compiler, and gives the same numbers.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
