"""Checkpoints as other people save them: loaded to the same features as plain ones, or refused with the right word."""

import argparse
import codecs
import collections
import functools
import importlib
import logging
import os
import pathlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.features.encoding import encoder_id
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.types import RawItem
from mmrec_lmm.weights.formats import load_state, read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")

SPEC: EncoderSpec = load_registry().encoders.get("clip")
Encoder, Config = resolve(SPEC.cls), resolve(SPEC.config)
ITEMS = [RawItem(0, Image.new("RGB", (40, 30), "red"), "a red box"), RawItem(1, Image.new("RGB", (9, 9)), "b")]

State = dict[str, Tensor]


@functools.cache
def weights() -> State:
    """The names of open_clip's tiny CLIP, with weights of our own."""
    torch.manual_seed(7)
    built = importlib.import_module(f"{Encoder.__module__.rpartition('.')[0]}.model")
    model = built.build(built.architecture("tiny"), Config(variant="tiny"), file=None)
    return {name: torch.randn_like(value) * 0.05 for name, value in model.state_dict().items() if "mask" not in name}


def features(path: Path, **config: Any) -> dict[str, Tensor]:
    encoder = Encoder(Config(variant="tiny", weights=str(path), **config), SPEC.modalities).eval()
    prepared = [encoder.prepare(item) for item in ITEMS]
    with torch.no_grad():
        found: dict[str, Tensor] = encoder({name: torch.stack([one[name] for one in prepared]) for name in prepared[0]})
    return found


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def saved(content: Any, folder: Path, name: str = "theirs.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


class Metric(float):
    """A class of the training script's own."""


OTHERS = {
    "epoch": np.int64(3),
    "best": np.float64(0.71),
    "curve": np.arange(3.0),
    "names": np.array(["a", "b"], dtype=object),
    "where": pathlib.PosixPath("/data/run"),
    "there": pathlib.PureWindowsPath("C:/data"),
    "history": collections.defaultdict(list, {"loss": [1.0]}),
    "args": argparse.Namespace(lr=0.1, out=Path("x")),
    "kinds": {1, 2},
    "fixed": frozenset("a"),
    "dtype": torch.float16,
    "numpy": np.dtype("float32"),
    "size": torch.Size([2]),
    "device": torch.device("cpu"),
}
WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "numpy, paths and defaultdicts beside": lambda state: {"state_dict": state, **OTHERS},
    "compiled": lambda state: under("_orig_mod.", state),
    "distributed and compiled": lambda state: {"model": under("module._orig_mod.", state)},
    "lightning": lambda state: {
        "pytorch-lightning_version": "2.1",
        "state_dict": under("model.", state) | {"loss_fn.weight": torch.ones(2)},
        "optimizer_states": [{}],
        "hyper_parameters": {"lr": np.float32(0.1)},
    },
    "sharded": lambda state: under("_fsdp_wrapped_module.", state),
    "compiled parts": lambda state: {
        name.replace("transformer.", "transformer._orig_mod.", 1): value for name, value in state.items()
    },
    "nested": lambda state: {"state_dict": {"model": under("module.", state)}},
    "averaged beside": lambda state: {
        "model": state, "model_ema": {name: value + 1 for name, value in state.items()}, "ema_decay": 0.99,
    },
    "averaged among": lambda state: state | {f"ema_model.{name}": value + 1 for name, value in state.items()},
    "averages alone": lambda state: {"state_dict_ema": state, "epoch": 1},
    "arrays": lambda state: {name: value.numpy() for name, value in state.items()},
    "columns first": lambda state: {name: np.asfortranarray(value.numpy()) for name, value in state.items()},
    "an optimizer beside": lambda state: {
        "model_state_dict": state, "optimizer_state_dict": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []},
    },
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_wrapped_checkpoint_gives_the_features_of_a_plain_one(wrapping: str, tmp_path: Path) -> None:
    plain = features(saved(weights(), tmp_path, "plain.pt"))
    assert equal(features(saved(WRAPPINGS[wrapping](weights()), tmp_path)), plain)


ITSELF: dict[str, Any] = {"a": torch.ones(2)}
ITSELF["state_dict"] = ITSELF


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"state_dict": {"a": torch.ones(2)}, "score": Metric(1)}, "names .*Metric: .*nothing was executed"),
        ({"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}, "the state of an optimizer"),
        ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 2}, "the state of an optimizer"),
        ({"call": functools.partial(os.getcwd)}, "names functools.partial: .*nothing was executed"),
        ({"when": np.datetime64("2020-01-01")}, r"tensors by name, .* got when"),
        (ITSELF, r"got a checkpoint that contains itself \(a, state_dict\)"),
        (
            {"model": {"a": torch.eye(2).to_sparse()}},
            r"a: expected a dense tensor, got a sparse one \(torch.sparse_coo\)",
        ),
    ],
)
def test_what_is_not_taken_is_called_by_its_name(content: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=word):
        read_checkpoint(saved(content, tmp_path))


def test_parts_of_a_sharded_file_and_their_index_are_named(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    with pytest.raises(DataError, match=r"the index of weights in 2 parts; join them"):
        read_checkpoint(index)
    part = tmp_path / "model-00001-of-00003.safetensors"
    save_file({"weight": torch.ones(2, 2)}, part)
    with pytest.raises(DataError, match=r"it is one of 3 parts: join them"):
        load_state(torch.nn.Linear(2, 2), read_checkpoint(part), source=part)


def test_prefixes_and_averages_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {"model": under("module.", weights()), "model_ema": {"module": weights()}}
    with caplog.at_level(logging.INFO, "mmrec_lmm"):
        read_checkpoint(saved(content, tmp_path))
    assert "the prefix module. of wrappers is cut off" in caplog.text
    assert "averaged weights (model_ema), which --encoder.weights_ema=true takes" in caplog.text


def test_averaged_weights_are_taken_by_option_and_are_part_of_a_name(tmp_path: Path) -> None:
    average = {name: value * 2 for name, value in weights().items()}
    path = saved({"model": weights(), "model_ema": under("module.", average)}, tmp_path)
    assert equal(features(path, weights_ema=True), features(saved(average, tmp_path, "average.pt")))
    among = saved(weights() | under("model_ema.", average), tmp_path, "among.pt")
    assert equal(features(among, weights_ema=True), features(path, weights_ema=True))
    plain = saved(weights(), tmp_path, "plain.pt")
    with pytest.raises(DataError, match=r"weights_ema: expected averaged weights \(model_ema, "):
        features(plain, weights_ema=True)
    ids = [encoder_id(SPEC, Config(variant="tiny", weights=str(path), weights_ema=on), "image") for on in (None, True)]
    assert "weights_ema" not in ids[0][-1]
    assert ids[1][-1]["weights_ema"] is True


def test_a_module_may_itself_be_called_like_a_wrapper(tmp_path: Path) -> None:
    module = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 2)})
    path = tmp_path / "own.safetensors"
    save_file({name: value + 1 for name, value in module.state_dict().items()}, path)
    state = load_file(path)
    report = load_state(module, read_checkpoint(path), source=path)
    assert set(report.used) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


# transformers


def of_transformers(folder: Path, act: str = "quick_gelu") -> Any:
    """A small random CLIP of transformers with the shapes of our tiny one, saved as it saves."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    common = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **common, "vocab_size": 4096, "max_position_embeddings": 77, "hidden_act": act, "projection_dim": 64,
            "eos_token_id": 4095, "bos_token_id": 4094,
        },
        vision_config={**common, "image_size": 64, "patch_size": 16, "hidden_act": act, "projection_dim": 64},
        projection_dim=64,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    return model


def test_clip_under_the_names_of_transformers_gives_its_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = of_transformers(tmp_path)
    encoder = Encoder(Config(variant="tiny", weights=str(tmp_path / "model.safetensors")), SPEC.modalities).eval()
    prepared = [encoder.prepare(item) for item in ITEMS]
    batch = {name: torch.stack([one[name] for one in prepared]) for name in prepared[0]}
    with torch.no_grad():
        ours = encoder(batch)
        images = theirs.visual_projection(
            theirs.vision_model(pixel_values=encoder.pixels(batch["pixels"])).pooler_output
        )
        texts = theirs.text_projection(theirs.text_model(input_ids=batch["tokens"]).pooler_output)
    torch.testing.assert_close(ours["image"], images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours["text"], texts, rtol=1e-4, atol=1e-4)
    assert images.std() > 0.01


def test_another_gelu_than_the_config_beside_is_refused(tmp_path: Path) -> None:
    of_transformers(tmp_path, act="gelu")
    with pytest.raises(ConfigError, match=r"quick GELU .*config\.json says gelu, which needs the exact GELU"):
        features(tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    assert features(tmp_path / "model.safetensors")


def test_siglip_of_transformers_is_named(tmp_path: Path) -> None:
    state = {"vision_model.head.probe": torch.ones(1, 1, 4), "text_model.head.weight": torch.ones(4, 4)}
    with pytest.raises(DataError, match=r"another network, such as SigLIP; .*open_clip_model\.safetensors"):
        features(saved(state, tmp_path))


# timm


def test_a_checkpoint_under_its_authors_names_is_translated_by_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A network of which timm's names differ from its authors': Facebook's ConvNeXt."""
    timm = pytest.importorskip("timm")
    name = "convnext_atto"
    network = timm.create_model(name, num_classes=0)
    theirs = {}
    for key, value in network.state_dict().items():
        key = key.replace("stem.", "downsample_layers.0.").replace(".downsample.", ".DOWN.")
        key = key.replace("head.norm.", "norm.").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        parts = key.split(".")
        if parts[0] == "stages" and parts[2] == "DOWN":
            key = ".".join(["downsample_layers", parts[1], *parts[3:]])
        elif parts[0] == "stages":
            key = ".".join([*parts[:2], *parts[3:]])
        theirs[key] = value
    assert theirs.keys() != network.state_dict().keys()
    spec = load_registry().encoders.get("cnn_sbert")
    config = {"cnn": f"timm:{name}"}
    own = saved(network.state_dict(), tmp_path, "own.pt")
    with caplog.at_level(logging.INFO, "mmrec_lmm"):
        cnn = [
            resolve(spec.cls)(resolve(spec.config)(**config, weights=str(path)), ("image",))
            for path in (own, saved({"model": theirs}, tmp_path))
        ]
    ours, translated = (one.state_dict() for one in cnn)
    assert equal(ours, translated)
    assert "translated to timm's" in caplog.text


# Bounds


def test_an_archive_that_unpacks_to_more_than_it_may_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    for name in ("bomb/code/a.py", "bomb/data.pkl"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb/constants.pkl", b"", zipfile.ZIP_STORED)
            archive.writestr(name, bytes(2**26 + 1))
            if not name.endswith("pkl"):
                archive.writestr("bomb/data.pkl", b"")
        assert path.stat().st_size < 2**18
        with pytest.raises(DataError, match=r"unpacks to 67,108,86\d bytes, from .*nothing was unpacked"):
            read_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"")
        archive.writestr("bomb/data/0", bytes(2**20))
    with pytest.raises(DataError, match="compressed tensors, which torch never writes"):
        read_checkpoint(path)


class Buffer:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**12,)


class Doubled:
    """Each layer is twice as long as the one within."""

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def __reduce__(self) -> tuple[Any, ...]:
        return codecs.encode, (Doubled(self.layers - 1) if self.layers else b"ab", "HEX-codec")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("bomb", "named"), [(Buffer(), "bytearray"), (Doubled(60), "_codecs.encode")])
def test_a_pickle_that_makes_much_of_little_is_refused(bomb: Any, named: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.ones(2), "b": bomb}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match=rf"names \w*\.?{named}, by which a few bytes could fill the memory"):
        read_checkpoint(path)


def test_a_tensor_of_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a: expected a tensor of the bytes .* holds, 4, got one of 40,000,000,000"):
        read_checkpoint(saved({"a": torch.ones(1).expand(10**10)}, tmp_path))
    assert read_checkpoint(saved({"a": torch.ones(1).expand(10)}, tmp_path))["a"].sum() == 10


def test_an_entry_that_unpacks_to_more_than_its_directory_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lie.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lie/constants.pkl", b"")
        archive.writestr("lie/code/a.py", b"")
        archive.writestr("lie/data.pkl", bytes(10**7))
    content = path.read_bytes()
    path.write_bytes(content.replace((10**7).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(DataError, match="got a damaged one"):
        read_checkpoint(path)
