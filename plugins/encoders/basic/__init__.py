"""The `basic` encoder: item features without any pretrained weights, for the demo and for a first look at a data set.

Image (width 3 S^2 + 64 + 128): the picture scaled to S x S pixels, a histogram of its colors, and histograms of edge
directions on a 4 x 4 grid (HOG; Dalal & Triggs, CVPR 2005, one scale, without their overlapping blocks): color and
layout, color wherever it is, shape and pattern. Text (width `text_dim`): lower-case words and their character
n-grams, hashed into counts (feature hashing; Weinberger et al., ICML 2009, unsigned) and damped by log(1 + count).

Text rows have norm 1, and so do image rows: each of their three parts has norm sqrt(1/3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mmrec_lmm.api import SIZE, ConfigValueError, EncoderSpec, Limit, between, each

from ... import configs

PIXELS = 64  # side of the image from which the histograms are computed


@dataclass(frozen=True)
class BasicConfig:
    """The sizes of the features."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "image_size": between(1, PIXELS),
        "text_dim": SIZE,
        "ngrams": each(between(1, 1000)),
    }

    image_size: int = 8  # S, pixels
    text_dim: int = 1024  # hash bins; half as many suffice for the demo's short texts, long texts need more
    ngrams: tuple[int, ...] = (3, 4, 5)  # lengths in characters, with a mark at each end of a word; () for words only

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= PIXELS:
            raise ConfigValueError("image_size", f"must be 1 to {PIXELS}, got {self.image_size}")
        if self.text_dim < 1:
            raise ConfigValueError("text_dim", f"must be at least 1, got {self.text_dim}")
        if any(length < 1 for length in self.ngrams):
            raise ConfigValueError("ngrams", f"must be lengths of at least 1, got {self.ngrams}")


def weights_id(config: BasicConfig, modality: str) -> str:
    """Return "none": the encoder has no weights."""
    return "none"


SPEC = EncoderSpec(
    name="basic",
    cls=f"{__name__}.encoder:BasicEncoder",
    config=BasicConfig,
    modalities=("image", "text"),
    weights_id=weights_id,
    summary="no weights: a downscaled image, hashed character n-grams of the text",
    dims={"image": 384, "text": 1024},
    license="Apache-2.0",
    configs=configs(),
)
