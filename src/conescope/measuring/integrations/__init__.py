"""Callbacks for other libraries' trainers, and adapters to experiment trackers."""
