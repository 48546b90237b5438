"""Tell glibc's allocator when to keep freed memory, and when to return it to the system."""

from __future__ import annotations

import ctypes
import functools

import torch


@functools.cache
def keep_freed_pages() -> None:
    """Let glibc's allocator hand freed memory out again instead of returning it to the system.

    Freeing one block of just under 32 MB lifts its two adaptive thresholds as far as they go
    (mallopt(3), M_MMAP_THRESHOLD); the block itself is never written, so it costs nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def return_freed_pages() -> None:
    """Give the pages that glibc's allocator holds free, also those in gaps, back to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
