"""The Python door: what `from mmrec_lmm import run, study, ...` gives. The command line calls the same functions."""
