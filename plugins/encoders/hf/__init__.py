"""hf: any model of transformers that gives an image and a text one vector each: CLIP, SigLIP, SigLIP 2, ALIGN, others.

`hf:NAME`, `hf:NAME@REVISION` or `hf:FOLDER` names the model. This file has what needs no torch: the configuration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmrec_lmm.api import EncoderSpec, Limit, between

from ... import configs
from ..hub import NO_LIMIT, TINY, check_names

NAME = "hf"
VARIANTS = {
    TINY: "a CLIP of transformers with 64-pixel images, width 32, 2 layers and random weights; no file",
    "NAME[@REVISION]": "a model of the Hugging Face hub, such as google/siglip2-base-patch16-224",
    "FOLDER": "a folder with such a model",
}


@dataclass(frozen=True)
class HfConfig:
    """Which model, and what it gets of a text."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"max_tokens": between(3, NO_LIMIT)}

    variant: str = "openai/clip-vit-base-patch32"  # a model of the hub, NAME or NAME@REVISION; a folder; or "tiny"
    weights: str = ""  # a folder that has the model; "": found or downloaded
    prompt: str = ""  # put before each text, such as "a photo of "
    max_tokens: int | None = None  # of a text, special ones among them; None: as many as the model reads
    normalise: bool = False  # rows of length 1, as the contrastive loss has them

    def __post_init__(self) -> None:
        check_names(self)


def weights_id(config: HfConfig, modality: str) -> str:
    """A hash of all files that decide vectors. Raises WeightsMissing, DataError, and ConfigError for a modality that
    the model lacks."""
    if config.variant == TINY:
        return "tiny, random"
    from .model import identity  # imports transformers, which takes seconds

    return identity(config, modality)


def modalities_of(config: HfConfig) -> Sequence[str]:
    """What the model encodes, by its class and files. Raises WeightsMissing and DataError."""
    if config.variant == TINY:
        return ("image", "text")
    from .model import found

    return found(config).modalities


SPEC = EncoderSpec(
    name=NAME,
    cls=f"{__name__}.encoder:Hf",
    config=HfConfig,
    modalities=("image", "text"),
    modalities_of=modalities_of,
    weights_id=weights_id,
    variants=VARIANTS,
    summary="any model of transformers with image or text features: CLIP, SigLIP, SigLIP 2, ALIGN (default: CLIP B/32)",
    license="the model's own",
    dims={"image": 512, "text": 512},
    parameters=151_277_313,
    configs=configs(),
)
