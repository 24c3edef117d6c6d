"""SLURM arrays, and the servers and programs that a run brings with it and takes down."""
