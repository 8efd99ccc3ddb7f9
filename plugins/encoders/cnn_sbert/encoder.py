"""The encoder cnn_sbert: two networks that know nothing of each other, a CNN for images and Sentence-BERT for texts.

Only the network of a wanted modality is built, as the other's weights would serve nothing. No authors tune the two
together, so there are no `tuning_losses`.
"""

from torch import Tensor

from mmrec_lmm.api import ItemEncoder, RawItem

from . import CnnSbertConfig
from .cnn import Cnn
from .text import Sbert


class CnnSbert(ItemEncoder):
    """4096 numbers (of the default CNN) per image, 384 per text."""

    def __init__(self, config: CnnSbertConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.cnn = Cnn(config) if "image" in modalities else None
        self.sbert = Sbert(config) if "text" in modalities else None
        towers = {"image": self.cnn, "text": self.sbert}
        self.dims = {modality: tower.width for modality, tower in towers.items() if tower}
        self.padding = {"input_ids": self.sbert.tokenizer.pad_token_id} if self.sbert else {}

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        tensors = self.sbert.prepare(item.text) if self.sbert else {}
        if self.cnn:
            tensors["pixels"] = self.cnn.prepare(item.image)
        return tensors

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = {}
        if self.cnn:
            features["image"] = self.cnn(batch["pixels"])
        if self.sbert:
            features["text"] = self.sbert(batch["input_ids"], batch["attention_mask"])
        return features
