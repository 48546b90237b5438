"""Callbacks for other libraries' trainers, and adapters to trackers; import what you need."""
