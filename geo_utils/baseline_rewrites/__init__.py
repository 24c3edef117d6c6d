"""Notebook 02: previous methods, and what is asked of the comparison."""
