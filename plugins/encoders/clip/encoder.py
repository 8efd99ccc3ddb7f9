"""CLIP image and text features (Radford et al., ICML 2021, arXiv:2103.00020), on the towers of open_clip.

image -> vision transformer -> LN(CLS) @ proj                       512 wide in ViT-B/16 (`pool: pre_proj`: 768)
text  -> causal transformer -> LN(end token) @ text_projection      512 wide in ViT-B/16 (`pool: pre_proj`: 512)

Fidelity: the projected vectors, not normalized, as LMM4Rec extracts them. Its paper's 768 and 768 numbers and 151 M
parameters belong to other CLIPs: its code loads this one. `preprocess: official` is OpenAI's: the short side resized
to 224 (bicubic), the middle cut out, CLIP's mean and deviation, texts cut to 77 tokens of which the last stays the end
token. `released` is what LMM4Rec's code does instead: VLMo's transform (the image squeezed into the square, mean and
deviation 0.5), and texts cut to their first 77 *characters*.
Shapes: B batch, S side of the picture, T tokens, W width of a tower, D of its features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmrec_lmm.api import ConfigError, ItemEncoder, RawItem
from mmrec_lmm.losses import contrastive_scale, sigmoid_loss, symmetric_info_nce

from ..pixels import BICUBIC, Normalize, cropped, squashed
from ..towers import Pooling, blocks, find_pooling, pooled_states, probes
from ..words import CHARACTERS, HashedWords
from . import ClipConfig, checkpoint
from .model import CONTEXT, architecture, build, tokenizer


class ClipEncoder(ItemEncoder):
    """The vectors of an image, of a text, or of both by themselves."""

    def __init__(self, config: ClipConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        found = architecture(config.variant)
        self.model: Any = build(found, config, file=checkpoint(config))
        # The projections are taken out of the towers: one forward pass then serves both kinds of pooling
        text_tower = self.model if hasattr(self.model, "text_projection") else self.model.text
        self.image_projection = _pop_projection(self.model.visual, "proj")
        self.text_projection = _pop_projection(text_tower, "text_projection")
        self.dims = {modality: self._width(modality, found.layers["embed_dim"]) for modality in modalities}

        self.max_characters = CHARACTERS * CONTEXT
        size = self.model.visual.image_size
        self.side: int = size if isinstance(size, int) else size[0]  # a ResNet's is one number
        released = config.preprocess == "released"
        self.squash = released or found.weights["resize_mode"] == "squash"
        bilinear = not released and found.weights["interpolation"] == "bilinear"
        self.resample = Image.Resampling.BILINEAR if bilinear else BICUBIC
        half = (0.5, 0.5, 0.5)
        self.pixels = Normalize(half, half) if released else Normalize(found.weights["mean"], found.weights["std"])
        self.tokenizer: Any = tokenizer(found) if "text" in modalities else None
        self._poolings: dict[str, Pooling] = {}  # of the towers, once it is known

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        prepared = {}
        if "image" in self.dims:
            fit = squashed if self.squash else cropped
            prepared["pixels"] = fit(item.image, self.side, resample=self.resample)  # (3, S, S)
        if "text" in self.dims:
            prepared["tokens"] = self._tokens(item.text)  # (T,)
        return prepared

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = {modality: self._rows(batch, modality, self.config.pool) for modality in self.dims}  # (B, D) each
        return {name: F.normalize(values, dim=1) for name, values in rows.items()} if self.config.normalise else rows

    def hidden_states(self, batch: dict[str, Tensor]) -> Mapping[str, Sequence[Tensor]]:
        """Of each block, and of what enters the first: the CLS, the end of text, or what the tower pools instead. Of an
        attention pool, as of SigLIP and of a ResNet, the mean over what it attends to."""
        return {modality: self._states(modality, batch) for modality in self.dims}

    def _states(self, modality: str, batch: dict[str, Tensor]) -> list[Tensor]:
        parts = [*blocks(self.model)]
        mask = None if modality == "image" else batch["tokens"]  # 0 is padding
        if modality not in self._poolings:
            some = probes(self, batch["pixels" if modality == "image" else "tokens"].device)
            self._poolings[modality] = find_pooling(
                lambda: self._rows(some, modality, self.config.pool), parts, some.get("tokens"), modality=modality
            )
        pooling = self._poolings[modality]
        return pooled_states(
            lambda: self._rows(batch, modality, self.config.pool), parts, lambda states: pooling(states, mask)
        )

    def tuning_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """CLIP's contrastive loss (of CoCa that half of its loss), or SigLIP's where the architecture has its bias."""
        images, texts = (F.normalize(self._rows(batch, name, "proj"), dim=1) for name in ("image", "text"))  # (B, D)
        scale: nn.Parameter = self.model.logit_scale
        bias: nn.Parameter | None = getattr(self.model, "logit_bias", None)
        if bias is not None:
            return {"itc": sigmoid_loss(images, texts, scale=scale.exp(), bias=bias)}
        return {"itc": symmetric_info_nce(images, texts, scale=contrastive_scale(scale))}

    def _rows(self, batch: dict[str, Tensor], modality: str, pool: str) -> Tensor:
        """(B, D) float32."""
        if modality == "image":
            pooled = self.model.encode_image(self.pixels(batch["pixels"]))  # (B, W)
            projection = self.image_projection
        else:
            pooled = self.model.encode_text(batch["tokens"])  # (B, W)
            projection = self.text_projection
        return (pooled if pool == "pre_proj" else _project(pooled, projection)).float()

    def _width(self, modality: str, projected: int) -> int:
        if self.config.pool == "proj":
            return projected
        projection = self.image_projection if modality == "image" else self.text_projection
        if projection is None:
            raise ConfigError(
                f"encoder clip: pool: the {modality} tower of {self.config.variant} has no projection of its own, so "
                "pre_proj doesn't exist; try pool: proj"
            )
        return projection.in_features if isinstance(projection, nn.Linear) else projection.shape[0]

    def _tokens(self, text: str) -> Tensor:
        if self.config.preprocess == "released":
            text = text[:CONTEXT]
        if isinstance(self.tokenizer, HashedWords):
            ids = self.tokenizer(text)
            return torch.tensor(ids + [0] * (CONTEXT - len(ids)))
        tokens: Tensor = self.tokenizer(text)  # (1, T)
        return tokens[0]


def _pop_projection(tower: nn.Module, name: str) -> nn.Parameter | nn.Linear | None:
    """Remove the projection at a tower's end and return it; None where the tower has none that can be removed."""
    projection: nn.Parameter | nn.Linear | None = getattr(tower, name, None)
    if projection is not None:
        setattr(tower, name, None)
    return projection


def _project(rows: Tensor, projection: nn.Parameter | nn.Linear | None) -> Tensor:
    """(B, W) -> (B, D)."""
    if projection is None:
        return rows
    projected: Tensor = projection(rows) if isinstance(projection, nn.Linear) else rows @ projection
    return projected
