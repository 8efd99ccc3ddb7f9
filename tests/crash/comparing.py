"""The content of a workspace as digests, without what two undisturbed runs of a command differ in.

Left out are the values of VARYING (seconds, memory, moments in time) wherever they are stored, the pictures that show
seconds, and the files of UNCOMPARED.
"""

import csv
import hashlib
import io
import re
import sqlite3
from pathlib import Path

#: Keys of JSON and columns of tables whose values vary.
VARYING = (
    "seconds", "train_seconds", "valid_seconds", "peak_memory_bytes", "memory", "finished", "at", "stamp",
    "encoder_cost", "encoder_seconds", "epoch_seconds", "warm_epoch_seconds",
)  # fmt: skip
_VALUE = r"(?:\{(?:[^{}]|\{[^{}]*\})*\}|\[[^\[\]]*\]|[-+.\deE]+|null|\\*\"[^\"]*\")"
_KEYS = re.compile(rf'(\\*"{{1,2}}(?:{"|".join(VARYING)})\\*"{{1,2}}: ?){_VALUE}')
#: What a leaderboard's rows cost in seconds and memory.
_COSTS = re.compile(
    r'("(?:encode|tune|epoch|train|memory|recommender|loading|forward|backward|refresh|evaluation)":\s*)\{\s*"value":[^{}]*\}'
)

#: Not results: logs (a killed command has its own), hashes remembered by a file's time of change, the seconds that an
#: encoder took; locks; and what torch's compiler, Python's processes, and its test of the folder of temporary files
#: (a file of eight random letters) leave there.
UNCOMPARED = re.compile(
    r"runs/log/[^/]*\.log|home/file-hashes/[0-9a-f]{32}(\.each)?|home/seconds/[0-9a-f]{32}|.*\.lock"
    r"|tmp/(torchinductor_|pymp-).*|tmp/[a-z0-9_]{8}"
)
_CHECKSUM = re.compile(rb'"sha256":"[0-9a-f]{64}"')
_PICTURES = re.compile(r".*cost[^/]*\.(svg|png|pdf)")
FOLDER = "a folder"


def snapshot(folder: Path) -> dict[str, str]:
    """A digest of each file and folder below, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not UNCOMPARED.fullmatch(name):
            found[name] = FOLDER if path.is_dir() else _digest(path)
    return found


def _digest(path: Path) -> str:
    content = b"" if _PICTURES.fullmatch(str(path)) else path.read_bytes()
    if path.suffix == ".sqlite":
        content = _rows(content)
    elif path.suffix == ".csv":
        content = _columns(content)
    elif path.suffix == ".safetensors" and len(content) > 8:
        end = 8 + int.from_bytes(content[:8], "little")
        header = _CHECKSUM.sub(b"-", _keys(content[8:end]))  # it covers the values that vary, too
        content = header.rstrip() + content[end:]
    elif path.suffix in (".json", ".jsonl", ".html"):
        content = _keys(content)
    return hashlib.sha256(content).hexdigest()


def _keys(content: bytes) -> bytes:
    return _COSTS.sub(r"\1-", _KEYS.sub(r"\1-", content.decode("latin-1"))).encode("latin-1")


def _columns(content: bytes) -> bytes:
    rows = csv.DictReader(io.StringIO(content.decode("utf-8", "replace"), newline=""))
    return repr([{name: value for name, value in row.items() if name not in VARYING} for row in rows]).encode()


def _rows(content: bytes) -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    try:
        connection.deserialize(content or b"damaged")
        tables = [connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("runs", "metrics")]
    except sqlite3.Error:
        return content
    rows = [dict(row) for table in tables for row in table]
    kept = [repr({name: value for name, value in row.items() if name not in VARYING}) for row in rows]
    return repr(sorted(kept)).encode()  # runs are added in the order in which they are found finished
