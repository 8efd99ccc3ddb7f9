"""CLIP: the original's figures at full size, open_clip's own preprocessing and losses, checkpoints, other variants."""

import dataclasses
import importlib
import logging
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from golden import filled, uniform
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import ConfigError, DataError, WeightsMissing
from mmrec_lmm.losses import sigmoid_loss
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.types import RawItem

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:Detected pickle protocol")

SPEC: EncoderSpec = load_registry().encoders.get("clip")
Encoder, Config = resolve(SPEC.cls), resolve(SPEC.config)
SCALARS = {"input_resolution": 64, "context_length": 77, "vocab_size": 4096}  # of OpenAI's archives
ODD_SIZES = [(224, 224), (225, 224), (301, 97), (97, 301), (50, 37), (1, 1), (3, 190), (1000, 700), (223, 449)]
ITEMS = [
    RawItem(0, Image.new("RGB", (40, 30), "red"), "a red box"),
    RawItem(1, Image.new("RGB", (8, 90), "blue"), "a tall blue tower with a very long name indeed"),
    RawItem(2, Image.new("RGB", (64, 64), "green"), "grass"),
]


def module(name: str) -> ModuleType:
    """A file of the plugin, reached as the registry reaches it."""
    return importlib.import_module(f"{Encoder.__module__.rpartition('.')[0]}.{name}")


model_py = module("model")
pixels_py = importlib.import_module(f"{Encoder.__module__.rsplit('.', 2)[0]}.pixels")


def build(*modalities: str, **config: Any) -> Any:
    """A tiny encoder in eval mode, of the same random weights each time."""
    torch.manual_seed(0)
    return Encoder(Config(**{"variant": "tiny"} | config), modalities or SPEC.modalities).eval()


def batch_of(encoder: Any, items: list[RawItem] = ITEMS) -> dict[str, Tensor]:
    prepared = [encoder.prepare(item) for item in items]
    return {name: torch.stack([each[name] for each in prepared]) for name in prepared[0]}


@torch.no_grad()
def encode(encoder: Any, items: list[RawItem] = ITEMS) -> dict[str, Tensor]:
    rows: dict[str, Tensor] = encoder(batch_of(encoder, items))
    return rows


def official(
    *, embed: int, image: tuple[int, int, int], text: tuple[int, int, int], patches: int
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of OpenAI's checkpoints (encoders.md, section 1); a tower is (layers, width, vocabulary or
    patch size)."""

    def tower(prefix: str, layers: int, width: int) -> dict[str, tuple[int, ...]]:
        block: dict[str, tuple[int, ...]] = {
            "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
            "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
        }  # fmt: skip
        return {f"{prefix}resblocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}

    (image_layers, wide, patch), (text_layers, width, vocabulary) = image, text
    return {
        "positional_embedding": (77, width),
        "text_projection": (width, embed),
        "logit_scale": (),
        "token_embedding.weight": (vocabulary, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "visual.class_embedding": (wide,),
        "visual.positional_embedding": (patches + 1, wide),
        "visual.proj": (wide, embed),
        "visual.conv1.weight": (wide, 3, patch, patch),
        **{f"visual.ln_{where}.{leaf}": (wide,) for where in ("pre", "post") for leaf in ("weight", "bias")},
        **tower("visual.transformer.", image_layers, wide),
        **tower("transformer.", text_layers, width),
    }


FULL = official(embed=512, image=(12, 768, 16), text=(12, 512, 49408), patches=14 * 14)
TINY = official(embed=64, image=(3, 64, 16), text=(3, 64, 4096), patches=4 * 4)


def golden_state(layout: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights by the rule of encoders.md, section 8."""
    state = {}
    for name, shape in layout.items():
        state[name] = filled(name, torch.Size(shape))
        if "ln_" in name and name.endswith(".weight"):
            state[name] = 1 + state[name]
    return state | {"logit_scale": torch.tensor(math.log(1 / 0.07))}


def archive(state: Mapping[str, Tensor], path: Path) -> Path:
    """A TorchScript archive in half precision with OpenAI's three scalars, of a module that has just these tensors."""
    root = Node()
    for name, tensor in {**state, **{name: torch.tensor(value) for name, value in SCALARS.items()}}.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, Node())
            node = getattr(node, parent)
        half = tensor.half() if tensor.is_floating_point() else tensor
        node.register_parameter(leaf, nn.Parameter(half, requires_grad=False))
    torch.jit.save(torch.jit.script(root), path)
    return path


class Node(nn.Module):
    """One level of names."""

    def forward(self) -> None:
        return None


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """A tiny checkpoint in OpenAI's layout."""
    path = tmp_path / "tiny.safetensors"
    save_file(golden_state(TINY), path)
    return path


# Architecture


@pytest.mark.parametrize(("variant", "layout"), [("", FULL), ("tiny", TINY)])
def test_names_and_shapes_are_those_of_openais_checkpoints(variant: str, layout: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        model = importlib.import_module("open_clip").CLIP(**model_py.architecture(variant).layers)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == layout
    if not variant:
        assert len(layout) == 302
        assert sum(parameter.numel() for parameter in model.parameters()) == SPEC.parameters == 149_620_737
        assert sum(parameter.numel() for parameter in model.visual.parameters()) == pytest.approx(86.19e6, rel=1e-4)


def test_an_encoder_holds_all_parameters_whatever_it_encodes() -> None:
    counts = {sum(p.numel() for p in build(*m).parameters()) for m in (("image",), ("text",), ("image", "text"))}
    assert counts == {sum(math.prod(shape) for shape in TINY.values())}


def test_vectors_before_the_projection_give_those_after_it() -> None:
    projected, before = build(), build(pool="pre_proj")
    ours, theirs = encode(before), encode(projected)
    assert before.dims == projected.dims == {"image": 64, "text": 64}
    with torch.no_grad():
        torch.testing.assert_close(ours["image"] @ before.image_projection, theirs["image"])
        torch.testing.assert_close(ours["text"] @ before.text_projection, theirs["text"])
    assert not torch.allclose(ours["image"], theirs["image"], atol=0.1)


def test_features_are_raw_projections_unless_asked_for_rows_of_length_one() -> None:
    raw, unit = encode(build()), encode(build(normalise=True))
    for modality in SPEC.modalities:
        assert (raw[modality].norm(dim=1) - 1).abs().min() > 0.1
        torch.testing.assert_close(unit[modality], F.normalize(raw[modality], dim=1))


def test_the_text_vector_is_that_of_the_end_token_and_nothing_after_it_matters() -> None:
    encoder = build("text")
    batch = batch_of(encoder)
    ends = batch["tokens"].argmax(dim=1)
    assert (batch["tokens"].gather(1, ends[:, None]) == 4095).all()
    padded = batch["tokens"].clone()
    padded[torch.arange(77) > ends[:, None]] = 7
    with torch.no_grad():
        torch.testing.assert_close(encoder({"tokens": padded})["text"], encoder(batch)["text"])


# Preprocessing


@pytest.mark.parametrize("size", ODD_SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(("mode", "interpolation"), [("shortest", "bicubic"), ("squash", "bicubic"),
                                                     ("shortest", "bilinear"), ("squash", "bilinear")])  # fmt: skip
def test_images_are_what_open_clips_own_transform_makes_of_them(
    mode: str, interpolation: str, size: tuple[int, int]
) -> None:
    transform = importlib.import_module("open_clip.transform")
    description = transform.PreprocessCfg(size=224, resize_mode=mode, interpolation=interpolation)
    image = noise(*size)
    theirs = transform.image_transform_v2(description, is_train=False)(image)
    fit = pixels_py.squashed if mode == "squash" else pixels_py.cropped
    prepared = fit(image, 224, resample=Image.Resampling[interpolation.upper()])
    assert prepared.dtype == torch.uint8
    ours = pixels_py.Normalize(description.mean, description.std)(prepared[None])[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_thread_of_an_image_is_cut_before_it_is_enlarged() -> None:
    stripe = Image.new("RGB", (10_000_000, 1), "white")  # enlarged whole, it would be wider than an image can be
    assert pixels_py.cropped(stripe, 224).min() == 255


def test_released_preprocessing_squeezes_the_image_and_cuts_the_text_to_77_characters() -> None:
    encoder = build(preprocess="released")
    image, text = noise(90, 40), " ".join(f"word{i}" for i in range(40))
    released, cut = encoder.prepare(RawItem(0, image, text)), encoder.prepare(RawItem(0, image, text[:77]))
    squeezed = torch.from_numpy(np.array(image.resize((64, 64), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    assert torch.equal(released["pixels"], squeezed)
    torch.testing.assert_close(encoder.pixels(squeezed[None]), squeezed[None] / 127.5 - 1)
    assert torch.equal(released["tokens"], cut["tokens"])
    official = build().prepare(RawItem(0, image, text))
    assert not torch.equal(official["tokens"], cut["tokens"])
    assert not torch.equal(official["pixels"], squeezed)


def test_openais_tokenizer_cleans_a_text_and_cuts_it_to_77_tokens_of_which_the_last_is_the_end() -> None:
    tokenizer = model_py.tokenizer(model_py.architecture(""))
    (ids,) = tokenizer("a photo of a cat")
    assert ids[:8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]  # as OpenAI's notebook prints them
    assert torch.equal(tokenizer("  A PHOTO\n of a&amp;nbsp;cat "), ids[None])
    (long,) = tokenizer("cat " * 100)
    assert long.tolist() == [49406, *[2368] * 75, 49407]
    assert tokenizer("")[0, :3].tolist() == [49406, 49407, 0]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray((256 * uniform(width * height * 3, width).reshape(height, width, 3)).astype(np.uint8))


# Checkpoints


def plain(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def wrapped(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


def safe(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path)
    return path


@pytest.mark.parametrize("write", [plain, wrapped, safe, archive])
def test_a_checkpoint_is_read_from_any_container(write: Callable[..., Path], tmp_path: Path) -> None:
    state = {name: tensor.half().float() for name, tensor in golden_state(TINY).items()}
    encoder = build(weights=str(write(state, tmp_path / "weights")))
    held = encoder.model.state_dict()
    held |= {"visual.proj": encoder.image_projection, "text_projection": encoder.text_projection}
    assert held.keys() == state.keys()
    assert all(torch.equal(held[name].float(), tensor) for name, tensor in state.items())
    assert all(parameter.dtype == torch.float32 for parameter in encoder.parameters())


FAULTS = {
    "shape": "visual.proj: expected (64, 64), got (64, 32)",
    "missing": "(ln_final.weight)",
    "unexpected": "(visual.extra)",
    "grid": "visual.positional_embedding: expected a square grid of positions",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused_with_what_and_where(fault: str, tmp_path: Path) -> None:
    state, path = golden_state(TINY), tmp_path / "wrong.safetensors"
    if fault == "shape":
        state["visual.proj"] = torch.zeros(64, 32)
    elif fault == "missing":
        del state["ln_final.weight"]
    elif fault == "unexpected":
        state["visual.extra"] = torch.zeros(1)
    else:
        state["visual.positional_embedding"] = torch.zeros(18, 64)
    save_file(state, path)
    with pytest.raises(DataError) as caught:
        build(weights=str(path))
    assert str(path) in str(caught.value)
    assert FAULTS[fault] in str(caught.value)


def test_truncated_files_and_pickles_with_code_are_refused_unexecuted(tiny_file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(tiny_file.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"short.safetensors: expected safetensors, got a damaged or truncated file"):
        build(weights=str(short))
    trap, sprung = tmp_path / "trap.pt", tmp_path / "sprung"
    trap.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match=r"trap.pt: expected tensors alone, got a pickle that"):
        build(weights=str(trap))
    assert not sprung.exists()


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_another_image_size_interpolates_the_positions_of_the_patches(tiny_file: Path) -> None:
    small, large = build(weights=str(tiny_file)), build(weights=str(tiny_file), image_size=96)
    tables = [encoder.model.visual.positional_embedding for encoder in (small, large)]
    assert [tuple(table.shape) for table in tables] == [(17, 64), (37, 64)]
    assert torch.equal(tables[0][0], tables[1][0])
    assert batch_of(large)["pixels"].shape == (3, 3, 96, 96)
    assert encode(large)["image"].shape == (3, 64)
    assert torch.equal(encode(large)["text"], encode(small)["text"])


def test_an_image_size_that_the_tower_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_size must be a multiple of tiny's patches of 16 pixels, got 70"):
        build(image_size=70)
    with pytest.raises(ConfigError, match=r"the image tower of RN50 takes 224 pixels only"):
        model_py.build(model_py.architecture("RN50"), Config(variant="RN50", image_size=256), file=None)
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel"):
        Config(image_size=0)


def test_the_name_of_weights_is_the_hash_of_their_file_and_needs_no_torch(tiny_file: Path) -> None:
    said = resolve(SPEC.weights_id)(Config(weights=str(tiny_file)), "image")
    assert said == f"sha256 {hash_file(tiny_file)}"
    assert resolve(SPEC.weights_id)(Config(variant="tiny", weights=str(tiny_file)), "image") == said
    assert resolve(SPEC.weights_id)(Config(variant="tiny"), "image") == "random"
    code = (
        "import sys; from mmrec_lmm.plugin.registry import load_registry; spec = load_registry().encoders.get('clip');"
        f"print(spec.weights_id(spec.config(weights={str(tiny_file)!r}), 'image'));"
        "assert not {'torch', 'open_clip', 'timm', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (said, "")


def test_openais_file_is_expected_with_the_hash_in_its_url(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = resolve(SPEC.files)(Config(), "image")
    assert file.sha256 == file.url.split("/")[-2]
    assert len(file.sha256) == 64
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "ViT-B-16.pt").write_bytes(tiny_file.read_bytes())
    with pytest.raises(DataError, match=rf"folder/ViT-B-16.pt: expected sha256 {file.sha256}"):
        resolve(SPEC.weights_id)(Config(weights=str(folder)), "image")
    monkeypatch.setenv("MMREC_LMM_OFFLINE", "1")
    with pytest.raises(WeightsMissing) as caught:
        resolve(SPEC.weights_id)(Config(), "image")
    for part in (file.url, "weights/clip/ViT-B-16.pt", "--weights PATH"):
        assert part in str(caught.value)


# Other variants


def test_weights_of_the_quick_gelu_bring_it_along() -> None:
    quick = {
        "": True, "tiny": True, "ViT-B-16/openai": True, "ViT-B-16-quickgelu/openai": True, "ViT-B-16": False,
        "ViT-B-16/laion400m_e32": False,
    }  # fmt: skip
    assert {variant: model_py.architecture(variant).quick_gelu for variant in quick} == quick
    assert model_py.architecture("ViT-B-16-SigLIP").weights["resize_mode"] == "squash"
    assert model_py.architecture("tiny").weights["resize_mode"] == "shortest"


def test_openais_archive_is_refused_by_an_architecture_of_the_exact_gelu(tmp_path: Path) -> None:
    path = plain({name: torch.tensor(value) for name, value in SCALARS.items()}, tmp_path / "ViT-B-32.pt")
    with pytest.raises(ConfigError, match=r"ViT-B-32.pt: .* quick GELU; try clip:ViT-S-32-alt-quickgelu"):
        Encoder(Config(variant="ViT-S-32-alt", weights=str(path)), ("image",))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("ViT-B-61/openai", r"open_clip has no architecture ViT-B-61; did you mean ViT-B-16\?"),
        ("ViT-B-16/opanai", r"open_clip has no weights opanai of ViT-B-16; did you mean openai\?; there are openai, "),
        ("ViT-B-16", r"ViT-B-16 alone names no weights; name some as clip:ViT-B-16/TAG \(openai, .*--weights"),
    ],
)
def test_a_variant_that_open_clip_lacks_is_refused_with_what_it_has(variant: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(SPEC.weights_id)(Config(variant=variant), "image")


def test_a_variant_that_is_none_is_refused_before_open_clip_is_asked() -> None:
    with pytest.raises(ValueError, match=r"variant must be empty .*, tiny, ARCH/TAG .*; got 'hf-hub:a/b/c'"):
        Config(variant="hf-hub:a/b/c")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hugging Face cache, empty, without a network."""
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_weights_that_only_the_hub_has_are_named_with_repository_and_file(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing) as caught:
        resolve(SPEC.weights_id)(Config(variant="ViT-B-16-SigLIP/webli"), "image")
    for part in (
        "weights of ViT-B-16-SigLIP/webli are not here and can't be downloaded",
        "open_clip_model.safetensors or open_clip_pytorch_model.bin of https://huggingface.co/timm/ViT-B-16-SigLIP",
        "--weights PATH",
    ):
        assert part in str(caught.value)
    with pytest.raises(WeightsMissing, match=r"--weights .*/nowhere: no such file or folder"):
        resolve(SPEC.weights_id)(Config(variant="ViT-B-16-SigLIP/webli", weights=str(tmp_path / "nowhere")), "image")
    with pytest.raises(WeightsMissing, match=r"--weights .*: no open_clip_model.safetensors or .* in it; give the"):
        resolve(SPEC.weights_id)(Config(variant="tiny", weights=str(tmp_path)), "image")


@pytest.mark.parametrize(("value", "asked"), [("true", False), ("1", False), ("false", True), ("0", True), ("", True)])
def test_the_hub_is_asked_unless_downloads_are_forbidden(
    hub: Path, tmp_path: Path, value: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []

    def download(repository: str, name: str) -> str:
        downloads.append(f"{repository}/{name}")
        return str(tmp_path / name)

    monkeypatch.setattr(importlib.import_module("huggingface_hub"), "hf_hub_download", download)
    monkeypatch.setenv("MMREC_LMM_OFFLINE", value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with nullcontext() if asked else pytest.raises(WeightsMissing, match="MMREC_LMM_OFFLINE is set"):
        model_py.published_file(Config(variant="ViT-B-16-SigLIP/webli"))
    assert downloads == ["timm/ViT-B-16-SigLIP/open_clip_model.safetensors"] * asked


def test_text_towers_and_tokenizers_that_only_the_hub_has_are_named(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"text tower of roberta-ViT-B-32 is .*huggingface.co/roberta-base"):
        model_py.build(model_py.architecture("roberta-ViT-B-32"), Config(variant="roberta-ViT-B-32"), file=None)
    with pytest.raises(WeightsMissing, match=r"tokenizer of ViT-B-16-SigLIP is .*huggingface.co/timm/ViT-B-16-SigLIP"):
        model_py.tokenizer(model_py.architecture("ViT-B-16-SigLIP"))


def test_open_clips_lines_on_the_root_logger_install_no_handler_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    model_py.build(model_py.architecture("ViT-S-32-alt"), Config(variant="ViT-S-32-alt"), file=None)
    model_py.tokenizer(model_py.architecture("ViT-S-32-alt"))
    assert logging.getLogger().handlers == []
    assert logging.getLogger().filters == []


@pytest.mark.slow
def test_a_tag_is_encoded_as_open_clip_does_with_that_tags_preprocessing(hub: Path) -> None:
    open_clip = importlib.import_module("open_clip")
    name, tag = "PE-Core-T-16-384", "meta"  # squeezed, bilinear, mean 0.5, a timm tower, 32 tokens
    theirs = open_clip.create_model(name).eval()
    snapshot = hub / "models--timm--PE-Core-T-16-384" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (hub / "models--timm--PE-Core-T-16-384" / "refs").mkdir()
    (hub / "models--timm--PE-Core-T-16-384" / "refs" / "main").write_text("0")
    save_file(theirs.state_dict(), snapshot / "open_clip_model.safetensors")

    config = Config(variant=f"{name}/{tag}")
    assert resolve(SPEC.weights_id)(config, "image") == f"sha256 {hash_file(snapshot / 'open_clip_model.safetensors')}"
    items = [RawItem(0, noise(120, 70), "a small red box"), RawItem(1, noise(40, 300), "cat " * 100)]
    ours = encode(Encoder(config, SPEC.modalities).eval(), items)
    description = open_clip.transform.PreprocessCfg(384, **{
        key: value for key, value in open_clip.get_pretrained_cfg(name, tag).items()
        if key in ("mean", "std", "interpolation", "resize_mode")
    })  # fmt: skip
    transform = open_clip.transform.image_transform_v2(description, is_train=False)
    with torch.no_grad():
        image = theirs.encode_image(torch.stack([transform(item.image) for item in items]))
        text = theirs.encode_text(open_clip.get_tokenizer(name)([item.text for item in items]))
    torch.testing.assert_close(ours["image"], image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours["text"], text, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"image tower of PE-Core-T-16-384/meta has no projection of its own"):
        Encoder(dataclasses.replace(config, pool="pre_proj"), ("image",))


# Tuning


def test_the_loss_is_symmetric_info_nce_of_unit_rows_at_a_bounded_scale() -> None:
    clip_loss = importlib.import_module("open_clip.loss").ClipLoss()
    encoder = build().train()
    rows = encode(build(normalise=True))
    for scale in (2.0, 5.0):
        with torch.no_grad():
            encoder.model.logit_scale.fill_(scale)
        (loss,) = encoder.tuning_losses(batch_of(encoder)).values()
        bounded = torch.tensor(min(scale, math.log(100))).exp()
        torch.testing.assert_close(loss, clip_loss(rows["image"], rows["text"], bounded), atol=1e-5, rtol=1e-4)
    loss.backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert without == []
    assert encoder.model.logit_scale.grad != 0  # though it began above the bound


def test_the_sigmoid_loss_is_siglips() -> None:
    siglip_loss = importlib.import_module("open_clip.loss").SigLipLoss()
    images, texts = (F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(i))) for i in range(2))
    scale, bias = torch.tensor(117.0), torch.tensor(-12.9)
    theirs = siglip_loss(images, texts, scale, bias)
    torch.testing.assert_close(sigmoid_loss(images, texts, scale=scale, bias=bias), theirs)
    one = torch.ones(1, 1)
    by_hand = math.log(1 + math.exp(-(2 * 1 + 0.5)))
    ours = sigmoid_loss(one, one, scale=torch.tensor(2.0), bias=torch.tensor(0.5))
    assert ours.item() == pytest.approx(by_hand)


def test_an_architecture_with_siglips_bias_is_tuned_by_siglips_loss() -> None:
    encoder = build()
    encoder.model.logit_bias = nn.Parameter(torch.tensor(-10.0))
    rows = encode(build(normalise=True))
    (loss,) = encoder.tuning_losses(batch_of(encoder)).values()
    scale, bias = encoder.model.logit_scale.exp(), encoder.model.logit_bias
    torch.testing.assert_close(loss, sigmoid_loss(rows["image"], rows["text"], scale=scale, bias=bias))


# Full size


@pytest.fixture(scope="module")
def golden_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The weights of the golden figures as a plain dict, 0.6 GB."""
    path = tmp_path_factory.mktemp("clip") / "golden.safetensors"
    save_file(golden_state(FULL), path)
    yield path
    path.unlink()


def golden_batch() -> dict[str, Tensor]:
    """The images and texts of encoders.md, section 8."""
    images = [2 * uniform(3 * 224 * 224, 1000 + b).reshape(3, 224, 224) - 1 for b in range(2)]
    tokens = torch.zeros(2, 77, dtype=torch.long)
    for b, length in enumerate((12, 20)):
        words = [1000 + (37 * j + 11 * b) % 20000 for j in range(1, length - 1)]
        tokens[b, :length] = torch.tensor([49406, *words, 49407])
    return {"pixels": torch.tensor(np.array(images), dtype=torch.float32), "tokens": tokens}


@pytest.mark.slow
def test_openais_figures_hold_at_full_size_and_the_exact_gelu_gives_others(golden_file: Path) -> None:
    encoder = Encoder(Config(weights=str(golden_file)), SPEC.modalities).eval()
    assert encoder.dims == SPEC.dims
    assert sum(parameter.numel() for parameter in encoder.parameters()) == SPEC.parameters
    batch = golden_batch()
    with torch.no_grad():
        rows, losses = encoder(batch), encoder.tuning_losses(batch)
        scale = encoder.model.logit_scale.exp()
    figures = {
        "image": ([-1.504842, -0.710777, 1.338348, -1.11916, -0.918175, 0.693784], 38.1264, -15.57485),
        "text": ([1.927355, 0.207015, 1.944391, -0.468029, -0.026682, -1.312614], 32.44702, 19.82548),
    }
    for modality, (first, norm, total) in figures.items():
        assert rows[modality].shape == (2, 512)
        assert rows[modality][0, :6].tolist() == pytest.approx(first, abs=1e-4)
        assert rows[modality].norm().item() == pytest.approx(norm, abs=1e-4)
        assert rows[modality].sum().item() == pytest.approx(total, abs=1e-3)  # of 1,024 numbers
    logits = scale * F.normalize(rows["image"], dim=1) @ F.normalize(rows["text"], dim=1).T
    assert logits.flatten().tolist() == pytest.approx([0.41149, 0.83678, 0.69966, 1.11734], abs=1e-4)
    assert losses["itc"].item() == pytest.approx(0.711109, abs=1e-4)
    del encoder

    exact = Encoder(Config(variant="ViT-B-16", weights=str(golden_file)), SPEC.modalities).eval()
    with torch.no_grad():
        others = exact(batch)
    assert all((others[modality] - rows[modality]).abs().max() > 0.01 for modality in figures)


@pytest.mark.slow
def test_openais_kind_of_archive_loads_at_full_size(golden_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(golden_file)
    path = archive(state, tmp_path / "ViT-B-16.pt")
    encoder = Encoder(Config(weights=str(path), pool="pre_proj"), SPEC.modalities).eval()
    assert encoder.dims == {"image": 768, "text": 512}
    held = encoder.model.state_dict()
    held |= {"visual.proj": encoder.image_projection, "text_projection": encoder.text_projection}
    assert held.keys() == FULL.keys()
    assert all(torch.equal(held[name], tensor.half().float()) for name, tensor in state.items())
    path.unlink()
