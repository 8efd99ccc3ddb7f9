"""Values of settings that are also choices of a flag, in a module that imports next to nothing."""

from typing import Literal, get_args

Protocol = Literal["default", "mmrec"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
SplitRule = Literal["ratio", "leave-one-out", "user-time", "global-time", "cold-item"]
SPLIT_RULES: tuple[SplitRule, ...] = get_args(SplitRule)
