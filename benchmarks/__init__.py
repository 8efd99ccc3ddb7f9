"""Measurements of the host against what its work costs at least; `python -m benchmarks.host` prints them."""
