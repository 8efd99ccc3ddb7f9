"""The leaderboard page: one HTML file with its style, script and data, which needs no server and asks for nothing.

`page.html`, `page.css` and `page.js` beside this file are the page; here they and the data are put together. Names come
from plugins and configuration from users, so nothing of them may become markup: the data are JSON without `<`, the
script makes text nodes of them, and the page's policy admits that one script by its hash and no request at all.
"""

import base64
import hashlib
import html
import json
import math
import re
from importlib.resources import files
from typing import Any

from ..studies.leaderboard import Leaderboard

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"


def page(leaderboard: Leaderboard) -> str:
    """The whole page as text, to be written as UTF-8."""
    template, style, script = (
        (files(__package__) / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    parts = {
        "title": html.escape(leaderboard.title),
        "style": style,
        "script": script,
        "policy": POLICY.format(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        "document": _json_in_html(leaderboard.document()),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)  # in one pass: values aren't searched


def _json_in_html(value: Any) -> str:
    """JSON that can't end the script element it stands in."""
    return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON doesn't know: a test of equal numbers has no p."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
