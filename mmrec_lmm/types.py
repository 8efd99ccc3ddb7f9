"""The domain's words as frozen types. Arrays are NumPy.

Nothing here imports torch or NumPy, so that `list` and `--help` stay quick.

Shapes: I items, N interactions, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

SPLITS = ("train", "valid", "test")
PRE_TRAINED = "pt"  # the paradigm that trains no encoder: what a run has unasked


@dataclass(frozen=True)
class Interactions:
    """Pairs of user and item, both (N,) int64 internal ids, in file order; a pair may occur twice."""

    users: np.ndarray
    items: np.ndarray

    def __post_init__(self) -> None:
        if self.users.shape != self.items.shape or self.users.ndim != 1:
            raise ValueError(f"users {self.users.shape} and items {self.items.shape} must be 1-D and equally long")

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class ItemCatalog:
    """What is known of each item, row i being item i.

    `fields` maps a text column (title, brand, categories, description, ...) to I strings, empty where unknown;
    `images` holds a path or None per item; `raw_ids` the data set's own ids, for messages and exports.
    `fingerprint` is a hash of the catalogue's text and of each image file's content.
    """

    fields: Mapping[str, tuple[str, ...]]
    images: tuple[Path | None, ...]
    raw_ids: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.raw_ids)

    @property
    def has_images(self) -> bool:
        return any(image is not None for image in self.images)

    @property
    def has_text(self) -> bool:
        return any(any(column) for column in self.fields.values())


@dataclass(frozen=True)
class Dataset:
    """A data set as it lies on disk: three splits, perhaps a catalogue, perhaps ready feature files per modality."""

    name: str
    n_users: int
    n_items: int
    train: Interactions
    valid: Interactions
    test: Interactions
    catalog: ItemCatalog | None
    feature_files: Mapping[str, Path]
    fingerprint: str
    notes: tuple[str, ...] = ()  # what loading found and mended, for the log: dropped rows, duplicates


@dataclass(frozen=True)
class TrainingData:
    """All that a model may see of the interactions. It has no field for validation or test: leakage is a type error."""

    n_users: int
    n_items: int
    train: Interactions


@dataclass(frozen=True)
class Batch:
    """One training step: (B,) int64 tensors on the model's device, each row a user, a positive and a negative item."""

    users: Tensor
    positives: Tensor
    negatives: Tensor

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class RawItem:
    """One item as an encoder's `prepare` gets it. A missing image is None, a missing text the empty string:
    the encoder returns tensors of the usual shape for either, and the host masks the row."""

    item: int
    image: Image.Image | None
    text: str


@dataclass(frozen=True)
class FeatureTable:
    """Features of one modality: (I, D) float32, row i is item i; `present` (I,) bool says which rows are real.

    Rows of absent items are zero. `fingerprint` names everything the values depend on.
    """

    modality: str
    values: np.ndarray
    present: np.ndarray
    fingerprint: str
    seconds: float = field(default=0.0, compare=False)  # that an encoder took for it, whoever let it; 0 for a file's

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.present.shape != self.values.shape[:1]:
            raise ValueError(f"{self.modality}: values {self.values.shape} and present {self.present.shape} disagree")

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Tuned:
    """An encoder that was tuned on a catalogue: the file of its weights (safetensors), the name of all that these
    depend on, and the record of the tuning: sizes, losses by epoch, image-text recalls before and after, seconds."""

    path: Path
    fingerprint: str
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What a run trains on."""

    dataset: Dataset
    tables: Mapping[str, FeatureTable]
    seconds: Mapping[str, float]  # by step; "encoder" is what tuning and encoding took whichever run first needed them
    tuned: Tuned | None = None  # the encoder that made the tables, where it was tuned on this catalog
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # part ("data", a modality) -> file -> hash


@dataclass(frozen=True)
class EpochReport:
    """One epoch, for observers: summed loss terms, the validation metrics where the epoch was evaluated, seconds."""

    epoch: int
    losses: Mapping[str, float]
    train_seconds: float
    valid: Mapping[str, float] | None = None
    valid_seconds: float = 0.0
    improved: bool = False


@dataclass(frozen=True)
class RunSpec:
    """One run, fully resolved: what to train on what, with every value that can change a number.

    `settings` are the host's own values, `model_config` and `encoder_config` those of the plugins' schemas (frozen
    dataclasses); `point` holds the axes of the grid that this run is one point of.
    """

    model: str
    dataset: str
    settings: Any
    model_config: Any
    encoder: str | None = None
    encoder_config: Any = None
    paradigm: str = PRE_TRAINED
    paradigm_config: Any = None  # of the class that the paradigm's spec names; None where it names none
    modalities: tuple[str, ...] | None = None
    features: Mapping[str, Path] = field(default_factory=dict)
    control: str | None = None
    point: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """What a finished run says of itself: the content of its `result.json`."""

    run_id: str
    path: Path
    parameters: Mapping[str, Any]
    valid: Mapping[str, float]
    test: Mapping[str, float]
    best_epoch: int
    epochs: int
    stopped: str  # why training ended: "patience", "epochs", "diverged" or "untrained"
    record: Mapping[str, Any] = field(default_factory=dict)  # hashes, versions, seconds, memory
