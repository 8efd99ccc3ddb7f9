"""The entries of a zip archive of weights, within bounds: what it unpacks to is known before anything is unpacked."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError

#: What an archive's compressed entries may unpack to, bytes. Those are code and debug records: torch stores tensors
#: as they are.
MOST_UNPACKED = 2**26


def entries(path: Path) -> Sequence[zipfile.ZipInfo]:
    """The entries of an archive. Raises zipfile.BadZipFile, and DataError for one that would unpack to more than its
    own size and `MOST_UNPACKED`, or whose tensors are compressed."""
    with zipfile.ZipFile(path) as archive:
        found = archive.infolist()
    size = path.stat().st_size
    stored = [one for one in found if one.compress_type == zipfile.ZIP_STORED]
    packed = [one for one in found if one.compress_type != zipfile.ZIP_STORED]
    if any(_is_data(one.filename) for one in packed):
        what = "one with compressed tensors, which torch never writes"
    elif sum(one.file_size for one in packed) > MOST_UNPACKED:
        what = f"one that unpacks to {sum(one.file_size for one in found):,} bytes"
    elif sum(one.file_size for one in stored) > size or len({one.filename for one in found}) < len(found):
        what = "one whose entries overlap or repeat"
    else:
        return found
    raise DataError(
        f"{path}: expected an archive of torch, got {what}, from {size:,}: nothing was unpacked; don't use this file, "
        "download it again from its authors"
    )


def content_of(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo) -> bytes:
    """An entry's bytes, never more than the archive's directory says. Raises what `zipfile` raises."""
    entry = archive.getinfo(name) if isinstance(name, str) else name
    with archive.open(entry) as file:
        content = file.read(entry.file_size)  # a read without a limit would unpack all that is there
        if len(content) != entry.file_size:
            raise zipfile.BadZipFile(f"{entry.filename} ends early")
        return content


def _is_data(name: str) -> bool:
    """True for `root/data/0` and the like: the bytes of a tensor."""
    return name.rpartition("/")[0].endswith(("/data", "/constants"))
