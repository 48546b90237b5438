"""Loss and accuracy over training."""

from __future__ import annotations

from conescope.report.plot import Line, LinePlot, Panels
from conescope.report.summary import evaluations
from conescope.runs.contents import DATA
from conescope.runs.reader import Run
from conescope.training.losses import UNITS
from conescope.training.recipe import Recipe

_TEST_COLOUR = 1


def _unit(run: Run) -> str:
    return UNITS[run.recipe.training.loss if isinstance(run.recipe, Recipe) else "cross_entropy"]


def training(run: Run) -> Panels:
    """Return the plot of the losses, above that of the test accuracy, against iterations.

    Args:
        run: a run that has been evaluated at least once.

    Raises:
        TrainingError: if nothing has been evaluated yet.
    """
    scalars = evaluations(run)
    steps = scalars["step"]
    losses = [scalars["train_loss"], scalars["test_loss"]]
    caption = f"Mean loss per label on training and test data, {_unit(run)}."
    if DATA in run.environment:
        caption = f"{caption} The data are {run.environment[DATA]}."
    loss = LinePlot(
        title="Loss",
        caption=caption,
        y_label="loss",
        lines=[
            Line("training data", steps, losses[0]),
            Line("test data", steps, losses[1], colour=_TEST_COLOUR),
        ],
        y_scale="readable",
    )
    accuracy = LinePlot(
        title="Test accuracy",
        caption="Share of the labels of the test data that are predicted correctly.",
        y_label="test accuracy",
        lines=[Line("test data", steps, scalars["test_accuracy"], colour=_TEST_COLOUR)],
        from_zero=False,
        percent=True,
    )
    return Panels("Loss and accuracy", f"{caption} {accuracy.caption}", [loss, accuracy])
