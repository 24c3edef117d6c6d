"""Notebook 01: how fast a GRPO step is, and how many experiments fit side by side."""
