"""Show what a sweep consists of and what it will cost, before anything starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conescope.cli.json_output import print_json
from conescope.cli.sweep_places import Places
from conescope.cli.terminal import duration, print_table, say
from conescope.errors import ConescopeError

if TYPE_CHECKING:
    from conescope.experiments.forecast import Forecast
    from conescope.experiments.sweep.sweep_cost import SweepCost
    from conescope.experiments.sweep.sweep_folder import Sweep, SweepRun


def show_plan(sweep: Sweep, left: list[SweepRun], places: Places, *, as_json: bool) -> None:
    """Print what a sweep consists of and costs, and warn of disk or memory that will not do.

    Raises:
        ConescopeError: if one of the runs that are tried cannot be carried out here.
    """
    why_not = _why_not_tried(sweep, left, places)
    cost = None
    if left and not why_not:
        cost = _forecast(sweep, left)
    if as_json:
        print_json(_facts(sweep, left, places, cost) | {"not_forecast": why_not or None})
    else:
        _print_plan(sweep, left, places, cost, why_not)
    if cost is not None:
        _warn(left, places, cost)


def _forecast(sweep: Sweep, left: list[SweepRun]) -> SweepCost:
    """Forecast what runs will cost; a measurement that cannot be made ends that one alone.

    Raises:
        ConescopeError: if a recipe, or each of the measurements, cannot be carried out here.
    """
    from conescope.cli.sweep_measure import cost_of_measurement
    from conescope.experiments.sweep.sweep_cost import forecast_sweep

    if sweep.kind == "training":
        return forecast_sweep(left)
    errors: list[ConescopeError] = []

    def cost_of(run: SweepRun) -> Forecast:
        try:
            return cost_of_measurement(run)
        except ConescopeError as error:
            errors.append(error)
            raise

    cost = forecast_sweep(left, cost_of, ConescopeError)
    if not cost.timed:
        raise errors[0]
    return cost


def _facts(
    sweep: Sweep, left: list[SweepRun], places: Places, cost: SweepCost | None
) -> dict[str, Any]:
    wall = None
    if cost is not None and places.on == "local":
        wall = cost.wall_seconds(places.slots)
    return {
        "sweep": sweep.path,
        "runs": len(sweep.runs),
        "to_do": len(left),
        "axes": sweep.lengths,
        "cost": cost,
        "wall_seconds": wall,
    }


def _print_plan(
    sweep: Sweep, left: list[SweepRun], places: Places, cost: SweepCost | None, why_not: str
) -> None:
    rows = {
        "runs": f"{len(sweep.runs):,}, of which {len(left):,} are to do",
        "axes": ", ".join(f"{name} ({count})" for name, count in sweep.lengths.items()) or "none",
        "folder": str(sweep.path),
    }
    if cost is None:
        print_table(rows | ({"time": why_not} if left else {}))
    else:
        print_table(rows | _costs(cost, places, _free_bytes(left[0].path)))


def _warn(left: list[SweepRun], places: Places, cost: SweepCost) -> None:
    """Warn of disk or memory that will not do."""
    free = _free_bytes(left[0].path)
    if cost.stored_bytes > free:
        say(
            "warning",
            f"the runs store about {_size(cost.stored_bytes)}, and {left[0].path.parent} has "
            f"{_size(free)} free; make room, keep fewer snapshots (snapshots.keep), or choose "
            f"another disk by --out",
        )
    most, machine = cost.memory * places.slots, _machine_bytes()
    if places.on == "local" and most > machine:
        say(
            "warning",
            f"kernels of {places.slots} runs at a time take {_size(most)}, and this machine has "
            f"{_size(machine)}; take fewer --slots, or less kernel.memory",
        )


def _why_not_tried(sweep: Sweep, left: list[SweepRun], places: Places) -> str:
    """Return why no run is tried for its cost; empty if one can be."""
    if places.on == "slurm":
        return f"not tried on a login node; a job may take {places.minutes:,} min at a time"
    if places.on == "ray" and left and left[0].fields["device"] not in ("cpu", None):
        return f"not tried: {left[0].fields['device']} is a device of the cluster"
    if sweep.kind == "measurement":
        from conescope.cli.sweep_measure import is_forecast

        if not all(map(is_forecast, left)):
            return "not forecast for series that say themselves of which model they are"
    return ""


def _costs(cost: SweepCost, places: Places, free: float) -> dict[str, str]:
    """Return what runs will cost, as text, by trials on this machine."""
    if not cost.timed:
        return {"time": "unknown: the trials of it diverge"}
    part = "" if cost.timed == cost.kinds else f" (from {cost.timed} of {cost.kinds} kinds)"
    each = "" if cost.longest < 1.5 * cost.shortest else f"{duration(cost.shortest)} to "
    in_all = {"time of all, one after the other": duration(cost.seconds)}
    if places.on == "local":
        in_all = {"time": f"{duration(cost.wall_seconds(places.slots))} on {places.slots} slots"}
    return {
        "time of a run": f"{each}{duration(cost.longest)}{part}",
        **in_all,
        "memory of a kernel": f"{_size(cost.memory)} in each run beside its network",
        "disk": f"{_size(cost.stored_bytes)}, of {_size(free)} that are free",
    }


def _size(number: float) -> str:
    """Return a number of bytes as text, in MB or GB."""
    return f"{number / 1e6:,.0f} MB" if number < 1e10 else f"{number / 1e9:,.0f} GB"


def _free_bytes(path: Path) -> float:
    """Return the free space for a folder that need not exist yet, in bytes."""
    there = next(part for part in (path.absolute(), *path.absolute().parents) if part.exists())
    return shutil.disk_usage(there).free


def _machine_bytes() -> float:
    """Return the memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
