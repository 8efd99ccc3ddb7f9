"""The specs that a plugin's hooks return: frozen descriptions of a model, sampler, encoder, paradigm, data set,
split or metric.

Nothing here imports torch. A spec may name its class, schema or function as "module:attribute": listing
plugins then imports none of them.
"""

from __future__ import annotations

import importlib
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import PluginError

if TYPE_CHECKING:
    from ..types import Dataset
    from .contracts import ItemEncoder, Paradigm, Recommender, Sampler


@dataclass(frozen=True)
class NoConfig:
    """The schema of a plugin without configuration keys."""


@dataclass(frozen=True)
class ModelSpec:
    """Registers a model.

    `config` is the frozen dataclass that is the model's schema: field types and defaults. `configs` is a folder
    that may hold `model/<name>.yaml`, `preset/<preset>/<name>.yaml` and `grid/<grid>/<name>.yaml`. `unread` names keys
    that files written for another implementation hold and that mean nothing here: accepted, and listed as unused.
    `file_stem`: where no such file is called as the model, `model/<file_stem>.yaml` of `configs` or --configs counts.
    """

    name: str
    cls: type[Recommender] | str
    config: type | str = NoConfig
    summary: str = ""
    paper: str = ""
    uses_features: bool = True
    configs: Path | None = None
    unread: tuple[str, ...] = ()
    negatives: Literal["one", "several", "none"] = "one"  # per positive; several: also one; none: it reads none
    file_stem: str = ""
    reads_timestamps: bool | Callable[[Any], bool] | str = False  # of TrainingData; or says so of a configuration

    def __post_init__(self) -> None:
        if self.negatives not in ("one", "several", "none"):
            raise PluginError(
                f"model {self.name}: negatives: expected one, several or none, got {reprlib.repr(self.negatives)}"
            )


@dataclass(frozen=True)
class SamplerSpec:
    """Registers a sampler of negative items. `config` is the frozen dataclass of its section in configuration
    (`popularity:`, `--popularity.power=0.5`); None: it has none."""

    name: str
    cls: type[Sampler] | str | None  # None: it draws nothing
    config: type | str | None = None
    summary: str = ""
    paper: str = ""


@dataclass(frozen=True)
class WeightFile:
    """A file that an encoder's weights or vocabulary come in, as its authors publish it.

    `sha256` is the hash that they publish, or None if they publish none: then the hash of the first download is
    recorded and enforced from then on. A file that a Python package installs has its requirement, "NAME==VERSION", as
    `package`, and is found there; it may have no `url`.
    """

    name: str  # of the file, in the encoder's folder <home>/weights/<encoder>/
    url: str
    sha256: str | None = None
    package: str = ""


@dataclass(frozen=True)
class EncoderSpec:
    """Registers an encoder. `weights_id(config, modality)` returns a string naming what that modality needs, weights
    and vocabulary, by its content (a hash), without loading it where possible; it may raise WeightsMissing. `version`
    rises when the same weights would give other features (a change in preprocessing). `fetch(config, modality)` brings
    the rest of what that modality needs from a network, such as another library's tokenizer, for `weights get`.
    `modalities_of(config)` says which of `modalities` a configuration encodes, where that depends on its files; it may
    raise WeightsMissing."""

    name: str
    cls: type[ItemEncoder] | str | None  # None: nothing is encoded, features come from `feature_files`
    config: type | str
    modalities: tuple[str, ...]  # the first ones are made unasked; "joint" (of image and text together) only on request
    weights_id: Callable[[Any, str], str] | str
    files: Callable[[Any, str], Sequence[WeightFile]] | str | None = None  # of (config, modality); None: none
    feature_files: Callable[[Any, Dataset], Mapping[str, Path]] | str | None = None  # ready ones, .npy by modality
    variants: Mapping[str, str] = field(default_factory=dict)  # values of the key `variant`, each with its summary
    version: int = 1
    summary: str = ""
    paper: str = ""
    license: str = ""
    dims: Mapping[str, int] | None = None  # at default settings, for listings; so are the parameters
    parameters: int | None = None
    configs: Path | None = None
    licence: str | None = None  # deprecated: the old name of `license`, which the next version drops
    fetch: Callable[[Any, str], None] | str | None = None  # None: `weights_id` has brought all
    modalities_of: Callable[[Any], Sequence[str]] | str | None = None  # None: each configuration encodes `modalities`
    streams: Literal["dual", "unified", ""] = ""  # two towers trained to agree, or one model of both; "": neither
    code: str = ""  # set by the host for one of -p or pip install -e: the hash of its code, which names features

    def encodes(self, config: Any) -> tuple[str, ...]:
        """The modalities that an encoder of this configuration encodes."""
        return self.modalities if self.modalities_of is None else tuple(resolve(self.modalities_of)(config))

    def __post_init__(self) -> None:
        _take_old_name(self)


@dataclass(frozen=True)
class ParadigmSpec:
    """Registers a paradigm: a way in which an encoder is trained for a recommender, or isn't.

    `config` is the frozen dataclass of its section in configuration (`ft:`, `--ft.epochs=2`); None: it has none.
    `prepares`: it makes an encoder of its own before features are made (`Paradigm.prepare`). `joint`: the model's
    features collect the gradient of its loss, for `Paradigm.callback` to train on. `normalizes`: the values of the key
    `normalize` that a joint paradigm applies to the features that it trains; they get others as they are.
    """

    name: str
    cls: type[Paradigm] | str
    config: type | str | None = None
    prepares: bool = False
    joint: bool = False
    summary: str = ""
    paper: str = ""
    normalizes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetSpec:
    """Registers a data set. `make(folder)` creates it on first use, `load(folder, name, settings)` reads it;
    where `load` is None, the host's own loader of MMRec's layout does. `get` is a command that brings it, for listings
    and for the message that it isn't here: nothing is downloaded unasked."""

    name: str
    summary: str = ""
    make: Callable[[Path], None] | str | None = None
    load: Callable[[Path, str, Any], Dataset] | str | None = None
    default_encoder: str | None = None
    license: str = ""
    configs: Path | None = None
    licence: str | None = None  # deprecated: the old name of `license`, which the next version drops
    get: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        _take_old_name(self)


@dataclass(frozen=True)
class SplitSpec:
    """Registers a rule that draws a data set's split: `draw(users, items, times, rng)` -> labels (N,), 0 for training,
    1 for validation and 2 for test.

    `users`, `items` (N,) int64 are the ids of each row of the table of interactions; `times` (N,) its numbers of the
    column `TIME_FIELD` if the rule `needs_times`, else None. `rng`, a NumPy Generator of `split_seed`, is the only
    source of randomness.
    """

    name: str
    draw: Callable[..., Any] | str
    summary: str = ""
    needs_times: bool = False


@dataclass(frozen=True)
class MetricSpec:
    """Registers a metric: `fn(hits, n_positives, k)` -> (U,) float64, one value per evaluated user.

    `hits` (U, K) bool: is the item at each rank one of the user's held-out items; K >= k is the largest cutoff.
    `n_positives` (U,) int64: the number of held-out rows of each user.

    With `context` it is `fn(ranked, k)`, of a RankedLists: the items, their features and popularity, and more. With
    `per_user=False` it returns one number for the lists of all users. `needs` names what is only there if a metric asks
    for it: "features" of items, which refuses runs without any, and "places" of held-out items among all candidates.
    """

    name: str
    fn: Callable[..., Any] | str
    summary: str = ""
    context: bool = False
    per_user: bool = True
    larger_is_better: bool = True
    needs: tuple[Literal["features", "places"], ...] = ()


def _take_old_name(spec: EncoderSpec | DatasetSpec) -> None:
    if spec.licence is not None:
        warnings.warn("licence is now license; the next version drops the old name", DeprecationWarning, 4)
        object.__setattr__(spec, "license", spec.licence)


def resolve(target: Any) -> Any:
    """The object that a spec names: "module:attribute" is imported, anything else is returned as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
