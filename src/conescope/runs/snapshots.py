"""Snapshots: the whole state of a training, to be stored in a run folder and read again."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from conescope.errors import StoreError
from conescope.runs.journal import Entry, Kind
from conescope.runs.store import REPAIR, Folder
from conescope.tangent import LINEARIZATION_POINT

_SHOWN = 3


@dataclass(frozen=True)
class SnapshotState:
    """The state of a training, as a snapshot file holds it.

    Attributes:
        step: iterations done.
        weights: the network's state dict, buffers included.
        slots: the optimiser's state, by parameter number and name: tensors, and plain values as
            JSON has them.
        param_groups: the optimiser's settings.
        average: the state dict of the weights' average; empty if there is none.
    """

    step: int
    weights: Mapping[str, Tensor]
    slots: Mapping[int, Mapping[str, Any]]
    param_groups: list[dict[str, Any]]
    average: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, step: int, model: nn.Module, optimizer: Optimizer, average: nn.Module | None = None
    ) -> SnapshotState:
        """Return the state of a training now; the next iteration changes it, so write it before."""
        state = optimizer.state_dict()
        averaged = {} if average is None else average.state_dict()
        return cls(step, model.state_dict(), state["state"], state["param_groups"], averaged)

    def without_linearization(self) -> SnapshotState:
        """Return the state without the point that a linearised model is linearised at."""
        weights = {
            name: tensor
            for name, tensor in self.weights.items()
            if not name.startswith(f"{LINEARIZATION_POINT}.")
        }
        return replace(self, weights=weights)

    def load_into(
        self, model: nn.Module, optimizer: Optimizer, average: nn.Module | None = None
    ) -> None:
        """Load this state into a network, its optimiser and, if it has one, its average.

        Raises:
            StoreError: if the weights do not fit the network; the first differences are named.
        """
        self.load_weights(model)
        self._load_slots(optimizer, self.param_groups)
        if average is not None:
            average.load_state_dict(self.average)

    def load_weights(self, model: nn.Module) -> None:
        """Load the weights of this state into a network.

        Raises:
            StoreError: if the weights do not fit the network; the first differences are named.
        """
        wanted = model.state_dict()
        differences = [f"{name} is missing" for name in wanted.keys() - self.weights.keys()]
        differences += [f"{name} is unknown" for name in self.weights.keys() - wanted.keys()]
        differences += [
            f"{name} is {tuple(self.weights[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in self.weights and self.weights[name].shape != tensor.shape
        ]
        if differences:
            more = len(differences) - _SHOWN
            shown = ", ".join(sorted(differences)[:_SHOWN]) + (f" and {more} more" * (more > 0))
            raise StoreError(
                f"the snapshot of iteration {self.step} does not fit the network: {shown}; a "
                f"branch keeps its parent's model fields"
            )
        model.load_state_dict(self.weights)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by which the state is stored, as `read_snapshot` reads them."""
        named = {f"model.{name}": tensor for name, tensor in self.weights.items()}
        named |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for index, slots in self.slots.items():
            held = {key: value for key, value in slots.items() if isinstance(value, Tensor)}
            named |= {f"optimizer.{index}.{key}": value for key, value in held.items()}
        return named

    def plain_values(self) -> dict[str, Any]:
        """Return what the journal has to say of the state beside its tensors, as JSON values.

        Raises:
            StoreError: if something of the state would not be read back as it is.
        """
        for name, value in {**self.weights, **self.average}.items():
            if not isinstance(value, Tensor):
                raise StoreError(
                    f"the network's state {name!r} is a {type(value).__name__}; a snapshot holds "
                    f"tensors: keep it in a buffer"
                )
        plain = _plain_slots(self)
        values = {"step": self.step, "param_groups": self.param_groups}
        return values | ({"plain_slots": plain} if plain else {})

    def restore_momentum(self, optimizer: Optimizer) -> None:
        """Load this state's momentum into an optimiser, which keeps its learning rate and decay."""
        self._load_slots(optimizer, optimizer.state_dict()["param_groups"])

    def _load_slots(self, optimizer: Optimizer, param_groups: list[dict[str, Any]]) -> None:
        optimizer.load_state_dict({"state": self.slots, "param_groups": param_groups})
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        is_same_type = {p.dtype for p in parameters} <= {w.dtype for w in self.weights.values()}
        for index, slots in self.slots.items():
            held = optimizer.state[parameters[index]]
            for name, slot in slots.items():
                # torch casts these tensors to the type of the parameter, and alters text.
                if not isinstance(slot, Tensor):
                    held[name] = copy.deepcopy(slot)
                elif is_same_type and held[name].dtype != slot.dtype:
                    held[name] = slot.to(held[name].device)


def read_snapshot(folder: Folder, entry: Entry) -> SnapshotState:
    """Read the snapshot file that an entry names.

    Raises:
        StoreError: if the file is absent or damaged.
    """
    networks: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
    plain = entry.values.get("plain_slots", {})
    slots: dict[int, dict[str, Any]] = {int(index): dict(found) for index, found in plain.items()}
    for name, tensor in folder.read_tensors(entry).items():
        part, _, rest = name.partition(".")
        if part in networks:
            networks[part][rest] = tensor
        else:
            index, _, key = rest.partition(".")
            if part != "optimizer" or not (index.isascii() and index.isdigit() and key):
                file = folder.path / entry.values["file"]
                raise StoreError(f"{file} holds {name!r}, which no snapshot has; {REPAIR}")
            slots.setdefault(int(index), {})[key] = tensor
    return SnapshotState(
        step=entry.values["step"],
        weights=networks["model"],
        slots=slots,
        param_groups=list(entry.values["param_groups"]),
        average=networks["average"],
    )


def _plain_slots(state: SnapshotState) -> dict[str, dict[str, Any]]:
    """Return what of the optimiser's state is no tensor: parameter number → name → value.

    Raises:
        StoreError: if something of it would not be read back as it is.
    """
    plain: dict[str, dict[str, Any]] = {}
    for index, slots in state.slots.items():
        if not isinstance(index, int):
            raise StoreError(
                f"the optimiser's state {index!r} belongs to no parameter, and cannot be stored; "
                f"keep it with a parameter"
            )
        for name, value in slots.items():
            if isinstance(value, Tensor):
                continue
            if not _is_plain(value):
                raise StoreError(
                    f"the optimiser's state {name!r} is a {type(value).__name__}; a snapshot holds "
                    f"tensors, finite numbers, text, lists of these, and None"
                )
            plain.setdefault(str(index), {})[name] = value
    try:
        json.dumps(state.param_groups, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"the optimiser's param_groups cannot be stored: {error}; keep numbers, texts and "
            "lists in them"
        ) from None
    return plain


def _is_plain(value: Any) -> bool:
    """Return whether JSON gives a value back as it is."""
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        return False


def find_snapshot(folder: Folder, step: int) -> Entry:
    """Find the entry of the snapshot at an iteration.

    Raises:
        StoreError: if there is none; the nearest ones are named.
    """
    entries = {entry.values["step"]: entry for entry in folder.files(Kind.SNAPSHOT)}
    if step in entries:
        return entries[step]
    if not entries:
        raise StoreError(f"{folder.path} holds no snapshot; see 'conescope status {folder.path}'")
    nearest = sorted(sorted(entries, key=lambda other: abs(other - step))[:2])
    raise StoreError(
        f"{folder.path} holds no snapshot at iteration {step:,}; the nearest are at "
        f"{' and '.join(f'{other:,}' for other in nearest)}, and snapshots.keep says when the run "
        f"keeps them"
    )
