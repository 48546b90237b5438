"""A network whose training is slow until it is told not to be, for runs that must not end yet."""

import secrets
from pathlib import Path

_CODE = """
import time
from pathlib import Path

import torch

MARK = Path(__file__).with_name("slow")
SECONDS = {seconds}


class Slow(torch.nn.Linear):
    def forward(self, x):
        begun = time.monotonic()
        while self.training and MARK.exists() and time.monotonic() < begun + SECONDS:
            time.sleep(0.02)
        return super().forward(x)


def build(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), Slow(64, classes))
"""


def slow_network(
    folder: Path, overrides: list[str], seconds: float = 1.0
) -> tuple[Path, list[str]]:
    """Write the module of a network into a folder, of which an iteration takes that long.

    Sixty iterations of the default take a minute, so that a run is at work whenever a test comes to
    disturb it; nothing that only evaluates or measures the network is slow.

    Returns:
        The file whose deletion makes it fast at once, and the fields of a run with it as its
        network. Of the snapshots that its recipe names only that of iteration 0 comes before the
        end, so that each other one is that of a stop, or one that a test asks for.
    """
    name = f"slow_{secrets.token_hex(4)}"  # Python imports one module of a name only
    (folder / f"{name}.py").write_text(_CODE.format(seconds=seconds))
    mark = folder / "slow"
    mark.touch()
    fields = [word for word in overrides if not word.startswith(("--model", "--snapshots"))]
    snapshots = ["--snapshots.keep=0, end", "--snapshots.resume=never"]
    return mark, [*fields, *snapshots, f"--model.name={name}:build"]
