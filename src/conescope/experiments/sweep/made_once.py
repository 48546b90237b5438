"""What every run of a sweep needs and takes long to make: made by the import of this module.

Only the server of `Slots` imports it, so that the processes that are forked from it have it at
once, and all together have it once in memory. It is the parser of recipes, and the data set that
the environment variable `SWEEP_DATA` names.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress

import torch

from conescope.errors import ConescopeError
from conescope.experiments.sweep.slots import SWEEP_DATA
from conescope.training.data.dataset import load_data
from conescope.training.recipe_fields import DataRecipe
from conescope.training.recipe_reading import stored_recipe_parser


def _load(name: str, path: str | None, options: Mapping[str, object]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a process that has used several cannot use them again once forked
    with suppress(ConescopeError):  # which each run tells, when it loads the data itself
        load_data(DataRecipe(name, path, options=options))
    torch.set_num_threads(threads)


stored_recipe_parser()
if SWEEP_DATA in os.environ:
    _load(*json.loads(os.environ[SWEEP_DATA]))
