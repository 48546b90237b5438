"""The training of a network by a recipe."""
