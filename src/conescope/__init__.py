"""conescope."""
