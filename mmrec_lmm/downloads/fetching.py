"""Fetch one file over HTTP: continued after a cut, patient with a server in trouble, never cut short unnoticed.

The beginning of a file, `X.part`, is continued only from the address that it came from, and only while the server shows
by ETag or Last-Modified that the file there is the same; `X.part.origin` keeps address, version and length. Where the
file's hash is known, it is continued from anywhere: the hash tells whether the parts fit.

A password in an address is sent to its own host alone, and never logged.
"""

import base64
import dataclasses
import email.utils
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from ..disk.faults import is_disk_full
from ..disk.reading import AGAIN, read_json
from ..errors import DataError
from ..typed_json import decode

logger = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each retry; an attempt without a new byte after the last is final
LONGEST_PAUSE = 300.0  # seconds; a server that asks for more by Retry-After is left alone
TIMEOUT = 30.0  # seconds without a byte
LARGEST = 10**12  # bytes of a file: no published one is as large, and a server could send for ever
_BLOCK = 1 << 20  # bytes
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may pass
_OFFLINE = ("MMREC_LMM_OFFLINE", "HF_HUB_OFFLINE")
_SECRET = re.compile(r"(?i)([?&][^=&]*(?:token|key|secret|signature|sig|password|credential|auth)[^=&]*=)[^&#]*")
_SCHEMES = ("http://", "https://")
_YES = ("1", "true", "yes", "on")

#: What `fetch` raises.
FETCH_ERRORS = (OSError, http.client.HTTPException, ValueError)


def offline() -> str | None:
    """The environment variable that forbids downloads, by 1, true, yes or on in any case; None where none does."""
    return next((name for name in _OFFLINE if os.environ.get(name, "").strip().lower() in _YES), None)


def fetch(url: str, part: Path, *, label: str, hash_known: bool = False) -> bool:
    """Bring the file at `url` to `part`, with retries while attempts bring bytes or pauses are left.

    False if the server never said where the file ends, so that a cut connection looks like the end. `hash_known`: the
    caller compares the file with a known hash. Raises FETCH_ERRORS; what has come stays in `part`.
    """
    began, fruitless = False, 0
    while True:
        before = _size(part)
        try:
            return _fetch(url, part, label=label, hash_known=hash_known)
        except (OSError, http.client.HTTPException) as error:
            came = _size(part) > before
            began, fruitless = began or came, 0 if came else fruitless + 1
            if not _may_pass(error, began=began) or fruitless > len(PAUSES):
                raise
            pause = max(PAUSES[max(fruitless - 1, 0)], _asked_pause(error))
            if pause > LONGEST_PAUSE:
                raise ConnectionError(f"{reason_of(error)}; the server asks to wait {pause:,.0f} s") from None
            logger.warning("%s: %s; trying again in %g s", shown(url), reason_of(error), pause)
            time.sleep(pause)


def discard(part: Path) -> None:
    """Delete the beginning of a file, and what is known of it."""
    part.unlink(missing_ok=True)
    _origin_file(part).unlink(missing_ok=True)


def shown(url: str) -> str:
    """An address for people and logs, without the password, key or token that it may hold."""
    start, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return _SECRET.sub(r"\1...", f"{start}{separator}{host.rpartition('@')[2]}{slash}{path}")


def reason_of(error: Exception) -> str:
    """Why a fetch failed, in a few words."""
    return str(error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error))


@dataclass(frozen=True)
class _Origin:
    """Where the beginning of a file is from."""

    url: str
    version: str  # ETag or Last-Modified; empty if the server gives neither
    total: int | None  # bytes of the whole file, where the server said so


def _fetch(url: str, part: Path, *, label: str, hash_known: bool) -> bool:
    """One attempt: append to `part` the rest of the file, or write all of it if the server can't continue."""
    from ..logs import progress_bar  # late: each listing of plugins imports this module

    if not url.startswith(_SCHEMES):
        raise ValueError(f"unknown url type: {shown(url)!r}")
    origin = _read_origin(part)
    if origin is None or origin.url != shown(url) or not origin.version:
        origin = None
        if not hash_known:
            discard(part)
    start = _size(part)
    if origin and start == origin.total and hash_known:
        return True
    headers = {"User-Agent": "mmrec-lmm", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if origin:
            headers["If-Range"] = origin.version  # else, if the file has changed, send all of it
    try:
        answer = urllib.request.build_opener(_Redirects).open(_request(url, headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return True  # it was complete before
        discard(part)
        raise ConnectionError(f"the file there is shorter than the {start:,} bytes here") from None
    with answer:
        found = _described(url, answer.headers, start if answer.status == http.client.PARTIAL_CONTENT else 0)
        if answer.status == http.client.PARTIAL_CONTENT:
            if not _continues(answer.headers, start, origin, found):
                discard(part)
                raise ConnectionError("the file there has changed meanwhile")
        else:
            start = 0
            part.unlink(missing_ok=True)  # before its new origin is written: they belong together
        _origin_file(part).write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
        with (
            part.open("ab" if start else "wb") as out,
            progress_bar(total=found.total, initial=start, desc=label, unit="B", unit_scale=True) as bar,
        ):
            while block := answer.read1(_BLOCK):  # what there is, however little
                if out.tell() + len(block) > LARGEST:
                    raise ValueError(f"the server sent more than {LARGEST:,} bytes")
                out.write(block)
                out.flush()  # a kill loses nothing that has come
                bar.update(len(block))
        chunked = answer.headers.get("Transfer-Encoding", "").lower() == "chunked"  # http.client finds the end
    if found.total is not None and _size(part) != found.total:
        raise ConnectionError(f"the connection ended after {_size(part):,} of {found.total:,} bytes")
    return found.total is not None or chunked


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone, and from https to no http, where anyone on the way could answer."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = "https://" if req.full_url.startswith("https://") else _SCHEMES
        if not newurl.startswith(allowed):
            raise ValueError(f"the server redirects to {shown(newurl)!r}, which isn't followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(url: str, headers: dict[str, str]) -> urllib.request.Request:
    """A request; user and password of the address go into a header that no redirect repeats."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(
        urllib.parse.urlunsplit(parts._replace(netloc=host)) if at else url, headers=headers
    )
    if at:
        code = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {code}")
    return request


def _described(url: str, headers: Message, start: int) -> _Origin:
    """The file that an answer brings, from byte `start` on. ValueError if it can't be the one that was asked for."""
    if headers.get_content_type() == "text/html":
        raise ValueError("the server sent a web page instead")
    coding = headers.get("Content-Encoding", "identity").lower()
    if coding != "identity" and not ("gzip" in coding and url.endswith(".gz")):
        raise ValueError(f"the server sent it encoded as {coding}")
    tag = headers.get("ETag", "")
    version = tag if tag.startswith('"') else headers.get("Last-Modified", "")  # a weak ETag can't be asked for
    length, range_total = headers.get("Content-Length", ""), headers.get("Content-Range", "").rpartition("/")[2]
    total = start + int(length) if length.isdecimal() else None
    if start and range_total.isdecimal():
        total = int(range_total)
    if total is not None and total > LARGEST:
        raise ValueError(f"the server announces {total:,} bytes, more than {LARGEST:,}")
    return _Origin(shown(url), version, total)


def _continues(headers: Message, start: int, origin: _Origin | None, found: _Origin) -> bool:
    """True if a partial answer is the rest of the file whose beginning is here, as far as the server tells."""
    if not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        return False
    return origin is None or (origin.version, origin.total or found.total) == (found.version, found.total)


def _may_pass(error: Exception, *, began: bool) -> bool:
    """True if the same request may succeed in a moment: not without the file, nor without a network."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _TRANSIENT
    if isinstance(error, urllib.error.URLError):  # no connection: retry only if there was one before
        return began
    return not isinstance(error, PermissionError) and not is_disk_full(error)


def _asked_pause(error: Exception) -> float:
    """The seconds that a server asks to wait; 0 if it doesn't."""
    asked = retry_after(error.headers.get("Retry-After") or "") if isinstance(error, urllib.error.HTTPError) else None
    return asked or 0.0


def retry_after(value: str) -> float | None:
    """The seconds that a Retry-After header asks for, by number or date; None if it doesn't."""
    if re.fullmatch(r"\s*\d+(\.\d*)?\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _read_origin(part: Path) -> _Origin | None:
    try:
        path = _origin_file(part)
        return decode(_Origin, read_json(path), where=str(path), cure=AGAIN)
    except DataError:  # the file is fetched from its beginning
        return None


def _origin_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.origin")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
