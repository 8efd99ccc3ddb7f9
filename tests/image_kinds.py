"""Files that stand in catalogs as images, of some seventy kinds: how each is made, and what becomes of it.

`python -m tests.image_kinds` prints the table of docs/data.md.
"""

import io
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, features

from mmrec_lmm.data.images import UnreadableImage, read_image

COLOR = (200, 60, 30)
WHITE = (255, 255, 255)
_KINDS: list["Kind"] = []


@dataclass(frozen=True)
class Kind:
    """A kind of file, the content or the function that makes it, and for one that is read, what becomes of it, the
    color at (8, 8), and whether the installed Pillow can read it."""

    name: str
    make: Callable[[Path], object]
    file: str
    becomes: str = ""
    color: tuple[int, ...] | None = None
    supported: bool = True


def picture(mode: str = "RGB") -> Image.Image:
    """64 x 48 pixels: COLOR above, noise below, which leaves no end that could be lost unseen."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    pixels[:32] = COLOR
    return Image.fromarray(pixels).convert(mode)


def gray(values: np.ndarray) -> np.ndarray:
    """48 x 64 of a value, in the type of `values`."""
    return np.full((48, 64), values, values.dtype)


def saved(form: str, image: Image.Image | None = None, **how: object) -> bytes:
    buffer = io.BytesIO()
    (picture() if image is None else image).save(buffer, form, **how)
    return buffer.getvalue()


def read(
    name: str, content: bytes | Callable[[Path], object], color: tuple[int, ...] = COLOR, *,
    becomes: str = "", file: str = "1.png", supported: bool = True,
) -> None:  # fmt: skip
    make = (lambda path: path.write_bytes(content)) if isinstance(content, bytes) else content
    _KINDS.append(Kind(name, make, file, becomes, color, supported))


def masked(name: str, content: bytes | Callable[[Path], object], file: str = "1.jpg") -> None:
    make = (lambda path: path.write_bytes(content)) if isinstance(content, bytes) else content
    _KINDS.append(Kind(name, make, file))


def kinds() -> tuple[Kind, ...]:
    if not _KINDS:
        _formats()
        _modes()
        _odd()
        _damaged()
        _disguised()
        _large()
    return tuple(_KINDS)


def verdict(kind: Kind, folder: Path) -> str:
    """What becomes of a file of this kind: "read", perhaps how, or "masked" and the reason. AssertionError where it
    shows another color."""
    path = folder / kind.file
    kind.make(path)
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return f"masked: {error.reason}"
    except OSError as error:
        return f"masked: {error.strerror or error}"
    assert kind.color is not None, f"{kind.name}: expected it masked, got {image}"
    assert image.mode == "RGB"
    found = image.getpixel((min(8, image.width - 1), min(8, image.height - 1)))
    near = max(abs(have - due) for have, due in zip(found, kind.color, strict=True))
    assert near <= 16, f"{kind.name}: expected {kind.color}, got {found}"
    return f"read{f': {kind.becomes}' if kind.becomes else ''}"


def table() -> list[str]:
    """The rows of docs/data.md, each a kind that the installed Pillow can read."""
    rows = ["| file | what becomes of it |", "|---|---|"]
    for kind in kinds():
        if kind.supported:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(f"| {kind.name} | {verdict(kind, Path(folder))} |")
    return rows


def _formats() -> None:
    read("JPEG", saved("JPEG", quality=95), file="1.jpg")
    read("JPEG, progressive", saved("JPEG", quality=95, progressive=True), file="1.jpg")
    read("JPEG, called .png", saved("JPEG", quality=95))
    read("JPEG, gray", saved("JPEG", picture("L")), picture("L").getpixel((8, 8)) * np.ones(3), file="1.jpg")
    read("JPEG, CMYK", saved("JPEG", picture("CMYK"), quality=95), file="1.jpg")
    read("JPEG, suffix in upper case (.JPG)", saved("JPEG", quality=95), file="1.JPG")
    frames = [picture("L").convert("RGB")]
    read("MPO, two pictures of a camera", saved("MPO", save_all=True, append_images=frames, quality=95),
         becomes="the first picture", file="1.jpg")  # fmt: skip
    read("PNG", saved("PNG"))
    read("PNG, interlaced", _interlaced(), COLOR)
    read("WebP", saved("WEBP", quality=95), file="1.webp")
    read("WebP, lossless", saved("WEBP", lossless=True), file="1.webp")
    read("GIF", saved("GIF"), file="1.gif")
    read("BMP", saved("BMP"), file="1.bmp")
    read("TIFF", saved("TIFF"), file="1.tif")
    read("TIFF, compressed by LZW", saved("TIFF", compression="tiff_lzw"), file="1.tiff",
         supported=features.check("libtiff"))  # fmt: skip
    avif = bool(features.check("avif"))
    read("AVIF, where Pillow has it (11.3 or newer)", saved("AVIF", quality=95) if avif else b"", file="1.avif",
         supported=avif)  # fmt: skip


def _modes() -> None:
    clear = picture("RGBA")
    clear.putalpha(0)
    half = picture("RGBA")
    half.putalpha(128)
    palette = picture().quantize(64)
    mixed = (228, 158, 143)  # COLOR and white, half and half
    read("PNG, 1 bit a pixel", saved("PNG", Image.new("1", (64, 48), 1)), WHITE)
    read("PNG, palette", saved("PNG", picture().quantize(64)))
    read("PNG, opaque alpha channel", saved("PNG", picture("RGBA")))
    read("PNG, transparent alpha channel", saved("PNG", clear), WHITE, becomes="on the background")
    read("PNG, half transparent", saved("PNG", half), mixed, becomes="on the background")
    read("PNG, gray with alpha", saved("PNG", clear.convert("LA")), WHITE, becomes="on the background")
    read("PNG, palette with a transparent color", saved("PNG", palette, transparency=palette.getpixel((8, 8))), WHITE,
         becomes="on the background")  # fmt: skip
    read("PNG, one color transparent", saved("PNG", transparency=COLOR), WHITE, becomes="on the background")
    read("PNG, 16 bits, gray", saved("PNG", Image.fromarray(gray(np.uint16(0x8012)))), (128,) * 3,
         becomes="the upper 8 bits")  # fmt: skip
    read("PNG, 16 bits, gray, one value transparent", _sixteen_see_through(), WHITE, becomes="on the background")
    read("PNG, 16 bits, RGB", _sixteen_rgb(), COLOR, becomes="the upper 8 bits")
    read("GIF with a transparent color", saved("GIF", palette, transparency=palette.getpixel((8, 8))), WHITE,
         becomes="on the background", file="1.gif")  # fmt: skip
    read("WebP, transparent", saved("WEBP", clear, lossless=True, exact=True), WHITE, becomes="on the background")
    read("TIFF, CMYK", saved("TIFF", picture("CMYK")), file="1.tif")
    read("TIFF, alpha channel", saved("TIFF", clear), WHITE, becomes="on the background", file="1.tif")
    for name, values, due, becomes in (
        ("16 bits", np.uint16(0x8012), 128, "the upper 8 bits"),
        ("32-bit integers up to 255", np.int32(200), 200, "as 8 bits"),
        ("32-bit integers up to 65,535", np.int32(0x8012), 128, "as 16 bits"),
        ("larger 32-bit integers", np.int32(0x40000000), 64, "the upper 8 of 32 bits"),
        ("floats from 0 to 1", np.float32(0.5), 128, "1 is white"),
        ("floats up to 255", np.float32(200), 200, "255 is white"),
        ("floats up to 65,535", np.float32(0x8012), 128, "65,535 is white"),
    ):
        read(f"TIFF, {name}", saved("TIFF", Image.fromarray(gray(values))), (due,) * 3, becomes=becomes, file="1.tif")
    masked("TIFF, floats below 0", saved("TIFF", Image.fromarray(gray(np.float32(-2)))), "1.tif")
    masked("TIFF, floats that are no number", saved("TIFF", Image.fromarray(gray(np.float32("nan")))), "1.tif")
    colored = features.check("littlecms2")
    read("TIFF, LAB colors", saved("TIFF", picture().convert("LAB")) if colored else b"", file="1.tif",
         supported=bool(colored))  # fmt: skip


def _odd() -> None:
    others = [picture("L").convert("RGB")]
    read("GIF, animated", saved("GIF", save_all=True, append_images=others), becomes="the first frame", file="1.gif")
    read("WebP, animated", saved("WEBP", save_all=True, append_images=others, lossless=True),
         becomes="the first frame", file="1.webp")  # fmt: skip
    read("PNG, animated", saved("PNG", save_all=True, append_images=others), becomes="the first frame")
    read("TIFF of two pages", saved("TIFF", save_all=True, append_images=others), becomes="the first page",
         file="1.tif")  # fmt: skip
    turned = Image.Exif()
    turned[0x0112] = 6
    read("JPEG that EXIF says to rotate", saved("JPEG", quality=95, exif=turned), becomes="not rotated", file="1.jpg")
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000)
    text.add_text("Comment", "y" * 3_000_000, zip=True)
    text.add_text("Software", "z" * 3_000_000)
    read("PNG with 9 MB of text", saved("PNG", pnginfo=text))
    noise = np.random.default_rng(0).bytes(3_000_000)
    read("PNG with a color profile of 3 MB", saved("PNG", icc_profile=noise))
    read("PNG with EXIF of 3 MB", saved("PNG", exif=b"Exif\0\0" + noise))
    read(
        "PNG whose text unpacks to 300 MB",
        with_chunk(saved("PNG"), b"zTXt", b"k\0\0" + zlib.compress(bytes(300 << 20))),
    )
    read("PNG with a damaged text", with_chunk(saved("PNG"), b"tEXt", b"k\0v", wrong=1))
    read("JPEG with a color profile of 3 MB", saved("JPEG", quality=95, icc_profile=noise), file="1.jpg")
    read("1 x 1 pixel", saved("PNG", Image.new("RGB", (1, 1), COLOR)))


def _damaged() -> None:
    baseline, progressive = saved("JPEG", quality=95), saved("JPEG", quality=95, progressive=True)
    for name, jpeg in (("JPEG", baseline), ("progressive JPEG", progressive)):
        read(f"{name} without its end marker (2 bytes)", jpeg[:-2], becomes="no pixel is missing", file="1.jpg")
        read(f"{name} without half of its end marker", jpeg[:-1], becomes="no pixel is missing", file="1.jpg")
        masked(f"{name} without its last 10 bytes", jpeg[:-10])
        masked(f"{name}, the first half", jpeg[: len(jpeg) // 2])
        masked(f"{name}, the first 100 bytes", jpeg[:100])
    masked("progressive JPEG without its last scans", progressive[: progressive.rindex(b"\xff\xc4")])
    read("JPEG with other bytes after its end", baseline + b"trailer" * 99, file="1.jpg")
    png = saved("PNG")
    read("PNG without its end (12 bytes)", png[:-12], becomes="no pixel is missing")
    masked("PNG, the first half", png[: len(png) // 2], "1.png")
    broken = bytearray(png)
    broken[len(png) // 2] ^= 0xFF
    masked("PNG with a changed byte", bytes(broken), "1.png")
    masked("GIF, the first half", saved("GIF")[:1500], "1.gif")
    masked("WebP, the first half", saved("WEBP", lossless=True)[:2000], "1.webp")
    masked("BMP, the first half", saved("BMP")[:4000], "1.bmp")
    masked("TIFF, the first half", saved("TIFF", tiffinfo={})[:4000], "1.tif")
    masked("JPEG's first 3 bytes alone", baseline[:3])


def _disguised() -> None:
    masked("EPS", saved("EPS"))
    masked("EPS with a preview", b"\xc5\xd0\xd3\xc6" + struct.pack("<6IH", 32, 100, 0, 0, 0, 0, 0xFFFF) + bytes(99))
    masked("PostScript, called .png", b"%!PS-Adobe-3.0\n(x) = quit\n", "1.png")
    masked("PDF", b"%PDF-1.7\n1 0 obj\n")
    masked("SVG", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "1.svg")
    masked("Windows metafile", b"\xd7\xcd\xc6\x9a" + bytes(99))
    masked("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    masked("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "1.jp2")
    masked("JPEG XL", b"\xff\x0a" + bytes(99))
    masked("ICO", b"\0\0\1\0\1\0" + bytes(99), "1.ico")
    masked("PSD", b"8BPS\0\1" + bytes(99))
    masked("PPM", b"P6\n1 1\n255\n\0\0\0")
    masked("a film (MP4)", b"\0\0\0\x18ftypisom" + bytes(99))
    masked("a web page", b"<!DOCTYPE html>\n<html>Not found</html>")
    masked("an error in XML", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
    masked("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n")
    masked("a zip archive", b"PK\3\4" + bytes(99))
    masked("an array of NumPy", b"\x93NUMPY" + bytes(99))
    masked("a file compressed by gzip", b"\x1f\x8b" + bytes(99))
    masked("text", b"no picture here")
    masked("zeros", bytes(9999))
    masked("an empty file", b"")
    masked("a folder", Path.mkdir)
    masked("a pipe", os.mkfifo)
    masked("a link to nothing", lambda path: path.symlink_to("nowhere"))
    masked("a link to itself", lambda path: path.symlink_to(path.name))


def _large() -> None:
    masked("PNG of 10,000 x 10,000 pixels, in kilobytes", saved("PNG", Image.new("1", (10_000, 10_000))), "1.png")
    masked("PNG whose head says 30,000 x 30,000", _with_head(30_000, 30_000), "1.png")
    masked("PNG whose head says 2 x 2**31 - 1", _with_head(2, 2**31 - 1), "1.png")
    masked("TIFF of 30,000 x 30,000, 1 bit", _large_tiff(30_000), "1.tif")
    masked("a strip of 3 x 50,000 pixels", saved("PNG", Image.new("1", (3, 50_000))), "1.png")
    masked("a file of over 512 MiB", lambda path: (path.touch(), os.truncate(path, 2**29 + 1)))
    many = saved("JPEG", progressive=True, quality=95)
    last = many[many.rindex(b"\xff\xda") : -2]
    masked("JPEG of a thousand scans", many[:-2] + 1000 * last + b"\xff\xd9")


def chunk(kind: bytes, data: bytes, *, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def with_chunk(png: bytes, kind: bytes, data: bytes, *, wrong: int = 0) -> bytes:
    """A PNG with one more chunk, after its head."""
    return png[:33] + chunk(kind, data, wrong=wrong) + png[33:]


def _head(width: int, height: int, bits: int, colors: int, interlaced: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colors, 0, 0, interlaced))


def _with_head(width: int, height: int) -> bytes:
    return _head(width, height, 1, 0) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def _interlaced() -> bytes:
    """A PNG of 16 x 16 in the seven passes of Adam7."""
    lines = b""
    for left, top, right, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
    ):  # fmt: skip
        width, height = len(range(left, 16, right)), len(range(top, 16, down))
        lines += height * (b"\0" + width * bytes(COLOR))
    return _head(16, 16, 8, 2, 1) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def _sixteen_rgb() -> bytes:
    line = b"\0" + 16 * b"".join(struct.pack(">H", value << 8 | 0x7F) for value in COLOR)
    return _head(16, 16, 16, 2) + chunk(b"IDAT", zlib.compress(16 * line)) + chunk(b"IEND", b"")


def _sixteen_see_through() -> bytes:
    line = b"\0" + 16 * struct.pack(">H", 0x1234)
    transparent = chunk(b"tRNS", struct.pack(">H", 0x1234))
    return _head(16, 16, 16, 0) + transparent + chunk(b"IDAT", zlib.compress(16 * line)) + chunk(b"IEND", b"")


def _large_tiff(side: int) -> bytes:
    """A TIFF of `side` x `side` pixels of one bit, all of them in one strip of a few bytes."""
    tags = ((256, 4, side), (257, 4, side), (258, 3, 1), (259, 3, 32773), (262, 3, 1), (273, 4, 8), (278, 4, side),
            (279, 4, 2))  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 10) + b"\x81\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


if __name__ == "__main__":
    print("\n".join(table()))
