import subprocess
import sys

import conescope as cs


def test_the_public_names_stay():
    names = {"Kernel", "KernelSeries", "entk", "kernel_distance", "kernel_velocity", "load_run"}
    assert names <= set(cs.__all__)
    assert all(hasattr(cs, name) for name in cs.__all__)


def test_import_is_light():
    heavy = ("matplotlib", "plotly", "datasets", "sklearn")
    code = f"import sys, conescope; sys.exit(', '.join(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
