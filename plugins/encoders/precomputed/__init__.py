"""precomputed: existing features, one .npy file per modality, used as they are.

By default those in the data set's own folder, as MMRec publishes them: `image_feat.npy` (FC7 of the BVLC reference
CaffeNet, 4096 wide) and `text_feat.npy` (Sentence-BERT, 384 wide). A run without `--encoder` reads the same files; the
name is for studies, where they are one encoder among others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmrec_lmm.api import ConfigValueError, DataError, Dataset, EncoderSpec

from ... import configs

SUFFIX = "_feat.npy"


@dataclass(frozen=True)
class PrecomputedConfig:
    """Where the files are."""

    folder: str = ""  # of <modality>_feat.npy, as `encode --export` writes them; "": the data set's own

    def __post_init__(self) -> None:
        if self.folder and not Path(self.folder).is_dir():
            raise ConfigValueError("folder", f"must be one that exists, got {self.folder}")


def weights_id(config: PrecomputedConfig, modality: str) -> str:
    """Return "none": there are no weights. A table is named by the content of its file."""
    return "none"


def feature_files(config: PrecomputedConfig, dataset: Dataset) -> Mapping[str, Path]:
    """The file of each modality."""
    if not config.folder:
        return dataset.feature_files
    found = {path.name.removesuffix(SUFFIX): path for path in sorted(Path(config.folder).glob(f"*{SUFFIX}"))}
    if not found:
        raise DataError(
            f"encoder.folder: {config.folder}: expected <modality>{SUFFIX}, such as image{SUFFIX}, got no such file"
        )
    return found


SPEC = EncoderSpec(
    name="precomputed",
    cls=None,
    config=PrecomputedConfig,
    modalities=("image", "text"),
    weights_id=weights_id,
    feature_files=feature_files,
    summary="features from .npy files: the data set's own image_feat.npy and text_feat.npy, or those of any folder",
    paper="MMRec: Zhou, arXiv:2302.03497",
    license="that of the files",
    configs=configs(),
)
