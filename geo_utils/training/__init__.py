"""Notebook 04: GRPO, its rewards, its supervised start, and what it gained."""
