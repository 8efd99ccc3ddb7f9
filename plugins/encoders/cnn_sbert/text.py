"""Sentence-BERT text features (Reimers & Gurevych, EMNLP 2019, arXiv:1908.10084): all-MiniLM-L6-v2, 384 wide.

text -> word-pieces -> BERT of 6 layers -> mean over the pieces -> unit norm
Fidelity: the modules of sentence-transformers with the same tokens: equal to `SentenceTransformer.encode`.
Shapes: B batch, T tokens.
"""

import logging

import torch
from torch import Tensor, nn

from ..hub import cannot_tokenize, check_token_ids
from ..st.model import load
from ..towers import blocks, masked_mean, pooled_states
from ..words import as_words
from . import NAME, CnnSbertConfig, minilm_folder

logger = logging.getLogger(f"mmrec_lmm.encoders.{NAME}")  # a child of the host's, whose handlers write the run's log


class Sbert(nn.Module):
    """One unit vector of `width` numbers per text."""

    width = 384

    def __init__(self, config: CnnSbertConfig) -> None:
        super().__init__()
        self.folder = minilm_folder(config)
        self.model = load(self.folder, encoder=NAME, extra="minilm")
        logger.info("texts by %s", self.folder)
        self.tokenizer = self.model.tokenizer
        self.special: tuple[str, ...] = tuple(self.tokenizer.all_special_tokens)
        self.max_tokens = config.max_tokens

    def prepare(self, text: str) -> dict[str, Tensor]:
        """The word-pieces and their mask, each (T,)."""
        text = as_words(text, self.special)
        try:
            tokens = self.tokenizer(text, truncation=True, max_length=self.max_tokens)
        except Exception as error:  # tokenizers raise plain Exceptions
            raise cannot_tokenize(self.folder, error) from None
        check_token_ids(self.folder, tokens["input_ids"], self.model.config)
        return {name: torch.tensor(tokens[name]) for name in ("input_ids", "attention_mask")}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features: Tensor = self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]
        return features  # (B, width)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """The mean over the pieces (B, width) of the embeddings and of each layer."""
        return pooled_states(
            lambda: self(input_ids, attention_mask),
            [*blocks(self.model)],
            lambda states: masked_mean(states, attention_mask),
        )
