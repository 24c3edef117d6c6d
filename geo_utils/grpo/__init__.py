"""Notebook 04: training a policy by GRPO, and what it was worth."""
