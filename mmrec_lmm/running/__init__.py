"""Runs: one from its inputs to its folder, grids of them, and what is done with finished ones."""
