"""The controls of a run: what its features are replaced by, so that they carry no content. `files.py` makes them."""

from typing import Literal, get_args

Control = Literal["shuffled", "random", "constant", "none"]
CONTROLS: tuple[Control, ...] = get_args(Control)
NO_FEATURES: Control = "none"  # takes away all features, and with them the encoder
