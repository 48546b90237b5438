"""What every run of a sweep needs and takes long to make: made by the import of this module.

The server of `Slots` imports it, so that the processes that are forked from it have it at once, and
all together have it once in memory. It is the parser of recipes, and the data set that the
environment variable `DATA` names.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress

import torch

from conescope.errors import ConescopeError
from conescope.training.data.dataset import is_at_hand, load_data
from conescope.training.recipe_fields import DataRecipe
from conescope.training.recipe_reading import stored_recipe_parser

DATA = "CONESCOPE_SWEEP_DATA"


def naming(data: DataRecipe | None) -> Mapping[str, str]:
    """Return the environment that has this module load a data set, if it is at hand."""
    if data is None or not is_at_hand(data):
        return {}
    return {DATA: json.dumps([data.name, data.path, dict(data.options)])}


def _load(name: str, path: str | None, options: Mapping[str, object]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a process that has used several cannot use them again once forked
    with suppress(ConescopeError):  # which each run tells, when it loads the data itself
        load_data(DataRecipe(name, path, options=options))
    torch.set_num_threads(threads)


stored_recipe_parser()
if DATA in os.environ:
    _load(*json.loads(os.environ[DATA]))
