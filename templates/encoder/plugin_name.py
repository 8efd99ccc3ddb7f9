"""plugin_name: an item's feature is the average color of each tile of its image, and counts of its text's letters.

Replace this by what your encoder does. Shapes: B batch.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL.Image import Resampling
from torch import Tensor

from mmrec_lmm.api import EncoderSpec, ItemEncoder, Limit, RawItem, at_least, hookimpl

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class PluginNameConfig:
    """The encoder's own configuration keys (`--encoder.tiles=4`), with types, defaults and limits."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"tiles": at_least(1)}

    tiles: int = 3  # per side of an image


def weights_id(config: PluginNameConfig, modality: str) -> str:
    """Names what a modality needs by its content; cached features are used again while this is the same."""
    return "none"


class PluginName(ItemEncoder):
    def __init__(self, config: PluginNameConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.tiles = config.tiles
        dims = {"image": 3 * config.tiles**2, "text": len(LETTERS)}
        self.dims = {modality: dims[modality] for modality in modalities}

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        """One item on the CPU; the host masks what an item lacks, so its values don't matter."""
        pixels = bytes(3 * self.tiles**2)
        if item.image:
            pixels = item.image.convert("RGB").resize((self.tiles, self.tiles), Resampling.BOX).tobytes()
        counts = Counter(item.text.lower())
        return {
            "image": torch.tensor(list(pixels), dtype=torch.float32) / 255,
            "text": torch.tensor([counts[letter] for letter in LETTERS], dtype=torch.float32).log1p(),
        }

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {modality: batch[modality] for modality in self.dims}  # (B, dims[modality]) each


@hookimpl
def mmrec_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            "plugin_name",
            cls=PluginName,
            config=PluginNameConfig,
            modalities=("image", "text"),
            weights_id=weights_id,
            version=1,  # raise it with each change of what features are
            summary="colors and letters",
        )
    ]
