"""clip:ARCH: one small member of each family of open_clip, with random weights, through the encoder."""

import importlib
from typing import Any

import pytest
import torch
from PIL import Image

from mmrec_lmm.data.items import pad_and_stack
from mmrec_lmm.errors import WeightsMissing
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.types import RawItem

pytestmark = pytest.mark.slow

#: The smallest member of each family, and the modalities that need files of the hub beside the weights.
FAMILIES = {
    "RN50": (), "ViT-S-32": (), "ViT-S-32-alt": (), "ViT-B-16-plus-240": (), "ViT-B-32-quickgelu": (),
    "convnext_tiny": (), "swin_base_patch4_window7_224": (), "vit_medium_patch16_gap_256": (),
    "vit_relpos_medium_patch16_cls_224": (), "coca_ViT-B-32": (), "EVA02-B-16": (), "ViTamin-S": (),
    "MobileCLIP-S1": (), "MobileCLIP2-S0": (), "PE-Core-T-16-384": (), "ViT-L-14-CLIPA": ("text",),
    "ViT-B-16-SigLIP": ("text",), "ViT-B-32-SigLIP2-256": ("text",),
    "roberta-ViT-B-32": ("image", "text"), "xlm-roberta-base-ViT-B-32": ("image", "text"),
    "mt5-base-ViT-B-32": ("image", "text"), "nllb-clip-base": ("image", "text"),
    "coca_roberta-ViT-B-32": ("image", "text"),
}  # fmt: skip
ITEMS = [RawItem(0, Image.new("RGB", (40, 30), "red"), "a red box"), RawItem(1, Image.new("RGB", (8, 90)), "towers")]


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_family_encodes_with_random_weights(name: str, modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    spec = load_registry().encoders.get("clip")
    encoder_class: Any = resolve(spec.cls)
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(importlib.import_module(encoder_class.__module__), "checkpoint", lambda config: None)
    torch.manual_seed(0)
    if modality in FAMILIES[name]:
        with pytest.raises(WeightsMissing, match="neither in huggingface_hub's cache nor can be fetched"):
            encoder_class(spec.config(variant=name), (modality,))
        return
    encoder = encoder_class(spec.config(variant=name), (modality,)).eval()
    rows = encoder(pad_and_stack([encoder.prepare(item) for item in ITEMS], padding={}, encoder=name))[modality]
    assert rows.shape == (2, encoder.dims[modality])
    assert rows.isfinite().all()
    assert not torch.equal(rows[0], rows[1])
