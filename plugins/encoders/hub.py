"""Models of the Hugging Face hub, for the encoders that take any: which folder has one, and what in it decides vectors.

A model is named as its users name it: `NAME`, `NAME@REVISION`, or a folder. Nothing here imports torch, and nothing in
a folder is executed.
"""

import hashlib
import importlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mmrec_lmm.api import (
    ConfigValueError,
    DataError,
    PluginError,
    WeightsMissing,
    first_few,
    first_line,
    hash_file,
    home,
    offline,
)

TINY = "tiny"
NO_LIMIT = 1_000_000  # tokens; tokenizers without a limit of their own name a number beyond
_LONGEST = 200  # characters of a name; the hub's end at 96, without a revision
_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(@[\w][\w./-]*)?")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that a folder has is read; either may be in parts
_SETTINGS = (
    ".json",
    ".txt",
    ".model",
    ".spm",
    ".bpe",
    ".vocab",
    ".jinja",
    ".tiktoken",
)
_STRAY = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", "requirements.txt")
_ANY_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, in the name of a parameter
_FEWEST_TOKENS = 3  # a word between its start and its end
_COUNTS_FROM_PADDING = re.compile("roberta|camembert|mpnet")  # positions begin after the padding's
_JSON = {
    dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value",
    type(None): "null",
}  # fmt: skip
_FIRST = ("config.json", "modules.json")  # each model has one of them at least
_ADAPTER = "adapter_config.json"


class Config(Protocol):
    """The part of an encoder's configuration that chooses a model."""

    @property
    def variant(self) -> str: ...

    @property
    def weights(self) -> str: ...


def check_names(config: Config) -> None:
    """Raise ConfigValueError unless the variant may be a model of the hub or a folder."""
    variant = config.variant
    if variant == TINY and config.weights:
        raise ConfigValueError("weights", f"of {TINY} are random, so weights must be empty, got {config.weights}")
    named = len(variant) <= _LONGEST and _NAME.fullmatch(variant) and ".." not in variant
    if not (named or _is_path(variant) or (variant and os.path.isdir(variant))):
        raise ConfigValueError(
            "variant",
            "must be a model of the hub as NAME or NAME@REVISION (google/siglip2-base-patch16-224), a folder, or "
            f"{TINY}; got {variant[:_LONGEST]!r}",
        )


def model_folder(config: Config, *, encoder: str, packaged: Mapping[str, str] | None = None) -> Path:
    """The folder of a configuration's model, downloaded if need be and if possible.

    It is `--weights FOLDER`; or the variant, if that is a folder; `<home>/weights/<encoder>/<NAME>`; the folder of a
    Python package (`packaged`: its module by the model's name, with a constant MODEL_DIR); huggingface_hub's cache; or
    else a download into that. A copy in the cache is used without asking the hub. Raises WeightsMissing, which says
    what to get and where to put it, and DataError for a model that is there in part.
    """
    variant = config.variant
    if config.weights or _is_path(variant):
        folder = Path(config.weights or variant).expanduser()
        if os.path.isdir(folder):  # False, not an error, for a name that no file system takes
            return folder
        flag = f"--weights {config.weights}" if config.weights else variant
        raise WeightsMissing(f"encoder {encoder}: {flag}: expected the folder of a model, got no folder")
    if os.path.isdir(variant):
        return Path(variant)
    placed = home() / "weights" / encoder / variant
    if os.path.isdir(placed):
        return placed
    if packaged and variant in packaged:
        with suppress(ImportError):
            return Path(importlib.import_module(packaged[variant]).MODEL_DIR)
    return _from_hub(variant, placed, encoder)


def deciding_files(folder: Path, parts: Iterable[str] = ("",)) -> list[Path]:
    """The files that decide a model's vectors: weights, configurations, vocabularies, templates.

    `parts` are the folders in it that hold some; other folders, such as checkpoints of its training, don't count.
    """
    found = []
    for part in dict.fromkeys(parts):
        place = folder / part
        names = sorted(path.name for path in place.iterdir() if path.is_file()) if place.is_dir() else []
        found += [place / name for name in _deciding(names)]
    return found


def content_id(folder: Path, files: Iterable[Path]) -> str:
    """A hash of the names and contents of the files."""
    lines = [f"{file.relative_to(folder)} {hash_file(file)}\n" for file in files]
    return f"{len(lines)} files {hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def check_weights(files: Iterable[Path], *, encoder: str) -> None:
    """Raise DataError for weights that are damaged, incomplete, or hold more than data. Libraries may load them then.

    A file of a pickle is read twice for it: what a library would execute must not reach it.
    """
    from mmrec_lmm.api import read_checkpoint  # imports torch

    for file in files:
        if file.name == _ADAPTER:
            raise DataError(
                f"encoder {encoder}: {file}: expected a whole model, got an adapter to another; merge the two "
                "(merge_and_unload of peft) and name the folder of the result"
            )
        if file.suffix in (".safetensors", ".bin"):
            read_checkpoint(file)
        elif file.name.endswith(".index.json"):
            lacking = sorted({part for part in _shards(file) if not (file.parent / part).is_file()})
            if lacking:
                raise DataError(f"{file}: expected the parts that it names, but {first_few(lacking)} are missing")


def check_report(folder: Path, network: Any, report: Mapping[str, Any], *, unused: Collection[str] = ()) -> None:
    """Raise DataError where weights don't fit their config.json, by what transformers reports of loading a network: it
    would go on with random numbers, or with fewer layers. Parameters that are `unused` may be missing."""
    own = {_ANY_NUMBER.sub("#", name) for name in network.state_dict()}
    misshapen = [
        f"{name}: expected {tuple(expected)}, got {tuple(got)}" for name, got, expected in report["mismatched_keys"]
    ]
    missing = {*report["missing_keys"]} - {*unused}
    layers = [name for name in report["unexpected_keys"] if _ANY_NUMBER.sub("#", name) in own]
    problems = [
        f"{kind}: {len(names)} ({first_few(sorted(names))})"
        for kind, names in (("wrong shapes", misshapen), ("missing keys", missing), ("unexpected keys", layers))
        if names
    ]
    if problems:
        raise DataError(
            f"{folder}: doesn't fit {type(network).__name__}: {', '.join(problems)}; are config.json and the weights "
            "those of one model? Get both again"
        )


def cannot_load(folder: Path, error: Exception, files: Iterable[Path]) -> DataError:
    """The error where a library can't load a model: it names the first of its `files` that should be JSON and isn't."""
    for file in files:
        if file.suffix == ".json":
            try:
                _read_json(file)
            except DataError as damaged:
                return damaged
    if "trust_remote_code" in str(error) or read_object(folder / "config.json").get("auto_map"):
        return DataError(
            f"{folder}: expected a model of a class that the library has, got one that needs code of its own: that is "
            "never executed; choose another model"
        )
    reason = first_line(error).partition(" If you were trying to load it")[0]
    return DataError(f"{folder}: can't be loaded ({type(error).__name__}: {reason}); is a file damaged?")


def check_token_ids(folder: Path, ids: Any, settings: Any) -> None:
    """Raise DataError where a text's tokens (numbers) are beyond the vocabulary of a model with these settings."""
    n_tokens = getattr(getattr(settings, "text_config", settings), "vocab_size", None)
    if n_tokens and len(ids) and (largest := int(max(ids))) >= n_tokens:
        raise DataError(
            f"{folder}: expected tokens from 0 to {n_tokens - 1} (vocab_size in config.json), got {largest}; is its "
            "tokenizer that of another model?"
        )


def cannot_tokenize(folder: Path, error: Exception) -> DataError:
    """The error where a tokenizer fails on a text."""
    return DataError(
        f"{folder}: its tokenizer can't read a text ({type(error).__name__}: {first_line(error)}); is it that of "
        "another model?"
    )


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; {} without the file. Raises DataError."""
    content = _read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a JSON object, got {_JSON[type(content)]}; get the file again")
    return content


def read_list(file: Path) -> list[Any]:
    """The JSON list in a file; [] without the file. Raises DataError."""
    content = _read_json(file) if file.is_file() else []
    if not isinstance(content, list):
        raise DataError(f"{file}: expected a JSON list, got {_JSON[type(content)]}; get the file again")
    return content


def token_limit(settings: Any, *others: float | None) -> int:
    """The most tokens that a model of transformers with these settings reads, and its tokenizer, by `others`; NO_LIMIT
    where nothing bounds it. Raises DataError for what can't be a number of tokens."""
    for limit in others:
        if limit and not (isinstance(limit, int | float) and limit >= _FEWEST_TOKENS):
            raise DataError(
                f"{getattr(settings, 'name_or_path', '')}: model_max_length: expected {_FEWEST_TOKENS} tokens or more, "
                f"got {limit!r}; mend tokenizer_config.json, or get it again"
            )
    text = getattr(settings, "text_config", settings)
    positions = getattr(text, "max_position_embeddings", None)
    if positions and _COUNTS_FROM_PADDING.search(getattr(text, "model_type", "")):
        positions -= 2  # its first two are never read
    return int(min([*(each for each in (positions, *others) if each), NO_LIMIT]))


def library(name: str, *, encoder: str, extra: str) -> Any:
    """A library, imported now: seconds, and not everyone has it. Raises PluginError with the cure."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library that was built for another torch raises RuntimeError
        raise PluginError(
            f"encoder {encoder}: expected {name}, got {type(error).__name__}: {first_line(error)}; "
            f"try pip install 'mmrec-lmm[{extra}]'"
        ) from None


def quiet_transformers() -> None:
    """No bars and no lines below a warning from transformers: the host has its own."""
    logs = importlib.import_module("transformers.utils.logging")
    logs.disable_progress_bar()
    logs.set_verbosity_error()


def _is_path(variant: str) -> bool:
    return variant.startswith(("/", "./", "../", "~")) or variant in (".", "..")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file}: expected JSON, got {type(error).__name__}: {first_line(error)}; get the file again"
        ) from None


def _deciding(names: Iterable[str]) -> list[str]:
    """Of the names of the files in one folder those that decide vectors."""
    names = [*names]
    settings = [name for name in names if name.endswith(_SETTINGS) and name not in _STRAY]
    for whole in _WEIGHTS:
        stem, _, suffix = whole.partition(".")
        parts = re.compile(rf"{stem}(-\d+-of-\d+)?\.{suffix}")
        if weights := [name for name in names if parts.fullmatch(name)]:
            if whole in weights:  # beside it, parts aren't read
                weights = [whole]
            others = {f"{each}.index.json" for each in _WEIGHTS} - {f"{whole}.index.json"}
            return sorted({*settings, *weights} - others)
    return settings


def _shards(index: Path) -> Iterator[str]:
    parts = read_object(index).get("weight_map")
    if not isinstance(parts, dict):
        raise DataError(f"{index}: expected a weight_map of names to files")
    for part in parts.values():
        if not isinstance(part, str) or Path(part).name != part:
            raise DataError(f"{index}: expected names of files beside it, got {part!r}")
        yield part


def _from_hub(variant: str, placed: Path, encoder: str) -> Path:
    name, _, revision = variant.partition("@")
    hub = library("huggingface_hub", encoder=encoder, extra=encoder)
    looked_for = (hub.try_to_load_from_cache(name, file, revision=revision or None) for file in _FIRST)
    cached = next((Path(path).parent for path in looked_for if isinstance(path, str)), None)
    if cached is None or not _is_complete(cached):
        cached = _downloaded(hub, name, revision, placed, encoder)
    if not revision:
        _note_revision(cached.name, name, placed, encoder)
    return cached


def _downloaded(hub: Any, name: str, revision: str, placed: Path, encoder: str) -> Path:
    try:
        if variable := offline():
            raise WeightsMissing(f"{variable} is set")
        about = hub.HfApi().model_info(name, revision=revision or None)
        there: dict[str, list[str]] = {}
        for each in about.siblings:
            folder, _, file = each.rfilename.rpartition("/")
            there.setdefault(folder, []).append(file)
        wanted = [f"{folder}/{file}".lstrip("/") for folder in there for file in _deciding(there[folder])]
        wanted = [file for file in wanted if not {"onnx", "openvino"} & {*file.split("/")}]
        settings = [file for file in wanted if file.endswith(_SETTINGS)]
        hub.snapshot_download(name, revision=about.sha, allow_patterns=settings)
        # Weights come last: a copy in the cache that has them has all, though the download was killed
        return Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # no network, no such model, no room: it has many error classes for these
        at = f"tree/{revision or 'main'}"
        why = str(error) if isinstance(error, WeightsMissing) else f"{type(error).__name__}: {first_line(error)}"
        raise WeightsMissing(
            f"encoder {encoder}: the model {name}{f' at {revision}' if revision else ''} is not here and can't be "
            f"downloaded ({why}). Its files are at "
            f"{hub.constants.ENDPOINT}/{name}/{at}: put them into {placed}, or name a folder that has them, as "
            f"{encoder}:FOLDER or by --weights FOLDER. `mmrec-lmm weights get {encoder}:{name}{revision and '@'}"
            f"{revision}` fetches them where there is a network"
        ) from None


def _is_complete(snapshot: Path) -> bool:
    """True if a copy in the cache has weights and all of their parts: downloads may have been cut, or partial."""
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    indexes = [path for path in files if path.name.endswith(".index.json")]
    with suppress(DataError):
        whole = all((index.parent / part).is_file() for index in indexes for part in _shards(index))
        return whole and any(path.suffix in (".safetensors", ".bin") for path in files)
    return False


def _note_revision(revision: str, name: str, placed: Path, encoder: str) -> None:
    """Warn once if a model named without revision isn't that of last time: features get another name."""
    record = placed.with_name(f"{placed.name}.revision")
    before = ""
    with suppress(OSError, UnicodeDecodeError):
        before = record.read_text(encoding="ascii").strip()
    if before == revision:
        return
    if before:
        logging.getLogger(f"mmrec_lmm.encoders.{encoder}").warning(
            "%s is at revision %s here, and was at %s: its features are made again, under another name; %s:%s@%s is "
            "the model of before, and stays it",
            name, revision, before, encoder, name, before,
        )  # fmt: skip
    with suppress(OSError):  # a home that can't be written to
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"{revision}\n", encoding="ascii")
