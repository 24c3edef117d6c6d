"""Notebook 05: the week's deck."""
