"""The encoder `basic`, as `__init__.py` describes it. `prepare` computes the features item by item, so a row doesn't
depend on its batch.

Shapes: B batch, S image_size, P PIXELS.
"""

import re
import zlib
from collections import Counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrec_lmm.api import ItemEncoder, RawItem

from . import PIXELS, BasicConfig

LEVELS = 4  # color histogram: bins per channel
CELLS, DIRECTIONS = 4, 8  # edge histogram: cells per side, bins of direction
HISTOGRAMS = LEVELS**3 + CELLS**2 * DIRECTIONS


class BasicEncoder(ItemEncoder):
    """Pixels and histograms of the image, hashed n-grams of the text; it has no parameters."""

    def __init__(self, config: BasicConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        dims = {"image": 3 * config.image_size**2 + HISTOGRAMS, "text": config.text_dim}
        self.dims = {modality: dims[modality] for modality in modalities}

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        features: dict[str, np.ndarray] = {}
        if "image" in self.dims:
            features["image"] = image_features(item.image, self.config) if item.image else np.zeros(self.dims["image"])
        if "text" in self.dims:
            features["text"] = text_features(item.text, self.config)
        return {modality: torch.as_tensor(row, dtype=torch.float32) for modality, row in features.items()}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {modality: batch[modality] for modality in self.dims}


def image_features(image: Image.Image, config: BasicConfig) -> np.ndarray:
    """The features (3 S^2 + HISTOGRAMS,) of an RGB image of any size."""
    picture = image.resize((PIXELS, PIXELS), Image.Resampling.BOX)
    small = image.resize((config.image_size, config.image_size), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float64) / 127.5 - 1  # (S, S, 3) in [-1, 1]
    levels = np.asarray(picture) // (256 // LEVELS) @ np.array([LEVELS**2, LEVELS, 1])  # (P, P)
    colors = np.sqrt(np.bincount(levels.ravel(), minlength=LEVELS**3))
    gray = np.asarray(picture.convert("L"), np.float64)  # (P, P)
    parts = (pixels.ravel(), colors, np.sqrt(_edges(gray)))
    return np.concatenate([_unit(part) for part in parts]) / np.sqrt(len(parts))


def _edges(gray: np.ndarray) -> np.ndarray:
    """The strength of edges per cell and direction, (CELLS^2 * DIRECTIONS,), of a picture (P, P)."""
    down, right = np.gradient(gray)
    direction = np.floor(np.arctan2(down, right) % np.pi / np.pi * DIRECTIONS).astype(int) % DIRECTIONS  # (P, P)
    cell = np.arange(PIXELS) * CELLS // PIXELS  # (P,)
    bins = (cell[:, None] * CELLS + cell) * DIRECTIONS + direction  # (P, P)
    return np.bincount(bins.ravel(), np.hypot(down, right).ravel(), CELLS**2 * DIRECTIONS)


def text_features(text: str, config: BasicConfig) -> np.ndarray:
    """The features (text_dim,) of a text. CRC-32 is the same on every machine, unlike Python's own hash."""
    counts = np.zeros(config.text_dim)
    for word, count in Counter(re.findall(r"\w+", text.lower())).items():
        marked = f"<{word}>"
        grams = {marked[at : at + size] for size in config.ngrams for at in range(len(marked) - size + 1)} | {marked}
        bins = [zlib.crc32(gram.encode()) % config.text_dim for gram in grams]
        np.add.at(counts, bins, count)
    return _unit(np.log1p(counts))


def _unit(row: np.ndarray) -> np.ndarray:
    """The row scaled to norm 1; zeros stay zeros."""
    norm = np.linalg.norm(row)
    return row / norm if norm > 0 else row
