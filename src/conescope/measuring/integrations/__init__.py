"""Watching inside other libraries' training loops, and telling trackers; import what you need."""
