"""What is done with a recipe: run it, branch from it, switch to linearised training, reproduce."""
