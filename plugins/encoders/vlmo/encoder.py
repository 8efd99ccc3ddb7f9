"""VLMo as an item encoder: an image, a text, or both together, as one vector of the transformer in model.py.

image    squashed to a square, whatever its proportions (bicubic), mean and deviation 1/2      -> pool
text     lower-cased WordPiece of BERT's vocabulary, cut to 40 pieces with [CLS] and [SEP]     -> pool

Fidelity: preprocessing as the authors evaluate, and as LMM4Rec does. LMM4Rec's features are `pool: itc_proj`.
Shapes: B batch, T tokens, S side in pixels, D width.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mmrec_lmm.api import (
    ConfigError,
    DataError,
    ItemEncoder,
    PluginError,
    RawItem,
    interpolate_positions,
    load_state,
    read_checkpoint,
)

from ..pixels import Normalize, squashed
from ..released import is_random
from ..towers import at_place, pooled_states
from ..words import CHARACTERS, HashedWords, as_words
from . import JOINT_POOLS, NAME, RELEASE, VLMoConfig
from .model import CLS, MASK, PAD, SEP, SIZES, Size, VLMo
from .tuning import tuning_losses

logger = logging.getLogger(f"mmrec_lmm.encoders.{NAME}")  # a child of the host's, whose handlers write the run's log

HEADS = ("pooler.*", "mlm_score.*", "itm_score.*", "itc_*", "logit_*")  # that a checkpoint may lack
HEAD_OF_POOL = {"itc_proj": "itc_{}_proj.", "vl_proj": "itc_vl_{}_proj.", "joint_pooler": "pooler."}
IMAGE_POSITIONS, TEXT_POSITIONS = "transformer.pos_embed", "text_embeddings.position_embeddings.weight"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NOT_LEARNED = ("text_embeddings.position_ids", "*relative_position_index")  # constants that checkpoints carry


class VLMoEncoder(ItemEncoder):
    """One vector of width D per modality."""

    continues: Tensor  # (V,) bool: which word-pieces continue a word; exists only if texts are read

    def __init__(self, config: VLMoConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.pools = {modality: _pool(config.pool, modality) for modality in modalities}
        self.size = replace(SIZES[config.variant], side=config.side, drop_path=config.drop_path, dropout=config.dropout)
        self.dims = dict.fromkeys(modalities, self.size.width)
        self.padding = {"ids": PAD}
        self.max_characters = CHARACTERS * self.size.max_tokens
        self.reads_images = not {"image", "joint"}.isdisjoint(modalities)
        self.reads_texts = not {"text", "joint"}.isdisjoint(modalities)
        self.normalize = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.model = VLMo(self.size)
        if not is_random(config):
            self._load(RELEASE.checkpoint_path(config), ema=bool(config.weights_ema))
        if self.reads_texts:
            self.tokenize, continues = _tokenizer(config, self.size)
            self.register_buffer("continues", continues, persistent=False)

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        tensors = {}
        if self.reads_images:
            tensors["pixels"] = squashed(item.image, self.size.side)  # (3, S, S)
        if self.reads_texts:
            tensors["ids"] = torch.tensor(self.tokenize(item.text))  # (T,)
        return tensors

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {modality: self._vector(modality, batch).float() for modality in self.dims}

    def hidden_states(self, batch: dict[str, Tensor]) -> Mapping[str, Sequence[Tensor]]:
        """The CLS of each layer, before the final norm; of joint vectors the text's."""
        blocks = [*self.model.transformer.blocks]
        return {name: pooled_states(partial(self._vector, name, batch), blocks, at_place(0)) for name in self.dims}

    def tuning_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """itc, itm and 0.25 mlm; the encoder must have been built for images and texts."""
        return tuning_losses(self.model, self.normalize(batch["pixels"]), batch["ids"], self.continues)

    def _vector(self, modality: str, batch: Mapping[str, Tensor]) -> Tensor:
        model, pool = self.model, self.pools[modality]
        if modality == "joint":
            cls = model.joint(self.normalize(batch["pixels"]), batch["ids"])[:, 0]  # (B, D)
            return cls if pool == "joint_cls" else model.pooler(cls)
        vl = pool == "vl_proj"
        if modality == "image":
            (cls,) = model.image(self.normalize(batch["pixels"]), "vl" if vl else "imag")
        else:
            (cls,) = model.text(batch["ids"], "vl" if vl else "text")
        return cls if pool == "cls" else model.project(cls, f"vl_{modality}" if vl else modality)

    def _load(self, path: Path, *, ema: bool) -> None:
        """Fill the model from an official checkpoint; DataError says what doesn't fit."""
        state, drop = read_checkpoint(path, ema=ema), [*NOT_LEARNED]
        if self.size.relative:
            drop.append(TEXT_POSITIONS)  # in the checkpoint, but unused with relative positions
        elif TEXT_POSITIONS in state:
            state[TEXT_POSITIONS] = state[TEXT_POSITIONS][: self.size.max_tokens]
        if IMAGE_POSITIONS in state and state[IMAGE_POSITIONS].ndim == 3:
            table, source = state[IMAGE_POSITIONS][0], f"{path}: {IMAGE_POSITIONS}"
            state[IMAGE_POSITIONS] = interpolate_positions(table, self.size.patches, prefix=1, source=source)[None]
        report = load_state(self.model, state, source=path, drop=drop, optional=HEADS)
        logger.info("%s: %s", path, report.summary())
        for modality, pool in self.pools.items():
            head = HEAD_OF_POOL.get(pool, "none").format(modality)
            if any(key.startswith(head) for key in report.missing):
                unprojected = "joint_cls" if modality == "joint" else "cls"
                raise DataError(
                    f"{path}: expected the head {head.rstrip('.')} for pool {pool} of {modality}, got no such "
                    f"parameters; try pool {unprojected}, which needs no head, or another checkpoint"
                )


class WordPieces:
    """text -> [CLS], word-pieces, [SEP], as ids; at most `max_tokens` of them, of which [SEP] is always one."""

    def __init__(self, vocabulary: Mapping[str, int], max_tokens: int) -> None:
        try:
            from tokenizers import BertWordPieceTokenizer
        except ImportError as error:
            raise PluginError(
                f"encoder vlmo: expected tokenizers, got {error}; try pip install 'mmrec-lmm[vlmo]'"
            ) from None
        self.tokenizer = BertWordPieceTokenizer(dict(vocabulary), lowercase=True)
        self.tokenizer.enable_truncation(max_tokens)

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(as_words(text, SPECIAL)).ids


def _tokenizer(config: VLMoConfig, size: Size) -> tuple[Callable[[str], list[int]], Tensor]:
    """The function from a text to ids, and which of the V ids continue a word (V,)."""
    if config.variant == "tiny":
        words = HashedWords(CLS, SEP, first=MASK + 1, last=size.vocabulary - 1, max_tokens=size.max_tokens)
        return words, torch.zeros(size.vocabulary, dtype=torch.bool)
    vocabulary = read_vocabulary(RELEASE.vocabulary_path(config), size.vocabulary)
    return WordPieces(vocabulary, size.max_tokens), torch.tensor([piece.startswith("##") for piece in vocabulary])


def read_vocabulary(path: Path, length: int) -> dict[str, int]:
    """Word-pieces and their ids, in order of these; DataError where they aren't BERT's."""
    pieces = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    vocabulary = {piece.rstrip("\r"): number for number, piece in enumerate(pieces)}
    special = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    if len(vocabulary) != length or not special.items() <= vocabulary.items():
        raise DataError(
            f"{path}: expected BERT's uncased vocabulary, which has {length:,} word-pieces, one a line, with [CLS] on "
            f"line {CLS + 1}, got {len(vocabulary):,} others; try to delete the file, to have it downloaded again"
        )
    return vocabulary


def _pool(pool: str, modality: str) -> str:
    """The pool of a modality under the configured one."""
    if modality == "joint":
        return pool if pool in JOINT_POOLS else "joint_pooler"
    if pool in JOINT_POOLS:
        raise ConfigError(
            f"encoder vlmo: pool: expected itc_proj, cls or vl_proj for modality {modality}, got {pool}, a vector of "
            "image and text together; try modality joint"
        )
    return pool
