"""Readers of the layouts in which data sets are published: files become rows of raw ids."""
