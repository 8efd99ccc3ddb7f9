"""BEiT-3: the original's figures at full size, its names and shapes, its kinds of pass, and files that don't fit."""

import importlib
import io
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import filled, uniform
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmrec_lmm.errors import DataError, PluginError, WeightsMissing
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.types import RawItem

SPEC = load_registry().encoders.get("beit3")
PACKAGE = resolve(SPEC.config).__module__
model_module, encoder_module = (importlib.import_module(f"{PACKAGE}.{part}") for part in ("model", "encoder"))

RED = RawItem(0, Image.new("RGB", (40, 30), "red"), "a red box")
BLUE = RawItem(1, Image.new("RGB", (8, 90), "blue"), "a tall blue tower with a very long name indeed")


def config(**keys: Any) -> Any:
    return resolve(SPEC.config)(**{"variant": "tiny"} | keys)


def build(*modalities: str, **keys: Any) -> Any:
    """A tiny encoder in eval mode; the weights are the same in every call."""
    torch.manual_seed(0)
    return resolve(SPEC.cls)(config(**keys), modalities or SPEC.modalities).eval()


def batch(encoder: Any, *items: RawItem) -> dict[str, Tensor]:
    prepared = [encoder.prepare(item) for item in items]
    columns = {name: [tensors[name] for tensors in prepared] for name in prepared[0]}
    return {
        name: pad_sequence(column, batch_first=True, padding_value=encoder.padding.get(name, 0))
        for name, column in columns.items()
    }


@torch.no_grad()
def encode(encoder: Any, *items: RawItem) -> dict[str, Tensor]:
    return encoder(batch(encoder, *items))


def official(layers: int, width: int, vocabulary: int, patches: int = 197) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published checkpoint with retrieval heads (encoders.md, section 3)."""
    linear = {"weight": (width, width), "bias": (width,)}
    norm = {"weight": (width,), "bias": (width,)}
    inner = {
        "fc1.weight": (4 * width, width), "fc1.bias": (4 * width,),
        "fc2.weight": (width, 4 * width), "fc2.bias": (width,),
        "ffn_layernorm.weight": (4 * width,), "ffn_layernorm.bias": (4 * width,),
    }  # fmt: skip
    per_layer = {f"self_attn.{name}_proj": linear for name in "qkv"} | {"self_attn.out_proj": linear, "ffn": inner}
    per_layer |= dict.fromkeys(["self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm"], norm)
    multiway = {f"layers.{layer}.{name}": part for layer in range(layers) for name, part in per_layer.items()}
    multiway["layer_norm"] = norm
    return {
        "beit3.text_embed.weight": (vocabulary, width),
        "beit3.vision_embed.cls_token": (1, 1, width),
        "beit3.vision_embed.mask_token": (1, 1, width),
        "beit3.vision_embed.proj.weight": (width, 3, 16, 16),
        "beit3.vision_embed.proj.bias": (width,),
        "beit3.encoder.embed_positions.A.weight": (patches + 2, width),
        "beit3.encoder.embed_positions.B.weight": (1024, width),
        **{
            f"beit3.encoder.{name}.{branch}.{leaf}": shape
            for name, part in multiway.items()
            for branch in "AB"
            for leaf, shape in part.items()
        },
        "vision_head.weight": (width, width),
        "language_head.weight": (width, width),
        "logit_scale": (),
    }


# Architecture


@pytest.mark.parametrize(
    ("variant", "layers", "width", "backbone"), [("base", 12, 768, 220_987_392), ("large", 24, 1024, 672_702_464)]
)
def test_names_shapes_and_parameters_are_those_of_the_official_checkpoint(variant, layers, width, backbone):
    with torch.device("meta"):
        model = model_module.Beit3ForRetrieval(model_module.SIZES[variant], side=224, drop_path=0.1)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == official(layers, width, 64_010)
    assert sum(parameter.numel() for parameter in model.beit3.parameters()) == backbone
    if variant == "base":
        assert len(model.beit3.state_dict()) == 491
        assert sum(parameter.numel() for parameter in model.parameters()) == SPEC.parameters == 222_167_041


@pytest.mark.parametrize(("branch", "touched"), [("A", "text"), ("B", "image")])
def test_an_image_runs_through_branch_a_alone_a_text_through_b_alone_and_both_through_both(branch, touched):
    encoder = build()
    before = encode(encoder, RED, BLUE)
    with torch.no_grad():
        for name, parameter in encoder.model.named_parameters():
            if f".{branch}." in name:
                parameter.fill_(math.nan)
    after = encode(encoder, RED, BLUE)
    other = {"text": "image", "image": "text"}[touched]
    assert torch.equal(after[touched], before[touched])
    assert after[other].isnan().all()
    assert after["joint"].isnan().all()


def test_padding_changes_neither_a_text_nor_a_pair():
    encoder = build(pool="cls")
    prepared = batch(encoder, RED, BLUE)
    long = prepared | {"tokens": nn.functional.pad(prepared["tokens"], (0, 30), value=1)}
    with torch.no_grad():
        torch.testing.assert_close(encoder(long), encoder(prepared), atol=1e-5, rtol=0)


def test_padded_positions_enter_the_first_layer_as_zeros():
    encoder, entered = build("text"), []
    encoder.model.beit3.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    prepared = batch(encoder, RED, BLUE)
    with torch.no_grad():
        encoder(prepared)
    padded = prepared["tokens"] == 1
    assert padded.any()
    assert not entered[0][padded].any()
    assert entered[0][~padded].all(dim=-1).all()


def test_new_weights_are_cut_normals_norms_are_the_identity_and_the_scale_starts_at_clips():
    state = build().model.state_dict()
    for name, tensor in state.items():
        if tensor.ndim > 1:
            assert tensor.abs().max() <= 0.02, name
            assert tensor.std() == pytest.approx(0.0108, rel=0.25), name  # that of a normal cut at one deviation
        elif name != "logit_scale":
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), name
    assert state["logit_scale"].item() == pytest.approx(2.65926)


def test_drop_path_leaves_branches_out_of_whole_rows_and_only_in_training():
    drop = model_module.DropPath(0.25)
    ones = torch.ones(4000, 2, 3)
    rows = drop(ones)
    assert rows.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(rows, rows[:, :1, :1].expand_as(rows))
    assert rows.mean() == pytest.approx(1, abs=0.05)
    assert drop.eval()(ones) is ones
    layers = build(drop_path=0.3).model.beit3.encoder.layers
    assert [layer.drop_path.rate for layer in layers] == pytest.approx([0, 0.15, 0.3])


def test_the_vision_branch_equals_timms_on_the_same_checkpoint():
    timm = pytest.importorskip("timm")
    encoder = build("image", pool="cls")
    theirs = timm.create_model(
        "beit3_base_patch16_224", img_size=64, embed_dim=64, depth=3, num_heads=4, num_classes=0, global_pool="token"
    ).eval()
    convert = importlib.import_module("timm.models.vision_transformer").checkpoint_filter_fn
    converted = convert({"model": encoder.model.beit3.state_dict(prefix="beit3.")}, theirs)
    for leaf in ("weight", "bias"):  # theirs averages positions and has another norm then, so it leaves this one alone
        converted[f"norm.{leaf}"] = converted.pop(f"layer_norm.{leaf}")
    theirs.load_state_dict(converted)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder({"pixels": pixels})["image"], theirs(pixels), atol=1e-5, rtol=1e-5)


# Pools


def test_itc_projects_cls_to_unit_vectors_each_modality_by_itself():
    itc, cls = encode(build(), RED, BLUE), encode(build(pool="cls"), RED, BLUE)
    model = build().model
    for modality, head in (("image", model.vision_head), ("text", model.language_head)):
        expected = nn.functional.normalize(head(cls[modality]), dim=1)
        torch.testing.assert_close(itc[modality], expected)
        torch.testing.assert_close(encode(build(modality), RED, BLUE)[modality], itc[modality])


def test_the_joint_vector_is_the_cls_of_the_image_or_of_the_text_in_one_pass():
    encoder = build("joint")
    prepared = batch(encoder, RED, BLUE)
    with torch.no_grad():
        rows = encoder.model.beit3(encoder.normalize(prepared["pixels"]), prepared["tokens"])
    first_text = (64 // 16) ** 2 + 1  # in a tiny picture; of 224 pixels it is 197
    assert rows.shape[1] == first_text + prepared["tokens"].shape[1]
    assert torch.equal(encode(encoder, RED, BLUE)["joint"], rows[:, 0])
    assert torch.equal(encode(build("joint", joint_cls="text"), RED, BLUE)["joint"], rows[:, first_text])


def test_a_joint_vector_depends_on_the_image_and_on_the_text():
    encoder = build("joint")
    mixed = RawItem(2, RED.image, BLUE.text)
    red, blue, both = encode(encoder, RED, BLUE, mixed)["joint"]
    assert not torch.allclose(both, red, atol=1e-4)
    assert not torch.allclose(both, blue, atol=1e-4)


def test_half_precision_gives_float32_vectors_close_to_the_exact_ones():
    encoder = build()
    exact = encode(encoder, RED, BLUE)
    with torch.autocast("cpu", torch.bfloat16):
        close = encode(encoder, RED, BLUE)
    assert close.keys() == exact.keys() == {"image", "text", "joint"}
    for modality, rows in close.items():
        assert rows.dtype == torch.float32
        assert nn.functional.cosine_similarity(rows, exact[modality]).min() > 0.99


# What goes in


def test_a_picture_is_squashed_whole_and_its_bytes_become_minus_1_to_1():
    encoder = build("image")
    halves = Image.new("RGB", (200, 40), "white")
    halves.paste("black", (0, 0, 100, 40))
    pixels = encoder.prepare(RawItem(0, halves, ""))["pixels"]
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == torch.uint8
    assert encoder.normalize(pixels)[:, :, [0, -1]].unique().tolist() == [-1, 1]


def test_a_text_is_cut_by_tokens_and_keeps_its_end_and_an_empty_one_is_only_start_and_end():
    encoder = build("text", max_tokens=8)
    tokens = encoder.prepare(RawItem(0, None, "word " * 50))["tokens"]
    assert len(tokens) == 8
    assert (tokens[0], tokens[-1]) == (0, 2)
    assert encoder.prepare(RawItem(0, None, ""))["tokens"].tolist() == [0, 2]
    assert encoder.padding == {"tokens": 1}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece model, trained here; <unk> <s> </s> are its pieces 0 to 2, as in the published one."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path_factory.mktemp("vocabulary") / "beit3.spm"
    lines = [f"the {size} {colour} toy {thing}" for size in ("big", "small") for colour in ("red", "blue", "green")
             for thing in ("train", "tower", "tracker", "box")]  # fmt: skip
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=writer, vocab_size=29, minloglevel=2
    )
    path.write_bytes(writer.getvalue())
    return path


def test_sub_words_get_xlm_rs_ids_one_more_than_their_own_and_3_if_unknown(vocabulary):
    tokenise = encoder_module.SentencePieces(vocabulary, 64)
    pieces = tokenise.processor.encode("the red train Ж", out_type=str)
    own = [tokenise.processor.piece_to_id(piece) for piece in pieces]
    assert own[-1] == 0  # unknown
    assert 0 not in own[:-1]
    assert tokenise("the red train Ж") == [0, *(piece + 1 for piece in own[:-1]), 3, 2]
    assert tokenise("") == tokenise(" ") == [0, 2]


def test_special_tokens_in_a_text_are_text(vocabulary):
    for text in ("<s>", "the </s> train", "<pad> <unk> [SEP]"):
        first, *ids, last = encoder_module.SentencePieces(vocabulary, 64)(text)
        assert (first, last) == (0, 2)
        assert min(ids) > 2, text


def test_sub_words_are_cut_before_the_end_mark_and_survive_the_way_to_a_worker(vocabulary):
    tokenise = encoder_module.SentencePieces(vocabulary, 6)
    whole = encoder_module.SentencePieces(vocabulary, 64)("the big red tower")
    assert len(whole) > 6
    assert tokenise("the big red tower") == [*whole[:5], 2]
    assert pickle.loads(pickle.dumps(tokenise))("the big red tower") == [*whole[:5], 2]


def test_another_vocabulary_a_damaged_one_and_a_missing_library_are_named(vocabulary, tmp_path, monkeypatch):
    (tmp_path / "beit3.pth").touch()
    base = config(variant="base", weights=str(tmp_path / "beit3.pth"))
    place = tmp_path / "beit3.spm"
    place.write_bytes(vocabulary.read_bytes())
    with pytest.raises(
        DataError, match=r"beit3.spm: expected the 64000 pieces of BEiT-3's vocabulary, got 29; try https"
    ):
        encoder_module.tokenizer(base)
    place.write_bytes(vocabulary.read_bytes()[:500])
    with pytest.raises(DataError, match=r"beit3.spm: expected a SentencePiece model, got "):
        encoder_module.tokenizer(base)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(PluginError, match=r"beit3: expected sentencepiece, .* pip install 'mmrec-lmm\[beit3\]'"):
        encoder_module.tokenizer(base)


# Configuration, and where the files are


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variant": "huge"}, "variant must be one of base, large, tiny, got 'huge'"),
        ({"pool": "mean"}, "pool must be one of itc, cls, got 'mean'"),
        ({"checkpoint": "vqa"}, "checkpoint must be one of itc, pretrained, indomain, coco_384, f30k_384"),
        (
            {"checkpoint": "pretrained"},
            "checkpoint must have retrieval heads for pool itc, got pretrained.* try pool cls, or",
        ),
        ({"image_size": 230}, "image_size must be a multiple of 16 .*, got 230"),
        ({"max_tokens": 2}, "max_tokens must be 3 to 1022"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and less than 1"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(keys, message):
    with pytest.raises(ValueError, match=message):
        config(**keys)


@pytest.mark.parametrize(
    ("keys", "name", "side"),
    [
        ({}, "beit3_base_itc_patch16_224.pth", 224),
        ({"checkpoint": "indomain", "pool": "cls"}, "beit3_base_indomain_patch16_224.pth", 224),
        ({"checkpoint": "coco_384"}, "beit3_base_patch16_384_coco_retrieval.pth", 384),
        ({"variant": "large", "image_size": 320}, "beit3_large_itc_patch16_224.pth", 320),
    ],
)
def test_a_checkpoint_is_a_published_file_and_brings_its_image_size(keys, name, side):
    chosen = config(**{"variant": "base"} | keys)
    checkpoint, vocabulary = resolve(SPEC.files)(chosen, "text")
    assert checkpoint.url == f"https://github.com/addf400/files/releases/download/beit3/{name}"
    assert (vocabulary.name, chosen.side) == ("beit3.spm", side)


def test_missing_weights_are_named_with_url_and_place(monkeypatch, tmp_path):
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    monkeypatch.setenv("MMREC_LMM_OFFLINE", "1")
    with pytest.raises(WeightsMissing) as caught:
        resolve(SPEC.weights_id)(config(variant="base"), "text")
    assert "releases/download/beit3/beit3_base_itc_patch16_224.pth" in str(caught.value)
    assert str(tmp_path / "weights" / "beit3") in str(caught.value)
    (tmp_path / "own.pth").touch()
    with pytest.raises(WeightsMissing, match=r"releases/download/beit3/beit3.spm"):
        resolve(SPEC.weights_id)(config(variant="base", weights=str(tmp_path / "own.pth")), "text")
    assert resolve(SPEC.weights_id)(config(variant="base", weights=str(tmp_path / "own.pth")), "image")


def test_the_weights_id_follows_the_content_of_checkpoint_and_vocabulary(tmp_path):
    checkpoint, vocabulary = tmp_path / "own.pth", tmp_path / "beit3.spm"
    names = set()
    for contents in ("ab", "cb", "cd"):
        for path, content in zip((checkpoint, vocabulary), contents, strict=True):
            path.write_text(content * len(names | {0}))  # another length each time, so that no clock is too coarse
        names.add(resolve(SPEC.weights_id)(config(variant="base", weights=str(checkpoint)), "text"))
    assert len(names) == 3
    assert resolve(SPEC.weights_id)(config(), "text") == "tiny, random"
    with pytest.raises(WeightsMissing, match=r"beit3:tiny: --weights no/such: no such file; its weights aren't"):
        resolve(SPEC.weights_id)(config(weights="no/such"), "image")


def test_registering_and_naming_the_weights_imports_no_torch():
    code = (
        "import importlib.metadata, sys; from mmrec_lmm.plugin.specs import resolve\n"
        "(entry,) = importlib.metadata.entry_points(group='mmrec_lmm', name='encoders')\n"
        "(spec,) = [s for s in entry.load().mmrec_register_encoders() if s.name == 'beit3']\n"
        "resolve(spec.weights_id)(resolve(spec.config)(variant='tiny'), 'text')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Checkpoints; the tiny network stands for the others


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Tensors of a tiny checkpoint in the official layout, other than the initial ones."""
    torch.manual_seed(1)
    return {name: 0.1 * torch.randn(shape) for name, shape in official(3, 64, 4096, patches=17).items()}


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("container", ["model", "module", None])
def test_an_official_checkpoint_loads_from_its_containers_without_the_head_of_pretraining(state, container, tmp_path):
    extra = {"mim_head.weight": torch.ones(8, 64), "mim_head.bias": torch.ones(8)}
    content = {container: state | extra, "epoch": 3} if container else state | extra
    loaded = build(weights=saved(content, tmp_path / "own.pth")).model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_half_precision_checkpoints_become_float32(state, tmp_path):
    halves = {name: tensor.half() for name, tensor in state.items()}
    loaded = build(weights=saved(halves, tmp_path / "own.pth")).model.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in halves.items())


def test_another_image_size_keeps_three_rows_of_positions_and_interpolates_the_grid(state, tmp_path):
    name = "beit3.encoder.embed_positions.A.weight"
    state[name][3:] = torch.arange(16.0).unsqueeze(1)  # 4 x 4, rising along the rows
    loaded = build("image", image_size=96, weights=saved(state, tmp_path / "own.pth"))
    table = loaded.model.state_dict()[name]
    assert table.shape == (3 + 36, 64)
    assert torch.equal(table[:3], state[name][:3])
    grid = table[3:, 0].view(6, 6)
    assert (grid.diff(dim=0) > 0).all()
    assert (grid.diff(dim=1) > 0).all()
    assert grid.mean() == pytest.approx(7.5, abs=1e-4)
    assert encode(loaded, RED)["image"].shape == (1, 64)


def test_without_retrieval_heads_pool_itc_is_refused_and_cls_works(state, tmp_path):
    backbone = {name: tensor for name, tensor in state.items() if name.startswith("beit3.")}
    path = saved({"model": backbone}, tmp_path / "own.pth")
    with pytest.raises(DataError, match=r"own.pth: .* pool itc, got no vision_head.weight, .* try pool cls"):
        build(weights=path)
    encoder = build(weights=path, pool="cls", checkpoint="pretrained")
    assert encode(encoder, RED)["image"].isfinite().all()
    assert encoder.model.logit_scale.item() == pytest.approx(2.65926)  # the heads are new, to be tuned
    assert 0 < encoder.model.vision_head.weight.abs().max() <= 0.02


class Code:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


FC1 = "beit3.encoder.layers.1.ffn.B.fc1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {FC1: torch.zeros(64, 256)},
            rf".*{FC1}: expected \(256, 64\), got \(64, 256\)",
        ),
        (lambda state: {name: tensor for name, tensor in state.items() if name != FC1}, rf"own.pth: .*missing.*{FC1}"),
        (lambda state: state | {"vqa_head.bias": torch.zeros(3)}, r"own.pth: .*unexpected.*vqa_head.bias"),
        (
            lambda state: state | {"beit3.encoder.embed_positions.A.weight": torch.zeros(21, 64)},
            r"own.pth: beit3.encoder.embed_positions.A.weight: expected a square grid of positions after 3 rows",
        ),
    ],
    ids=["shape", "missing", "unexpected", "positions"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_name_of_what_does_not(state, change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        build(weights=saved({"model": change(state)}, tmp_path / "own.pth"))


def test_a_truncated_file_and_one_with_code_are_refused_and_nothing_is_executed(state, tmp_path):
    path = Path(saved({"model": state}, tmp_path / "own.pth"))
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(DataError, match=r"own.pth: .*truncated"):
        build(weights=str(path))
    with pytest.raises(DataError, match=r"code.pth: "):
        build(weights=saved({"model": state, "args": Code(tmp_path / "executed")}, tmp_path / "code.pth"))
    assert not (tmp_path / "executed").exists()


# Tuning


def test_the_tuning_loss_is_itc_on_the_retrieval_heads_and_reaches_both_branches():
    encoder = build("image", "text")
    prepared = batch(encoder, RED, BLUE)
    vectors = encoder(prepared)
    logits = (vectors["image"] @ vectors["text"].T) / 0.07  # (2, 2)
    expected = (logits.softmax(0).diag().log().mean() + logits.softmax(1).diag().log().mean()) / -2
    losses = encoder.tuning_losses(prepared)
    assert losses.keys() == {"itc"}
    torch.testing.assert_close(losses["itc"], expected)
    losses["itc"].backward()
    names = {name for name, parameter in encoder.model.named_parameters() if parameter.grad is not None}
    assert names == official(3, 64, 4096).keys() - {"beit3.vision_embed.mask_token"}


def test_the_scale_of_similarities_stays_at_100_at_most_and_can_come_back():
    encoder = build("image", "text")
    prepared = batch(encoder, RED, BLUE)
    losses = []
    for value in (math.log(100), 9.0, math.log(50)):
        nn.init.constant_(encoder.model.logit_scale, value)
        encoder.model.logit_scale.grad = None
        losses.append(encoder.tuning_losses(prepared)["itc"])
        losses[-1].backward()
        assert encoder.model.logit_scale.grad.abs() > 0
        assert encoder.model.logit_scale.exp() <= 100.001
    assert losses[0] == losses[1] != losses[2]


def test_a_few_steps_on_the_tuning_loss_bring_images_and_texts_together():
    encoder = build("image", "text").train()
    prepared = batch(encoder, RED, BLUE)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=3e-4)  # from some seeds 1e-3 never leaves chance
    for _ in range(40):
        optimiser.zero_grad()
        encoder.tuning_losses(prepared)["itc"].backward()
        optimiser.step()
    vectors = encode(encoder.eval(), RED, BLUE)
    cosines = vectors["image"] @ vectors["text"].T
    assert (cosines.diag() - cosines.flip(1).diag()).min() > 0.3  # 0.9 and more from eight seeds


# The original's figures: eval mode, float32, tensors filled by rule (encoders.md, section 8)

GOLDEN: dict[str, tuple[list[float], float, float]] = {  # of row 0 the first 6; of both rows norm and sum
    "vision_cls": ([-1.732062, -0.747596, 1.630123, 0.361236, -0.263801, 0.871264], 39.20772, 0.13053),
    "text_cls": ([1.798084, -0.176175, 2.646666, 0.475261, -1.157332, -0.834655], 39.37829, 3.39974),
    "joint 0": ([-1.298931, -0.653956, 1.823644, 1.087857, -0.839279, 0.728466], 39.24238, -0.77951),
    "joint 197": ([0.360562, 0.357522, -0.030562, 0.327545, 1.421179, -1.505469], 39.37711, 3.77887),
    "joint 198": ([0.152328, 0.184652, -0.035054, 0.273666, 1.335736, -0.889853], 39.41024, 3.97192),
    "image_itc": ([0.022898, -0.000233, -0.021396, 0.032313, 0.016789, -0.044163], 1.41421, -1.84742),
    "text_itc": ([-0.002236, -0.031172, 0.000877, 0.024259, -0.005083, 0.047937], 1.41421, -0.67386),
}
ITC = 0.857804


def golden_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    if name == "logit_scale":
        return torch.tensor(2.65926)
    tensor = filled(name, torch.Size(shape))
    is_norm = name.endswith(".weight") and any(part in name for part in ("layer_norm", "layernorm", "_ln."))
    return 1 + tensor if is_norm else tensor


def golden_inputs() -> dict[str, Tensor]:
    """Two images, as floats, and two texts of 12 and 20 tokens, padded to 64."""
    pixels = [2 * uniform(3 * 224 * 224, 1000 + b).reshape(3, 224, 224) - 1 for b in range(2)]
    tokens = torch.ones(2, 64, dtype=torch.int64)
    for b, length in enumerate((12, 20)):
        tokens[b, :length] = torch.tensor([0, *((1000 + (37 * j + 11 * b) % 20000) for j in range(1, length - 1)), 2])
    return {"pixels": torch.tensor(np.stack(pixels), dtype=torch.float32), "tokens": tokens}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of base size as it is published, 0.9 GB, beside a vocabulary of 64,000 words."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("published")
    path = folder / "beit3_base_itc_patch16_224.pth"
    torch.save({"model": {name: golden_tensor(name, shape) for name, shape in official(12, 768, 64_010).items()}}, path)
    lines = (" ".join(f"w{word}" for word in range(at, at + 100)) for at in range(0, 64_000, 100))
    with (folder / "beit3.spm").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=file, vocab_size=64_000, model_type="word", minloglevel=2
        )
    yield folder
    path.unlink()


@pytest.mark.slow
def test_a_full_size_official_checkpoint_gives_the_originals_vectors_and_loss(full_size):
    encoder = resolve(SPEC.cls)(config(variant="base", weights=str(full_size)), SPEC.modalities).eval()
    assert dict(encoder.dims) == dict(SPEC.dims)
    inputs = golden_inputs()
    model, pixels, tokens = encoder.model, inputs["pixels"], inputs["tokens"]
    with torch.no_grad():
        rows = model.beit3(pixels, tokens)
        vectors = encoder(inputs)
        ours = {
            "vision_cls": model.image_vectors(pixels, head=False),
            "text_cls": model.text_vectors(tokens, head=False),
            **{f"joint {place}": rows[:, place] for place in (0, 197, 198)},
            "image_itc": vectors["image"],
            "text_itc": vectors["text"],
        }
        loss = encoder.tuning_losses(inputs)["itc"].item()
    assert rows.shape == (2, 261, 768)
    for name, (first, norm, total) in GOLDEN.items():
        assert ours[name].shape == (2, 768)
        assert ours[name][0, :6].tolist() == pytest.approx(first, abs=1e-4), name
        assert ours[name].norm().item() == pytest.approx(norm, abs=1e-4), name
        assert ours[name].sum().item() == pytest.approx(total, abs=1e-4), name
    assert loss == pytest.approx(ITC, abs=1e-4)
    assert torch.equal(vectors["joint"], ours["joint 0"])
    text = encoder.prepare(RawItem(0, None, "w1 w2 nowhere"))["tokens"]
    assert text[[0, 3, 4]].tolist() == [0, 3, 2]
    assert encode(encoder, RED, BLUE)["joint"].isfinite().all()
