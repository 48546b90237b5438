"""A network that is slow until it is told not to be, for runs that must not end too soon."""

import secrets
from pathlib import Path

_CODE = """
import time
from contextlib import suppress
from pathlib import Path

import torch

MARK = Path(__file__).with_name("slow")


class Slow(torch.nn.Linear):
    def forward(self, x):
        with suppress(FileNotFoundError):
            time.sleep(float(MARK.read_text()))
        return super().forward(x)


def build(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), Slow(64, classes))
"""


def slow_network(
    folder: Path, overrides: list[str], seconds: float = 0.15
) -> tuple[Path, list[str]]:
    """Write the module of a network into a folder, each of whose calls takes that long at least.

    Returns:
        The file whose deletion makes it fast, and the fields of a run with it as its network.
    """
    name = f"slow_{secrets.token_hex(4)}"  # Python imports one module of a name only
    (folder / f"{name}.py").write_text(_CODE)
    mark = folder / "slow"
    mark.write_text(str(seconds))
    return mark, [*(w for w in overrides if "--model" not in w), f"--model.name={name}:build"]
