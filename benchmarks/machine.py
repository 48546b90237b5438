"""The machine: what it is, how fast its matrix products are, how much memory a process holds."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from conescope.engine.compute.products import multiply

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
_SIDE = 2048


def describe(threads: int) -> dict[str, str | int]:
    """Processor, cores, memory, versions and date, for the record."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return {
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": total_memory(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def total_memory() -> int:
    """The machine's main memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def clock() -> float:
    """Seconds from some moment on, for differences.

    One thread is timed by the processor's clock, which stands still while other processes have
    their turns; several threads by the wall's.
    """
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def matrix_product_peak() -> float:
    """FLOP/s of the best float32 product of two 2048 × 2048 matrices.

    The better of torch's default library and oneDNN; the best of three calls each.
    """
    a, b = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    best = min(_fastest(lambda: a @ b), _fastest(lambda: multiply(a, b)))
    return 2 * _SIDE**3 / best


def _fastest(product: Callable[[], torch.Tensor]) -> float:
    product()
    times = []
    for _ in range(3):
        start = clock()
        product()
        times.append(clock() - start)
    return min(times)


def memory_field(field: str, status: Path = STATUS) -> int:
    """A field of /proc/…/status in bytes: VmRSS (resident now) or VmHWM (its peak)."""
    for line in status.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Let this process's VmHWM start again from what is resident now."""
    CLEAR_REFS.write_text("5")
