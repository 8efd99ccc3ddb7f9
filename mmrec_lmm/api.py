"""Everything that a plugin author imports, and all that stays stable between versions.

Names are fetched on first use (PEP 562): a plugin that only registers specs imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .formatting import renamed

if TYPE_CHECKING:
    from .cache import home as home
    from .config.schema import LAYERS as LAYERS
    from .config.schema import RATE as RATE
    from .config.schema import SIZE as SIZE
    from .config.schema import WEIGHT as WEIGHT
    from .config.schema import Limit as Limit
    from .config.schema import above as above
    from .config.schema import at_least as at_least
    from .config.schema import between as between
    from .config.schema import each as each
    from .disk.hashing import hash_file as hash_file
    from .distributed import all_gather as all_gather
    from .distributed import common_generator as common_generator
    from .distributed import local_slice as local_slice
    from .downloads.fetching import offline as offline
    from .errors import ConfigError as ConfigError
    from .errors import ConfigValueError as ConfigValueError
    from .errors import DataError as DataError
    from .errors import MMRecError as MMRecError
    from .errors import NotApplicable as NotApplicable
    from .errors import PluginError as PluginError
    from .errors import WeightsMissing as WeightsMissing
    from .errors import did_you_mean as did_you_mean
    from .formatting import first_few as first_few
    from .formatting import first_line as first_line
    from .plugin.contracts import DotProduct as DotProduct
    from .plugin.contracts import ItemEncoder as ItemEncoder
    from .plugin.contracts import Paradigm as Paradigm
    from .plugin.contracts import ParameterFree as ParameterFree
    from .plugin.contracts import Recommender as Recommender
    from .plugin.contracts import Sampler as Sampler
    from .plugin.contracts import Scorer as Scorer
    from .plugin.contracts import TrainerCallback as TrainerCallback
    from .plugin.hookspecs import API_VERSION as API_VERSION
    from .plugin.hookspecs import hookimpl as hookimpl
    from .plugin.item_features import ItemFeatures as ItemFeatures
    from .plugin.item_features import distinct as distinct
    from .plugin.item_features import project as project
    from .plugin.specs import DatasetSpec as DatasetSpec
    from .plugin.specs import EncoderSpec as EncoderSpec
    from .plugin.specs import MetricSpec as MetricSpec
    from .plugin.specs import ModelSpec as ModelSpec
    from .plugin.specs import ParadigmSpec as ParadigmSpec
    from .plugin.specs import SamplerSpec as SamplerSpec
    from .plugin.specs import SplitSpec as SplitSpec
    from .plugin.specs import WeightFile as WeightFile
    from .training.optim import repeated_blocks as repeated_blocks
    from .typed_json import ADDED as ADDED
    from .typed_json import OPTIONAL as OPTIONAL
    from .types import Batch as Batch
    from .types import Dataset as Dataset
    from .types import EpochReport as EpochReport
    from .types import FeatureTable as FeatureTable
    from .types import Inputs as Inputs
    from .types import Interactions as Interactions
    from .types import ItemCatalog as ItemCatalog
    from .types import RankedLists as RankedLists
    from .types import RawItem as RawItem
    from .types import RunResult as RunResult
    from .types import RunSpec as RunSpec
    from .types import TrainingData as TrainingData
    from .types import Tuned as Tuned
    from .weights.download import find_weights as find_weights
    from .weights.download import given_weights as given_weights
    from .weights.formats import LoadReport as LoadReport
    from .weights.formats import check_numbers as check_numbers
    from .weights.formats import interpolate_positions as interpolate_positions
    from .weights.formats import load_state as load_state
    from .weights.formats import read_checkpoint as read_checkpoint

_HOME = {
    "cache": ("home",),
    "config.schema": ("LAYERS", "RATE", "SIZE", "WEIGHT", "Limit", "above", "at_least", "between", "each"),
    "weights.formats": ("LoadReport", "check_numbers", "interpolate_positions", "load_state", "read_checkpoint"),
    "plugin.contracts": (
        "DotProduct", "ItemEncoder", "ParameterFree", "Paradigm", "Recommender", "Sampler", "Scorer",
        "TrainerCallback",
    ),
    "errors": (
        "ConfigError", "ConfigValueError", "DataError", "MMRecError", "NotApplicable", "PluginError", "WeightsMissing",
        "did_you_mean",
    ),
    "formatting": ("first_few", "first_line"),
    "plugin.item_features": ("ItemFeatures", "distinct", "project"),
    "plugin.hookspecs": ("API_VERSION", "hookimpl"),
    "disk.hashing": ("hash_file",),
    "distributed": ("common_generator", "all_gather", "local_slice"),
    "plugin.specs": (
        "DatasetSpec", "EncoderSpec", "MetricSpec", "ModelSpec", "ParadigmSpec", "SamplerSpec", "SplitSpec",
        "WeightFile",
    ),
    "training.optim": ("repeated_blocks",),
    "typed_json": ("ADDED", "OPTIONAL"),
    "types": (
        "Batch", "Dataset", "EpochReport", "FeatureTable", "Inputs", "Interactions", "ItemCatalog", "RankedLists",
        "RawItem", "RunResult", "RunSpec", "TrainingData", "Tuned",
    ),
    "downloads.fetching": ("offline",),
    "weights.download": ("find_weights", "given_weights"),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


#: Old names, which the next version drops.
_RENAMED = {"gathered": "all_gather", "own_rows": "local_slice"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        return renamed(__name__, name, _RENAMED)
    if name not in _MODULE:
        raise AttributeError(f"mmrec_lmm.api has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_MODULE[name]}", __package__), name)


def __dir__() -> list[str]:
    return __all__
