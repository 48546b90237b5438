"""Snapshots: the whole state of a training as a file of a run folder, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from conescope.errors import StoreError
from conescope.runs.journal import Entry, Kind
from conescope.runs.store import Folder
from conescope.tangent import LINEARIZATION_POINT

_SHOWN = 3


@dataclass(frozen=True)
class SnapshotState:
    """What a snapshot file holds.

    Attributes:
        step: iterations done.
        weights: the network's state dict, buffers included.
        slots: the optimiser's state, by parameter number and name.
        param_groups: the optimiser's settings.
        average: the state dict of the weights' average; empty if there is none.
    """

    step: int
    weights: Mapping[str, Tensor]
    slots: Mapping[int, Mapping[str, Tensor]]
    param_groups: list[dict[str, Any]]
    average: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, step: int, model: nn.Module, optimizer: Optimizer, average: nn.Module | None = None
    ) -> SnapshotState:
        """The state of a training at this moment; live, so write it before the next iteration."""
        state = optimizer.state_dict()
        averaged = {} if average is None else average.state_dict()
        return cls(step, model.state_dict(), state["state"], state["param_groups"], averaged)

    def without_linearization(self) -> SnapshotState:
        """The network's own state, if it is a linearised model's; itself otherwise."""
        weights = {
            name: tensor
            for name, tensor in self.weights.items()
            if not name.startswith(f"{LINEARIZATION_POINT}.")
        }
        return replace(self, weights=weights)

    def load_into(
        self, model: nn.Module, optimizer: Optimizer, average: nn.Module | None = None
    ) -> None:
        """Set a network, its optimiser and its average, if it has one, to this state.

        Raises:
            StoreError: if the weights do not fit the network; the first differences are named.
        """
        self.load_weights(model)
        optimizer.load_state_dict({"state": self.slots, "param_groups": self.param_groups})
        if average is not None:
            average.load_state_dict(self.average)

    def load_weights(self, model: nn.Module) -> None:
        """Set a network to this state.

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
            named |= {f"optimizer.{index}.{key}": value for key, value in slots.items()}
        return named

    def restore_momentum(self, optimizer: Optimizer) -> None:
        """Give an optimiser this state's momentum; its own learning rate and decay stay."""
        settings = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": self.slots, "param_groups": settings})


def read_snapshot(folder: Folder, entry: Entry) -> SnapshotState:
    """Read the snapshot file that an entry names.

    Raises:
        StoreError: if the file is absent or damaged.
    """
    networks: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in folder.read_tensors(entry).items():
        part, _, rest = name.partition(".")
        if part in networks:
            networks[part][rest] = tensor
        else:
            index, _, key = rest.partition(".")
            slots.setdefault(int(index), {})[key] = tensor
    return SnapshotState(
        step=entry.values["step"],
        weights=networks["model"],
        slots=slots,
        param_groups=list(entry.values["param_groups"]),
        average=networks["average"],
    )


def find_snapshot(folder: Folder, step: int) -> Entry:
    """The entry of the snapshot at an iteration.

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
