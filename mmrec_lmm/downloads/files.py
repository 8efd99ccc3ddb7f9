"""A file that someone publishes, brought to its place and used only with the expected content.

That is the hash that its authors publish or, if they publish none, that of the first file, which is recorded beside it.
Nothing here imports torch.
"""

import gzip
import hashlib
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..disk.faults import is_disk_full, no_access
from ..disk.hashing import hash_file
from ..disk.locks import locked
from ..disk.reading import check_readable, is_there, read_file
from ..disk.writing import write_bytes
from ..errors import DataError, NoAccess, RunError, is_denied
from .fetching import FETCH_ERRORS, discard, fetch, reason_of, shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file, the addresses that it is at, in order of preference, and the hash that its authors publish (64 hex
    digits of SHA-256, or 32 of MD5; empty: none)."""

    name: str
    urls: tuple[str, ...]
    digest: str = ""


class NotDownloaded(Exception):
    """No address gave the file; the text is the reason for each."""


def bring(
    file: RemoteFile, place: Path, *, who: str, otherwise: str, refuse: Callable[[Path], None] | None = None
) -> None:
    """Download a file to `place`, whole and checked; after an error, its beginning stays in `<place>.part`.

    A file whose hash nobody knows is used only if it passes `refuse`, which raises DataError.
    Of several processes that want it one downloads it. `who` wants the file, for the log. Raises NotDownloaded,
    DataError for another hash than the expected one, which `otherwise` says how to get round, RunError for a full disk,
    and NoAccess.
    """
    with locked(place):
        if place.is_file():  # another process may have brought it while this one waited
            return
        reasons = []
        for url in file.urls:
            try:
                return _bring(file, url, place, who=who, otherwise=otherwise, refuse=refuse)
            except FETCH_ERRORS as error:
                if is_denied(error):
                    raise no_access(place, error, to="write") from None
                if is_disk_full(error):
                    part = _part(place)
                    raise RunError(
                        f"{part}: no space left on the disk; free some and start again, it continues"
                    ) from None
                reasons.append(reason_of(error) if len(file.urls) == 1 else f"{shown(url)}: {reason_of(error)}")
        raise NotDownloaded("; ".join(reasons))


def check(
    file: RemoteFile,
    path: Path,
    *,
    remedy: str,
    record: bool = True,
    refuse: Callable[[Path], None] | None = None,
) -> None:
    """Compare a file that is here with its published hash, or else with that of its first use, which is recorded then.

    Without `record`, an unpublished hash is neither compared nor recorded. None is recorded of a file that `refuse`
    raises DataError for. Raises DataError, which ends with `remedy`, and NoAccess.
    """
    check_readable(path)
    if file.digest:
        _expect(path, file.digest.lower(), "as published", remedy)
    elif record:
        known = _recorded(path)
        if known:
            trusted = f"delete it to get it again, or delete {_record(path).name} beside it if you trust this one"
            _expect(path, known, "as at its first use", trusted)
        else:
            try:
                expect_format(path, path.name)
            except ValueError as error:
                raise DataError(f"{path}: {error}; {remedy}") from None
            if refuse:
                refuse(path)
            with suppress(OSError, RunError, NoAccess):  # in a folder that can't be written to
                _write_record(path, hash_file(path))


def known_hash(file: RemoteFile, place: Path) -> str:
    """The hash that a file at `place` must have: as published, or as at its first use; empty where neither is known."""
    return file.digest.lower() or _recorded(place)


def expect_format(path: Path, name: str) -> None:
    """Raise ValueError for a web page, and for a gzip or zip file that isn't sound to its last byte."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        raise ValueError("it is a web page instead")
    try:
        if name.endswith(".gz"):
            with gzip.open(path) as content:
                while content.read(1 << 20):
                    pass
        elif name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                if (bad := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"{bad} in it is damaged")
    except (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"it is cut or damaged: {error}") from None


def has_end(name: str) -> bool:
    """True if the format of such a file shows whether its end is there."""
    return name.endswith((".gz", ".zip"))


def _bring(
    file: RemoteFile, url: str, place: Path, *, who: str, otherwise: str, refuse: Callable[[Path], None] | None
) -> None:
    part = _part(place)
    expected = known_hash(file, place)
    logger.info("%s: downloading %s", who, shown(url))
    if not expected and not url.startswith("https://"):
        logger.warning(
            "%s: no hash of %s is published and its address is no https: whoever is on the way can change it",
            who,
            shown(url),
        )
    continued = part.exists()
    measured = fetch(url, part, label=file.name, hash_known=bool(expected))
    digest = _hash(part, expected)
    if expected and digest != expected and continued:  # what was here came from elsewhere
        discard(part)
        measured = fetch(url, part, label=file.name, hash_known=True)
        digest = _hash(part, expected)
    if expected and digest != expected:
        discard(part)
        origin = "as published" if file.digest else f"as {_record(place)} says"
        raise DataError(
            f"{shown(url)}: expected {_kind(expected)} {expected} ({origin}), got {digest}; the download was deleted, "
            f"try again. If the hash is the same, the file there was replaced: {otherwise}"
        )
    if not expected:
        try:
            expect_format(part, file.name)
            if not measured and not has_end(file.name):
                raise ValueError(
                    "the server doesn't say how long it is, so a cut can't be told from its end; if you know its "
                    f"SHA-256, write that to {_record(place)} and try again"
                )
            if refuse:
                refuse(part)
        except (ValueError, DataError) as error:
            discard(part)
            if isinstance(error, DataError):
                reason = str(error).removeprefix(f"{part}: ").partition("; delete it")[0]
                raise DataError(f"{shown(url)}: {reason}; the download was deleted: {otherwise}") from None
            raise
        _write_record(place, digest)
    os.replace(part, place)
    discard(part)


def _expect(path: Path, expected: str, origin: str, remedy: str) -> None:
    found = _hash(path, expected)
    if found != expected:
        raise DataError(
            f"{path}: expected {_kind(expected)} {expected} ({origin}), got {found}: it is damaged or another file; "
            f"{remedy}"
        )


def _hash(path: Path, expected: str) -> str:
    """The file's hash, of the kind that is expected; SHA-256 by default."""
    if _kind(expected) == "sha256":
        return hash_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _kind(digest: str) -> str:
    return "md5" if len(digest) == 32 else "sha256"


def _part(place: Path) -> Path:
    return place.with_name(f"{place.name}.part")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str:
    record, cure = _record(path), "delete it; the file is then hashed anew"
    if not is_there(record, cure):
        return ""
    digest = read_file(record, largest=10_000, cure=cure).decode("latin-1").partition(" ")[0].strip()
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise DataError(f"{record}: expected a SHA-256 in hex and the file's name, got {digest[:80]!r}; {cure}")
    return digest


def _write_record(path: Path, digest: str) -> None:
    """Record a hash as `sha256sum` writes it, and log it: no publisher has confirmed this file."""
    logger.warning("%s: sha256 %s, trusted at this first use and enforced from now on", path, digest)
    write_bytes(_record(path), f"{digest}  {path.name}\n".encode())
