"""What EfficientNet-Lite0 sees on a catalog's first images, by `cnn_sbert:lite`'s weights and preprocessing.

    python -m benchmarks.posters_top -d ml100k --data-path DIR

Prints a table of the most probable class of ImageNet-1k for each image. With efficientnet-lite-pytorch installed, which
converted the weights, also the largest difference of its pooled features and logits from ours, on the same pixels.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.images import read_image
from mmrec_lmm.data.opening import open_dataset
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.types import RawItem
from mmrec_lmm.weights.formats import read_checkpoint

COMPANION = "efficientnet_lite_pytorch"


class Lite(nn.Module):
    """The CNN of `cnn_sbert:lite` with the last layer of its weights, which the encoder leaves out."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        config = resolve(spec.config)(variant="lite")
        self.encoder: Any = resolve(spec.cls)(config, ("image",)).eval()
        self.state = read_checkpoint(sys.modules[type(config).__module__].cnn_path(config))
        self.classifier = nn.Linear(1280, 1000)
        self.classifier.load_state_dict({name: self.state[f"_fc.{name}"] for name in ("weight", "bias")})

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (B, 1280) and logits (B, 1000) of bytes (B, 3, S, S)."""
        pooled = self.encoder({"pixels": pixels})["image"]
        return pooled, self.classifier(pooled)


def theirs(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the converter's own class, on normalized `images` (B, 3, 224, 224)."""
    network: Any = importlib.import_module(COMPANION).EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(state)
    network.eval()
    return network.extract_features(images).mean((2, 3)), network(images)


def class_name(index: int) -> str:
    return importlib.import_module("timm.data").ImageNetInfo().index_to_description(index).partition(",")[0]


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", default="ml100k")
    parser.add_argument("--data-path", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, default=10, help="how many (default: %(default)s)")
    options = parser.parse_args(arguments)
    registry = load_registry()
    catalog = open_dataset(options.dataset, Settings(data_path=str(options.data_path)), registry).catalog
    assert catalog is not None
    items = [item for item, path in enumerate(catalog.images) if path is not None][: options.images]
    lite = Lite(registry.encoders.get("cnn_sbert"))
    images = [read_image(path) for item in items if (path := catalog.images[item]) is not None]
    pixels = torch.stack([lite.encoder.prepare(RawItem(0, image, ""))["pixels"] for image in images])
    pooled, logits = lite(pixels)
    titles = catalog.fields.get("title", catalog.raw_ids)
    print("| image | class | probability |\n|---|---|---:|")
    for item, shares in zip(items, logits.softmax(1), strict=True):
        best = int(shares.argmax())
        print(f"| {titles[item]} | {class_name(best)} ({best}) | {shares[best]:.2f} |")
    if importlib.util.find_spec(COMPANION):
        own = theirs(lite.state, lite.encoder.cnn.normalize(pixels))
        largest = [float((one - other).abs().max()) for one, other in zip((pooled, logits), own, strict=True)]
        print(f"\nlargest difference from {COMPANION}: {largest[0]:.1e} of features, {largest[1]:.1e} of logits")


if __name__ == "__main__":
    main()
