"""What is done with a recipe: run it, branch from it, switch, reproduce."""
