"""A network that is slow until it is told not to be, for runs that must not end too soon."""

import secrets
from pathlib import Path

_CODE = """
import time
from pathlib import Path

import torch

MARK = Path(__file__).with_name("slow")


class Slow(torch.nn.Linear):
    def forward(self, x):
        if MARK.exists():
            time.sleep(0.5)
        return super().forward(x)


def build(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), Slow(64, classes))
"""


def slow_network(folder: Path, overrides: list[str]) -> tuple[Path, list[str]]:
    """Write the module of such a network into a folder.

    Returns:
        The file whose deletion makes it fast, and the fields of a run with it as its network.
    """
    name = f"slow_{secrets.token_hex(4)}"  # Python imports one module of a name only
    (folder / f"{name}.py").write_text(_CODE)
    mark = folder / "slow"
    mark.touch()
    return mark, [*(w for w in overrides if "--model" not in w), f"--model.name={name}:build"]
