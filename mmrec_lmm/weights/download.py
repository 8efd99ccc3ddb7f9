"""Where an encoder's pretrained files are: given by the user, in the cache folder, or downloaded into it.

A file is used only with the expected content: the SHA-256 that its authors publish or, if they publish none, that of
the first file, which is recorded beside it. Nothing here imports torch.
"""

import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from contextlib import suppress
from email.message import Message
from pathlib import Path

from ..cache import hash_file, home, is_disk_full, locked, write_bytes
from ..errors import DataError, RunError, WeightsMissing
from ..plugin.specs import WeightFile

logger = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each retry; an attempt without a new byte after the last is final
TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 20  # bytes
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may pass
_OFFLINE = ("MMREC_LMM_OFFLINE", "HF_HUB_OFFLINE")
_YES = ("1", "true", "yes", "on")


def find_weights(file: WeightFile, *, encoder: str, given: Path | str | None = None) -> Path:
    """The path of a file of weights or of a vocabulary.

    `given` is the user's `--weights`: the file itself, whatever its name, or a folder that may hold it under its own.
    Otherwise it is `<home>/weights/<encoder>/<name>`, downloaded there if need be and if possible.
    Raises WeightsMissing (URL, file and place) and DataError (another hash than the published or the recorded one).
    """
    if given and not Path(given).exists():
        raise WeightsMissing(f"{encoder}: --weights {given}: no such file or folder; {_how_to_get(file, encoder)}")
    place = place_of(file, encoder)
    path = present(file, encoder=encoder, given=given)
    if given and path in (None, place) and Path(given) != place.parent:
        logger.info("%s: no %s in %s; it is taken from %s", encoder, file.name, given, place.parent)
    if path is None:
        _refuse_offline(file, encoder)
        try:
            with locked(place):
                if not place.is_file():  # another process may have brought it while this one waited
                    _download(file, encoder, place)
        except PermissionError as error:
            raise WeightsMissing(
                f"{encoder}: {file.name} isn't here and {error.filename} can't be written; {_how_to_get(file, encoder)}"
            ) from None
        return place
    if file.sha256:
        remedy = "delete it to get it again" if path == place else f"get {file.url} again"
        _expect(path, file.sha256.lower(), "as published", remedy=f"{remedy}, or name another file by --weights PATH")
    elif path == place:
        _expect_recorded(path)
    return path


def given_weights(given: Path | str, *, encoder: str) -> Path:
    """The file that the user's `--weights` names, for an encoder whose weights nobody publishes. Raises WeightsMissing
    if it isn't a file."""
    if not Path(given).is_file():
        raise WeightsMissing(
            f"{encoder}: --weights {given}: no such file; its weights aren't published: name a file of yours, or "
            "leave --weights out"
        )
    return Path(given)


def present(file: WeightFile, *, encoder: str, given: Path | str | None = None) -> Path | None:
    """The path that `find_weights` would check, without reading it; None if that would download."""
    places = [place_of(file, encoder)]
    if given:
        places = [Path(given), Path(given) / file.name, *places]
    return next((place for place in places if place.is_file()), None)


def place_of(file: WeightFile, encoder: str) -> Path:
    """Where a file is looked for and downloaded to: <home>/weights/<encoder>/<name>."""
    return home() / "weights" / encoder / file.name


def offline() -> str | None:
    """The environment variable that forbids downloads, by 1, true, yes or on in any case; None where none does."""
    return next((name for name in _OFFLINE if os.environ.get(name, "").strip().lower() in _YES), None)


def _how_to_get(file: WeightFile, encoder: str) -> str:
    return (
        f"download {file.url} to {place_of(file, encoder)}, or name the file, or a folder that holds {file.name}, by "
        f"--weights PATH"
    )


def _refuse_offline(file: WeightFile, encoder: str) -> None:
    if name := offline():
        raise WeightsMissing(f"{encoder}: {file.name} isn't here and {name} is set; {_how_to_get(file, encoder)}")


def _expect(path: Path, expected: str, origin: str, *, remedy: str) -> None:
    found = hash_file(path)
    if found != expected:
        raise DataError(
            f"{path}: expected sha256 {expected} ({origin}), got {found}: it is damaged or another file; {remedy}"
        )


def _expect_recorded(path: Path) -> None:
    """Compare with the hash of the first use; at the first use, record it."""
    known = _recorded(path)
    if known:
        remedy = f"delete it to get it again, or delete {_record(path).name} beside it if you trust this one"
        _expect(path, known, "as at its first use", remedy=remedy)
    else:
        with suppress(OSError, RunError):  # in a folder that can't be written to
            _write_record(path, hash_file(path))


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str:
    return _text(_record(path)).partition(" ")[0].strip()


def _write_record(path: Path, digest: str) -> None:
    """Record a hash as `sha256sum` writes it, and log it: no publisher has confirmed this file."""
    logger.warning("%s: sha256 %s, trusted at this first use and enforced from now on", path, digest)
    write_bytes(_record(path), f"{digest}  {path.name}\n".encode())


def _download(file: WeightFile, encoder: str, path: Path) -> None:
    """Download a file to its place, whole and checked; after an error, its beginning stays in `<name>.part`."""
    part = path.with_name(f"{path.name}.part")
    logger.info("%s: downloading %s", encoder, file.url)
    try:
        _fetch_with_patience(file.url, part, label=file.name)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        if is_disk_full(error):
            raise RunError(f"{part}: no space left on the disk; free some and start again, it continues") from None
        raise WeightsMissing(
            f"{encoder}: {file.name} isn't here and couldn't be downloaded ({_reason(error)}); "
            f"{_how_to_get(file, encoder)}"
        ) from None
    digest = hash_file(part)
    expected = (file.sha256 or _recorded(path)).lower()
    if expected and digest != expected:
        _discard(part)
        origin = "as published" if file.sha256 else f"as {_record(path)} says"
        raise DataError(
            f"{file.url}: expected sha256 {expected} ({origin}), got {digest}; the download was deleted, try again. If "
            f"the hash is the same, the file there was replaced: name one that you trust by --weights PATH"
        )
    if not expected:
        _write_record(path, digest)
    os.replace(part, path)
    _discard(part)


def _fetch_with_patience(url: str, part: Path, *, label: str) -> None:
    """Fetch with retries, while attempts bring bytes or pauses are left."""
    began, fruitless = False, 0
    while True:
        before = _size(part)
        try:
            return _fetch(url, part, label=label)
        except (OSError, http.client.HTTPException) as error:
            came = _size(part) > before
            began, fruitless = began or came, 0 if came else fruitless + 1
            if not _may_pass(error, began=began) or fruitless > len(PAUSES):
                raise
            pause = PAUSES[max(fruitless - 1, 0)]
            logger.warning("%s: %s; trying again in %g s", url, _reason(error), pause)
            time.sleep(pause)


def _fetch(url: str, part: Path, *, label: str) -> None:
    """Append to `part` the rest of the file at `url`; write all of it if the server can't continue."""
    from tqdm import tqdm  # late: each listing of plugins imports this module

    start = _size(part)
    headers = {"User-Agent": "mmrec-lmm", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version := _text(_version(part)):
            headers["If-Range"] = version  # else, if the file has changed, send all of it
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return  # it was complete before
        _discard(part)
        raise ConnectionError(f"the file there is shorter than the {start:,} bytes here") from None
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError("the server sent a web page instead")
        if answer.status != http.client.PARTIAL_CONTENT:
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        _version(part).write_text(_validator(answer.headers), encoding="utf-8")
        with (
            part.open("ab" if start else "wb") as out,
            tqdm(total=total, initial=start, desc=label, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := answer.read(_BLOCK):
                out.write(block)
                bar.update(len(block))
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _may_pass(error: Exception, *, began: bool) -> bool:
    """True if the same request may succeed in a moment: not without the file, nor without a network."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _TRANSIENT
    if isinstance(error, urllib.error.URLError):  # no connection: retry only if there was one before
        return began
    return not isinstance(error, PermissionError) and not is_disk_full(error)


def _reason(error: Exception) -> str:
    return str(error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error))


def _validator(headers: Message) -> str:
    """The identifier of this version of a file, for If-Range; empty if the server gives none."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _version(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version(part).unlink(missing_ok=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
