"""Whether a file is an image that encoding can read, and its smaller copy where one is asked for."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mmrec_lmm.data.items import read_image

# Pillow's name -> suffix. Only these are opened: among the others are formats that start programs.
FORMATS = {
    "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif",
    "AVIF": ".avif",
}  # fmt: skip
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SMALLEST = 3  # pixels on the longer side; shops answer with 1 x 1 where they have no picture
QUALITY = 95  # of JPEG copies


class Unusable(Exception):
    """An image that doesn't count: the reason, in words that summaries share, and what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Picture:
    """A verified image: the suffix of its format, and its size in pixels."""

    suffix: str
    width: int
    height: int


def verify(path: Path, *, max_side: int | None = None) -> Picture:
    """The image in a file, decoded once. One with a longer side than `max_side` is replaced by a smaller copy, JPEG for
    JPEG and else PNG; any other keeps its bytes. Raises Unusable."""
    form, width, height = _look(path)
    if max(width, height) < SMALLEST:
        raise Unusable("placeholder", f"{width} x {height} pixels")
    if width * height > (Image.MAX_IMAGE_PIXELS or 0):
        raise Unusable("too many pixels", f"{width} x {height}")
    try:
        image = read_image(path)
    except Exception as error:  # decoders raise anything
        raise Unusable("damaged", f"{type(error).__name__}: {error}") from None
    if max_side is None or max(image.size) <= max_side:
        return Picture(FORMATS[form], *image.size)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    form = "JPEG" if FORMATS[form] == ".jpg" else "PNG"
    image.save(path, form, quality=QUALITY)
    return Picture(FORMATS[form], *image.size)


def _look(path: Path) -> tuple[str, int, int]:
    """The format and size that a file's head states."""
    Image.init()
    try:
        with Image.open(path, formats=[form for form in FORMATS if form in Image.OPEN]) as image:
            return image.format or "", image.width, image.height
    except Image.DecompressionBombError as error:
        raise Unusable("too many pixels", str(error)) from None
    except Exception as error:  # decoders raise anything
        with path.open("rb") as file:
            head = file.read(100).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if not head:
            raise Unusable("empty") from None
        if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
            raise Unusable("web page", "HTML or XML instead of an image") from None
        if head.startswith(b"version https://git-lfs"):
            raise Unusable("not an image", "a pointer of Git LFS; run `git lfs pull` where it came from") from None
        unknown = isinstance(error, UnidentifiedImageError)
        detail = f"begins with {head[:16]!r}" if unknown else f"{type(error).__name__}: {error}"
        raise Unusable("not an image" if unknown else "damaged", detail) from None
