"""Watching a run: what is remembered of its steps, what is kept, and what raises an alarm."""
