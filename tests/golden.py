"""The world on which the reference implementations' figures were taken, for the tests that hold ours against them.

12 users, 15 items, 4 training items a user; features and weights filled by an integer hash of their names, so that no
file of weights is needed (models.md, section 7).
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmrec_lmm.plugin.contracts import DotProduct
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.types import Batch, Interactions, TrainingData

N_USERS, N_ITEMS, WIDTH = 12, 15, 8
BATCH = Batch(torch.arange(6), torch.arange(6) * 5 % N_ITEMS, (torch.arange(6) * 5 + 2) % N_ITEMS)
FEATURES = {"image": (24, 11), "text": (10, 12), "audio": (6, 13)}  # width, seed; the reference has no audio
SHORT = {"image": "v", "text": "t", "audio": "a"}  # modalities in the references' names of parameters


def uniform(n: int, h: int) -> np.ndarray:
    """n numbers in [0, 1) by an integer hash of their position and of `h`, the same on every machine."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(h * 2654435761 % 2**32)) % 2**32
    for _ in range(2):
        x ^= x >> np.uint64(16)
        x = x * np.uint64(0x45D9F3B) % 2**32
    x ^= x >> np.uint64(16)
    return x / 2**32


def filled(name: str, shape: torch.Size) -> Tensor:
    """The value of a parameter: uniform, and of a matrix' usual scale."""
    n = math.prod(shape)
    values = 2 * uniform(n, zlib.crc32(name.encode())) - 1
    matrix = len(shape) >= 2 and n > shape[-1]
    values = values * math.sqrt(3 / (n / shape[0])) if matrix else 0.1 * values
    return torch.tensor(values.reshape(shape), dtype=torch.float32)


def fill(model: nn.Module) -> None:
    """Parameters and saved buffers become what the rule says for their names."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(filled(name, tensor.shape))


def training_data() -> TrainingData:
    """The references' interactions: every user has 4, and 12 of the items have 4."""
    users = np.repeat(np.arange(N_USERS), 4)
    items = (5 * users + 4 * np.tile(np.arange(4), N_USERS)) % N_ITEMS
    return TrainingData(N_USERS, N_ITEMS, Interactions(users, items))


def uneven_data() -> TrainingData:
    """A part of them in which degrees differ, so that one normalization isn't the other: users have 1 to 4."""
    train = training_data().train
    kept = np.tile(np.arange(4), N_USERS) <= train.users % 4
    return TrainingData(N_USERS, N_ITEMS, Interactions(train.users[kept], train.items[kept]))


def features(
    *modalities: str, joint: bool = False, absent: int | None = None, dtype: torch.dtype = torch.float32
) -> ItemFeatures:
    """The features of image and text, or of the modalities named; item `absent` lacks them all. Values are float32's,
    whatever `dtype` holds them."""
    tables = {}
    for modality in modalities or ("image", "text"):
        width, seed = FEATURES[modality]
        values = 2 * uniform(N_ITEMS * width, seed).reshape(N_ITEMS, width) - 1
        tables[modality] = torch.tensor(values, dtype=torch.float32).to(dtype)
    present = torch.arange(N_ITEMS) != (-1 if absent is None else absent)
    tables = {modality: table * present.unsqueeze(1) for modality, table in tables.items()}
    return ItemFeatures(tables, dict.fromkeys(tables, present), joint=joint)


def build(
    registry: Registry,
    name: str,
    own: ItemFeatures | None = None,
    *,
    data: TrainingData | None = None,
    **config: Any,
) -> DotProduct:
    """A registered model on this world (or on other interactions in it), filled by the rule."""
    config_class, model_class = (registry.models.load(name, part) for part in ("config", "cls"))
    model: DotProduct = model_class(data or training_data(), own or features(), config_class(**config))
    fill(model)
    return model


def loss_and_gradients(model: DotProduct, batch: Batch = BATCH) -> dict[str, float]:
    """The whole loss, and the norm of its gradient for each parameter that gets one."""
    loss = torch.stack([*model.training_loss(batch).values()]).sum()
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.item(), **norms}


def assert_scores(ours: Tensor, *, first: list[float], norm: float, total: float) -> None:
    """The scores of users 0 to 2: of user 0 the first 6 items, their norm and their sum, to 1e-5."""
    assert ours.shape == (3, N_ITEMS)
    assert ours[0, :6].tolist() == pytest.approx(first, abs=1e-5)
    assert ours.norm().item() == pytest.approx(norm, abs=1e-5)
    assert ours.sum().item() == pytest.approx(total, abs=1e-5)


def dense_adjacency(data: TrainingData) -> Tensor:
    """A (N, N), users first: 1 where a user has an item in training."""
    n_nodes = data.n_users + data.n_items
    matrix = torch.zeros(n_nodes, n_nodes)
    users, items = torch.from_numpy(data.train.users), torch.from_numpy(data.train.items) + data.n_users
    matrix[users, items] = matrix[items, users] = 1.0
    return matrix


def symmetric(adjacency: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2 of a dense A, zero at nodes without edges."""
    scale = adjacency.sum(1).pow(-0.5).nan_to_num(posinf=0.0)
    return scale.unsqueeze(1) * adjacency * scale


# The figures of FREEDOM, BM3, MGCN and UGNN, and of our rules for absent items: golden_models2.json

ENTRIES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "golden_models2.json").read_text())


def entries(model: str) -> list[str]:
    """The names of a model's entries."""
    return [name for name in ENTRIES if name.split("_")[0] == model]


def entry_inputs(name: str) -> tuple[TrainingData, ItemFeatures]:
    """An entry's interactions and features; an item that lacks a modality has a row of zeros there."""
    entry = ENTRIES[name]
    own = features(*entry["modalities"])
    tables, present = own(), {modality: mask.clone() for modality, mask in own.present.items()}
    absent = entry.get("absent", {"item": 0, "modalities": ()})
    for modality in absent["modalities"]:
        tables[modality][absent["item"]] = 0
        present[modality][absent["item"]] = False
    return uneven_data() if entry["world"] == "uneven" else training_data(), ItemFeatures(tables, present)


def entry_model(registry: Registry, name: str, model: str, **config: Any) -> DotProduct:
    """The model of an entry: filled by the rule, its copies of features holding the features."""
    data, own = entry_inputs(name)
    built = build(registry, model, own, data=data, **{**ENTRIES[name]["config"], **config})
    copy_features(built)
    return built


def copy_features(model: DotProduct) -> None:
    """Let a model's trainable copies of the features be these."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for modality, table in model.features().items():
            if not model.features.joint:
                parameters[f"{modality}_embedding.weight"].copy_(table)


def double_features(*modalities: str, joint: bool = False, absent: int | None = None) -> ItemFeatures:
    """`features` in float64, in which item `absent` lacks them all, and the next item the first modality."""
    own = features(*modalities, absent=absent)
    tables = {modality: table.double() for modality, table in own().items()}
    present = {modality: mask.clone() for modality, mask in own.present.items()}
    if absent is not None:
        first = next(iter(tables))
        tables[first][absent + 1] = 0
        present[first][absent + 1] = False
    return ItemFeatures(tables, present, joint=joint)


def dense_neighbors(x: Tensor, k: int, known: Tensor) -> Tensor:
    """Cosines (I, I) of each item with its k nearest, zero elsewhere; an item that isn't known has only itself."""
    unit = x / x.norm(dim=1, keepdim=True).clamp_min(1e-30)
    similar = unit @ unit.T
    best = similar.masked_fill(~known, -torch.inf).topk(min(k, int(known.sum())), dim=1).indices
    kept = torch.zeros_like(similar).scatter(1, best, 1.0) * similar
    return torch.where(known.unsqueeze(1), kept, torch.eye(len(x), dtype=x.dtype))


def dense_mean_of_layers(matrix: Tensor, x: Tensor, layers: int) -> Tensor:
    """The mean of x, S x, ..., S^layers x."""
    terms = [x]
    for _ in range(layers):
        terms.append(matrix @ terms[-1])
    return torch.stack(terms).mean(0)


def assert_same_as_dense(model: DotProduct, dense: DotProduct, loss: Tensor, scores: Tensor) -> None:
    """Hold a model's loss, gradients and scores against those that the equations gave with the parameters of `dense`,
    a model like it; a parameter without gradient has none but zeros there."""
    loss.backward()
    ours = torch.stack([*model.training_loss(BATCH).values()]).sum()
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-12)
    pairs = [
        (name, mine, theirs) for (name, mine), theirs in zip(model.named_parameters(), dense.parameters(), strict=True)
    ]
    if model.features.joint:
        pairs += [(f"features of {m}", model.features()[m], dense.features()[m]) for m in model.features]
    for name, mine, theirs in pairs:
        found, expected = (torch.zeros_like(p) if p.grad is None else p.grad for p in (mine, theirs))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().scorer()(torch.arange(N_USERS)), scores, rtol=0, atol=1e-12)


def poor_features(kind: str) -> ItemFeatures:
    """Features with some zero rows, all zero, all equal, or absent."""
    tables = {modality: table.clone() for modality, table in features()().items()}
    present = torch.ones(N_ITEMS, dtype=torch.bool)
    for table in tables.values():
        if kind == "zero rows":
            table[3:6] = 0
        elif kind == "constant":
            table[:] = 0.7
        else:
            table[:] = 0
    if kind == "absent":
        present[:] = False
    return ItemFeatures(tables, dict.fromkeys(tables, present))
