"""The domain's words as frozen types. Arrays are NumPy.

Nothing here imports torch: `list` and `--help` stay quick.

Shapes: I items, N interactions, D feature width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import ConfigError
from .typed_json import FLAT, OPTIONAL, UNWRITTEN, AsText, plain

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from .config.settings import Settings

SPLITS = ("train", "valid", "test")
PRE_TRAINED = "pt"  # the paradigm that trains no encoder, a run's default
Background = Literal["white", "black", "none"]  # on which transparent images are laid


@dataclass(frozen=True)
class EncoderName(AsText):
    """An encoder as users write it: NAME, or NAME:VARIANT."""

    name: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> EncoderName:
        name, _, variant = text.partition(":")
        return cls(name, variant)

    @classmethod
    def typed(cls, text: str) -> EncoderName:
        """What a user wrote. ConfigError where a part is empty, as of an unset variable: nobody means the default."""
        found = cls.parse(text)
        if not found.name or (":" in text and not found.variant):
            raise ConfigError(
                f"encoder: expected NAME or NAME:VARIANT, got {text!r}; try {found.name or '`list encoders`'}"
            )
        return found

    def __str__(self) -> str:
        return f"{self.name}:{self.variant}" if self.variant else self.name


@dataclass(frozen=True)
class Axes:
    """The axes of a study. One value on each identifies a run, apart from its settings and seed."""

    model: str
    dataset: str
    encoder: EncoderName | None = None  # None: the data set's own feature files, or ids alone
    paradigm: str = PRE_TRAINED
    modalities: tuple[str, ...] | None = None  # None: all available; a model without features has ()
    control: str | None = None  # shuffled, random, constant, none: a control run, whose features carry no content
    split: str | None = field(default=None, metadata=OPTIONAL)  # the rule that drew it; None: the data set's own

    @property
    def key(self) -> str:
        """All values as one name: VBPR/demo/clip:tiny/ft/image+text, then the values on RARE_AXES, if any."""
        values = [self.value(axis) or "-" for axis in AXES if axis not in RARE_AXES]
        return "/".join([*values, *(value for axis in RARE_AXES if (value := self.value(axis)))])

    @property
    def tested_on(self) -> str:
        """The data set and, if a rule drew it, the split: only runs that agree on it can be compared."""
        return f"{self.dataset}/{self.split}" if self.split else self.dataset

    def value(self, axis: str) -> str | None:
        """The value on one of AXES, as a study's file writes it."""
        value = getattr(self, axis)
        if axis == "modalities":
            return "+".join(value or ()) or None
        return None if value is None else str(value)

    def has(self, axis: str, wanted: Any) -> bool:
        """True if the value on an axis is `wanted`, in any case; an encoder's or a paradigm's name matches all of its
        variants."""
        own = self.value(axis)
        if own is None or wanted is None:
            return own is wanted
        names = {own.lower()} | ({own.lower().partition(":")[0]} if axis in WITH_VARIANTS else set())
        return str(wanted).lower() in names

    def matches(self, wanted: Mapping[str, Any]) -> bool:
        """True if each axis in `wanted` has the value given there."""
        return all(self.has(axis, value) for axis, value in wanted.items())


#: The axes in their order. An output that needs another derives it from this one.
AXES = tuple(axis.name for axis in fields(Axes))
#: The axes on which most runs have no value, and are then not named by it.
RARE_AXES = ("control", "split")
#: The axes whose values may be NAME:VARIANT.
WITH_VARIANTS = ("encoder", "paradigm")


def with_variant(paradigm: str, config: Any) -> str:
    """The paradigm as users write it: NAME, or NAME:VARIANT where the key that its section calls `VARIANT` has another
    value than by default."""
    key = getattr(config, "VARIANT", "")
    value = getattr(config, key) if key else None
    default = next((each.default for each in fields(config) if each.name == key), value) if key else value
    return paradigm if value == default else f"{paradigm}:{value}"


@dataclass(frozen=True)
class Interactions:
    """Pairs of user and item, both (N,) int64 internal ids, in file order; a pair may occur twice."""

    users: np.ndarray
    items: np.ndarray

    def __post_init__(self) -> None:
        if self.users.shape != self.items.shape or self.users.ndim != 1:
            raise ValueError(f"expected users and items (N,), got {self.users.shape} and {self.items.shape}")

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class ItemCatalog:
    """The catalog of items; row i is item i.

    `fields` maps a text column (title, brand, categories, description, ...) to I strings, empty where unknown;
    `images` holds a path or None per item; `raw_ids` the data set's own ids, for messages and exports.
    `fingerprint` is a hash of the catalog's text and of each image file's content; transparent images are laid on
    `background`.
    """

    fields: Mapping[str, tuple[str, ...]]
    images: tuple[Path | None, ...]
    raw_ids: tuple[str, ...]
    fingerprint: str
    background: Background = "white"

    def __len__(self) -> int:
        return len(self.raw_ids)

    @property
    def has_images(self) -> bool:
        return any(image is not None for image in self.images)

    @property
    def has_text(self) -> bool:
        return any(any(column) for column in self.fields.values())


@dataclass(frozen=True)
class DrawnSplit:
    """A split that a rule drew from a data set's interactions, whatever labels its file has."""

    rule: str
    seed: int
    hash: str  # of the rule and all labels
    rows: Mapping[str, int]  # by split, without those left out
    left_out: Mapping[str, int] = field(
        default_factory=dict
    )  # without a training row: "users", and their rows by split

    def __str__(self) -> str:
        return f"{self.rule}-{self.hash[:8]}"


@dataclass(frozen=True)
class Dataset:
    """A data set as it is on disk: three splits, perhaps a catalog, perhaps ready feature files per modality."""

    name: str
    n_users: int
    n_items: int
    train: Interactions
    valid: Interactions
    test: Interactions
    catalog: ItemCatalog | None
    feature_files: Mapping[str, Path]
    fingerprint: str
    notes: tuple[str, ...] = ()  # what loading found and corrected, for the log: dropped rows, duplicates
    split: DrawnSplit | None = None  # None: the file's own labels
    id_files: Mapping[str, Path] = field(default_factory=dict)  # "user", "item" -> its mapping to the shop's own ids
    timestamps: np.ndarray | None = None  # as of TrainingData


@dataclass(frozen=True)
class TrainingData:
    """All that a model may see of the interactions. It has no field for validation or test: leakage is a type error.

    `timestamps` (N,) float64 are the times of `train`, in seconds since 1970, or in the data set's own unit where that
    isn't known; None unless the model's spec says that it reads them.
    """

    n_users: int
    n_items: int
    train: Interactions
    timestamps: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """One training step: int64 tensors on the model's device, each row a user, a positive item and its negatives.

    `negatives` is (B,) where the run draws one per positive; (B, N) where it draws N > 1, for a model whose spec takes
    several; (B, 0) where it draws none.
    """

    users: Tensor  # (B,)
    positives: Tensor  # (B,)
    negatives: Tensor

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Places:
    """The place of each held-out item that can be ranked, among all candidates of its user. P such pairs."""

    rows: np.ndarray  # (P,) int64 the user's row in the lists, ascending
    above: (
        np.ndarray
    )  # (P,) float64 other candidates, not held out, that score higher; half of those that score the same
    others: np.ndarray  # (U,) int64 each user's candidates that aren't held out


@dataclass(frozen=True)
class RankedLists:
    """All that a metric with `context` may see: the lists of one split and what is known of their items."""

    users: np.ndarray  # (U,) int64 ascending
    items: np.ndarray  # (U, K) int64 best first, -1 where a user has fewer candidates
    hits: np.ndarray  # (U, K) bool
    n_positives: np.ndarray  # (U,) int64 held-out rows
    popularity: np.ndarray  # (I,) int64 users who have the item in training
    n_users: int  # with or without held-out rows
    candidates: np.ndarray  # (I,) bool items that can be ranked
    features: Mapping[str, FeatureTable] = field(default_factory=dict)  # by modality, before any joint training
    places: Places | None = None  # only if a metric of the run needs them


@dataclass(frozen=True)
class RawItem:
    """One item as an encoder's `prepare` gets it. A missing image is None, a missing text the empty string:
    the encoder returns tensors of the usual shape for either, and the host masks the row."""

    item: int
    image: Image.Image | None
    text: str


@dataclass(frozen=True)
class FeatureTable:
    """Features of one modality: (I, D) float32, row i is item i; `present` (I,) bool marks the real ones.

    Rows of absent items are zero. `fingerprint` is a hash of all that the values depend on.
    """

    modality: str
    values: np.ndarray
    present: np.ndarray
    fingerprint: str
    seconds: float = field(default=0.0, compare=False)  # that encoding took, in whichever run; 0 for a file's
    parameters: Mapping[str, int] | None = field(default=None, compare=False)  # of its encoder, by name; None: unknown

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.present.shape != self.values.shape[:1]:
            raise ValueError(
                f"{self.modality}: expected values (I, D) and present (I,), got {self.values.shape} and "
                f"{self.present.shape}"
            )

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Tuned:
    """An encoder that a paradigm prepared on a catalog: the file of its weights (safetensors), the hash of all that
    these depend on, a record of it, as a mapping or dataclass that JSON can hold, and the seconds that it took."""

    path: Path
    fingerprint: str
    record: Any
    seconds: float = 0.0


@dataclass(frozen=True)
class RunSeconds:
    """Seconds that the steps of a run took."""

    load: float = 0.0
    tune: float = 0.0
    encode: float = 0.0
    encoder: float | None = field(default=None, metadata=OPTIONAL)  # tuning and encoding, in whichever run
    train: float = 0.0  # all epochs with their evaluations, also those before a resumption
    rank: float = 0.0


@dataclass(frozen=True)
class EncoderCost:
    """What a run's encoder cost, in whichever run it was tuned and used. None: not known.

    The fields with defaults are of an encoder that is trained with the recommender.
    """

    encode: float | None  # seconds, of all modalities
    tune: float | None  # seconds of training it before the recommender; 0: that wasn't done
    parameters: int | None
    parameters_trained: int | None
    epoch_seconds: Mapping[str, float] | None = field(default=None, metadata=OPTIONAL)  # of a joint epoch, by part
    cached_bytes: int | None = field(default=None, metadata=OPTIONAL)  # of what items are encoded from in each epoch


@dataclass(frozen=True)
class Inputs:
    """The data that a run trains on."""

    dataset: Dataset
    tables: Mapping[str, FeatureTable]
    seconds: RunSeconds = field(default_factory=RunSeconds)  # of making these
    tuned: Tuned | None = None  # the encoder that made the tables, where it was tuned on this catalog
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # part ("data", a modality) -> file -> hash
    encoder_cost: EncoderCost | None = None  # None: no encoder made any of the tables


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
    dataclasses); `point` holds this run's values of the grid's keys. `given` tells messages which keys the user set and
    where; it isn't part of the run, and a run that is loaded from its record has none.
    """

    model: str
    dataset: str
    settings: Settings
    model_config: Any
    encoder: str | None = None
    encoder_config: Any = None
    paradigm: str = PRE_TRAINED
    paradigm_config: Any = None  # of the class that the paradigm's spec names; None where it names none
    sampler_config: Any = field(default=None, metadata=OPTIONAL)  # of the class that the sampler's spec names, likewise
    modalities: tuple[str, ...] | None = None
    features: Mapping[str, Path] = field(default_factory=dict)
    control: str | None = None
    point: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False, metadata=UNWRITTEN)

    @property
    def axes(self) -> Axes:
        """The run's place on the axes; its encoder's variant is in `encoder_config`."""
        encoder = None if self.encoder is None else EncoderName(self.encoder)
        paradigm = with_variant(self.paradigm, self.paradigm_config)
        return Axes(self.model, self.dataset, encoder, paradigm, self.modalities, self.control, self.settings.split)


@dataclass(frozen=True)
class Chance:
    """Recall at a cutoff, and that of random rankings: its mean over users, and that mean's standard deviation."""

    score: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class ChanceBySplit:
    """A run's recall beside chance: at the cutoff of the metric that selects, which `metric` names."""

    metric: str
    valid: Chance
    test: Chance


@dataclass(frozen=True)
class ColdItems:
    """Test metrics of a `cold-item` split with the items without a training row as the only candidates."""

    candidates: int
    test: Mapping[str, float]
    chance: Chance  # recall at the cutoff of the metric that selects


RECORD_VERSION = 1  # raised when readers must distinguish versions; 0: records without the field


@dataclass(frozen=True, kw_only=True)
class RunRecord(Mapping[str, Any]):
    """All that a result depends on, and how the run went. Fields with defaults may be absent in earlier records.

    `reports` keeps every key that isn't a field: what a plugin or a later version wrote isn't lost.

    As a mapping it has the keys and values of `result.json`. That is deprecated and the next version drops it: read
    the fields.
    """

    axes: Axes = field(metadata=FLAT)  # `modalities` as the run has them, and the encoder's name without its variant
    seed: int
    data: str  # fingerprint of the interactions
    features: Mapping[str, str]  # modality -> fingerprint
    present: Mapping[str, int]  # modality -> items that have it
    n_items: int = 0  # of the data set; 0 in earlier records
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # part ("data", a modality) -> file -> hash
    config: str  # fingerprint of all values
    resolved: Mapping[str, Any] | None = field(default=None, metadata=OPTIONAL)  # every value, as in `config.json`
    code: Mapping[str, str]  # part ("host", "model", "encoder") -> hash of its files
    numerics_version: int
    plugin: str  # of the model, and its version
    plugins: Mapping[str, str] | None = field(default=None, metadata=OPTIONAL)  # of -p: file or module -> hash of code
    parameters: int | None = field(default=None, metadata=OPTIONAL)  # of the model, in all
    parameters_trained: int
    device: str
    threads: int
    processes: int = 1
    versions: Mapping[str, str]  # library -> version
    finished: str  # ISO 8601, UTC
    seconds: RunSeconds
    peak_memory_bytes: int
    encoder_cost: EncoderCost | None = field(default=None, metadata=OPTIONAL)  # None: no encoder
    chance: ChanceBySplit | None = field(default=None, metadata=OPTIONAL)
    drawn: DrawnSplit | None = field(default=None, metadata=OPTIONAL)  # the details of the axis `split`
    cold_items: ColdItems | None = field(default=None, metadata=OPTIONAL)
    topk: str | None = field(default=None, metadata=OPTIONAL)  # SHA-256 of the lists, `topk.tsv`
    record_version: int = 0
    reports: Mapping[str, Any] = field(default_factory=dict, metadata=FLAT)  # paradigm, model -> its report on training

    def __getitem__(self, key: str) -> Any:
        warnings.warn(
            f"RunResult.record[{key!r}]: expected a field, got a key; try RunResult.record.{key}",
            DeprecationWarning,
            stacklevel=2,
        )
        return plain(self)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(plain(self))

    def __len__(self) -> int:
        return len(plain(self))


#: For a result without a record, such as one in an observer's test.
UNRECORDED = RunRecord(
    axes=Axes("", ""), seed=0, data="", features={}, present={}, config="", code={}, numerics_version=0, plugin="",
    parameters_trained=0, device="", threads=0, versions={}, finished="", seconds=RunSeconds(), peak_memory_bytes=0,
)  # fmt: skip


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run: the content of its `result.json`."""

    run_id: str
    path: Path
    parameters: Mapping[str, Any]
    valid: Mapping[str, float]
    test: Mapping[str, float]
    best_epoch: int
    epochs: int
    stopped: str  # why training ended: "patience", "epochs", "diverged" or "untrained"
    record: RunRecord = UNRECORDED  # hashes, versions, seconds, memory
