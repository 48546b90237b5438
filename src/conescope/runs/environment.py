"""Describe what numbers depend on beside their inputs: versions, machine, device, processes."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import distributed

from conescope.errors import RecipeError
from conescope.runs.notebook_bar import NotebookBar
from conescope.runs.progress import Progress

CPU_CAPABILITY = "cpu capability"
"""The vector instructions that torch uses, on which even first weights depend."""


def describe(device: str) -> dict[str, str]:
    """Return the versions and the machine, as text, of a computation on `device`."""
    kind = torch.device(device)
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else _processor()
    return {
        "conescope": version("conescope"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{device} ({name})",
        "threads": str(torch.get_num_threads()),
        CPU_CAPABILITY: torch.backends.cpu.get_cpu_capability(),
    }


def is_first_process() -> bool:
    """Return whether this process is the first of those that train together, or the only one."""
    trains_alone = not (distributed.is_available() and distributed.is_initialized())
    return trains_alone or distributed.get_rank() == 0


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names whose values differ between two environments, as text of a session.

    `CPU_CAPABILITY` counts only where both name it: earlier versions noted nothing of it.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [name for name in names if name != CPU_CAPABILITY or (name in before and name in now)]


def usable_device(name: str) -> torch.device:
    """Return the device of a name such as cpu or cuda:1.

    Raises:
        RecipeError: if there is no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"device {name!r} cannot be used here: {reason}; take cpu") from None


@contextmanager
def reproducible(device: str, threads: int | None) -> Iterator[None]:
    """Compute on these threads (None: as many as now), and on CUDA by deterministic algorithms."""
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    changes = device.startswith("cuda") and not deterministic
    torch.set_num_threads(threads or before)
    if changes:  # the call takes a second, even where it changes nothing
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if changes:
            torch.use_deterministic_algorithms(False)


def notebook_progress() -> Progress | None:
    """Return a progress bar if a notebook is running this program; None elsewhere."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return None if getattr(shell, "kernel", None) is None else NotebookBar()
