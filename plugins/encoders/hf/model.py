"""A model of transformers: which of its classes a folder holds, what it encodes, and loading it."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrec_lmm.api import ConfigError, DataError, check_numbers, first_few

from ..hub import (
    cannot_load,
    check_report,
    check_weights,
    content_id,
    deciding_files,
    library,
    model_folder,
    quiet_transformers,
    read_object,
)
from . import NAME, HfConfig

logger = logging.getLogger(f"mmrec_lmm.encoders.{NAME}")  # a child of the host's, whose handlers write the run's log

METHODS = {"image": "get_image_features", "text": "get_text_features"}
#: Ends of the names of classes that are one tower of such a model, by what the tower encodes.
TOWERS = {
    "image": ("VisionModelWithProjection", "VisionModel"),
    "text": ("TextModelWithProjection", "TextModel"),
}
WEIGHTS = (".safetensors", ".bin")
#: Files of which a folder has at least one if it can prepare a modality.
PREPARING = {
    "image": ("preprocessor_config.json", "processor_config.json"),
    "text": ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model"),
}


@dataclass(frozen=True)
class Found:
    """A folder with a model of class `kind` in transformers; `lacking` says why it doesn't encode a modality."""

    folder: Path
    kind: Any
    lacking: Mapping[str, str]

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(modality for modality in METHODS if modality not in self.lacking)


def found(config: HfConfig) -> Found:
    """The model that a configuration names. Raises WeightsMissing, and DataError where it gives no features."""
    return described(model_folder(config, encoder=NAME))


def described(folder: Path) -> Found:
    """The model in a folder, by its config.json; no weights are read."""
    about = read_object(folder / "config.json")
    if not about:
        got = "an empty config.json" if (folder / "config.json").is_file() else "no config.json"
        raise DataError(f"{folder}: expected a model of transformers, got {got}; name the folder that has one")
    kind = _class_of(about, folder)
    lacking = {}
    for modality in METHODS:
        if not encodes(kind, modality):
            lacking[modality] = f"{kind.__name__} has none"
        elif not any((folder / name).is_file() for name in PREPARING[modality]):
            lacking[modality] = f"{folder} has no {' or '.join(PREPARING[modality][:2])}"
    if len(lacking) == len(METHODS):
        whys = ", ".join(f"{modality}: {why}" for modality, why in lacking.items())
        raise DataError(
            f"encoder {NAME}: {folder}: expected a model with image or text features, got none ({whys}); for a model "
            "of texts, or one in the layout of sentence-transformers, try st:"
        )
    return Found(folder, kind, lacking)


def encodes(kind: Any, modality: str) -> bool:
    """True if a class gives one vector for an image or a text: by its method, or as it is a tower alone."""
    if hasattr(kind, METHODS[modality]):
        return True
    if any(hasattr(kind, method) for method in METHODS.values()):
        return False
    if kind.__name__.endswith(TOWERS[modality]):
        return True
    return modality == "image" and kind.main_input_name == "pixel_values"  # of images alone, such as DINOv2


def identity(config: HfConfig, modality: str) -> str:
    """The hash of all files that decide vectors; ConfigError if the model doesn't encode `modality`."""
    model = found(config)
    if modality in model.lacking:
        raise ConfigError(
            f"encoder {NAME}:{config.variant}: expected a model with {modality} features, got one without "
            f"({model.lacking[modality]}); try --modalities {','.join(model.modalities)}"
        )
    return content_id(model.folder, deciding_files(model.folder))


def load(model: Found) -> Any:
    """The model with its weights, float32, in eval mode. Raises DataError where they don't fit or are missing."""
    folder = model.folder
    files = deciding_files(folder)
    if not any(file.suffix in WEIGHTS for file in files):
        others = sorted(
            f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir() if path not in files
        )
        raise DataError(
            f"{folder}: expected the weights of a model, model.safetensors or pytorch_model.bin, got "
            f"{first_few(others) or 'none'}; put them there"
        )
    check_weights(files, encoder=NAME)
    quiet_transformers()
    safe = any(file.suffix == ".safetensors" for file in files)
    how = {"local_files_only": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}  # reported, refused
    try:
        network, report = model.kind.from_pretrained(folder, use_safetensors=safe, output_loading_info=True, **how)
    except Exception as error:  # what a wrong file raises depends on what is wrong
        raise cannot_load(folder, error, files) from None
    check_report(folder, network, report)
    check_numbers(dict(network.named_parameters()), source=folder)
    logger.info("%s: %s, %s", folder, model.kind.__name__, " and ".join(model.modalities))
    return network.float().eval()


def load_processor(folder: Path, modality: str) -> tuple[Any, Mapping[str, Any]]:
    """What prepares images or texts for a model, and the processor's own settings for texts. Raises DataError."""
    auto = _transformers()
    if modality == "image":
        library("torchvision", encoder=NAME, extra=NAME)  # transformers resizes otherwise without, and differently
    flags = {"local_files_only": True, "trust_remote_code": False}
    try:
        both = auto.AutoProcessor.from_pretrained(folder, **flags)
    except Exception:  # the folder has the one part alone, or the model has no class for both
        both = None
    if both is not None and hasattr(both, "tokenizer") and hasattr(both, "image_processor"):
        return (both.image_processor, {}) if modality == "image" else (both.tokenizer, _text_settings(both))
    one = auto.AutoImageProcessor if modality == "image" else auto.AutoTokenizer
    try:
        return one.from_pretrained(folder, **flags), {}
    except Exception as error:
        raise cannot_load(folder, error, deciding_files(folder)) from None


def _text_settings(processor: Any) -> Mapping[str, Any]:
    """The settings with which a processor's class prepares texts by default."""
    kind = type(processor)
    if hasattr(kind, "text_kwargs"):
        return kind.text_kwargs
    older = getattr(sys.modules[kind.__module__], f"{kind.__name__}Kwargs", None)
    return getattr(older, "_defaults", {}).get("text_kwargs", {})


def _class_of(about: Mapping[str, Any], folder: Path) -> Any:
    """The class that has a model's features: the one that saved it, or the bare one of its type."""
    auto, kind = _transformers(), about.get("model_type")
    if not isinstance(kind, str):
        raise DataError(
            f"{folder / 'config.json'}: model_type: expected the name of a type, got {kind!r}; get the file again"
        )
    listed = about.get("architectures") or []
    saved = [name for name in (listed if isinstance(listed, list) else [listed]) if isinstance(name, str)]
    names = dict(auto.models.auto.modeling_auto.MODEL_MAPPING_NAMES)
    bare = names.get(kind)
    candidates = [*saved, *([bare] if isinstance(bare, str) else bare or ())]
    known = []
    for name in candidates:
        one = getattr(auto, name, None) if name.isidentifier() else None
        if isinstance(one, type) and issubclass(one, auto.PreTrainedModel):
            known.append(one)
    if not known:
        code = ": it needs code of its own, which is never executed" if about.get("auto_map") else ""
        raise DataError(
            f"{folder / 'config.json'}: expected a model of a class that transformers {auto.__version__} has, got "
            f"model_type {kind}, architectures {first_few(saved) or 'none'}{code}"
        )
    return next((one for one in known if any(encodes(one, modality) for modality in METHODS)), known[0])


def _transformers() -> Any:
    return library("transformers", encoder=NAME, extra=NAME)
