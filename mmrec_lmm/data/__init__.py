"""Data on its way from disk to batches: loading, splits, sampling."""
