"""Factors that wait for their products in a temporary file, which memory maps.

Factors that do not fit into the budget would have to be computed again for every pair of chunks of
samples. On a CPU they are written to a file instead, and read again one term at a time.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from conescope.engine.compute.products import Memory
from conescope.errors import KernelError

_ARENA = 2**26
_ALIGNED = 64
_IN_MEMORY = ("tmpfs", "ramfs")
_SPARE = 2**30
"""Bytes of the file system that are left to others."""


class TemporaryFile(Memory):
    """Factors are kept in a file without a name, which is gone when the process ends."""

    def __init__(self) -> None:
        super().__init__(tight=True)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the factors
        self._maps: list[mmap.mmap] = []
        self._size = self._used = 0
        self._kept: dict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[Tensor, Tensor]] = {}

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor in the file; see `Memory.take`.

        Raises:
            KernelError: if the file system is full.
        """
        count = math.prod(shape)
        length = -(-max(1, count) * like.element_size() // _ALIGNED) * _ALIGNED
        if not self._maps or self._used + length > len(self._maps[-1]):
            self._grow(max(length, _ARENA))
        start, self._used = self._used, self._used + length
        arena = self._maps[-1]
        if not count:
            return like.new_empty(shape)
        return torch.frombuffer(arena, dtype=like.dtype, count=count, offset=start).view(shape)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return the same values in the file; tensors that share their memory are written once."""
        key = tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
        if key not in self._kept:
            self._kept[key] = tensor, self.take(tuple(tensor.shape), tensor).copy_(tensor)
        return self._kept[key][1]

    def release(self) -> None:
        """See `Memory.release`; all factors are read again from the file."""
        self._kept.clear()
        for arena in self._maps:
            arena.madvise(mmap.MADV_DONTNEED)
        super().release()

    def close(self) -> None:
        """See `Memory.close`; the factors stay until nothing refers to them."""
        self._kept.clear()
        self._file.close()

    def _grow(self, length: int) -> None:
        length = -(-length // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        try:
            os.posix_fallocate(self._file.fileno(), self._size, length)
        except OSError as error:
            raise KernelError(
                f"factors that do not fit into the memory allowed are written to a temporary file, "
                f"and {tempfile.gettempdir()} has no room for it ({error.strerror}); set TMPDIR to "
                f"a folder with more room, or allow more memory"
            ) from error
        self._maps.append(mmap.mmap(self._file.fileno(), length, offset=self._size))
        self._size += length
        self._used = 0


def room_on_disk() -> int:
    """Return the bytes that a temporary file may take.

    There are none where it would be in memory, and where no file can be made.
    """
    try:
        folder = Path(tempfile.gettempdir()).resolve()
        free = shutil.disk_usage(folder).free
    except OSError:  # there is no folder, or none that can be written
        return 0
    if not os.access(folder, os.W_OK | os.X_OK):
        return 0
    if not hasattr(mmap, "MADV_DONTNEED") or not hasattr(os, "posix_fallocate"):
        return 0
    if _file_system(folder) in _IN_MEMORY:
        return 0
    return max(0, free - _SPARE)


def _file_system(folder: Path) -> str:
    """Return the type of the file system of a folder, "" if the system does not say."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return ""
    kinds = {place: kind for _, place, kind, *_ in map(str.split, mounts.read_text().splitlines())}
    return next((kinds[str(p)] for p in (folder, *folder.parents) if str(p) in kinds), "")
