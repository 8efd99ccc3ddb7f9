"""BEiT-3 as an item encoder (Wang et al., CVPR 2023, arXiv:2208.10442): pictures and words to vectors.

image -> squashed to S x S -> patches -> CLS;  text -> <s> sub-words </s> -> the <s> as CLS;  both -> one pass, two CLS
itc: normalize(W_image CLS), normalize(W_text CLS), in which image and text are comparable by their cosine

Fidelity: preprocessing as the authors evaluate. LMM4Rec instead runs random poolers over a joint pass, cut one position
too late, over texts cut to 64 characters, and adds random item ids; none of this is offered here.
Shapes: B batch, P patches and the CLS before them, T tokens, D width, S side in pixels.
"""

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mmrec_lmm.api import (
    DataError,
    ItemEncoder,
    PluginError,
    RawItem,
    interpolate_positions,
    load_state,
    read_checkpoint,
)
from mmrec_lmm.losses import contrastive_scale, symmetric_info_nce

from ..pixels import Normalize, squashed
from ..released import is_random
from ..towers import at_place, pooled_states
from ..words import CHARACTERS, SIZE, HashedWords
from . import NAME, PATCH, RELEASE, VOCABULARY, Beit3Config
from .model import OFFSET, PAD, SIZES, Beit3ForRetrieval

logger = logging.getLogger(f"mmrec_lmm.encoders.{NAME}")  # a child of the host's, whose handlers write the run's log

START, END, UNKNOWN = 0, 2, 3  # ids of <s>, </s>, <unk>, as in XLM-R
PIECES = 64_000  # of the published vocabulary
POSITIONS = "beit3.encoder.embed_positions.A.weight"
HEADS = ("vision_head.weight", "language_head.weight", "logit_scale")


class Beit3Encoder(ItemEncoder):
    """A vector per image, per text, and per pair of them."""

    def __init__(self, config: Beit3Config, modalities: tuple[str, ...]) -> None:
        super().__init__()
        size = SIZES[config.variant]
        self.config = config
        self.dims = dict.fromkeys(modalities, size.width)
        self.padding = {"tokens": PAD}
        self.max_characters = CHARACTERS * config.max_tokens
        self.normalize = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.model = Beit3ForRetrieval(size, config.side, config.drop_path)
        if is_random(config):
            self.model.initialize(self.model.state_dict())
        else:
            self._load(RELEASE.checkpoint_path(config))
        if "text" in modalities or "joint" in modalities:
            self.tokenize = tokenizer(config)

    def _load(self, path: Path) -> None:
        """Fill the network. Pre-trained checkpoints have the head of masked modeling, and no retrieval heads."""
        state = read_checkpoint(path, ema=bool(self.config.weights_ema))
        lacking = [name for name in HEADS if name not in state]
        if lacking and self.config.pool == "itc":
            raise DataError(
                f"{path}: expected retrieval heads for pool itc, got no {', '.join(lacking)}; "
                "try pool cls, or a checkpoint that has them, such as beit3_base_itc_patch16_224.pth"
            )
        if POSITIONS in state and state[POSITIONS].ndim == 2:
            state[POSITIONS] = interpolate_positions(
                state[POSITIONS],
                self.config.side // PATCH,
                prefix=OFFSET + 1,  # 1: of the CLS
                source=f"{path}: {POSITIONS}",
            )
        report = load_state(self.model, state, source=path, drop=["mim_head.*"], optional=HEADS)
        self.model.initialize(report.missing)
        logger.info("%s: %s", path, report.summary())

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        prepared = {}
        if "image" in self.dims or "joint" in self.dims:
            prepared["pixels"] = squashed(item.image, self.config.side)  # (3, S, S)
        if "text" in self.dims or "joint" in self.dims:
            prepared["tokens"] = torch.tensor(self.tokenize(item.text))  # (T,)
        return prepared

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {modality: self._vectors(modality, batch).float() for modality in self.dims}

    def hidden_states(self, batch: dict[str, Tensor]) -> Mapping[str, Sequence[Tensor]]:
        """The CLS of each layer, before the final norm; of joint vectors that of `joint_cls`."""
        layers, joint = [*self.model.beit3.encoder.layers], at_place(self._joint_cls)
        return {
            name: pooled_states(partial(self._vectors, name, batch), layers, joint if name == "joint" else at_place(0))
            for name in self.dims
        }

    def _vectors(self, modality: str, batch: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        model, head = self.model, self.config.pool == "itc"
        if modality == "image":
            return model.image_vectors(self.normalize(batch["pixels"]), head=head)
        if modality == "text":
            return model.text_vectors(batch["tokens"], head=head)
        rows: Tensor = model.beit3(self.normalize(batch["pixels"]), batch["tokens"])  # (B, P + T, D)
        return rows[:, self._joint_cls]

    @property
    def _joint_cls(self) -> int:
        """The place of the CLS that joint vectors are."""
        return self.model.beit3.patches if self.config.joint_cls == "text" else 0

    def tuning_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """ITC between the retrieval heads' vectors of images and texts, as the authors tune for retrieval."""
        images = self.model.image_vectors(self.normalize(batch["pixels"]))  # (B, D)
        texts = self.model.text_vectors(batch["tokens"])  # (B, D)
        scale = contrastive_scale(self.model.logit_scale)  # with CLIP's bound, which BEiT-3's authors leave out
        return {"itc": symmetric_info_nce(images, texts, scale=scale)}


class SentencePieces:
    """text -> [<s>, a sub-word's id, ..., </s>], by a SentencePiece model with XLM-R's ids: the model's own plus 1,
    except for the unknown piece."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            library = importlib.import_module("sentencepiece")
        except ImportError as error:
            raise PluginError(
                f"encoder beit3: expected sentencepiece, got {error}; try pip install 'mmrec-lmm[beit3]'"
            ) from None
        try:
            self.processor = library.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise DataError(f"{path}: expected a SentencePiece model, got {error}; try {VOCABULARY.url}") from None
        self.max_tokens = max_tokens

    def __len__(self) -> int:
        return int(self.processor.get_piece_size())

    def __call__(self, text: str) -> list[int]:
        pieces, unknown = self.processor.encode(text), self.processor.unk_id()
        ids = [UNKNOWN if piece == unknown else piece + 1 for piece in pieces]
        return [START, *ids[: self.max_tokens - 2], END]


def tokenizer(config: Beit3Config) -> Callable[[str], list[int]]:
    """Sub-words of the published vocabulary; the tiny variant hashes words, and needs none."""
    if config.variant == "tiny":
        return HashedWords(start=START, end=END, first=UNKNOWN + 1, last=SIZE - 1, max_tokens=config.max_tokens)
    path = RELEASE.vocabulary_path(config)
    pieces = SentencePieces(path, config.max_tokens)
    if len(pieces) != PIECES:
        raise DataError(
            f"{path}: expected the {PIECES} pieces of BEiT-3's vocabulary, got {len(pieces)}; try {VOCABULARY.url}"
        )
    return pieces
