"""Where a number comes from: versions, machine, device."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch


def describe(device: str) -> dict[str, str]:
    """Versions and machine, as text, for a computation on `device`."""
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


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
