"""Weights of encoders: where they come from, and the formats of the files that hold them."""
