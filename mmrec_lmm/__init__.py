"""mmrec_lmm: do large multi-modal encoders help recommenders? A benchmark host with plugins for every moving part.

Plugin authors import from `mmrec_lmm.api`; users type `mmrec-lmm run -m VBPR -d demo`.
"""

__version__ = "0.1.0"
