"""Columns of a comparison of runs: what was trained, and the accuracy reached."""

from __future__ import annotations

from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections.section import Content, Section
from conescope.report.summary import state
from conescope.training.recipe import Recipe


def _content(analysis: RunAnalysis) -> Content:
    run = analysis.run
    column = {"state": state(run)}
    if isinstance(run.recipe, Recipe):
        recipe = run.recipe
        column["seed"] = str(recipe.seed)
        column["learning rate"] = f"{recipe.optimizer.lr:g} ({recipe.optimizer.name})"
        column["network"] = recipe.model.name
        column["data"] = recipe.data.name
    if len(run.scalars["step"]):
        column["test accuracy, last"] = f"{run.scalars['test_accuracy'][-1]:.2%}"
    return Content(column=column)


SECTION = Section("Training", "What was trained, and how well.", _content)
