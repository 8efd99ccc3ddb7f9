"""Bringing files from servers: whole, checked, and continued after a stop."""
