"""Measure the kernel of any model: while it trains, or from its checkpoints."""
