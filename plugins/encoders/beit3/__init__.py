"""beit3: BEiT-3 base and large, image and text through one Transformer (Wang et al., CVPR 2023, arXiv:2208.10442).

This file has what needs no torch: the configuration, and which files a configuration needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from mmrec_lmm.api import OPTIONAL, RATE, ConfigValueError, EncoderSpec, Limit, WeightFile, between

from ... import configs
from ..released import Release

Variant = Literal["base", "large", "tiny"]
Checkpoint = Literal["itc", "pretrained", "indomain", "coco_384", "f30k_384"]
Pool = Literal["itc", "cls"]
Cls = Literal["image", "text"]

NAME = "beit3"
PATCH = 16  # pixels a side
PUBLISHED = "https://github.com/addf400/files/releases/download/beit3/"
VOCABULARY = WeightFile("beit3.spm", f"{PUBLISHED}beit3.spm")
CHECKPOINTS: dict[str, str] = {
    "itc": "beit3_{}_itc_patch16_224.pth",
    "pretrained": "beit3_{}_patch16_224.pth",
    "indomain": "beit3_{}_indomain_patch16_224.pth",
    "coco_384": "beit3_{}_patch16_384_coco_retrieval.pth",
    "f30k_384": "beit3_{}_patch16_384_f30k_retrieval.pth",
}
WITHOUT_HEADS = ("pretrained", "indomain")


@dataclass(frozen=True)
class Beit3Config:
    """Which network, which of its published checkpoints, and which of its vectors."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "image_size": between(16, 4096),
        "max_tokens": between(3, 1022),
        "drop_path": RATE,
    }

    variant: Variant = "base"
    checkpoint: Checkpoint = "itc"
    weights: str = ""  # the user's checkpoint, or the folder of the published files
    weights_ema: bool | None = field(default=None, metadata=OPTIONAL)  # true: the averaged weights (EMA) of the file
    pool: Pool = "itc"  # the vector of an image or a text: its retrieval head's unit vector, or the last layer's CLS
    joint_cls: Cls = "image"  # the CLS that is the vector of the modality joint
    image_size: int | None = None  # pixels a side, a multiple of 16; null is what the checkpoint was trained with
    max_tokens: int = 64  # sub-words including <s> and </s>; as the released models use, 1022 at most
    drop_path: float = 0.1  # of the last layer, from 0 at the first; in training only

    def __post_init__(self) -> None:
        for key, allowed in (
            ("variant", Variant),
            ("checkpoint", Checkpoint),
            ("pool", Pool),
            ("joint_cls", Cls),
        ):
            if getattr(self, key) not in get_args(allowed):
                raise ConfigValueError(
                    key, f"must be one of {', '.join(get_args(allowed))}, got {getattr(self, key)!r}"
                )
        if self.checkpoint in WITHOUT_HEADS and self.pool == "itc" and not self.weights:
            raise ConfigValueError(
                "checkpoint",
                f"must have retrieval heads for pool itc, got {self.checkpoint}, which has none; "
                "try pool cls, or checkpoint itc, coco_384 or f30k_384",
                "pool",
                "weights",
            )
        if self.side < PATCH or self.side % PATCH:
            raise ConfigValueError(
                "image_size", f"must be a multiple of {PATCH} (pixels a patch), got {self.image_size}"
            )
        if not 3 <= self.max_tokens <= 1022:
            raise ConfigValueError("max_tokens", f"must be 3 to 1022 (the weights' positions), got {self.max_tokens}")
        if not 0 <= self.drop_path < 1:
            raise ConfigValueError("drop_path", f"must be at least 0 and less than 1, got {self.drop_path}")

    @property
    def side(self) -> int:
        """The side of the pictures that the network sees, in pixels."""
        if self.image_size is not None:
            return self.image_size
        if self.variant == "tiny":
            return 64
        return 384 if self.checkpoint.endswith("384") else 224


def _published(config: Beit3Config) -> WeightFile:
    """The checkpoint's file as released; its authors publish no hash."""
    name = CHECKPOINTS[config.checkpoint].format(config.variant)
    return WeightFile(name, PUBLISHED + name)


RELEASE = Release(NAME, _published, VOCABULARY)
SPEC = EncoderSpec(
    name=NAME,
    cls=f"{__name__}.encoder:Beit3Encoder",
    config=Beit3Config,
    modalities=("image", "text", "joint"),
    weights_id=RELEASE.weights_id,
    files=RELEASE.files,
    variants={
        "base": "12 layers, 768 wide; 222 M parameters (default)",
        "large": "24 layers, 1024 wide; 675 M parameters",
        "tiny": "3 layers, 64 wide, images of 64 pixels, random weights: for tests",
    },
    summary="BEiT-3 (Multiway Transformer): its retrieval heads' vectors, or CLS; joint vectors of image and text",
    paper="Wang et al., CVPR 2023, arXiv:2208.10442",
    license="MIT",
    dims={"image": 768, "text": 768, "joint": 768},
    parameters=222_167_041,
    streams="unified",
    configs=configs(),
)
