"""The one place where image files are opened and decoded: which formats, how they become RGB, and what is refused.

Only the formats of FORMATS are opened, whatever a file is called: among the others that Pillow knows are some that
start programs. Memory and time are bounded by the limits below. docs/data.md has a table of what is read and what not.
"""

import functools
import io
import re
import stat
import threading
import warnings
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from ..cache import is_machines
from ..formatting import foreign
from ..types import Background

READING = 2  # raise it when the same file would give other pixels: it is part of the name of all that is made of it
#: Pillow's names of the formats that are opened.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MOST_BYTES = 2**29  # of a file
MOST_PIXELS = 89_478_485  # Pillow's own limit
LONGEST = 1000  # of an image's long side, in short sides
_MOST_SCANS = 500  # of a progressive JPEG, each of which passes over all pixels
_LARGE = 2**24  # pixels; of such images a process decodes one at a time
_one_large = threading.Lock()

_PNG = b"\x89PNG\r\n\x1a\n"
_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")  # chunks that no pixel depends on
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd9\xff])(..)", re.DOTALL)  # a marker with a length, and that
#: How files begin that may pass for images, and what they are.
_KINDS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(start, re.DOTALL), what)
    for start, what in (
        (rb"\s*%!PS|\xc5\xd0\xd3\xc6", "PostScript, which is a program; convert it"),
        (rb"\s*%PDF", "PDF; convert it"),
        (rb"\s*<svg|\s*<\?xml.{0,2000}<svg", "SVG; convert it"),
        (rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36} EMF", "a Windows metafile; convert it"),
        (rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "HEIC; convert it"),
        (rb"....ftypavi[fs]", "AVIF, which this Pillow can't read, or a damaged one; try a newer Pillow"),
        (rb"....ftyp", "a film; choose a picture of it"),
        (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000; convert it"),
        (rb"\x00\x00\x00\x0cJXL |\xff\x0a", "JPEG XL; convert it"),
        (rb"\x00\x00[\x01\x02]\x00", "an icon of Windows (ICO, CUR); convert it"),
        (rb"8BPS", "a file of Photoshop (PSD); convert it"),
        (rb"P[1-7]\s", "a file of Netpbm (PPM, PGM, PBM); convert it"),
        (rb"DDS |gimp xcf|qoif|icns|SIMPLE  =", "an image in a format that isn't read; convert it"),
        (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM|II\*\x00|MM\x00\*", "damaged or cut short"),
    )
)


class UnreadableImage(ValueError):
    """A file that is no image, or one that isn't read: the `reason`, in words that many files share, and what was found
    in this one."""

    def __init__(self, reason: str, found: str = "") -> None:
        super().__init__(f"{reason}: {found}" if found else reason)
        self.reason = reason


def read_image(path: Path, background: Background = "white") -> Image.Image:
    """The image in a file, as `decode_image` makes it. Raises what it and `read_content` raise."""
    return decode_image(read_content(path), background)


def read_content(path: Path) -> bytes:
    """The bytes of an image's file. Raises OSError, and UnreadableImage for anything but a plain file, and for one that
    is too large."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would block forever
        raise UnreadableImage("not a plain file")
    if status.st_size > MOST_BYTES:
        raise UnreadableImage(f"a file of over {MOST_BYTES >> 20} MiB")
    with path.open("rb") as file:
        return file.read(MOST_BYTES)


def decode_image(content: bytes, background: Background | None = "white") -> Image.Image:
    """The image in a file's bytes, as RGB: of an animation or several pages the first, of 16 bits the upper 8.

    Transparency is laid on `background`; "none" drops it, which shows the colors that it hides, and None keeps it: such
    an image is RGBA. A rotation that EXIF asks for isn't made. Values of 32 bits are read in the smallest of the ranges
    0 to 1 (of floats), 255, 65,535 and 2**32 - 1 that holds all of an image. A JPEG may lack its end marker, if no
    pixel is missing.

    Raises UnreadableImage: for other formats, damaged files, a decompression bomb, and a strip: scaled to an encoder's
    short side, an image a thousand times as long as wide would fill the memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of each odd palette and tag
        try:
            return _decode(content, background)
        except UnreadableImage as error:
            refused: Exception = error
        except Exception as error:  # decoders raise anything
            refused = error if is_machines(error) else _damaged(error)
            if completed := _with_end(content):
                return _decode(completed, background)
    raise refused from None


def image_size(content: bytes) -> tuple[str, int, int]:
    """The format, by Pillow's name, width and height that an image's head states. Raises UnreadableImage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(content)
    return image.format or "", image.width, image.height


@functools.cache
def decoders() -> str:
    """What decodes images here, with versions: other decoders may read an image that these can't."""
    names: list[str] = [name for name in ("webp", "avif") if name in features.modules and features.check_module(name)]
    names += features.get_supported_codecs()
    return ", ".join([f"Pillow {PIL.__version__}", *(f"{name} {features.version(name) or ''}" for name in names)])


def _decode(content: bytes, background: Background | None) -> Image.Image:
    if content.startswith(_PNG):
        content = _without_metadata(content)
    image = _open(content)
    if image.width * image.height > MOST_PIXELS:
        raise UnreadableImage("too many pixels", f"{image.width} x {image.height}")
    if max(image.size) > LONGEST * min(image.size):
        raise UnreadableImage("a strip", f"{image.width} x {image.height} pixels")
    if image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > _MOST_SCANS:
        raise UnreadableImage(f"a JPEG of over {_MOST_SCANS} scans")
    with _one_large if image.width * image.height > _LARGE else nullcontext():
        image.load()
        return _as_rgb(image, background, bits=content[24] if image.format == "PNG" else 8)


def _open(content: bytes) -> Image.Image:
    """The image, not yet decoded. Each call of Pillow's `open` is this one."""
    try:
        return Image.open(io.BytesIO(content), formats=_formats())
    except UnidentifiedImageError:
        head = content[:4096]
        known = next((what for start, what in _KINDS if start.match(head)), None) or foreign(head)
        raise (
            UnreadableImage(known)
            if known
            else UnreadableImage("no image format that is known", f"it begins with {head[:16]!r}")
        ) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too many pixels", str(error)) from None
    except Exception as error:  # decoders raise anything
        raise error if is_machines(error) else _damaged(error) from None


def _damaged(error: Exception) -> UnreadableImage:
    return UnreadableImage("damaged or cut short", f"{type(error).__name__}: {error}")


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that the installed Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _as_rgb(image: Image.Image, background: Background | None, *, bits: int) -> Image.Image:
    """A decoded image as RGB; `bits` a channel are those of its file."""
    see_through = image.info.get("transparency")  # a color or, of a palette, an index or alphas
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, see_through)
    elif see_through is not None and bits != 8 and image.mode in ("L", "RGB"):  # Pillow has the file's own number
        scale = 255 / (2**bits - 1)
        scaled = [int(value * scale) for value in np.atleast_1d(see_through)]
        image.info["transparency"] = scaled[0] if image.mode == "L" else tuple(scaled)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if background == "none" or not has_alpha:
        return image.convert("RGB")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    if background is None:
        return image
    flat = Image.new("RGB", image.size, background)
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def _eight_bits(image: Image.Image, see_through: int | None) -> Image.Image:
    """Gray values of 16 or 32 bits as L, or LA where one of them is transparent."""
    values, tags = np.array(image), getattr(image, "tag_v2", {})  # (height, width)
    if values.dtype == np.int32 and tags.get(339, (1,))[0] == 1:  # SampleFormat: unsigned, which Pillow reads as signed
        values = values.view(np.uint32)
    alpha = None if see_through is None else (values != see_through).astype(np.uint8) * 255
    lowest, highest = values.min(), values.max()
    ranges = [1, 0xFF, 0xFFFF] if values.dtype.kind == "f" else [0xFF, 0xFFFF, 0xFFFFFFFF]
    if values.dtype.itemsize == 2 or image.format == "PNG":
        ranges = [0xFFFF]
    top = next((top for top in ranges if lowest >= 0 and highest <= top), None)  # None for NaN too
    if top is None:
        raise UnreadableImage("values whose range of brightness isn't known", f"{lowest:g} to {highest:g}")
    if top == 1:
        values *= 255
    gray = np.round(values).astype(np.uint8) if top <= 0xFF else (values // ((top + 1) >> 8)).astype(np.uint8)
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white
        gray = 255 - gray
    made = Image.fromarray(gray)
    if alpha is not None:
        made.putalpha(Image.fromarray(alpha))
    return made


def _without_metadata(png: bytes) -> bytes:
    """A PNG without the chunks of text, color profiles and EXIF: no pixel depends on them, and Pillow refuses large
    ones. What follows a damaged chunk stays as it is."""
    kept, at = [png[: len(_PNG)]], len(_PNG)
    start = at  # of what is kept next
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if end > len(png):
            break
        if png[at + 4 : at + 8] in _METADATA:
            kept.append(png[start:at])
            start = end
        at = end
    return b"".join([*kept, png[start:]]) if len(kept) > 1 else png


def _with_end(content: bytes) -> bytes | None:
    """A JPEG that lacks only its end marker, with it; None if pixels are missing too, or it is none.

    A decoder goes on with whatever follows. So no pixel is missing if each continuation gives the same picture, and if
    a progressive one has all its scans.
    """
    cut = content.rstrip(b"\xff")  # the marker's first half
    if not content.startswith(_JPEG) or not _has_all_scans(content):
        return None
    try:
        first, *others = (
            sha256(_open(cut + goes_on + _JPEG_END).convert("RGB").tobytes()).digest()
            for goes_on in (b"", 64 * b"\x55", 64 * b"\xaa")  # their first bits differ, and with them what these mean
        )
    except Exception:  # decoders raise anything; the first reason stands
        return None
    return cut + _JPEG_END if all(other == first for other in others) else None


def _has_all_scans(jpeg: bytes) -> bool:
    """True if the scans that a JPEG announces bring each coefficient of each component to its full precision."""
    bits: dict[int, list[int]] = {}  # component -> by coefficient, how many of its lower bits are missing
    at = 0
    while found := _SEGMENT.search(jpeg, at):
        at = found.end()  # behind the marker and the length, which counts itself
        marker, body = found[1][0], jpeg[at : at - 2 + int.from_bytes(found[2], "big")]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame
            bits = {component: [16] * 64 for component in body[6::3]}
        elif marker == 0xDA and body and len(body) == 4 + 2 * body[0]:
            first, last, precision = body[-3:]
            for component in body[1:-3:2]:
                if component in bits:
                    bits[component][first : last + 1] = [precision & 15] * (min(last, 63) + 1 - first)
        at += len(body)
    return bool(bits) and not any(map(any, bits.values()))
