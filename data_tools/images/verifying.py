"""Whether a file is an image that encoding can read, and its smaller copy where one is asked for."""

import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmrec_lmm.data.images import UnreadableImage, decode_image, image_size, read_content

# Pillow's name of a format that is read -> suffix
FORMATS = {
    "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif",
    "AVIF": ".avif",
}  # fmt: skip
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SMALLEST = 3  # pixels on the longer side; shops answer with 1 x 1 where they have no picture
QUALITY = 95  # of JPEG copies
# Why decoding refuses a file -> the word for it in summaries; "not an image" for other reasons
_WORDS = {
    "an empty file": "empty", "a web page": "web page", "damaged or cut short": "damaged", "a strip": "damaged",
    "too many pixels": "too many pixels",
}  # fmt: skip


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
    try:
        content = read_content(path)
        form, width, height = image_size(content)
        if max(width, height) < SMALLEST:
            raise Unusable("placeholder", f"{width} x {height} pixels")
        image = decode_image(content, None)
    except UnreadableImage as error:
        reason, *_ = re.split("[:;]", error.reason)
        raise Unusable(_WORDS.get(reason, "not an image"), str(error)) from None
    if max_side is None or max(image.size) <= max_side:
        return Picture(FORMATS[form], *image.size)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    form = "JPEG" if FORMATS[form] == ".jpg" else "PNG"
    image.save(path, form, quality=QUALITY)
    return Picture(FORMATS[form], *image.size)
