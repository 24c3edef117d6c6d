"""Notebook 03: whether the lift would hold, and what training could add."""
