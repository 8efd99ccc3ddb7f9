"""Images for the encoders: the loader's workers return bytes, and the device normalizes them.

Shapes: B batch, S side of the picture in pixels.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

BICUBIC = Image.Resampling.BICUBIC
ELONGATED = 64  # an image is cut to this many times its short side before it is resized: 1 x 100,000 pixels fit memory


def squashed(image: Image.Image | None, side: int, *, resample: Image.Resampling = BICUBIC) -> Tensor:
    """The whole image resized to a square, (3, S, S) bytes, whatever its proportions; black for None."""
    return _bytes(image.resize((side, side), resample) if image else None, side)


def cropped(image: Image.Image | None, side: int, *, resample: Image.Resampling = BICUBIC) -> Tensor:
    """The middle square of the image, its short side resized to S, (3, S, S) bytes; black for None.

    Rounds as torchvision's Resize and CenterCrop do.
    """
    if image is None:
        return _bytes(None, side)
    image = shortened(image)
    short = min(image.size)
    width, height = (side if edge == short else int(side * edge / short) for edge in image.size)
    return _bytes(_middle(image.resize((width, height), resample), side, side), side)


def shortened(image: Image.Image) -> Image.Image:
    """The middle of an image that is too elongated to be resized by its short side; any other image unchanged."""
    longest = ELONGATED * min(image.size)
    return image if max(image.size) <= longest else _middle(image, *(min(edge, longest) for edge in image.size))


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _bytes(image: Image.Image | None, side: int) -> Tensor:
    if image is None:
        return torch.zeros(3, side, side, dtype=torch.uint8)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class Normalize(nn.Module):
    """Bytes (B, 3, S, S) to floats: (x / 255 - mean) / deviation, by channel. Floats pass as they are."""

    scale: Tensor  # (3, 1, 1)
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], deviation: tuple[float, float, float]) -> None:
        super().__init__()
        deviations = torch.tensor(deviation).view(3, 1, 1)
        self.register_buffer("scale", 1 / (255 * deviations), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean).view(3, 1, 1) / deviations, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels if pixels.is_floating_point() else pixels * self.scale + self.shift
