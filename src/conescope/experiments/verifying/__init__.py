"""Verify what a run folder holds: recompute parts of it, and say how the results agree."""
