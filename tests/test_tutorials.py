"""The tutorials run as they stand, without the docs' build, and say how long they take."""

import re

import pytest
from benchmarks.tutorials import TUTORIALS, execute


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_tutorial_runs(path, tmp_path):
    notebook = execute(path, tmp_path)
    assert re.search(r"It runs for .* on two cores", notebook.cells[0].source)
    assert "pip install" in notebook.cells[1].source
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = {kind for output in outputs for kind in output.get("data", ())}
    assert "image/png" in shown  # a figure, which displays itself
