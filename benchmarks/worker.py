"""One contender on one problem, in a process of its own that stays warm between its turns.

Run by `benchmarks.process` as `python -m benchmarks.worker PROBLEM CONTENDER OUTPUTS REFERENCE
THREADS`. It answers every option (a line of JSON) with a measurement (a line of JSON). Whatever
goes wrong ends the process; the last line of its error stream is the reason.
"""

from __future__ import annotations

import gc
import importlib.metadata
import sys
import time

import torch

from benchmarks.channel import Channel
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.base import Contender, Option
from benchmarks.machine import memory_field, reset_peak
from benchmarks.problems import PROBLEMS, TINY
from benchmarks.reference import deviations


def _load_lazily(contender: str, outputs: str) -> None:
    """Solve a tiny problem: what a library loads at its first use is no part of a peak."""
    tiny = CONTENDERS[contender](*TINY.make(), outputs)
    tiny.run(**tiny.options()[0])


def _measure(contender: Contender, option: Option, baseline: int, reference: dict) -> dict:
    gc.collect()
    reset_peak()
    start = time.perf_counter()
    kernel = contender.run(**option)
    seconds = time.perf_counter() - start
    peak = memory_field("VmHWM") - baseline
    error, worst = deviations(kernel, reference, contender.outputs)
    return {"seconds": seconds, "peak_bytes": peak, "error": error, "worst": worst}


def main(problem: str, contender: str, outputs: str, reference: str, threads: str) -> None:
    """Set up, say what there is to choose from, and answer until the input ends."""
    channel = Channel(int(threads))
    truth = torch.load(reference, weights_only=True)
    _load_lazily(contender, outputs)
    model, x = PROBLEMS[problem].make()
    chosen = CONTENDERS[contender](model, x, outputs)
    gc.collect()
    baseline = memory_field("VmRSS")
    channel.send(
        {
            "options": chosen.options(),
            "version": importlib.metadata.version(chosen.package),
            "operations": chosen.operations(),
        }
    )
    for option in channel.requests():
        channel.send(_measure(chosen, option, baseline, truth))


if __name__ == "__main__":
    main(*sys.argv[1:])
