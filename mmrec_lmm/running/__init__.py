"""Runs: one run from its inputs to its folder, grids of runs, and the use of finished runs."""
