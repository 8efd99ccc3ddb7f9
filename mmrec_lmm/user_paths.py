"""Paths as users type them, with the `~` that no shell has read: of `--out=~/runs`, of a YAML file, of a program."""

import os
from pathlib import Path


def expand_home(text: str) -> str:
    """Text that begins with `~/` as a path in the user's own folder; any other text as it is."""
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user typed."""
    return Path(expand_home(os.fspath(path)))
