"""Images of items: downloaded from addresses or collected from folders and archives, each verified by decoding.

`adding.py` is what the command line calls; `images.tsv` beside a data set's items.tsv has a row per item
(`manifest.py`). Only `requesting.py` needs aiohttp, and imports it late.
"""
