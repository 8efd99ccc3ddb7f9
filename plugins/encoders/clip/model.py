"""CLIP's architectures, from open_clip, and their weights, which are read without executing code.

A variant is named as open_clip names it: an architecture (`ViT-L-14`) and a tag of published weights (`openai`). The
tag also says how images are prepared and whether the GELU is OpenAI's quick one, x sigmoid(1.702 x).
"""

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mmrec_lmm.api import (
    ConfigError,
    PluginError,
    WeightsMissing,
    did_you_mean,
    first_line,
    interpolate_positions,
    load_state,
    offline,
    read_checkpoint,
)

from ..words import SIZE, HashedWords, as_words
from . import NAME, ClipConfig
from .renaming import from_encoder, from_transformers, hidden_act, is_of_encoder, is_of_transformers

logger = logging.getLogger(f"mmrec_lmm.encoders.{NAME}")  # a child of the host's, whose handlers write the run's log

OPENAI = "ViT-B-16-quickgelu/openai"  # plain ViT-B-16 has the exact GELU: with OpenAI's weights, wrong features
CONTEXT = 77  # tokens of a text, start and end among them
TINY: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": SIZE, "width": 64, "layers": 3, "heads": 2},
    "quick_gelu": True,
}
SCALARS = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's archives hold besides their weights
_GELU = {True: "quick GELU", False: "exact GELU"}
_HALVED = ("visual.conv1.weight", "ln_final.weight")  # OpenAI's models have halves but for their norms
UNREAD = (*SCALARS, "*attn_mask", "*position_ids")  # constants, some of which were once saved with the weights


@dataclass(frozen=True)
class Architecture:
    """A variant in open_clip. `layers` is its configuration (`embed_dim`, `vision_cfg`, `text_cfg`), `weights` the
    description of its published weights: `hf_hub`, `mean`, `std`, `interpolation`, `resize_mode`."""

    name: str
    layers: Mapping[str, Any]
    weights: Mapping[str, Any]
    quick_gelu: bool


def architecture(variant: str) -> Architecture:
    """The architecture of a variant; ConfigError names what open_clip has instead.

    One without a tag has the preprocessing of the first weights that were published for it, and its own GELU; tiny has
    that of OpenAI.
    """
    zoo = _open_clip()
    tiny = variant == "tiny"
    name, _, tag = (OPENAI if tiny else variant or OPENAI).partition("/")
    layers, tags = zoo.get_model_config(name), zoo.list_pretrained_tags_by_model(name)
    if layers is None:
        raise ConfigError(
            f"encoder clip: open_clip has no architecture {name}{did_you_mean(name, zoo.list_models())}; "
            "open_clip.list_pretrained() gives all pairs for clip:ARCH/TAG"
        )
    if tag and not zoo.pretrained.is_pretrained_cfg(name, tag):
        raise ConfigError(
            f"encoder clip: open_clip has no weights {tag} of {name}{did_you_mean(tag, tags)}; "
            f"there are {', '.join(tags) or 'none'}, and any other file serves as clip:{name} --weights FILE"
        )
    weights = zoo.get_pretrained_cfg(name, tag or next(iter(tags), "")) or zoo.get_pretrained_cfg(*OPENAI.split("/"))
    if tiny:
        return Architecture("tiny", TINY, weights, quick_gelu=True)
    # The weights decide which GELU is right; open_clip only warns where the architecture has the other one
    quick_gelu = layers.get("quick_gelu", False) or bool(tag and weights.get("quick_gelu", False))
    return Architecture(name, layers, weights, quick_gelu)


def published_file(config: ClipConfig) -> Path:
    """The file of a tag's weights: in the folder that the user gives, or in huggingface_hub's cache, else downloaded.

    A cached file is used without asking the hub. Raises WeightsMissing.
    """
    found = architecture(config.variant)
    repository, _, name = found.weights["hf_hub"].rpartition("/")
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if name:
        names = (str(Path(name).with_suffix(".safetensors")), name)
    where = f"{' or '.join(names)} of https://huggingface.co/{repository}"
    if config.weights:
        folder = Path(config.weights)
        for name in names:
            if (folder / name).is_file():
                return folder / name
        missing = f"no {' or '.join(names)} in it" if folder.is_dir() else "no such file or folder"
        raise WeightsMissing(
            f"encoder clip: --weights {folder}: {missing}; give the checkpoint of clip:{config.variant}"
        )
    if "/" not in config.variant:
        tags = ", ".join(_open_clip().list_pretrained_tags_by_model(found.name)) or "none is published"
        raise ConfigError(
            f"encoder clip: {found.name} alone names no weights; name some as clip:{found.name}/TAG ({tags}), or give "
            "a file with --weights"
        )
    try:
        return _from_hub(repository, names)
    except Exception as error:  # huggingface_hub has many error classes without a common base
        why = str(error) if isinstance(error, WeightsMissing) else f"{type(error).__name__}: {first_line(error)}"
        raise WeightsMissing(
            f"encoder clip: the weights of {config.variant} are not here and can't be downloaded "
            f"({why}). They are {where}: get that file and give it with "
            "--weights PATH"
        ) from None


def _from_hub(repository: str, names: tuple[str, str]) -> Path:
    hub = importlib.import_module("huggingface_hub")
    for name in names:
        cached = hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    if variable := offline():
        raise WeightsMissing(f"{variable} is set")
    try:
        return Path(hub.hf_hub_download(repository, names[0]))
    except hub.errors.LocalEntryNotFoundError:  # the hub can't be reached: trying the other name would only wait again
        raise
    except hub.errors.EntryNotFoundError:
        return Path(hub.hf_hub_download(repository, names[1]))


def build(found: Architecture, config: ClipConfig, *, file: Path | None) -> Any:
    """open_clip's model (CLIP, CustomTextCLIP or CoCa), float32, filled from a checkpoint; random where there is none.

    Raises ConfigError for an image size that it can't take, DataError for a file that doesn't fit, WeightsMissing where
    its text tower's configuration is on the hub only.
    """
    model = _empty(found, config)
    if file is not None:
        state = read_checkpoint(file, ema=bool(config.weights_ema))
        _check_gelu(found, state, file)
        report = load_state(model, _arranged(model, state, file), source=file, drop=UNREAD)
        logger.info("%s: %s", file, report.summary())
    return model


def _check_gelu(found: Architecture, state: Mapping[str, Tensor], file: Path) -> None:
    """Log the GELU in use. ConfigError where the checkpoint is known to need the other one."""
    used = _GELU[found.quick_gelu]
    due, why = None, ""
    if set(SCALARS) <= state.keys():
        due, why = True, "one of OpenAI's archives"
    elif is_of_transformers(state) and (named := hidden_act(file)) is not None:
        due, why = named == "quick_gelu", f"one whose config.json says {named}"
    if due not in (None, found.quick_gelu):
        bare = found.name.removesuffix("-quickgelu")
        other = f"{bare}-quickgelu" if due else bare
        cure = f"; try clip:{other}" if other != found.name else ""
        raise ConfigError(
            f"{file}: expected weights with the {used} for {found.name}, got {why}, which needs the {_GELU[due]}{cure}"
        )
    logger.info("%s: computed with the %s%s", file, used, "" if due is None else ", as its weights need")
    halves = [state[name].dtype for name in _HALVED if name in state]
    if due is None and not found.quick_gelu and len(set(halves)) == 2:
        logger.warning(
            "%s: half of its weights are halves, as OpenAI's are, which need the quick GELU; it is computed with the "
            "%s: if they come from OpenAI, take clip:%s-quickgelu",
            file, used, found.name,
        )  # fmt: skip


def tokenizer(found: Architecture) -> Any:
    """The architecture's tokenizer: from a text to ids (1, T); tiny's returns a list of ids, not padded.

    OpenAI's is part of open_clip; transformers downloads SigLIP's and others. Raises WeightsMissing.
    """
    if found.name == "tiny":
        return HashedWords(start=SIZE - 2, end=SIZE - 1, first=1, last=SIZE - 3, max_tokens=CONTEXT)
    try:
        with _quiet():
            made = _open_clip().get_tokenizer(found.name)
    except (OSError, ValueError, ImportError) as error:
        raise _hub_needed(found, "tokenizer", found.layers["text_cfg"].get("hf_tokenizer_name"), error) from None
    own = hasattr(made, "all_special_ids")  # OpenAI's; the others wrap one of transformers
    special = [made.decoder[token] for token in made.all_special_ids] if own else made.tokenizer.all_special_tokens
    made.clean_fn = partial(_cleaned, made.clean_fn, tuple(special))
    return made


def _cleaned(clean: Callable[[str], str], special: Sequence[str], text: str) -> str:
    """The text as `clean` makes it, which may bring a special token to light: "&lt;" is "<" then."""
    return as_words(clean(text), special)


def fetch_text_side(config: ClipConfig) -> None:
    """Have in huggingface_hub's cache what the text side of an architecture needs. Raises WeightsMissing."""
    found = architecture(config.variant)
    tokenizer(found)
    if name := found.layers["text_cfg"].get("hf_model_name"):
        try:
            importlib.import_module("transformers").AutoConfig.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
            raise _hub_needed(found, "text tower", name, error) from None


def _empty(found: Architecture, config: ClipConfig) -> Any:
    """The model with random weights."""
    zoo, vision = _open_clip(), found.layers["vision_cfg"]
    side = vision["image_size"] if config.image_size is None else config.image_size
    if side != vision["image_size"]:
        if "timm_model_name" in vision or not isinstance(vision["layers"], int):
            raise ConfigError(
                f"encoder clip: image_size: the image tower of {found.name} takes {vision['image_size']} pixels only; "
                "leave the key out"
            )
        if side % vision["patch_size"]:
            raise ConfigError(
                f"encoder clip: image_size must be a multiple of {found.name}'s patches of {vision['patch_size']} "
                f"pixels, got {side}"
            )
    if found.name == "tiny":
        return zoo.CLIP(**{**TINY, "vision_cfg": {**vision, "image_size": side}})
    try:
        with _quiet():
            return zoo.create_model(
                found.name,
                force_image_size=config.image_size,
                force_quick_gelu=found.quick_gelu,
                pretrained_text=False,  # the checkpoint has the text tower too
            )
    except (OSError, ValueError) as error:
        name = found.layers["text_cfg"].get("hf_model_name")
        if not name:
            raise
        raise _hub_needed(found, "text tower", name, error) from None


def _arranged(model: Any, state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """A checkpoint with the model's names and shapes; checkpoints were published in several layouts."""
    zoo = _open_clip()
    if is_of_encoder(state):
        state = from_encoder(state, custom_text=not hasattr(model, "text_projection"))
    if is_of_transformers(state):
        state = from_transformers(state, file)
    state = zoo.factory.convert_state_dict(model, state)  # Apple's names
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = zoo.factory.convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # () in some files, (1,) in others
        if name in state and getattr(model, name, None) is not None and state[name].numel() == 1:
            state[name] = state[name].reshape(getattr(model, name).shape)
    positions = "visual.positional_embedding"
    table, grid = state.get(positions), getattr(model.visual, "grid_size", None)
    if table is not None and table.ndim == 2 and grid is not None:
        state[positions] = interpolate_positions(table, grid[0], prefix=1, source=f"{file}: {positions}")
    return state


def _hub_needed(found: Architecture, what: str, repository: str | None, error: Exception) -> WeightsMissing:
    return WeightsMissing(
        f"encoder clip: the {what} of {found.name} is described at https://huggingface.co/{repository}, which is "
        f"neither in huggingface_hub's cache nor can be fetched ({type(error).__name__}: {first_line(error)}); run "
        f"`hf download {repository}` where there is a network and bring its cache here (HF_HOME names the place), or "
        "take an architecture with OpenAI's text tower, such as ViT-B-16"
    )


def _open_clip() -> Any:
    try:
        return importlib.import_module("open_clip")  # seconds, as it brings timm and torchvision
    except Exception as error:  # a torchvision that was built for another torch raises RuntimeError
        raise PluginError(
            f"encoder clip: expected open_clip, got {type(error).__name__}: {first_line(error)}; "
            "try pip install 'mmrec-lmm[clip]'"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip, which logs to the root logger: its first line would install a handler that repeats the host's
    log, and it warns of random weights just before they are filled."""
    root, nothing = logging.getLogger(), logging.NullHandler()
    root.addHandler(nothing)
    root.addFilter(_reject)
    try:
        yield
    finally:
        root.removeFilter(_reject)
        root.removeHandler(nothing)


def _reject(record: logging.LogRecord) -> bool:
    return False
