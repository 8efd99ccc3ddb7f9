"""Measurements of the host against the minimum that its work can cost; `python -m benchmarks.host` prints them."""
