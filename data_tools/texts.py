"""Text of shops as encoders need it: entities and tags resolved, encodings repaired, invisible characters removed.

Each step changes only text that plainly has its fault, and is counted. The rule for encodings is exact and small rather
than a library of guesses, so that the same text comes out on every machine: text is decoded again only where all of it
is UTF-8 that was read as Windows-1252 or Latin-1.
"""

import html
import re
from collections import Counter
from collections.abc import Callable, Sequence

import pandas as pd

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_BLOCKS = re.compile(r"<(script|style)\b[^>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(
    r"</?(?:a|abbr|article|b|big|blockquote|body|br|button|caption|center|cite|code|col|dd|div|dl|dt|em|embed|fieldset|"
    r"font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|label|legend|li|link|meta|noscript|object|ol|"
    r"option|p|param|pre|s|script|section|select|small|span|strike|strong|style|sub|sup|table|tbody|td|textarea|tfoot|"
    r"th|thead|title|tr|tt|u|ul|video|wbr)(?:\s[^<>]*)?/?>|<!--.*?-->|<!doctype[^<>]*>",
    re.IGNORECASE | re.DOTALL,
)
#: What a page's script or style sheet has, and no title or description of a good.
_SCRIPT = re.compile(
    r"\bgetTime\(|\bfunction\s*\(|\bdocument\.(?:write|get|create)|\bwindow\.\w+\s*[=(]|\bvar\s+\w+\s*=\s*\S|"
    r"\{\s*[a-z-]+\s*:[^{};]+;\s*(?:[a-z-]+\s*:[^{};]+;?\s*)*\}"
)
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff9-\ufffb]"
)
_MISREAD = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]"
)
_ODD = re.compile(r"[^\t\n\r\x20-\x7e]|[&<]")
_ROUNDS = 3  # entities and encodings may be wrong several times over: &amp;quot;

#: What may be wrong with a text, as the manifest counts it.
SCRIPT, ENTITIES, TAGS, ENCODING, INVISIBLE = (
    "page scripts dropped", "entities resolved", "tags removed", "encodings repaired", "invisible characters removed",
)  # fmt: skip


def clean(text: str, found: Counter[str] | None = None) -> str:
    """The text without what isn't text; `found` counts each kind of fault that it had."""
    if text.isascii() and not _ODD.search(text) and not _SCRIPT.search(text):  # most texts
        return " ".join(text.split())
    counts = Counter[str]() if found is None else found

    def step(kind: str, change: Callable[[str], str]) -> None:
        nonlocal text
        changed = change(text)
        counts[kind] += changed != text
        text = changed

    step(ENCODING, _decoded)
    step(ENTITIES, _resolved)
    step(TAGS, lambda text: _TAG.sub(" ", _BLOCKS.sub(" ", text)))
    step(INVISIBLE, lambda text: _CONTROLS.sub("", text))
    if _SCRIPT.search(text):
        counts[SCRIPT] += 1
        return ""
    text = " ".join(text.split())
    return text if any(char.isprintable() and not char.isspace() for char in text.replace("\u200d", "")) else ""


def clean_columns(items: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The items with these columns cleaned, and how many texts had each kind of fault."""
    found: Counter[str] = Counter()
    cleaned = {column: [clean(text, found) for text in items[column]] for column in columns}
    return items.assign(**cleaned), {kind: found[kind] for kind in sorted(found) if found[kind]}


def _resolved(text: str) -> str:
    """Entities that end with a semicolon as the characters that they mean; `R&D` and `&copy 2` stay."""
    for _ in range(_ROUNDS):
        changed = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
        if changed == text:
            break
        text = changed
    return text


def _decoded(text: str) -> str:
    """UTF-8 that was read as Windows-1252 or Latin-1, decoded again; other text as it is."""
    for _ in range(_ROUNDS):
        if not _MISREAD.search(text):
            break
        for encoding in ("cp1252", "latin-1"):
            try:
                text = _bytes_of(text, encoding).decode()
                break
            except UnicodeError:
                continue
        else:
            break
    return text


def _bytes_of(text: str, encoding: str) -> bytes:
    """The bytes that were read as `text`. Windows-1252 leaves five undefined, which browsers read as Latin-1."""
    if encoding == "latin-1":
        return text.encode("latin-1")
    return b"".join(
        char.encode("latin-1") if char in "\x81\x8d\x8f\x90\x9d" else char.encode("cp1252") for char in text
    )
