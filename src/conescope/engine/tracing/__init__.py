"""Calling anybody's model safely, and finding out which layer rules may take its parameters."""
