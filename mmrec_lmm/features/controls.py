"""The controls of a run: replacements of its features that carry no content. `files.py` makes them."""

from typing import Literal, get_args

Control = Literal["shuffled", "random", "constant", "none"]
CONTROLS: tuple[Control, ...] = get_args(Control)
NO_FEATURES: Control = "none"  # takes away all features, and with them the encoder
