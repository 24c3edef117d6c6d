"""Notebook 02: what a samples table says beyond the key-point probability."""
