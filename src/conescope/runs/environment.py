"""Describe what numbers depend on beside their inputs: versions, machine, device, processes."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import distributed

from conescope.runs.notebook_bar import NotebookBar
from conescope.runs.progress import Progress


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


def notebook_progress() -> Progress | None:
    """Return a progress bar if a notebook is running this program; None elsewhere."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return None if getattr(shell, "kernel", None) is None else NotebookBar()
