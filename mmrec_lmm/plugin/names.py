"""Names and paths that come from outside, in files and flags: which are safe in a path, a table and a page.

One rule for each. A name is what a person would call a thing; a path within a folder names a file there and nothing
else, on any system.
"""

import re
import unicodedata

LONGEST = 100  # characters of a name: with a run's suffix, less than file systems take
_BESIDE = frozenset(" ._+-@()=~,!#%&'")  # of a name, beside letters and digits
NAME_RULE = (
    f"at most {LONGEST} letters, digits, blanks and ._+-@()=~,!#%&', first a letter, a digit or _, last no blank or "
    "point, never .."
)
PATH_RULE = "a path that stays within its folder, with / between its parts"


def is_safe_name(name: str) -> bool:
    """True for the name of a data set, a study or a preset that keeps `NAME_RULE`. Letters may be of any script."""
    return (
        0 < len(name) <= LONGEST
        and all(_is_word(char) or char in _BESIDE for char in name)
        and (_is_word(name[0]) or name[0] == "_")
        and name[-1] not in " ."
        and ".." not in name
    )


def is_within(path: str) -> bool:
    """True for a relative path that can't lead out of its folder: no drive, no `..`, no backslash, no control
    character. Links in the folder are followed: who made the folder made them."""
    parts = path.split("/")
    return (
        bool(path)
        and not path.startswith("/")
        and ".." not in parts
        and "\\" not in path
        and not re.match("[A-Za-z]:", path)
        and path.isprintable()
    )


def _is_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"  # letters, the marks on them, digits
