"""Run the benchmark, or make tables and figure again from a record: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks import architectures, figure, models, peers, report, tangent
from benchmarks.architectures import ARCHITECTURES
from benchmarks.contenders import CONTENDERS
from benchmarks.contest import contest
from benchmarks.machine import CLEAR_REFS, describe, total_memory
from benchmarks.problems import FULL_RUN, OUTPUTS, PROBLEMS, QUICK_RUN
from benchmarks.process import ALLOCATORS, Task
from benchmarks.projectors import PROJECTORS

Setting = TypeVar("Setting", models.Setting, peers.Setting)


def _parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small problems, two rounds, no search"
    )
    parser.add_argument("--problems", nargs="*", metavar="PROBLEM", help=", ".join(PROBLEMS))
    parser.add_argument("--outputs", nargs="+", choices=OUTPUTS, default=list(OUTPUTS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--allocators", nargs="+", choices=ALLOCATORS)
    parser.add_argument(
        "--steps", nargs="*", metavar="NETWORK",
        help=f"training steps, linearised beside standard: {', '.join(tangent.NETWORKS)}",
    )  # fmt: skip
    parser.add_argument(
        "--models", nargs="*", metavar="NAME",
        help=f"the engine on models of real size, in place of problems and steps that are not "
        f"named: {', '.join(ARCHITECTURES)}",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=(*models.PARTS, "peers"), default=[*models.PARTS, "peers"],
        help="tables of models: a few samples, many samples, peers of the projection (all)",
    )  # fmt: skip
    parser.add_argument("--peers", nargs="+", choices=PROJECTORS, default=list(PROJECTORS))
    parser.add_argument("--n", type=int, help="samples of a model (8; many: 64; peers: 32)")
    parser.add_argument(
        "--tokens", type=int, help="of a language model's sample (64; many, peers: 128)"
    )
    parser.add_argument("--draws", type=int, help="cotangents of an estimate (2)")
    parser.add_argument("--dim", type=int, help="columns of a projection (4096)")
    parser.add_argument("--block", type=int, help="samples of a pass, for peers (16)")
    parser.add_argument("--memory", help="the engine's budget for a model (3GB)")
    parser.add_argument(
        "--resume", action="store_true", help="keep what --json has of the same models and settings"
    )
    parser.add_argument("--batch", type=int, default=128, help="samples of a training step (128)")
    parser.add_argument("--options", type=int, help="settings that each may try (all)")
    parser.add_argument("--rounds", type=int, help="timed turns of every contender (5)")
    parser.add_argument("--threads", type=int, default=cores, help=f"({cores})")
    parser.add_argument(
        "--give-up", type=float, default=8, help="no turns when so many times slower (8)"
    )
    parser.add_argument("--limit-seconds", type=float, help="for one call (90; --models: 900)")
    parser.add_argument("--limit-gb", type=float, help="for one process (80 %% of the memory)")
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"), help="the record")
    parser.add_argument("--doc", type=Path, help="the page whose tables to fill")
    parser.add_argument("--replay", action="store_true", help="only make --doc from --json")
    return parser


def _with_defaults(arguments: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on --quick and --models."""
    quick, only_models = arguments.quick, arguments.models is not None
    if arguments.problems is None:
        arguments.problems = [] if only_models else list(QUICK_RUN if quick else FULL_RUN)
    if arguments.steps is None:
        arguments.steps = [] if only_models else ["lenet"] if quick else list(tangent.NETWORKS)
    if arguments.models == []:
        arguments.models = list(architectures.QUICK_RUN if quick else architectures.FULL_RUN)
    arguments.limit_seconds = arguments.limit_seconds or (900 if only_models else 90)
    arguments.allocators = arguments.allocators or (["default"] if quick else list(ALLOCATORS))
    arguments.options = arguments.options or (1 if quick else None)
    arguments.own_rounds = arguments.rounds or (1 if quick else None)
    arguments.rounds = arguments.rounds or (2 if quick else 5)
    if arguments.limit_gb is None:
        arguments.limit_gb = 3 if quick else 0.8 * total_memory() / 1e9
    return arguments


def _run(arguments: argparse.Namespace) -> dict:
    """Hold all contests, time all steps, measure all models; save the record after each."""
    torch.set_num_threads(arguments.threads)
    record = {
        "machine": describe(arguments.threads),
        "settings": {
            "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
            "rounds": arguments.rounds,
            "give_up": arguments.give_up,
            "limit_seconds": arguments.limit_seconds,
            "limit_gb": arguments.limit_gb,
            "allocators": ALLOCATORS,
        },
        "contests": [],
        "steps": [],
    }

    def save() -> None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        for tasks in _tasks(arguments, Path(folder)):
            held = contest(tasks, arguments.rounds, arguments.give_up, int(0.8 * total_memory()))
            held["results"] = [asdict(result) for result in held["results"]]
            record["contests"].append(held)
            save()
            print(report.one_contest(held), flush=True)
    for network in arguments.steps:
        record["steps"].append(
            tangent.measure(network, arguments.batch, arguments.rounds, arguments.threads)
        )
        save()
        print(report.steps(record["steps"][-1:]), flush=True)
    if arguments.models:
        record["models"] = found = _earlier(arguments)
        _measure_models(arguments, found, save)
        if "peers" in arguments.only:
            _hold_peers(arguments, found, save)
    return record


def _earlier(arguments: argparse.Namespace) -> dict:
    """The record's part on models: what --json holds if it is to be kept, or nothing yet."""
    found = {"parts": {}, "peers": []}
    if arguments.resume and arguments.json.exists():
        found |= json.loads(arguments.json.read_text()).get("models", {})
    return {**found, "versions": models.versions()}


def _measure_models(arguments: argparse.Namespace, found: dict, save: Callable[[], None]) -> None:
    """Measure the parts of `models.PARTS` that are wanted and not known, and show each row."""
    for name, part in models.PARTS.items():
        if name not in arguments.only:
            continue
        setting = _changed(part.setting, arguments)
        if found["parts"].get(name, {}).get("setting") != asdict(setting):
            found["parts"][name] = {"setting": asdict(setting), "results": []}
        results = found["parts"][name]["results"]
        for model in (model for model in arguments.models if part.takes(model)):
            if any(r["model"] == model and "reason" not in r for r in results):
                continue
            task = models.ModelTask(name, model, setting, *_limits(arguments))
            results[:] = [r for r in results if r["model"] != model] + [models.measure(task)]
            save()
            row = {**found["parts"][name], "results": results[-1:]}
            print(models.table(name, row), flush=True)


def _hold_peers(arguments: argparse.Namespace, found: dict, save: Callable[[], None]) -> None:
    """Hold the contests of the projections that are not known, and show each."""
    setting = _changed(peers.Setting(), arguments)
    for model in (model for model in arguments.models if model in peers.MODELS):
        tasks = [
            peers.PeerTask(model, contender, setting, *_limits(arguments))
            for contender in arguments.peers
        ]
        held = peers.begin(tasks)
        if any(peers.finished(old) and peers.same(old, held) for old in found["peers"]):
            continue
        found["peers"] = [old for old in found["peers"] if old["model"] != model] + [held]
        peers.contest(tasks, held, int(0.8 * total_memory()), save)
        print(peers.table(held), flush=True)


def _changed(setting: Setting, arguments: argparse.Namespace) -> Setting:
    """A setting with what the command line has in place of the defaults."""
    values = {
        field.name: getattr(arguments, field.name)
        for field in fields(setting)
        if field.name != "rounds"
    }
    values["rounds"] = arguments.own_rounds
    return replace(setting, **{k: value for k, value in values.items() if value is not None})


def _limits(arguments: argparse.Namespace) -> tuple[str, int, float, int]:
    """Allocator, threads and limits of a model's process."""
    limit_bytes = int(arguments.limit_gb * 1e9)
    return "default", arguments.threads, arguments.limit_seconds, limit_bytes


def _tasks(arguments: argparse.Namespace, folder: Path) -> Iterator[list[Task]]:
    """The contests: for each, one task a contender."""
    for allocator, problem, outputs in product(
        arguments.allocators, arguments.problems, arguments.outputs
    ):
        reference = folder / f"{problem}.pt"
        if not reference.exists():
            words = ("-m", "benchmarks.reference", problem, str(reference), str(arguments.threads))
            subprocess.run([sys.executable, *words], check=True)
        yield [
            Task(
                problem,
                contender,
                outputs,
                reference,
                allocator,
                arguments.threads,
                arguments.limit_seconds,
                int(arguments.limit_gb * 1e9),
                arguments.options,
            )
            for contender in arguments.contenders
        ]


def main() -> None:
    """Measure unless replaying, then write the page and its figure."""
    parser = _parser()
    arguments = _with_defaults(parser.parse_args())
    unknown = [name for name in arguments.problems if name not in PROBLEMS]
    unknown += [name for name in arguments.steps if name not in tangent.NETWORKS]
    unknown += [name for name in arguments.models or () if name not in ARCHITECTURES]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; see --help for the names")
    if not CLEAR_REFS.exists():
        parser.error("memory is measured through Linux's /proc/self/clear_refs, not found here")
    record = json.loads(arguments.json.read_text()) if arguments.replay else _run(arguments)
    if arguments.doc is None:
        return
    if record["contests"]:
        picture = arguments.doc.parent / "figures" / f"{arguments.doc.stem}.png"
        figure.draw(record, picture)
        report.fill(arguments.doc, report.markdown(record, f"figures/{picture.name}"))
    if "models" in record:
        report.fill(arguments.doc, models.markdown(record), section="models")


if __name__ == "__main__":
    main()
