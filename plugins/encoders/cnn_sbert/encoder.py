"""The encoder cnn_sbert: two independent networks, a CNN for images and Sentence-BERT for texts.

image -> CNN -> its vector;  text -> Sentence-BERT -> its vector;  projected: W_image of the one, W_text of the other
itc (projected) = InfoNCE between the projected vectors at unit length, both ways

Only the networks of the requested modalities are built.
Fidelity: no paper tunes the two together, so without projections there are no `tuning_losses`. The projections are
ours. They start at random, and roughly preserve angles; the networks before them are frozen unless `train_towers`.
The loss is CLIP's, with CLIP's bounded scale.
Shapes: B batch, F numbers of a network's vector, D of a projected one.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrec_lmm.api import ItemEncoder, RawItem
from mmrec_lmm.losses import FIRST_LOG_SCALE, contrastive_scale, symmetric_info_nce

from ..words import CHARACTERS
from . import CnnSbertConfig
from .cnn import Cnn
from .text import Sbert


class CnnSbert(ItemEncoder):
    """4096 numbers (of the default CNN) per image, 384 per text; projected, `width` of either."""

    def __init__(self, config: CnnSbertConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.cnn = Cnn(config) if "image" in modalities else None
        self.sbert = Sbert(config) if "text" in modalities else None
        towers = {"image": self.cnn, "text": self.sbert}
        self.dims = {modality: tower.width for modality, tower in towers.items() if tower}
        self.padding = {"input_ids": self.sbert.tokenizer.pad_token_id} if self.sbert else {}
        self.max_characters = CHARACTERS * config.max_tokens
        if config.is_projected:
            self.requires_grad_(config.train_towers)
            self.projections = nn.ModuleDict(
                {modality: _projection(width, config.width) for modality, width in self.dims.items()}
            )
            self.logit_scale = nn.Parameter(torch.tensor(FIRST_LOG_SCALE))
            self.dims = dict.fromkeys(self.dims, config.width)

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        tensors = self.sbert.prepare(item.text) if self.sbert else {}
        if self.cnn:
            tensors["pixels"] = self.cnn.prepare(item.image)
        return tensors

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self._vectors(batch)
        if not self.config.is_projected:
            return features
        return {modality: self.projections[modality](rows).float() for modality, rows in features.items()}  # (B, D)

    def _vectors(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The vector (B, F) of each network; a batch of such vectors is returned as it is."""
        if batch.keys() == self.dims.keys():
            return batch
        features = {}
        if self.cnn:
            features["image"] = self.cnn(batch["pixels"])
        if self.sbert:
            features["text"] = self.sbert(batch["input_ids"], batch["attention_mask"])
        return features

    def hidden_states(self, batch: dict[str, Tensor]) -> Mapping[str, Sequence[Tensor]]:
        """Of the CNN the mean over each stage's map, and its vector last; of Sentence-BERT the mean over the pieces."""
        states = {}
        if self.cnn:
            states["image"] = self.cnn.hidden_states(batch["pixels"])
        if self.sbert:
            states["text"] = self.sbert.hidden_states(batch["input_ids"], batch["attention_mask"])
        return states

    def frozen_part(self, batch: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The networks' vectors, where only the projections are trained."""
        return self._vectors(batch) if self.config.is_projected and not self.config.train_towers else None

    def train(self, mode: bool = True) -> "CnnSbert":
        """Set the mode; frozen networks stay in eval mode: no dropout, and norms keep their statistics."""
        super().train(mode)
        if self.config.is_projected and not self.config.train_towers:
            for tower in (self.cnn, self.sbert):
                if tower:
                    tower.eval()
        return self

    @classmethod
    def is_tunable(cls, config: CnnSbertConfig) -> bool:
        return config.is_projected

    def tuning_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """ITC between the projected vectors of images and texts; {} without projections."""
        if not self.config.is_projected:
            return {}
        rows = {modality: F.normalize(vectors, dim=1) for modality, vectors in self(batch).items()}  # (B, D)
        return {"itc": symmetric_info_nce(rows["image"], rows["text"], scale=contrastive_scale(self.logit_scale))}


def _projection(n_inputs: int, width: int) -> nn.Linear:
    """(B, F) -> (B, D) by a random matrix that preserves lengths on average; it is the same in each process and run."""
    layer = nn.Linear(n_inputs, width, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5, generator=torch.Generator().manual_seed(0))
    return layer
