"""What every run of a sweep needs and takes long to make: made by the import of this module.

The server of `Slots` imports it, so that the processes that are forked from it have it at once.
"""

from conescope.training.recipe_reading import stored_recipe_parser

stored_recipe_parser()
