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
_ELEMENT = re.compile(r"<(script|style)\b|<(!--)", re.IGNORECASE)  # whose content isn't text
_TAG = re.compile(
    r"</?(?:a|abbr|article|b|big|blockquote|body|br|button|caption|center|cite|code|col|dd|div|dl|dt|em|embed|fieldset|"
    r"font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|label|legend|li|link|meta|noscript|object|ol|"
    r"option|p|param|pre|s|script|section|select|small|span|strike|strong|style|sub|sup|table|tbody|td|textarea|tfoot|"
    r"th|thead|title|tr|tt|u|ul|video|wbr)(?: [^<>]*)?/?>|<!doctype[^<>]*>",
    re.IGNORECASE,
)
#: What stands in braces in a style sheet, such as `ul.indent { list-style: inside disc; }`, and a selector before it.
_BRACES = re.compile(r"\{([^{}]*)\}")
_DECLARATION = re.compile(r" ?-?[a-z]+(?:-[a-z]+)* ?: ?\S[^:]*(?::[^:]*)?")
_SELECTORS = re.compile(r"[\w.#:,>*\[\]='\" -]{0,200}")
_SELECTOR = re.compile(r"(?:\w*[.#][\w-]+[ ,>]+(?:\w+[ ,>]+)?)*(?:\w*[.#])?[\w-]+(?::[\w-]+)? ?$")
#: What a page's script has, and no title or description of a good.
_SCRIPT = re.compile(
    r"\bgetTime\(|\bfunction ?\w* ?\([\w, ]*\) ?\{|\bdocument\.(?:write|get|create)\w*\(|\bwindow\.\w+ ?[=(]|"
    r"\bvar \w+ ?= ?\S"
)
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff9-\ufffb]"
)
_MISREAD = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]"
)
_ODD = re.compile(r"[^\t\n\r\x20-\x7e]|[&<{]")
_ROUNDS = 3  # entities and encodings may be wrong several times over: &amp;quot;

#: What may be wrong with a text, as the manifest counts it.
ENCODING, ENTITIES, STYLE, SCRIPT, TAGS, INVISIBLE = (
    "encodings repaired", "entities resolved", "style sheets removed", "page scripts cut off", "tags removed",
    "invisible characters removed",
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

    step(ENCODING, _decoded)  # before white space: the second byte of `à` is a space in Latin-1
    text = " ".join(text.split())
    step(ENTITIES, _resolved)
    step(STYLE, _without_styles)
    step(SCRIPT, _without_script)
    step(TAGS, lambda text: _TAG.sub(" ", text))
    step(INVISIBLE, lambda text: _CONTROLS.sub("", text))
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


def _without_styles(text: str) -> str:
    """The text without the rules of style sheets that stand in it."""
    kept: list[str] = []
    end = 0
    for braces in _BRACES.finditer(text):
        parts = [part for part in braces[1].split(";") if part.strip()]
        if ";" not in braces[1] or not all(map(_DECLARATION.fullmatch, parts)):
            continue
        before = text[end : braces.start()]
        if not kept or not _SELECTORS.fullmatch(before):  # else all between two rules is the selector of the second
            near = before[-100:]
            selector = _SELECTOR.search(near)
            kept.append(before[: len(before) - len(near)] + (near[: selector.start()] if selector else near))
        end = braces.end()
    return " ".join([*kept, text[end:]])


def _without_script(text: str) -> str:
    """The text without elements that hold scripts and styles, up to the last sentence that ends before a bare script
    begins; nothing where none does."""
    kept, place = [], 0
    while element := _ELEMENT.search(text, place):
        close = re.compile("-->" if element[2] else f"</{element[1]}[^<>]*>", re.IGNORECASE).search(text, element.end())
        if close is None:
            break
        kept.append(text[place : element.start()])
        place = close.end()
    text = " ".join([*kept, text[place:]])
    if not (script := _SCRIPT.search(text)):
        return text
    before = text[: script.start()]
    return before[: max(map(before.rfind, ".!?")) + 1]


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
