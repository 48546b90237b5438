"""A run folder of the first version, which every later one must read.

Made by `conescope run digits --name golden --model.name=mlp --model.width=0.1 --training.steps=20
--training.batch_size=16 --training.evaluate="0, every 10" --probe.size=10 --kernel.when="0, every
10" --snapshots.keep="0, end"`, conescope 0.1.0, torch 2.13.0, one CPU thread.
"""

from pathlib import Path

import numpy as np

from conescope.experiments.stored import load_run, read_status

FOLDER = Path(__file__).parent / "golden/run"


def test_the_first_versions_runs_are_read():
    run = load_run(FOLDER)
    assert run.finished
    assert run.recipe.model.name == "mlp"
    assert run.series.steps == (0, 10, 20)
    np.testing.assert_allclose(
        run.series.distances_from(0), [0.0, 0.03102926097349857, 0.08713227219725306], rtol=1e-9
    )
    assert run.scalars["step"].tolist() == [0, 10, 20]
    assert run.scalars["test_accuracy"][-1] == 0.23333333333333334
    assert read_status(FOLDER).snapshots == (0, 20)
