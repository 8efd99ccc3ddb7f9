"""Tools that turn raw tables and images into a ready data set, and that synthesize the demo data set.

They write the layout that the host reads (`writing.py` describes it) and know nothing of models or encoders.
"""
