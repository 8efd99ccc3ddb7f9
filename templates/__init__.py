"""Packages to begin a plugin with, one folder for each kind: `mmrec-lmm plugin new` copies them."""
