"""Measure the report of a long run: `python -m benchmarks.report_page --kernels 1000`.

Size of the file, and until the answer can be read, the charts in view are drawn, and all are:
seconds in Chromium, and of these the page's own CPU time, which a busy machine lengthens less. The
run is made up: a walk of random features.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from playwright.sync_api import sync_playwright

from conescope.kernel.matrix import Kernel
from conescope.kernel.series import KernelSeries
from conescope.report import write_report
from conescope.runs.contents import SCALARS
from conescope.runs.reader import Run

SAMPLES, FEATURES = 100, 120
_DRAWN = "chart => chart.querySelector('.main-svg') !== null"
_MOMENTS = {
    "answer readable": "() => document.querySelector('.answer').getBoundingClientRect().height > 0",
    "charts in view": f"() => [...document.querySelectorAll('.plotly-graph-div')].filter("
    f"c => c.getBoundingClientRect().top < innerHeight).every({_DRAWN})",
    "all charts": f"() => [...document.querySelectorAll('.plotly-graph-div')].every({_DRAWN})",
}


def long_run(kernels: int) -> Run:
    """Return a made-up run of so many kernels, one every ten iterations."""
    chance = torch.Generator().manual_seed(0)
    mean = torch.randn(SAMPLES, FEATURES, generator=chance)
    steps = range(0, 10 * kernels, 10)
    measured = []
    for _ in steps:
        features = mean + 0.2 * torch.randn(SAMPLES, FEATURES, generator=chance)
        measured.append(Kernel(features @ features.mT))
    scalars = {"step": np.array(steps)} | {name: np.full(kernels, 0.1) for name in SCALARS}
    return Run(
        path=Path("runs/long"), name="long", recipe=None, series=KernelSeries(steps, measured),
        scalars=scalars, environment={}, command="made up", total_steps=steps[-1], finished=True,
        seconds=0.0, source={"name": "long", "description": f"{kernels:,} made-up kernels"},
    )  # fmt: skip


def main() -> None:
    """Write the report, open it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=1000)
    kernels = parser.parse_args().kernels
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        begun = time.process_time()
        path = write_report(long_run(kernels), Path(folder) / "report.html")
        print(f"written in {time.process_time() - begun:.1f} s of CPU")
        print(f"size {path.stat().st_size / 1e6:.2f} MB")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--enable-unsafe-swiftshader"],
        )
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.set_default_timeout(600_000)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        begun = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        for name, holds in _MOMENTS.items():
            page.wait_for_function(holds)
            seconds = time.perf_counter() - begun
            counted = session.send("Performance.getMetrics")["metrics"]
            (cpu,) = (one["value"] for one in counted if one["name"] == "ThreadTime")
            print(f"{name}: {seconds:.2f} s, of CPU {cpu:.2f} s")
        browser.close()


if __name__ == "__main__":
    main()
