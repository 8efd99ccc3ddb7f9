"""The side network: at its start it is the frozen feature, its gradient is that of back-propagation through a frozen
tower, and what it reads of items is encoded once, by every shipped encoder as it pools its own last layer."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from helpers import Answer, call, start, wait_until
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import joint
from mmrec_lmm.cache import home
from mmrec_lmm.data.items import pad_and_stack
from mmrec_lmm.data.loading import load_dataset
from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.features import states as states_module
from mmrec_lmm.features.encoding import EncodeOptions, encode
from mmrec_lmm.features.prepared import PreparedItems
from mmrec_lmm.features.states import HiddenStates, evenly_spaced, hidden_states
from mmrec_lmm.plugin.contracts import DotProduct, ItemEncoder
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.training.encoder_side import EncoderWorker
from mmrec_lmm.training.end_to_end import JointEncoder
from mmrec_lmm.training.paradigms import EndToEnd
from mmrec_lmm.training.resume import load_weights
from mmrec_lmm.training.side import Across, SideNetwork, feature_key, present_key, side_items, state_key
from mmrec_lmm.typed_json import plain
from mmrec_lmm.types import FeatureTable, ItemCatalog, RawItem

PAIR = ("image", "text")
SMALL = ("--epochs=2", "--train_batch_size=16", "--valid_metric=NDCG@10", "--threads=1")
SIDE = ("--paradigm", "ete", "--ete.tune=side")
PRESENT = {"image": torch.arange(golden.N_ITEMS) != 3, "text": torch.arange(golden.N_ITEMS) != 7}


@pytest.fixture
def run(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`mmrec-lmm run` of a small model on toy."""
    monkeypatch.chdir(data_path.parent)
    return lambda *arguments: call("run", "-d", "toy", *SMALL, *arguments)


@pytest.fixture
def catalog(data_path: Path) -> ItemCatalog:
    from mmrec_lmm.config.settings import Settings

    found = load_dataset(data_path / "toy", "toy", Settings()).catalog
    assert found is not None
    return found


def result_of(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out))


# The network


def network(
    widths: Mapping[str, tuple[int, ...]],
    dims: Mapping[str, int],
    *,
    unit: bool = False,
    dtype: torch.dtype = torch.float32,
) -> SideNetwork:
    generator = torch.Generator().manual_seed(0)
    made = SideNetwork(dims, widths, rank=2, unit=dict.fromkeys(dims, unit), generator=generator)
    return made.to(dtype).eval()


def items_of(
    widths: Mapping[str, tuple[int, ...]],
    dims: Mapping[str, int],
    present: Mapping[str, Tensor],
    dtype: type = np.float32,
) -> PreparedItems:
    """Random features and states; those of absent items are zero."""
    rng = np.random.default_rng(2)
    arrays: dict[str, np.ndarray] = {}
    for modality, layers in widths.items():
        there = present[modality].numpy()
        arrays[present_key(modality)] = there
        arrays[feature_key(modality)] = rng.standard_normal((len(there), dims[modality])).astype(dtype) * there[:, None]
        for place, width in enumerate(layers):
            arrays[state_key(modality, place)] = rng.standard_normal((len(there), width)).astype(dtype) * there[:, None]
    return PreparedItems(arrays, {})


UNLIKE = {"image": (3, 5, 6, 6), "text": (4, 4)}  # in width and depth
DIMS = {"image": 7, "text": 4}


@pytest.mark.parametrize("modalities", [PAIR, ("image",), ("text",)], ids="+".join)
@pytest.mark.parametrize("unit", [False, True])
def test_a_fresh_network_gives_the_frozen_features(modalities: tuple[str, ...], unit: bool) -> None:
    widths, dims = ({name: each[name] for name in modalities} for each in (UNLIKE, DIMS))
    batch = items_of(widths, dims, PRESENT).batch(np.arange(golden.N_ITEMS))
    for modality in modalities if unit else ():
        batch[feature_key(modality)] = normalize(batch[feature_key(modality)], dim=1)
    made = network(widths, dims, unit=unit)(batch)
    for modality, rows in made.items():
        if unit:
            torch.testing.assert_close(rows, batch[feature_key(modality)], rtol=0, atol=1e-6)
        else:
            assert torch.equal(rows, batch[feature_key(modality)])


def trained(net: SideNetwork) -> SideNetwork:
    """The network with other weights than at its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.1)
    return net


@pytest.mark.parametrize("unit", [False, True])
def test_an_absent_modality_keeps_its_row_and_has_no_part_in_the_other(unit: bool) -> None:
    net = trained(network(UNLIKE, DIMS, unit=unit))
    items = items_of(UNLIKE, DIMS, PRESENT)
    made = net(items.batch(np.arange(golden.N_ITEMS)))
    assert not made["image"][3].any()
    assert not made["text"][7].any()
    other = items_of(UNLIKE, DIMS, PRESENT)
    for place in range(2):
        other.arrays[state_key("text", place)][7] = 9.0  # of an item without text
    for place in range(4):
        other.arrays[state_key("image", place)][3] = 9.0
    again = net(other.batch(np.arange(golden.N_ITEMS)))
    for modality in PAIR:
        assert torch.equal(again[modality], made[modality])
        if not unit:
            assert (made[modality] - items.batch(np.arange(15))[feature_key(modality)])[0].abs().min() > 0


def test_towers_of_unlike_depth_meet_in_their_last_layers() -> None:
    across = Across((3, 5, 6, 6), (4, 4), 2, torch.Generator().manual_seed(0))
    assert (across.depth, across.width) == (2, 4)
    images = [torch.randn(2, width) for width in (3, 5, 6, 6)]
    texts, both = [torch.randn(2, 4) for _ in range(2)], torch.ones(2, 1, dtype=torch.bool)
    known = across(images, texts, both, both)
    assert torch.equal(across([images[0] + 1, images[1] + 1, *images[2:]], texts, both, both), known)
    assert not torch.equal(across([*images[:2], images[2] + 1, images[3]], texts, both, both), known)


def test_the_tower_is_at_its_start_an_exponential_average_of_the_layers() -> None:
    net = network({"image": (4, 4, 4)}, {"image": 4})
    states = [torch.randn(5, 4) for _ in range(3)]
    for block in net.within["image"].blocks:
        for parameter in block.parameters():  # the identity
            nn.init.zeros_(parameter)
    expected = states[0] / 8 + states[1] / 4 + states[2] / 2
    torch.testing.assert_close(net.within["image"](states), expected)


# Training


class Tower(nn.Module):
    """A frozen tower of two blocks over an item's three numbers, with its head."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(3, width), nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, dim)
        self.requires_grad_(False)

    def states(self, content: Tensor) -> list[Tensor]:
        states = [self.embed(content)]
        for block in self.blocks:
            states.append(states[-1] + torch.tanh(block(states[-1])))
        return states


class Through(ItemFeatures):
    """Features that a loss goes through, back into the network and the towers under it: as anybody would write it."""

    def __init__(self, net: SideNetwork, towers: Mapping[str, Tower], content: Tensor) -> None:
        tables = {name: torch.zeros(len(content), 4, dtype=content.dtype) for name in PAIR}
        super().__init__(tables, PRESENT, joint=True)
        self.net, self.towers, self.content = net, towers, content

    def __call__(self) -> dict[str, Tensor]:
        batch = {}
        for name, tower in self.towers.items():
            there, states = PRESENT[name].unsqueeze(1), tower.states(self.content)
            batch |= {feature_key(name): tower.head(states[-1]) * there, present_key(name): PRESENT[name]}
            batch |= {state_key(name, place): rows * there for place, rows in enumerate(states)}
        return {name: rows * PRESENT[name].unsqueeze(1) for name, rows in self.net(batch).items()}

    def rows(self, items: Tensor) -> dict[str, Tensor]:
        return {name: table[items] for name, table in self().items()}


@pytest.mark.parametrize("name", ["VBPR", "MMGCN"])
def test_the_two_passes_give_the_gradient_of_back_propagation_through_a_frozen_tower(
    name: str, registry: Registry
) -> None:
    torch.manual_seed(3)
    content = torch.randn(golden.N_ITEMS, 3, dtype=torch.float64)
    towers = {modality: Tower(5 + place, 4).double() for place, modality in enumerate(PAIR)}
    widths, dims = {"image": (5, 5, 5), "text": (6, 6, 6)}, dict.fromkeys(PAIR, 4)
    options = EndToEnd(tune="side", learning_rate=0.01, encoder_every=1, rows=0, micro_batch=4)
    through = Through(trained(network(widths, dims, dtype=torch.float64)), towers, content)
    with torch.no_grad():
        tables = through()
        arrays = {}
        for modality, tower in towers.items():
            states, there = tower.states(content), PRESENT[modality].unsqueeze(1)
            arrays |= {feature_key(modality): tower.head(states[-1]) * there, present_key(modality): PRESENT[modality]}
            arrays |= {state_key(modality, place): rows * there for place, rows in enumerate(states)}
    items = PreparedItems({key: tensor.numpy() for key, tensor in arrays.items()}, {})
    net = trained(network(widths, dims, dtype=torch.float64))
    features = ItemFeatures(tables, PRESENT, joint=True)

    def model(seen: ItemFeatures) -> DotProduct:
        torch.manual_seed(0)
        return golden.build(registry, name, seen, data=golden.training_data(), embedding_size=4).double()

    ours, direct = model(features), model(through)
    callback = JointEncoder(
        EncoderWorker(net, items, PRESENT, options), features, options, generator=torch.Generator().manual_seed(0)
    )
    callback.epoch_started(0)
    torch.stack([*ours.training_loss(golden.BATCH).values()]).sum().backward()
    callback.after_batch(golden.BATCH)
    torch.stack([*direct.training_loss(golden.BATCH).values()]).sum().backward()
    torch.nn.utils.clip_grad_norm_(through.net.parameters(), options.clip_grad_norm)
    for (key, mine), theirs in zip(net.named_parameters(), through.net.parameters(), strict=True):
        assert mine.grad is not None, key
        assert theirs.grad is not None, key
        assert theirs.grad.any(), key
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-12)


def test_the_projections_learn_at_the_first_step_and_gates_and_blocks_from_the_second() -> None:
    net, everyone = network(UNLIKE, DIMS), {name: torch.ones(15, dtype=torch.bool) for name in PAIR}
    options = EndToEnd(tune="side", learning_rate=0.01)
    worker = EncoderWorker(net, items_of(UNLIKE, DIMS, everyone), everyone, options)
    gradients = {name: torch.randn(15, dim) for name, dim in DIMS.items()}
    reached = []
    for _ in range(2):
        worker.step(torch.arange(15), gradients, 0.01)
        reached.append({key for key, each in net.named_parameters() if each.grad is not None and each.grad.any()})
    assert reached[0] == {f"project.{name}.{part}" for name in PAIR for part in ("weight", "bias")}
    assert reached[1] == {key for key, _ in net.named_parameters()}
    assert {"within.image.gates", "across.gates", "within.text.blocks.0.down.weight"} <= reached[1]


def test_a_side_epoch_costs_the_same_for_towers_of_3_and_12_blocks() -> None:
    work = []
    for depth in (3, 12):
        net, items = joint.side_world(depth, joint.QUICK, width=16, dim=8)
        everyone = {name: torch.ones(joint.QUICK.items, dtype=torch.bool) for name in PAIR}
        worker = EncoderWorker(net, items, everyone, EndToEnd(tune="side"))
        with FlopCounterMode(display=False) as counted:
            worker.step(torch.arange(20), {name: torch.randn(20, 8) for name in PAIR}, 0.01)
            worker.encode(torch.arange(20))
        work.append(counted.get_total_flops())
    assert work[0] == work[1] > 1000


# Hidden states of the shipped encoders


def built(registry: Registry, name: str, modalities: tuple[str, ...] = PAIR, **keys: Any) -> ItemEncoder:
    spec = registry.encoders.get(name)
    torch.manual_seed(0)
    encoder: ItemEncoder = resolve(spec.cls)(resolve(spec.config)(**keys), modalities).eval()
    return encoder


def batch_for(encoder: ItemEncoder) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (50, 40, 3), np.uint8)) for _ in range(3)]
    texts = ("a red box", "one", "a tall blue tower with a long name")
    items = [
        encoder.prepare(RawItem(i, each, text)) for i, (each, text) in enumerate(zip(pictures, texts, strict=True))
    ]
    return pad_and_stack(items, padding=encoder.padding, encoder="one")


def of_clip(encoder: Any, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
    model = encoder.model
    return {
        "image": model.visual.ln_post(last["image"]) @ encoder.image_projection,
        "text": model.ln_final(last["text"]) @ encoder.text_projection,
    }


def of_vlmo(encoder: Any, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
    model = encoder.model
    norm = model.transformer.norm
    joint = {"joint": model.pooler(norm(last["joint"]))}
    return {name: model.project(norm(last[name]), name) for name in PAIR} | joint


def of_beit3(encoder: Any, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
    norm, model = encoder.model.beit3.encoder.layer_norm, encoder.model
    heads = {"image": (norm.A, model.vision_head), "text": (norm.B, model.language_head)}
    made = {name: normalize(head(own(last[name])), dim=-1) for name, (own, head) in heads.items()}
    return made | {"joint": norm.A(last["joint"])}


def of_cnn_sbert(encoder: Any, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"image": last["image"], "text": normalize(last["text"], dim=1)}


def of_projected(encoder: Any, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: encoder.projections[name](rows) for name, rows in of_cnn_sbert(encoder, last).items()}


def of_hf(encoder: Any, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
    model = encoder.model
    return {
        "image": model.visual_projection(model.vision_model.post_layernorm(last["image"])),
        "text": model.text_projection(model.text_model.final_layer_norm(last["text"])),
    }


@pytest.mark.parametrize(
    ("name", "variant", "head"),
    [
        ("clip", "tiny", of_clip),
        ("vlmo", "tiny", of_vlmo),
        ("beit3", "tiny", of_beit3),
        ("cnn_sbert", "tiny", of_cnn_sbert),
        ("cnn_sbert", "projected-tiny", of_projected),
        ("hf", "tiny", of_hf),
    ],
)
def test_the_last_layers_states_are_those_that_the_encoder_makes_its_feature_of(
    name: str, variant: str, head: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]], registry: Registry
) -> None:
    modalities = (*PAIR, "joint") if name in ("vlmo", "beit3") else PAIR
    encoder = built(registry, name, modalities, variant=variant)
    batch = batch_for(encoder)
    with torch.inference_mode():
        last = {modality: layers[-1] for modality, layers in encoder.hidden_states(batch).items()}
        features = encoder(batch)
        for modality, rows in head(encoder, last).items():
            torch.testing.assert_close(rows, features[modality], rtol=1e-5, atol=1e-5, msg=f"{name} {modality}")


def test_sentence_transformers_states_are_pooled_as_the_model_pools_its_last(registry: Registry) -> None:
    encoder: Any = built(registry, "st", ("text",), variant="sentence-transformers/all-MiniLM-L6-v2")
    batch = batch_for(encoder)
    with torch.inference_mode():
        last = encoder.hidden_states(batch)["text"][-1]
        torch.testing.assert_close(normalize(last, dim=1), encoder(batch)["text"], rtol=1e-5, atol=1e-5)


# The cache


def made_states(
    catalog: ItemCatalog, registry: Registry, layers: Any = "auto"
) -> tuple[dict[str, FeatureTable], dict[str, HiddenStates]]:
    """The tables and the states of toy's items by clip:tiny."""
    spec = registry.encoders.get("clip")
    config, options = resolve(spec.config)(variant="tiny"), EncodeOptions(batch_size=5)
    fields = {"text_fields": ("title",), "options": options}
    tables = encode(catalog, spec, config, modalities=PAIR, **fields)  # type: ignore[arg-type]
    states = {
        name: hidden_states(catalog, spec, config, table, layers=layers, **fields)  # type: ignore[arg-type]
        for name, table in tables.items()
    }
    return tables, states


def test_cached_states_are_the_encoders_own_standardized_over_the_items_that_are_present(
    catalog: ItemCatalog, registry: Registry
) -> None:
    tables, states = made_states(catalog, registry)
    encoder, there = built(registry, "clip", ("text",), variant="tiny"), tables["text"].present
    items = [encoder.prepare(RawItem(i, None, " ".join(catalog.fields["title"][i].split()))) for i in range(16)]
    with torch.inference_mode():
        layers = encoder.hidden_states(pad_and_stack(items, padding=encoder.padding, encoder="clip"))["text"]
    assert states["text"].layers == (0, 1, 2, 3)
    assert not there.all()
    for layer, array in zip(layers, states["text"].arrays, strict=True):
        own = layer[there].double().numpy()
        assert array.dtype == np.float16
        assert not array[~there].any()
        deviation = own.std(0)
        expected = (own - own.mean(0)) / np.where(deviation > 1e-6, deviation, np.inf)
        np.testing.assert_allclose(array[there], expected, atol=2e-3)
    first = states["image"].arrays[0]
    assert not first.any(), "the CLS of the embeddings is the same of all images"


@pytest.fixture
def built_encoders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modalities of the encoders that are built for states."""
    noted: list[str] = []
    build = states_module.build_encoder

    def noting(spec: Any, config: Any, modalities: Any) -> ItemEncoder:
        noted.extend(modalities)
        return build(spec, config, modalities)

    monkeypatch.setattr(states_module, "build_encoder", noting)
    return noted


def test_states_are_encoded_once_and_again_where_they_are_damaged_or_of_other_layers(
    catalog: ItemCatalog, registry: Registry, built_encoders: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    tables, sound = made_states(catalog, registry)
    made_states(catalog, registry)
    assert built_encoders == ["image", "text"]
    _, others = made_states(catalog, registry, layers=(1, 3))
    assert others["text"].layers == (1, 3)
    assert np.array_equal(others["text"].arrays[1], sound["text"].arrays[3])
    built_encoders.clear()
    expected = [np.array(array) for array in sound["text"].arrays]
    folder = states_module.states_folder(tables["text"], "auto")
    about = (folder / "about.json").read_text()
    for name, content in (
        ("3.npy", (folder / "3.npy").read_bytes()[:-1] + b"?"),
        ("constants-2.npy", b""),
        ("about.json", b"{"),
        ("about.json", about.replace(json.dumps([0, 1, 2, 3], indent=2).replace("\n", "\n  "), "[0, 1]").encode()),
    ):
        (folder / name).write_bytes(content)
        caplog.clear()
        _, again = made_states(catalog, registry)
        assert "it is made again" in caplog.text, name
        for one, other in zip(again["text"].arrays, expected, strict=True):
            assert np.array_equal(one, other)
    assert "expected layers 0, 1, 2, 3, got 0, 1" in caplog.text
    assert built_encoders == 4 * ["text"]


def test_what_fails_amid_the_making_leaves_nothing(
    catalog: ItemCatalog, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    standardize = states_module._standardize

    def fails(folder: Path, layer: int, *rest: Any) -> dict[str, str]:
        if layer == 2:
            raise RuntimeError("no more")
        return standardize(folder, layer, *rest)

    monkeypatch.setattr(states_module, "_standardize", fails)
    with pytest.raises(RuntimeError, match="no more"):
        made_states(catalog, registry)
    assert not [path for path in (home() / "states").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(2, (0, 1, 2)), (6, (0, 1, 2, 3, 4, 5, 6)), (12, (0, 2, 4, 6, 8, 10, 12)), (24, (0, 4, 8, 12, 16, 20, 24))],
)
def test_seven_layers_are_taken_evenly_spaced(depth: int, layers: tuple[int, ...]) -> None:
    assert evenly_spaced(depth) == layers


# Runs


@pytest.mark.parametrize("encoder", ["clip:tiny", "beit3:tiny"])
def test_a_run_starts_at_the_scores_of_pt_and_its_control_ends_there(
    encoder: str, run: Callable[..., Answer], built_encoders: list[str]
) -> None:
    frozen = result_of(run("-m", "VBPR", "--encoder", encoder, "--json"))
    twin = result_of(run("-m", "VBPR", "--encoder", encoder, *SIDE, "--ete.learning_rate=0", "--json"))
    assert built_encoders == ["image", "text"]
    features = load_weights(Path("runs", twin["run_id"], "features.safetensors"))
    weights = [load_weights(Path("runs", one["run_id"], "best.safetensors")) for one in (frozen, twin)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=1e-6)
    if encoder == "clip:tiny":  # not normalized
        assert frozen["test"] == twin["test"]
    trained = result_of(run("-m", "VBPR", "--encoder", encoder, *SIDE, "--ete.learning_rate=0.01", "--json"))
    assert built_encoders == ["image", "text"], "states are cached"
    moved = load_weights(Path("runs", trained["run_id"], "features.safetensors"))
    for modality, absent in (("image", 15), ("text", 14)):
        assert not moved[modality][absent].any()
        assert not torch.equal(moved[modality], features[modality])


def test_normalize_unit_keeps_what_a_side_network_makes_at_length_1(run: Callable[..., Answer]) -> None:
    result = result_of(run("-m", "VBPR", "--encoder", "clip:tiny", *SIDE, "--normalize=unit", "--json"))
    for table in load_weights(Path("runs", result["run_id"], "features.safetensors")).values():
        assert sorted(table.norm(dim=1).round(decimals=5).unique().tolist()) == [0, 1]


def test_the_record_says_what_was_trained_and_the_weights_of_which_encoder_they_need(
    run: Callable[..., Answer],
) -> None:
    result = result_of(run("-m", "VBPR", "--encoder", "clip:tiny", *SIDE, "--ete.side_layers=[1,3]", "--json"))
    record = result["record"]["ete"]
    weights = Path("runs", result["run_id"], "encoder.safetensors")
    size = sum(tensor.numel() for tensor in load_weights(weights).values())
    assert record["side"]["layers"] == {"image": [1, 3], "text": [1, 3]}
    assert record["side"]["depth"] == {"image": 3, "text": 3}
    assert record["side"]["bytes_cached"] == 2 * 2 * 16 * 64 * 2  # modalities, layers, items, width, bytes
    assert record["parameters_trained"] == size
    assert record["parameters"] == size + record["side"]["frozen_parameters"]
    with safe_open(weights, framework="numpy") as file:
        about = file.metadata()
    assert json.loads(about["layers"]) == {"image": [1, 3], "text": [1, 3]}
    assert json.loads(about["base"])["text"][0] == "clip"
    assert json.loads(about["run"]) == result["run_id"]


@pytest.mark.parametrize("modalities", ["image", "image,text"])
@pytest.mark.parametrize("model", ["VBPR", "MMGCN", "MMGCL", "SLMRec", "LATTICE", "FREEDOM", "BM3", "MGCN"])
def test_each_model_trains_a_side_network_on_each_subset_of_modalities(
    model: str, modalities: str, run: Callable[..., Answer]
) -> None:
    answer = run("-m", model, "--encoder", "vlmo:tiny", *SIDE, "--modalities", modalities, "--json")
    assert result_of(answer)["record"]["ete"]["steps"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--encoder", "basic"),
            "--ete.tune=side: expected an encoder with hidden states, got basic: it gives none; try",
        ),
        (
            ("--encoder", "clip:tiny", "--ete.side_layers=[0,9]"),
            "ete.side_layers: expected layers of encoder clip, whose tower of image has 3 blocks (layers 0, the "
            "embeddings, to 3), got 9; try --ete.side_layers=auto",
        ),
        (
            ("--encoder", "clip:tiny", "--ete.side_layers=[3,1]"),
            "must be auto, or different numbers of layers from 0 on, rising, got",
        ),
        (
            ("--encoder", "clip:tiny", "--ete.tune=sides"),
            "must be full, lora, side, or last:N, such as last:1, got 'sides'",
        ),
        (("--encoder", "clip:tiny", "--ete.itc=1"), "ete.itc: expected 0 under ete.tune=side"),
        (("--encoder", "clip:tiny", "--ete.freeze=[model.*]"), "clip's side network: ete.freeze: expected a pattern"),
    ],
    ids=["states", "layers", "order", "tune", "itc", "freeze"],
)
def test_what_side_can_not_do_is_refused_in_a_sentence(
    arguments: tuple[str, ...], message: str, run: Callable[..., Answer]
) -> None:
    answer = run("-m", "VBPR", *SIDE, *arguments)
    assert answer.code == 2, answer.err
    assert message in " ".join(answer.err.split())


def test_runs_that_train_the_whole_encoder_keep_their_names() -> None:
    known = {
        "mode": "two_pass", "learning_rate": 1e-5, "warmup_steps": 0, "weight_decay": 0.01, "clip_grad_norm": 1.0,
        "encoder_every": 4, "rows": 256, "micro_batch": 32, "warm_epochs": 0, "refresh_epochs": 1, "itc": 0.0,
        "freeze": [], "dtype": "float32",
    }  # fmt: skip
    assert plain(EndToEnd()) == known
    side = {"tune": "side", "learning_rate": 1e-3, "encoder_every": 8, "rows": 64, "micro_batch": 0}
    assert plain(EndToEnd(tune="side")) == known | side
    assert plain(EndToEnd(tune="side", rows=256))["rows"] == 256


@pytest.mark.parametrize(("tune", "rate", "rows"), [("full", "1.0e-05", "256"), ("side", "0.001", "64")])
def test_config_show_prints_the_defaults_of_what_is_tuned(tune: str, rate: str, rows: str) -> None:
    answer = call(
        "config", "show", "-m", "VBPR", "-d", "toy", "--encoder", "clip:tiny", "--paradigm", "ete", f"--ete.tune={tune}"
    )
    shown = {line.split()[0]: line.split()[1] for line in answer.out.splitlines() if line.startswith("ete.")}
    assert (shown["ete.learning_rate"], shown["ete.rows"], shown["ete.learner"]) == (rate, rows, "null")


LONG = (
    "run", "-m", "MMGCN", "-d", "toy", *SMALL[1:], "--encoder", "clip:tiny", *SIDE, "--ete.rows=4",
    "--ete.learning_rate=1e-3", "--ete.encoder_every=1", "--ete.micro_batch=2", "--learning_rate=1e-4", "--json",
    "--checkpoint_seconds=0",
)  # fmt: skip
FILES = ("best.safetensors", "encoder.safetensors", "features.safetensors")


@pytest.mark.slow
def test_a_side_run_killed_and_resumed_ends_as_the_uninterrupted_one(run: Callable[..., Answer]) -> None:
    command = (*LONG, "--epochs=150", "--stopping_step=150", "--resume")
    whole = result_of(call(*command, "--out", "whole"))

    def saved() -> int:
        for path in Path("runs").glob("MMGCN-*/checkpoint/state.safetensors"):
            with contextlib.suppress(FileNotFoundError, SafetensorError), safe_open(path, framework="numpy") as file:
                return int(json.loads(file.metadata()["numbers"])["epoch"])
        return 0

    for moment in (5, 40):
        process = start(*command)
        wait_until(lambda moment=moment: saved() >= moment, process)  # type: ignore[misc]
        process.kill()
        process.communicate()
    resumed = result_of(call(*command))
    assert resumed["test"] == whole["test"]
    for found in (resumed, whole):
        del found["record"]["ete"]["epoch_seconds"]
    assert resumed["record"]["ete"] == whole["record"]["ete"]
    for name in FILES:
        assert hash_file(Path("runs", resumed["run_id"], name)) == hash_file(Path("whole", whole["run_id"], name)), name


@pytest.mark.slow
def test_two_processes_train_the_side_network_of_one(run: Callable[..., Answer]) -> None:
    command = (*LONG, "--epochs=4")
    alone = result_of(call(*command, "--out", "alone"))
    by = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *by, "-m", "mmrec_lmm", *command],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    together = result_of(Answer(done.returncode, done.stdout, done.stderr))
    assert together["run_id"] == alone["run_id"]
    assert together["record"]["processes"] == 2
    for name in FILES:
        mine, other = (load_weights(Path(out, alone["run_id"], name)) for out in ("runs", "alone"))
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_what_a_side_network_reads_of_items_is_their_features_and_states() -> None:
    table = FeatureTable("text", np.ones((3, 2), np.float32), np.array([True, False, True]), "some")
    states = HiddenStates((0, 2), 2, (np.zeros((3, 4), np.float16), np.ones((3, 4), np.float16)))
    batch = side_items({"text": table}, {"text": states}).batch(np.array([1, 2]))
    assert batch[present_key("text")].tolist() == [False, True]
    assert batch[state_key("text", 1)].dtype == torch.float16
    assert states.nbytes == 2 * 3 * 4 * 2
