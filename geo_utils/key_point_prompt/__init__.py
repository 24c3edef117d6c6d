"""Notebook 03: a rewrite made for the key point, and the studies beside it."""
