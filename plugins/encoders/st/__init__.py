"""st: any model of sentence-transformers, of texts or of images and texts.

`st:NAME`, `st:NAME@REVISION` or `st:FOLDER` names the model. This file has what needs no torch: the configuration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmrec_lmm.api import EncoderSpec, Limit, between

from ... import configs
from ..hub import NO_LIMIT, TINY, check_names

NAME = "st"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
VARIANTS = {
    TINY: "a CLIP of transformers with 64-pixel images, width 32, 2 layers and random weights; no file",
    "NAME[@REVISION]": "a model of the Hugging Face hub, such as sentence-transformers/all-mpnet-base-v2",
    "FOLDER": "a folder with such a model",
}


@dataclass(frozen=True)
class StConfig:
    """Which model, and what it gets of a text."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"max_tokens": between(3, NO_LIMIT)}

    variant: str = MINILM  # a model of the hub, NAME or NAME@REVISION; a folder; or "tiny"
    weights: str = ""  # a folder that has the model; "": found or downloaded
    prompt: str | None = None  # put before each text: words, or the name of a prompt of the model's; None: its default
    max_tokens: int | None = None  # of a text, special ones and the prompt among them; None: the model's own limit

    def __post_init__(self) -> None:
        check_names(self)


def weights_id(config: StConfig, modality: str) -> str:
    """A hash of all files that decide vectors. Raises WeightsMissing, DataError, and ConfigError for a modality that
    the model lacks."""
    if config.variant == TINY:
        return "tiny, random"
    from .model import identity  # imports torch

    return identity(config, modality)


def modalities_of(config: StConfig) -> Sequence[str]:
    """What the model encodes. Raises WeightsMissing and DataError."""
    if config.variant == TINY:
        return ("image", "text")
    from .model import modalities  # imports torch

    return modalities(config)


SPEC = EncoderSpec(
    name=NAME,
    cls=f"{__name__}.encoder:St",
    config=StConfig,
    modalities=("image", "text"),
    modalities_of=modalities_of,
    weights_id=weights_id,
    variants=VARIANTS,
    summary="any model of sentence-transformers, of texts or of images and texts; by default MiniLM (texts, 384)",
    paper="Reimers & Gurevych, EMNLP 2019, arXiv:1908.10084",
    license="the model's own",
    dims={"text": 384},
    parameters=22_713_216,
    configs=configs(),
)
