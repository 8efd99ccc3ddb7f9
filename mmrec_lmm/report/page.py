"""The leaderboard page: one HTML file with its style, script and data, which needs no server and no network.

This module joins `page.html`, `page.css`, `page.js` and the data. Names come from plugins and users and must never
become markup: the data are JSON without `<`, the script inserts them as text nodes, and the page's security policy
allows only that script, by its hash, and no request.
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
    """The whole page as text; write it as UTF-8."""
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
    """The value as JSON that can't close its script element."""
    return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON lacks. For example, a test of equal numbers has no p."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
