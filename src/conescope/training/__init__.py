"""Train a network by a recipe: recipes, data sets, networks, optimisers, and the loop."""
