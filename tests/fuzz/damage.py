"""How files are damaged: functions of their bytes, and of their place, each by the format for which they make sense."""

import contextlib
import gzip
import io
import json
import os
import random
import re
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

#: Texts that a cell, a value or a line may hold, and that readers stumble over.
TEXTS = (
    "", " ", "-1", "-0", "0", "1", "1.5", "nan", "NaN", "inf", "-Infinity", "1e308", "1e400", "1e-400", str(2**31),
    str(2**63), str(2**70), "9" * 5000, "1_000", "0x10", "010", "1:30", "\u0663", "None", "null", "true", "~", "{}",
    "[]",
    "[[1]]", "{a: 1}", '"', "'", '"a', "a\tb", "a,b", "a\rb", "a\nb", "\x00", "\x1b[31m", "\x85", "\u2028", "\u200b",
    "\ufeff", "\u202e", "e\u0301", "\U0001f600", "=1+1", "@x", "../../x", "/etc/hostname", ".", "..", "-", "--", "#",
    "<b>&amp;", "</script>", "%s{0}$x", "&a", "*a", "!!python/object/apply:os.getcwd []", "A" * 100_000, "\ud800",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, 2**70, 1e308, float("nan"), float("-inf"), "", "x", "\ud800",
    "9" * 5000,
    "../../x", "<b>", [], [None], [[]], {}, {"a": 1}, {"": {}}, ["x"] * 1000,
)  # fmt: skip


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# Of any bytes


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_early_bits(data: bytes, rng: random.Random) -> bytes:
    return flip_bits(data[:128], rng) + data[128:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((1, len(data) // 2, max(len(data) - 1, 0), rng.randrange(len(data) + 1)))]


def remove_bytes(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[end:]


def repeat_bytes(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * rng.choice((1, 1, 5)) + data[end:]


def zero_bytes(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + bytes(end - start) + data[end:]


def random_bytes(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((1, 10, len(data))))


def append_bytes(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"\0", b"\n", b"\0" * 4096, rng.randbytes(9)))


def other_content(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"<!doctype html><title>404</title>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x93NUMPY\x01\x00",
        b"\x80\x04N.", b"null", b"[]", b"{}", b"0", b'"x"', b"\n", b"\xff\xfe", b"GIF89a", b"<svg/>",
    ))  # fmt: skip


BYTES: tuple[Damage, ...] = (
    flip_bits, flip_early_bits, truncate, remove_bytes, repeat_bytes, zero_bytes, random_bytes, append_bytes,
    other_content,
)  # fmt: skip


# Of lines of text


def _of_lines(change: Callable[[list[bytes], random.Random], object]) -> Damage:
    def damage(data: bytes, rng: random.Random) -> bytes:
        lines = data.split(b"\n")
        change(lines, rng)
        return b"\n".join(lines)

    damage.__name__ = change.__name__
    return damage


@_of_lines
def remove_line(lines: list[bytes], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


@_of_lines
def repeat_line(lines: list[bytes], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))


@_of_lines
def swap_lines(lines: list[bytes], rng: random.Random) -> None:
    one, other = (rng.randrange(len(lines)) for _ in range(2))
    lines[one], lines[other] = lines[other], lines[one]


@_of_lines
def insert_line(lines: list[bytes], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), encoded(rng.choice(TEXTS)))


@_of_lines
def insert_text(lines: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    place = rng.choice((0, len(lines[at]), rng.randrange(len(lines[at]) + 1)))
    lines[at] = lines[at][:place] + encoded(rng.choice(TEXTS)) + lines[at][place:]


@_of_lines
def replace_word(lines: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    words = list(re.finditer(rb"[\w.-]+", lines[at]))
    if words:
        word = rng.choice(words)
        lines[at] = lines[at][: word.start()] + encoded(rng.choice(TEXTS)) + lines[at][word.end() :]


def other_encoding(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return rng.choice((
        b"\xef\xbb\xbf" + data, text.encode("utf-16"), text.encode("utf-16-le"), text.encode("utf-32"),
        data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r"), data.replace(b"\n", b"\n\n"), data.rstrip(b"\n"),
        data.replace(b"\n", "é\n".encode("latin-1")), data.replace(b"\n", b"\x00\n"),
    ))  # fmt: skip


LINES: tuple[Damage, ...] = (
    remove_line, repeat_line, swap_lines, insert_line, insert_text, replace_word, other_encoding,
)  # fmt: skip


# Of tables


def _of_cells(change: Callable[[list[bytes], random.Random], object]) -> Damage:
    def damage(data: bytes, rng: random.Random) -> bytes:
        lines = data.split(b"\n")
        at = rng.choice((0, rng.randrange(len(lines))))
        separator = max((b"\t", b",", b"|", b"::"), key=lines[at].count)
        cells = lines[at].split(separator)
        change(cells, rng)
        lines[at] = separator.join(cells)
        return b"\n".join(lines)

    damage.__name__ = change.__name__
    return damage


@_of_cells
def replace_cell(cells: list[bytes], rng: random.Random) -> None:
    cells[rng.randrange(len(cells))] = encoded(rng.choice(TEXTS))


@_of_cells
def remove_cell(cells: list[bytes], rng: random.Random) -> None:
    del cells[rng.randrange(len(cells))]


@_of_cells
def repeat_cell(cells: list[bytes], rng: random.Random) -> None:
    cells.insert(rng.randrange(len(cells) + 1), rng.choice(cells))


@_of_cells
def swap_cells(cells: list[bytes], rng: random.Random) -> None:
    rng.shuffle(cells)


@_of_cells
def change_case(cells: list[bytes], rng: random.Random) -> None:
    cells += [cell.swapcase() for cell in cells]


def other_separator(data: bytes, rng: random.Random) -> bytes:
    return re.sub(rb"[\t,]", rng.choice((b"\t", b",", b";", b" ", b"||", b"\x01")), data)


TABLE = (*LINES, replace_cell, replace_cell, remove_cell, repeat_cell, swap_cells, change_case, other_separator)


# Of JSON, also one document a line


def _of_json(change: Callable[[Any, random.Random], Any]) -> Damage:
    def damage(data: bytes, rng: random.Random) -> bytes:
        lines = data.decode().splitlines()
        whole = not lines or lines[0] in ("{", "[")
        at = rng.randrange(len(lines)) if lines else 0
        try:
            value = json.loads(data if whole else lines[at])
        except ValueError:  # such as Amazon's Python literals
            return replace_word(data, rng)
        text = json.dumps(change(value, rng))
        return text.encode() if whole else "\n".join([*lines[:at], text, *lines[at + 1 :], ""]).encode()

    damage.__name__ = change.__name__
    return damage


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each container in `value`, with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


@_of_json
def replace_value(value: Any, rng: random.Random) -> Any:
    places = _places(value)
    if not places:
        return rng.choice(VALUES)
    container, key = rng.choice(places)
    container[key] = rng.choice(VALUES)
    return value


@_of_json
def remove_key(value: Any, rng: random.Random) -> Any:
    container, key = rng.choice(_places(value) or [([0], 0)])
    del container[key]
    return value


@_of_json
def rename_key(value: Any, rng: random.Random) -> Any:
    places = [(container, key) for container, key in _places(value) if isinstance(container, dict)]
    if places:
        container, key = rng.choice(places)
        container[rng.choice(("", "x", "\ud800", f"{key} ", "__class__", key.upper()))] = container.pop(key)
    return value


@_of_json
def swap_values(value: Any, rng: random.Random) -> Any:
    places = _places(value)
    if places:
        (one, key), (other, place) = rng.choice(places), rng.choice(places)
        one[key] = json.loads(json.dumps(other[place]))  # copied: nothing holds itself
    return value


def nest_deeply(data: bytes, rng: random.Random) -> bytes:
    opened = rng.choice((b"[", b'{"a":'))
    nested = opened * 100_000 + rng.choice((b"", b"0" + (b"]" if opened == b"[" else b"}") * 100_000))
    value = rng.choice(list(re.finditer(rb"\d+|\"[^\"]*\"", data)) or [None])
    return data[: value.start()] + nested + data[value.end() :] if value else nested


JSON = (
    replace_value,
    replace_value,
    replace_value,
    remove_key,
    remove_key,
    rename_key,
    swap_values,
    nest_deeply,
    *LINES,
)


# Of YAML


def replace_scalar(data: bytes, rng: random.Random) -> bytes:
    value = rng.choice(list(re.finditer(rb"(?<=: )[^\n]+", data)))
    return data[: value.start()] + encoded(rng.choice(TEXTS)) + data[value.end() :]


def add_aliases(data: bytes, rng: random.Random) -> bytes:
    bomb = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    last = list(re.finditer(rb"(?<=: )[^\n]+", data))[-1]
    used = data[: last.start()] + b"*l9" + data[last.end() :]
    return "\n".join(bomb).encode() + b"\n" + rng.choice((data, used))


def hold_itself(data: bytes, rng: random.Random) -> bytes:
    value = rng.choice(list(re.finditer(rb"(?<=: )[^\n]+", data)))
    return data[: value.start()] + rng.choice((b"&a [*a]", b"&a {b: *a}", b"*a")) + data[value.end() :]


def nest_yaml(data: bytes, rng: random.Random) -> bytes:
    value = rng.choice(list(re.finditer(rb"(?<=: )[^\n]+", data)))
    depth = rng.choice((50, 3000))
    return data[: value.start()] + b"[" * depth + b"]" * depth + data[value.end() :]


YAML = (*LINES, replace_scalar, replace_scalar, replace_scalar, add_aliases, hold_itself, nest_yaml)


# Of arrays


def edit_npy_header(data: bytes, rng: random.Random) -> bytes:
    header, rest = data[10:128], data[128:]
    shape = rng.choice(
        ("(-1, 4)", "(16,)", "(2, 4, 2)", "()", f"({2**40}, 4)", f"({2**62}, {2**62})", "(16.0, 4)", "(1, 64)")
    )
    kind = rng.choice(("|O", "<U5", ">f8", "|V8", "<f2", "<c16", "<M8[s]", "|b1", "<i8", "x"))
    changed = rng.choice((
        re.sub(rb"\(.*?\)", shape.encode(), header), re.sub(rb"'descr': '.*?'", f"'descr': '{kind}'".encode(), header),
        header.replace(b"False", rng.choice((b"True ", b"0    "))), header.replace(b"shape", b"shapo"), b"{" * 118,
        b"__import__('os')", b"",
    ))  # fmt: skip
    length = struct.pack("<H", len(changed)) if rng.random() < 0.8 else rng.randbytes(2)
    return data[:8] + length + changed + rest


def put_number(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(128, max(129, len(data) - 7))
    number = rng.choice((float("nan"), float("inf"), 1e308, -1e308, 1e-320))
    return data[:at] + struct.pack("<d", number) + data[at + 8 :]


NPY = (edit_npy_header, edit_npy_header, edit_npy_header, put_number)


# Of safetensors: eight bytes of length, a header of JSON, numbers


def edit_safetensors_header(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    change = rng.choice((replace_value, replace_value, remove_key, rename_key, swap_values))
    header = change(data[8 : 8 + length].rstrip(b" "), rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def edit_safetensors_metadata(data: bytes, rng: random.Random) -> bytes:
    """Damage the text that stands beside the tensors, itself often JSON."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    for name, text in metadata.items():
        change = rng.choice((replace_value, remove_key, replace_word, truncate))
        metadata[name] = change(text.encode(), rng).decode("utf-8", "replace")
    if not metadata or rng.random() < 0.2:
        header["__metadata__"] = {}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def lie_of_length(data: bytes, rng: random.Random) -> bytes:
    return struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(data)))) + data[8:]


SAFETENSORS = (edit_safetensors_header, edit_safetensors_header, edit_safetensors_metadata, lie_of_length, put_number)


# Of archives, compressed text, databases, images


def edit_zip(data: bytes, rng: random.Random) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(made, "w") as changed:
        names = archive.namelist()
        victim, way = rng.choice(names), rng.randrange(6)
        for name in names:
            content = archive.read(name)
            if name != victim:
                changed.writestr(name, content)
            elif way == 0:
                changed.writestr(name, rng.choice(BYTES)(content, rng))
            elif way == 1:
                changed.writestr(rng.choice(("../../x", "/x", "a" * 300, "\\x", "con", "x\n")), content)
            elif way == 2:
                changed.writestr(name, bytes(300_000_000), zipfile.ZIP_DEFLATED, 1)
            elif way == 3:
                changed.writestr(name, content)
                changed.writestr(f"{name}/x", content)
            elif way == 4:
                changed.writestr(name, content, rng.choice((zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)))
    return made.getvalue()


def damage_within_gzip(data: bytes, rng: random.Random) -> bytes:
    return gzip.compress(rng.choice((*LINES, *TABLE, *JSON, truncate))(gzip.decompress(data), rng), 1)


def end_gzip_early(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (data[:-8], data[:-4] + b"\0\0\0\0", data + data, data + b"x", zlib.compress(gzip.decompress(data)))
    )


def edit_database(data: bytes, rng: random.Random) -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.deserialize(data)
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        name = rng.choice(names)
        column = rng.choice([row[1] for row in database.execute(f"PRAGMA table_info({name})")])
        change = rng.choice((
            f"DROP TABLE {name}", f"DELETE FROM {name}", f"ALTER TABLE {name} RENAME TO x",
            f"UPDATE {name} SET {column} = 'x'", f"UPDATE {name} SET {column} = NULL",
            f"UPDATE {name} SET {column} = 1e308", f"UPDATE {name} SET {column} = x'ff00'",
            f"ALTER TABLE {name} RENAME COLUMN {column} TO y", "PRAGMA user_version = 99",
            f"ALTER TABLE {name} ADD COLUMN more",
        ))  # fmt: skip
        with contextlib.suppress(sqlite3.IntegrityError):  # of a key
            database.execute(change)
        database.commit()
        return database.serialize()


def other_image(data: bytes, rng: random.Random) -> bytes:
    from PIL import Image

    made = io.BytesIO()
    kind = rng.choice(("GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "JPEG", "PDF", "EPS", "TGA", "PCX", "IM"))
    mode = rng.choice(("RGB", "L", "P", "1", "I", "F", "RGBA", "LA", "CMYK", "I;16"))
    try:
        Image.new(mode, rng.choice(((1, 1), (3000, 1), (16, 16)))).save(made, kind)
    except (OSError, ValueError):  # a format without that mode
        Image.new("RGB", (16, 16)).save(made, "PNG")
    return made.getvalue()


def lie_of_size(data: bytes, rng: random.Random) -> bytes:
    """A PNG of other width and height, whose header has the right checksum."""
    sides = rng.choice(((0, 1), (1, 0), (2**31 - 1, 2**31 - 1), (60_000, 60_000), (12_000, 12_000), (9, 9)))
    header = b"IHDR" + struct.pack(">II", *sides) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


IMAGE = (other_image, other_image, lie_of_size)

FORMATS: Mapping[str, tuple[Damage, ...]] = {
    "database": (edit_database, edit_database, edit_database),
    "gzip": (damage_within_gzip, damage_within_gzip, damage_within_gzip, end_gzip_early),
    "image": IMAGE,
    "json": JSON,
    "npy": NPY,
    "safetensors": SAFETENSORS,
    "table": TABLE,
    "text": LINES,
    "yaml": YAML,
    "zip": (edit_zip, edit_zip, edit_zip),
    "bytes": (),
}


# Of places


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_folder_with_file(path: Path) -> None:
    to_folder(path)
    (path / "x").write_text("x")


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def to_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def to_link_to_folder(path: Path) -> None:
    path.unlink()
    path.symlink_to(".")


def without_permission(path: Path) -> None:
    path.chmod(0)


PLACES = (
    remove, empty, to_folder, to_folder_with_file, to_pipe, to_loop, to_link_to_nothing, to_link_to_folder,
    without_permission,
)  # fmt: skip


def damage(path: Path, kind: str, rng: random.Random) -> str:
    """Damage the file at `path`, whose format is `kind`; the way in which, as text."""
    if rng.random() < 0.12:
        place = rng.choice(PLACES)
        place(path)
        return place.__name__
    before = path.read_bytes()
    changes = FORMATS[kind]
    for _ in range(9):
        change = rng.choice(changes if changes and rng.random() < 0.75 else BYTES)
        after = change(before, rng)
        if after != before:
            break
    path.unlink()  # a hard link, or a file that is mapped, keeps its bytes
    path.write_bytes(after)
    path.chmod(0o644)
    return change.__name__
