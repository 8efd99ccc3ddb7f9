"""clip: CLIP (Radford et al., ICML 2021, arXiv:2103.00020): two towers that map an image and its text to near vectors.

By default it is ViT-B/16 with OpenAI's weights; `clip:ARCH/TAG` is any other architecture and weights of open_clip,
including SigLIP. This file has what needs no torch: the configuration, and where the weights are.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from mmrec_lmm.api import OPTIONAL, ConfigValueError, EncoderSpec, Limit, WeightFile, between, find_weights, hash_file

from ... import configs

NAME = "clip"
SHA256 = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"  # published: it is a part of the URL
OPENAI = WeightFile(
    "ViT-B-16.pt", f"https://openaipublic.azureedge.net/clip/models/{SHA256}/ViT-B-16.pt", sha256=SHA256
)
VARIANTS = {
    "tiny": "the real classes with 64-pixel images, width 64, 3 layers and random weights; no file",
    "ARCH/TAG": "another architecture and weights of open_clip, as ViT-L-14/openai or ViT-B-16-SigLIP/webli",
    "ARCH": "an architecture of open_clip with the checkpoint that --weights names",
}


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP, which of its vectors, and the preprocessing."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {"image_size": between(1, 4096)}

    variant: str = ""  # "" (ViT-B/16 by OpenAI), "tiny", or open_clip's ARCH/TAG
    weights: str = ""  # a checkpoint, or a folder that holds it under its published name; "": find or download
    weights_ema: bool | None = field(default=None, metadata=OPTIONAL)  # true: the averaged weights (EMA) of the file
    pool: Literal["proj", "pre_proj"] = "proj"  # the vectors that are compared (512, 512), or those before (768, 512)
    normalise: bool = False  # rows of length 1, as the loss has them; the released features are raw projections
    preprocess: Literal["official", "released"] = "official"  # released: as LMM4Rec's code feeds it; see encoder.py
    image_size: int | None = None  # pixels; None: what the weights were trained with; others interpolate positions

    def __post_init__(self) -> None:
        if not re.fullmatch(r"|[\w.+-]+(/[\w.+-]+)?", self.variant):
            raise ConfigValueError(
                "variant",
                "must be empty (OpenAI's ViT-B/16), tiny, ARCH/TAG as open_clip names them "
                f"(ViT-L-14/openai), or ARCH with a file of --weights; got {self.variant!r}",
            )
        if self.image_size is not None and self.image_size < 1:
            raise ConfigValueError("image_size", f"must be at least 1 pixel, got {self.image_size}")


def checkpoint(config: ClipConfig) -> Path | None:
    """The file of the weights, downloaded if necessary; None where they are random (tiny).

    The user's own file may have any hash, since it may be fine-tuned. Raises WeightsMissing, DataError, and ConfigError
    for an architecture or a tag that open_clip lacks.
    """
    if config.weights and Path(config.weights).is_file():
        return Path(config.weights)
    if not config.variant:
        return find_weights(OPENAI, encoder=NAME, given=config.weights)
    if config.variant == "tiny" and not config.weights:
        return None
    from .model import published_file  # imports open_clip, which takes seconds

    return published_file(config)


def weights_id(config: ClipConfig, modality: str) -> str:
    """The SHA-256 of the weights; raises what `checkpoint` raises."""
    path = checkpoint(config)
    return f"sha256 {hash_file(path)}" if path else "random"


def files(config: ClipConfig, modality: str) -> Sequence[WeightFile]:
    """OpenAI's file; those of other variants are kept by huggingface_hub, in its own cache."""
    return () if config.variant else (OPENAI,)


def fetch(config: ClipConfig, modality: str) -> None:
    """Bring the tokenizer and the text tower's configuration, where an architecture has them from the hub."""
    if modality == "text":
        from .model import fetch_text_side  # imports open_clip, which takes seconds

        fetch_text_side(config)


SPEC = EncoderSpec(
    name=NAME,
    cls=f"{__name__}.encoder:ClipEncoder",
    config=ClipConfig,
    modalities=("image", "text"),
    weights_id=weights_id,
    files=files,
    fetch=fetch,
    variants=VARIANTS,
    summary="CLIP ViT-B/16 with OpenAI's weights: contrastively trained towers for image and text, 512 each",
    paper="Radford et al., ICML 2021, arXiv:2103.00020",
    license="MIT",
    dims={"image": 512, "text": 512},
    parameters=149_620_737,
    streams="dual",
    configs=configs(),
)
