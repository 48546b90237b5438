import re
import subprocess
import sys
import tomllib
from pathlib import Path

import conescope as cs

ROOT = Path(__file__).parent.parent


def test_the_public_names_stay():
    names = {"Kernel", "KernelSeries", "entk", "kernel_distance", "kernel_velocity", "load_run"}
    assert names <= set(cs.__all__)
    assert all(hasattr(cs, name) for name in cs.__all__)


def test_import_is_light():
    heavy = ("matplotlib", "plotly", "datasets", "sklearn", "huggingface_hub", "transformers")
    code = f"import sys, conescope; sys.exit(', '.join(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


MEASURING = """
import importlib, importlib.util, sys
import numpy as np, torch
import conescope as cs

model = torch.nn.Linear(3, 2)
np.save("probe.npy", np.ones((4, 3), dtype=np.float32))
probe = cs.load_probe("probe.npy")
with cs.Watch(model, probe, when="0", out="watched") as watch:
    watch.step(0)
torch.save(model.state_dict(), "step0.pt")
cs.measure_checkpoints(model, "step0.pt", probe, out="measured")
assert not {"huggingface_hub", "transformers", "torch._dynamo"} & {*sys.modules}
importlib.import_module("conescope.measuring.integrations.trackers").to_tracker(
    type("Writer", (), {"log": print})()
)
for package in ("lightning", "transformers"):
    if importlib.util.find_spec(package):
        importlib.import_module(f"conescope.measuring.integrations.{package}")
rooms = ("conescope.training", "conescope.experiments", "conescope.report", "conescope.cli")
print(*(name for name in sys.modules if name.startswith(rooms)))
"""


def test_measuring_loads_nothing_that_trains(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURING], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_newest_version_of_the_changelog_has_a_date_and_says_what_numbers_changed():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    _, newest, *_ = re.split(r"^## ", changelog, flags=re.MULTILINE)
    assert re.match(rf"\[{re.escape(version)}\] - 20\d\d-\d\d-\d\d\n", newest)
    _, numbers = newest.split("### Numbers\n")
    assert re.search(r"^- \w", numbers, re.MULTILINE)
