"""Results of a run as named numbers, so that stored and computed ones can be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conescope.experiments.verifying.differences import Difference, difference
from conescope.kernel.estimates import Measured
from conescope.runs.contents import PROBE_OUTPUTS, as_stored
from conescope.runs.journal import Entry
from conescope.runs.store import Folder

FACTOR = 16
"""A result of another environment may differ by so many times the measured floor."""

_OF_A_KERNEL = ("outputs", "draws", "groups", "seed", PROBE_OUTPUTS)


@dataclass(frozen=True)
class Result:
    """A result of a run, as it is stored or as it comes out again.

    Attributes:
        tensors: name → values; numbers of the journal are float64, of shape [].
        texts: name → whatever else is noted of it, as text.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def difference(self, found: Result) -> Difference | None:
        """Compare this stored result with the one that comes out; None if all bits are equal."""
        for name in sorted(self.texts.keys() | found.texts.keys()):
            one, other = self.texts.get(name, "absent"), found.texts.get(name, "absent")
            if one != other:
                return Difference(math.inf, f"{name} is {one}, and comes out as {other}")
        return difference(self.tensors, found.tensors)


def noted(values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Result:
    """Return a result of tensors and JSON values, whose numbers become tensors, too.

    Beside tensors, names of values begin with "journal.", since a tensor may have the same name.
    """
    numbers, texts = dict(tensors or {}), {}
    where = "" if tensors is None else "journal"
    for name, leaf in _leaves(where, json.loads(json.dumps(values))):
        if isinstance(leaf, int | float) and not isinstance(leaf, bool):
            numbers[name] = torch.tensor(float(leaf), dtype=torch.float64)
        else:
            texts[name] = repr(leaf)
    return Result(numbers, texts)


def stored_result(folder: Folder, entry: Entry, names: tuple[str, ...] = _OF_A_KERNEL) -> Result:
    """Return what a file holds, with some fields of the entry that names it.

    Raises:
        StoreError: if the file is missing or damaged.
    """
    fields = {name: entry.values[name] for name in names if name in entry.values}
    return noted(fields, folder.read_tensors(entry))


def kernel_result(kernel: Measured, outputs: Tensor | None, entry: Entry) -> Result:
    """Return a kernel, or features, as `stored_result` returns it once it is stored.

    Args:
        kernel: what was measured.
        outputs: the outputs on the probe, [n, c], if they are to be stored.
        entry: of the stored kernel; where it has none, as of earlier versions, no outputs count.
    """
    tensors, fields = as_stored(kernel, outputs if PROBE_OUTPUTS in entry.values else None)
    return noted(fields, tensors)


def one_unit_off(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return real numbers that differ, each by one unit in the last place, up or down.

    What this changes in a result shows how far a single rounding carries.
    """
    if not tensor.is_floating_point():
        return tensor
    signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    return tensor * (1 + signs.to(tensor) * torch.finfo(tensor.dtype).eps)


def about_floor(size: float, floor: float, environment: str) -> str:
    """Return the sentence that states a difference, the floor, and why the floor counts."""
    return (
        f"by {size:.1e} of its norm, where one rounding of the weights makes {floor:.1e}, of "
        f"which {FACTOR} times are allowed; made with another {environment}"
    )


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _leaves(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value
