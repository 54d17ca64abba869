"""Cells are submitted, run, stopped and cleaned up here or on SLURM."""
